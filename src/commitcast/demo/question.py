"""Understands a question about the bundled data: from its items to one Query.

A question is answered only when every word of it was understood; otherwise NotUnderstood says
which part was not.
"""

from __future__ import annotations

import difflib
from functools import lru_cache
from typing import TYPE_CHECKING

from commitcast.demo.conditions import NotUnderstood, Reading, read_conditions
from commitcast.demo.items import (
    ColumnItem,
    DegreeItem,
    FunctionItem,
    Item,
    NumberItem,
    OrdinalItem,
    TableItem,
    UnitItem,
    Unknown,
    ValueItem,
    WordItem,
)
from commitcast.demo.query import Query
from commitcast.demo.words import Lexicon, items_of

if TYPE_CHECKING:
    from commitcast.demo.catalog import Catalog, Column, Table

_PLURAL_LIMIT = 5
_SORTED_LIMIT = 10
_MOST_ASKED_FOR = 50


@lru_cache(maxsize=4)
def _lexicon(catalog_json: str) -> Lexicon:
    from commitcast.demo.catalog import Catalog

    return Lexicon.of(Catalog.model_validate_json(catalog_json))


def understand(question: str, catalog: Catalog) -> Query:
    """The query that answers a question; raises NotUnderstood when there is none."""
    lexicon = _lexicon(catalog.model_dump_json())
    items = items_of(question, lexicon)
    _refuse_unknown(items, lexicon)
    table = _choose_table(items, catalog)
    reading = Reading(table, items)
    read_conditions(reading)
    return _Shape(reading).query()


def _refuse_unknown(items: list[Item], lexicon: Lexicon) -> None:
    unknown = [item.text for item in items if isinstance(item, Unknown)]
    if not unknown:
        if not items:
            raise NotUnderstood("I answer questions about countries, elements and planets.")
        return
    near = difflib.get_close_matches(unknown[0].casefold(), lexicon.known_words(), n=1, cutoff=0.8)
    hint = f" Did you mean “{near[0]}”?" if near else ""
    verb = "means" if len(unknown) == 1 else "mean"
    words = " and ".join(f"“{word}”" for word in unknown[:3])
    raise NotUnderstood(f"I do not know what {words} {verb} in this data.{hint}")


def _tables_of(item: Item) -> set[str] | None:
    match item:
        case TableItem():
            return {item.table}
        case ColumnItem():
            return set(item.columns)
        case ValueItem():
            return item.tables
        case DegreeItem() | UnitItem():
            return set(item.columns) or None
        case _:
            return None


def _choose_table(items: list[Item], catalog: Catalog) -> Table:
    spoken = [tables for item in items if (tables := _tables_of(item)) is not None]
    if not spoken:
        raise NotUnderstood("I cannot tell what the question is about.")
    possible = set.intersection(*spoken)
    if not possible:
        raise NotUnderstood(
            "I can ask one table at a time, and the question speaks of things in different ones."
        )
    if len(possible) > 1:
        names = " and ".join(sorted(possible))
        raise NotUnderstood(f"I find that in {names}: please say which of them you mean.")
    return catalog.table(possible.pop())


class _Shape:
    """Decides what a question asks for, once its conditions are taken out."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.table = reading.table
        self.items = reading.items
        self.words = {item.word for item in self.items if isinstance(item, WordItem)}
        self.columns = self._columns()
        self.numeric = [column for column in self.columns if column.numeric]
        self.categories = [column for column in self.columns if column.category]
        self.degrees = [item for item in self.items if isinstance(item, DegreeItem)]
        self.functions = [item for item in self.items if isinstance(item, FunctionItem)]
        self.nouns = [item for item in self.items if isinstance(item, TableItem)]
        self.ordinals = [item for item in self.items if isinstance(item, OrdinalItem)]
        self.numbers = [item for item in self.items if isinstance(item, NumberItem)]
        self.conditions = tuple(reading.conditions)
        self.names_rows = any(
            condition.column == self.table.label and condition.operator in ("=", "in")
            for condition in self.conditions
        )

    def _columns(self) -> list[Column]:
        fixed = {c.column for c in self.reading.conditions if c.operator == "=" and c.values}
        found: dict[str, Column] = {}
        for item in self.items:
            column = self.reading.column_of(item)
            if isinstance(item, ColumnItem) and column is not None and column.name not in fixed:
                found.setdefault(column.name, column)
        return list(found.values())

    def query(self) -> Query:  # noqa: PLR0911  (one return for each kind of question)
        """The query, or NotUnderstood."""
        self._refuse_leftovers()
        if self.degrees or "top" in self.words:
            return self._ranked()
        if "count" in self.words:
            return self._counted()
        if self.functions:
            return self._computed(self.functions[0].name)
        group = self._group()
        if group is not None and self.numeric:
            return self._grouped(group, self.numeric[0])
        if group is not None:
            return self._grouped(group, None)
        if "by" in self.words and self.numeric:
            return self._rank(
                self.numeric[0], most="ascending" not in self.words, limit=_SORTED_LIMIT
            )
        return self._listed()

    def _refuse_leftovers(self) -> None:
        if "not" in self.words or "between" in self.words or "than" in self.words:
            raise NotUnderstood("I did not understand what is excluded or compared there.")
        if len(self.degrees) > 1 or len(self.functions) > 1:
            raise NotUnderstood("That asks for several things at once; please ask one at a time.")
        asks_for_n = self.degrees or self.words & {"top", "by"}
        if self.numbers and (not asks_for_n or len(self.numbers) > 1):
            raise NotUnderstood(f"I cannot tell what the number {self.numbers[0].value:g} is for.")

    def _group(self) -> Column | None:
        for place, item in enumerate(self.items):
            if item in (WordItem("each"), WordItem("by")):
                column = self.reading.column_of(self.reading.at(place + 1))
                if column is not None and column.category:
                    return column
        if self.reading.having is not None and self.categories:
            return self.categories[0]
        if "each" in self.words:
            raise NotUnderstood("I can group only by " + self._categories_known() + ".")
        return None

    def _categories_known(self) -> str:
        return " or ".join(column.title for column in self.table.columns if column.category)

    def _limit(self, default: int) -> int:
        wanted = self.numbers[0].value if self.numbers else default
        if wanted != int(wanted) or not 1 <= wanted <= _MOST_ASKED_FOR:
            raise NotUnderstood(f"I can show between 1 and {_MOST_ASKED_FOR} rows.")
        return int(wanted)

    def _rank(self, column: Column, *, most: bool, limit: int) -> Query:
        shown = [column, *(other for other in self.columns if other != column)]
        skip = self.ordinals[0].place - 1 if self.ordinals else 0
        return Query(
            self.table.name,
            "rank",
            columns=tuple(other.name for other in shown),
            conditions=self.conditions,
            descending=most,
            limit=self._limit(1 if self.ordinals else limit),
            skip=skip,
        )

    def _measured(self, degree: DegreeItem) -> Column | None:
        place = self.items.index(degree)
        beside = self.reading.numeric_at(place + 1)
        if beside is None and self.reading.word_at(place + 1, "count"):
            beside = self.reading.numeric_at(place + 2)
        if beside is not None:
            return beside
        if self.table.name in degree.columns:
            return self.table.column(degree.columns[self.table.name])
        return self.numeric[0] if self.numeric else None

    def _ranked(self) -> Query:
        degree = self.degrees[0] if self.degrees else DegreeItem(most=True, columns={}, text="top")
        if self.degrees:
            column = self._measured(degree)
        else:
            column = self.numeric[0] if self.numeric else None
        group = self._group()
        if column is not None and group is not None and not self.functions:
            return Query(
                self.table.name, "best_of_group", columns=(column.name,),
                conditions=self.conditions, group=group.name, descending=degree.most,
            )  # fmt: skip
        if self.categories and (self.functions or column is None or not self.nouns):
            function = self.functions[0].name if self.functions else None
            limit = self._limit(_PLURAL_LIMIT if "top" in self.words else 1)
            return self._grouped(
                self.categories[0], column, function=function, most=degree.most, limit=limit
            )
        if column is None:
            raise NotUnderstood("I cannot tell by which column to rank: please name one.")
        many = "top" in self.words or any(noun.plural for noun in self.nouns)
        return self._rank(
            column, most=degree.most, limit=_PLURAL_LIMIT if many and not self.names_rows else 1
        )

    def _counted(self) -> Query:
        group = self._group()
        if group is not None and (self.nouns or not self.numeric):
            return self._grouped(group, None)
        place = self.items.index(WordItem("count"))
        beside = self.reading.column_of(self.reading.at(place + 1))
        if beside is not None and beside.numeric:
            if self.names_rows:
                return self._listed()
            return self._computed("sum")
        if beside is not None and beside.category:
            return Query(
                self.table.name, "count", columns=(beside.name,), function="count",
                conditions=self.conditions,
            )  # fmt: skip
        return Query(self.table.name, "count", function="count", conditions=self.conditions)

    def _computed(self, function: str) -> Query:
        if not self.numeric:
            raise NotUnderstood("I need a column with numbers to add up or average.")
        column = self.numeric[0]
        group = self._group()
        if group is not None:
            return self._grouped(group, column, function=function)
        return Query(
            self.table.name, "number", columns=(column.name,),
            function=self._function(function, column), conditions=self.conditions,
        )  # fmt: skip

    def _function(self, name: str | None, column: Column) -> str:
        if name == "sum" and not column.additive:
            raise NotUnderstood(f"Adding up the {column.title} of several rows makes no sense.")
        return name or ("sum" if column.additive else "avg")

    def _grouped(
        self,
        group: Column,
        column: Column | None,
        *,
        function: str | None = None,
        most: bool = True,
        limit: int | None = None,
    ) -> Query:
        return Query(
            self.table.name,
            "group",
            columns=(column.name,) if column is not None else (),
            function=self._function(function, column) if column is not None else "count",
            conditions=self.conditions,
            group=group.name,
            descending=most,
            limit=limit,
            having=self.reading.having,
        )

    def _listed(self) -> Query:
        if not self.names_rows and not self.nouns and not self.conditions:
            if len(self.columns) == 1 and self.columns[0].category:
                return self._grouped(self.columns[0], None)
            raise NotUnderstood(
                "I see what it is about but not what to find out: name a country, an element "
                "or a planet, or ask for the largest, the average, a count."
            )
        columns = [column.name for column in self.columns]
        if self.names_rows and not columns and len(self.conditions) == 1:
            columns = [column.name for column in self.table.columns]
        elif not self.names_rows:
            columns += [c.column for c in self.conditions if c.operator not in ("=", "like")]
        return Query(
            self.table.name,
            "lookup" if self.names_rows else "list",
            columns=tuple(dict.fromkeys(columns)),
            conditions=self.conditions,
        )
