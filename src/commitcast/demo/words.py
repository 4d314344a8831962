"""Reads a question into items: words that mean a table, a column, a value, a comparison.

The lexicon is built from the catalog. Every word of the question must mean something: what is
neither in the lexicon nor a filler word is an Unknown, and the question is then not answered.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from commitcast.demo.items import (
    AffixItem,
    ColumnItem,
    DegreeItem,
    Item,
    NumberItem,
    OrdinalItem,
    TableItem,
    UnitItem,
    Unknown,
    ValueItem,
)
from commitcast.demo.vocabulary import (
    AFFIX_FILLERS,
    AFFIXES,
    DEGREES,
    FILLERS,
    ORDINALS,
    PHRASES,
    SCALES,
    SMALL,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from commitcast.demo.catalog import Catalog, Column, Table


_SHORTEST_PLURAL = 4
"""Letters: "gas" and "is" are no plurals."""

_TOKEN = re.compile(
    r"(?P<number>(?<!\w)-?\d[\d,]*(?:\.\d+)?(?=[kmb]?n?\b|\D|$))"
    r"|(?P<word>[^\W\d_](?:[\w]|['’ʻ./\-](?=\w))*[²³]?)"  # noqa: RUF001
    r"|(?P<sign><=|>=|[<>=])|(?P<other>[^\s.,;:?!\"'()\[\]’“”])"  # noqa: RUF001
)
_NOT_A_WORD_END = ("'s", "’s")  # noqa: RUF001


@dataclass(frozen=True)
class Token:
    """A word, number or sign of the question."""

    text: str
    stem: str
    number: float | None = None


def fold(text: str) -> str:
    """Lower case, without accents and with one kind of apostrophe."""
    plain = unicodedata.normalize("NFKD", text.replace("²", "2").replace("’", "'")).casefold()  # noqa: RUF001
    return "".join(char for char in plain if not unicodedata.combining(char))


def stem(word: str) -> str:
    """A word without its plural or possessive ending; not English grammar, only the same for both sides."""
    folded = fold(word)
    for ending in _NOT_A_WORD_END:
        folded = folded.removesuffix(ending)
    if folded.endswith("ies") and len(folded) > _SHORTEST_PLURAL:
        return folded[:-3] + "y"
    if folded.endswith(("ses", "xes", "ches")):
        return folded[:-2]
    if (
        folded.endswith("s")
        and not folded.endswith(("ss", "us", "is"))
        and len(folded) >= _SHORTEST_PLURAL
    ):
        return folded[:-1]
    return folded


def tokens_of(text: str) -> list[Token]:
    """The words, numbers and signs of a text, in order."""
    found = []
    for match in _TOKEN.finditer(text):
        raw = match.group()
        if match.lastgroup == "number":
            digits = raw.rstrip(",").replace(",", "")
            found.append(Token(raw, digits, float(digits)))
        else:
            found.append(Token(raw, stem(raw)))
    return found


@dataclass
class Lexicon:
    """All phrases that mean something, by their stems."""

    phrases: dict[tuple[str, ...], list[Item]] = field(default_factory=dict)
    exact: dict[str, ValueItem] = field(default_factory=dict)
    longest: int = 1

    def add(self, phrase: str, item: Item) -> None:
        """Let a phrase mean an item, merged with what it means already."""
        key = tuple(token.stem for token in tokens_of(phrase))
        known = self.phrases.setdefault(key, [])
        self.longest = max(self.longest, len(key))
        for place, other in enumerate(known):
            merged = _merge(other, item)
            if merged is not None:
                known[place] = merged
                return
        known.append(item)

    @classmethod
    def of(cls, catalog: Catalog) -> Lexicon:
        """The lexicon of a catalog."""
        lexicon = cls()
        for phrase, item in PHRASES.items():
            lexicon.add(phrase, item)
        for most, adjectives in DEGREES.items():
            for word in adjectives:
                lexicon.add(word, DegreeItem(most, {}, word))
        for place, word in enumerate(ORDINALS, start=2):
            lexicon.add(word, OrdinalItem(place))
        for table in catalog.tables:
            for noun in (table.singular, *table.nouns):
                lexicon.add(noun, TableItem(table.name))
            for column in table.columns:
                _add_column(lexicon, table, column)
        return lexicon

    def known_words(self) -> set[str]:
        """Every single word it knows, for suggestions."""
        return {word for phrase in self.phrases for word in phrase if len(word) >= _SHORTEST_PLURAL}


def _add_column(lexicon: Lexicon, table: Table, column: Column) -> None:
    for word in column.words:
        lexicon.add(word, ColumnItem({table.name: column.name}))
    for unit in column.units:
        lexicon.add(unit, UnitItem({table.name: column.name}))
    for most, adjectives in ((True, column.more), (False, column.less)):
        for word in adjectives:
            lexicon.add(word, DegreeItem(most, {table.name: column.name}, word))
    if column.kind != "text":
        return
    spellings = table.spellings if column.name == table.label else column.spellings
    for value in column.values:
        item = ValueItem(((table.name, column.name, value),), value)
        if column.exact_case:
            lexicon.exact[value] = item
            continue
        for phrase in (value, *spellings.get(value, ())):
            lexicon.add(phrase, item)


def _merge(known: Item, new: Item) -> Item | None:
    match known, new:
        case TableItem(), TableItem() if known == new:
            return known
        case ColumnItem(), ColumnItem() if not set(known.columns) & set(new.columns):
            return ColumnItem({**known.columns, **new.columns})
        case UnitItem(), UnitItem():
            return UnitItem({**new.columns, **known.columns})
        case ValueItem(), ValueItem():
            return ValueItem((*known.places, *new.places), known.text)
        case DegreeItem(), DegreeItem() if known.most == new.most:
            return DegreeItem(known.most, {**known.columns, **new.columns}, known.text)
        case _:
            return None


def items_of(text: str, lexicon: Lexicon) -> list[Item]:
    """What each phrase of a question means, fillers left out."""
    return list(_items(tokens_of(text), lexicon))


def _items(tokens: list[Token], lexicon: Lexicon) -> Iterator[Item]:
    at = 0
    while at < len(tokens):
        used, item = _item_at(tokens, at, lexicon)
        at += used
        if item is not None:
            yield item


def _item_at(tokens: list[Token], at: int, lexicon: Lexicon) -> tuple[int, Item | None]:
    number = _number_at(tokens, at)
    if number is not None:
        return number
    affix = _affix_at(tokens, at)
    if affix is not None:
        return affix
    token = tokens[at]
    for length in range(min(lexicon.longest, len(tokens) - at), 0, -1):
        phrase = tuple(part.stem for part in tokens[at : at + length])
        if phrase in lexicon.phrases:
            item = lexicon.phrases[phrase][0]
            if isinstance(item, TableItem):
                last = tokens[at + length - 1]
                item = TableItem(item.table, plural=fold(last.text) != last.stem)
            return length, item
    if token.text in lexicon.exact and (len(token.text) > 1 or at > 0) and token.text != "I":
        return 1, lexicon.exact[token.text]
    if fold(token.text) in FILLERS or token.stem in FILLERS:
        return 1, None
    return 1, Unknown(token.text)


def _number_at(tokens: list[Token], at: int) -> tuple[int, Item] | None:
    token = tokens[at]
    following = fold(tokens[at + 1].text) if at + 1 < len(tokens) else ""
    value = token.number
    folded = fold(token.text)
    if (
        value is None
        and folded in ("a", "one")
        and following in ("hundred", "thousand", "million", "billion")
    ):
        value = 1
    elif value is None and folded in SMALL and folded != "one":
        value = SMALL.index(folded)
    if value is None:
        return None
    if following in ("st", "nd", "rd", "th"):
        return 2, OrdinalItem(int(value))
    used = 1
    while at + used < len(tokens) and fold(tokens[at + used].text) in SCALES:
        value *= SCALES[fold(tokens[at + used].text)]
        used += 1
    return used, NumberItem(value)


def _affix_at(tokens: list[Token], at: int) -> tuple[int, Item] | None:
    for length in (2, 1):
        phrase = " ".join(fold(token.text) for token in tokens[at : at + length])
        if phrase not in AFFIXES:
            continue
        end = at + length
        while end < len(tokens) - 1 and fold(tokens[end].text) in AFFIX_FILLERS:
            end += 1
        if end < len(tokens):
            return end + 1 - at, AffixItem(AFFIXES[phrase].format(tokens[end].text))
    return None
