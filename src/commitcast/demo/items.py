"""What the parts of a question can be, once its words are read: see `words.py`."""

from __future__ import annotations

from dataclasses import dataclass


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
