"""Reads a question into items: words that mean a table, a column, a value, a comparison.

The lexicon is built from the catalog. Every word of the question must mean something: what is
neither in the lexicon nor a filler word is an Unknown, and the question is then not answered.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from commitcast.demo.catalog import Catalog, Column, Table


@dataclass(frozen=True)
class TableItem:
    """Such as "countries": the rows of a table."""

    table: str
    plural: bool = False


@dataclass(frozen=True)
class ColumnItem:
    """Such as "population": a column, in each table that has one of that name."""

    columns: dict[str, str]
    """Table name to column name."""


@dataclass(frozen=True)
class ValueItem:
    """Such as "Europe": a value that text columns hold."""

    places: tuple[tuple[str, str, str], ...]
    """(table, column, value)."""
    text: str

    @property
    def tables(self) -> set[str]:
        """The tables that hold it."""
        return {table for table, _, _ in self.places}


@dataclass(frozen=True)
class DegreeItem:
    """Such as "largest", "most", "larger": the upper or lower end of a column."""

    most: bool
    columns: dict[str, str]
    """The column an adjective speaks of, by table; empty for "most" and "highest"."""
    text: str


@dataclass(frozen=True)
class FunctionItem:
    """Such as "average", "total": what to make of a column."""

    name: str


@dataclass(frozen=True)
class CompareItem:
    """Such as "more than", "before", "="."""

    operator: str


@dataclass(frozen=True)
class NumberItem:
    """A number, with "million" and the like multiplied in."""

    value: float


@dataclass(frozen=True)
class OrdinalItem:
    """Such as "second" in "the second largest"."""

    place: int


@dataclass(frozen=True)
class UnitItem:
    """Such as "km²": the unit of some columns."""

    columns: dict[str, str]


@dataclass(frozen=True)
class AffixItem:
    """Such as "starting with Z": a part of a name."""

    pattern: str


@dataclass(frozen=True)
class WordItem:
    """A word of the grammar itself: "count", "each", "by", "not", "between", "and"."""

    word: str


@dataclass(frozen=True)
class Unknown:
    """A word that means nothing here."""

    text: str


Item = (
    TableItem
    | ColumnItem
    | ValueItem
    | DegreeItem
    | FunctionItem
    | CompareItem
    | NumberItem
    | OrdinalItem
    | UnitItem
    | AffixItem
    | WordItem
    | Unknown
)

_FILLERS = frozenset(
    # one text, because a list of a hundred quoted words is harder to read and to change
    """a about all also am an any are as at be been being called can chemical compare could describe
    did do does ever exist exists find for from get give had has have having hello hey hi high how
    i in info information inside is it its know let like list live lives living located long look
    low me much my name named names of off on one ones or our out please rank say show solar some
    sun system tell thank thanks that the their them then there these they this those to up us use
    used uses using want was we were what what's when which whose with within world would yes you
    your""".split()  # noqa: SIM905
)

_PHRASES: dict[str, Item] = {
    "how many": WordItem("count"),
    "number of": WordItem("count"),
    "count": WordItem("count"),
    "count of": WordItem("count"),
    "per": WordItem("each"),
    "each": WordItem("each"),
    "every": WordItem("each"),
    "for each": WordItem("each"),
    "in each": WordItem("each"),
    "of each": WordItem("each"),
    "grouped by": WordItem("each"),
    "group by": WordItem("each"),
    "by": WordItem("by"),
    "sorted by": WordItem("by"),
    "ordered by": WordItem("by"),
    "order by": WordItem("by"),
    "sort by": WordItem("by"),
    "ascending": WordItem("ascending"),
    "descending": WordItem("descending"),
    "not": WordItem("not"),
    "not in": WordItem("not"),
    "outside": WordItem("not"),
    "outside of": WordItem("not"),
    "except": WordItem("not"),
    "excluding": WordItem("not"),
    "without": WordItem("not"),
    "no": WordItem("not"),
    "don't": WordItem("not"),
    "aren't": WordItem("not"),
    "isn't": WordItem("not"),
    "between": WordItem("between"),
    "and": WordItem("and"),
    "than": WordItem("than"),
    "top": WordItem("top"),
    "first": WordItem("top"),
    "average": FunctionItem("avg"),
    "mean": FunctionItem("avg"),
    "total": FunctionItem("sum"),
    "sum": FunctionItem("sum"),
    "sum of": FunctionItem("sum"),
    "combined": FunctionItem("sum"),
    "altogether": FunctionItem("sum"),
    "more than": CompareItem(">"),
    "greater than": CompareItem(">"),
    "higher than": CompareItem(">"),
    "over": CompareItem(">"),
    "above": CompareItem(">"),
    "exceeding": CompareItem(">"),
    "after": CompareItem(">"),
    "since": CompareItem(">="),
    "at least": CompareItem(">="),
    "less than": CompareItem("<"),
    "fewer than": CompareItem("<"),
    "lower than": CompareItem("<"),
    "under": CompareItem("<"),
    "below": CompareItem("<"),
    "before": CompareItem("<"),
    "at most": CompareItem("<="),
    "up to": CompareItem("<="),
    "exactly": CompareItem("="),
    "equal to": CompareItem("="),
    ">": CompareItem(">"),
    ">=": CompareItem(">="),
    "<": CompareItem("<"),
    "<=": CompareItem("<="),
    "=": CompareItem("="),
}

_DEGREES = {
    True: [
        "most",
        "highest",
        "greatest",
        "maximum",
        "max",
        "strongest",
        "longest",
        "more",
        "higher",
        "longer",
    ],
    False: [
        "least",
        "lowest",
        "fewest",
        "minimum",
        "min",
        "weakest",
        "shortest",
        "less",
        "lower",
        "fewer",
        "shorter",
    ],
}
_ORDINALS = ["second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
_SMALL = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
_SCALES = {
    "hundred": 1e2, "thousand": 1e3, "k": 1e3, "million": 1e6, "m": 1e6, "mn": 1e6,
    "billion": 1e9, "bn": 1e9, "trillion": 1e12,
}  # fmt: skip
_AFFIXES = {
    "start with": "{}%", "starting with": "{}%", "starts with": "{}%", "begin with": "{}%",
    "beginning with": "{}%", "begins with": "{}%", "end with": "%{}", "ending with": "%{}",
    "ends with": "%{}", "end in": "%{}", "ending in": "%{}", "contain": "%{}%",
    "contains": "%{}%", "containing": "%{}%",
}  # fmt: skip
_AFFIX_FILLERS = frozenset({"the", "letter", "letters", "a", "word"})

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
        for phrase, item in _PHRASES.items():
            lexicon.add(phrase, item)
        for most, adjectives in _DEGREES.items():
            for word in adjectives:
                lexicon.add(word, DegreeItem(most, {}, word))
        for place, word in enumerate(_ORDINALS, start=2):
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
    if fold(token.text) in _FILLERS or token.stem in _FILLERS:
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
    elif value is None and folded in _SMALL and folded != "one":
        value = _SMALL.index(folded)
    if value is None:
        return None
    if following in ("st", "nd", "rd", "th"):
        return 2, OrdinalItem(int(value))
    used = 1
    while at + used < len(tokens) and fold(tokens[at + used].text) in _SCALES:
        value *= _SCALES[fold(tokens[at + used].text)]
        used += 1
    return used, NumberItem(value)


def _affix_at(tokens: list[Token], at: int) -> tuple[int, Item] | None:
    for length in (2, 1):
        phrase = " ".join(fold(token.text) for token in tokens[at : at + length])
        if phrase not in _AFFIXES:
            continue
        end = at + length
        while end < len(tokens) - 1 and fold(tokens[end].text) in _AFFIX_FILLERS:
            end += 1
        if end < len(tokens):
            return end + 1 - at, AffixItem(_AFFIXES[phrase].format(tokens[end].text))
    return None
