"""Takes the conditions out of a question's items: numbers compared, values named, rows compared.

What a step understood it takes away, so that what is left at the end is either the question
itself (`question.py`) or was not understood, and is then never silently ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from commitcast.demo.items import (
    AffixItem,
    ColumnItem,
    CompareItem,
    DegreeItem,
    Item,
    NumberItem,
    TableItem,
    UnitItem,
    ValueItem,
    WordItem,
)
from commitcast.demo.query import Condition, Operator, Value

if TYPE_CHECKING:
    from commitcast.demo.catalog import Column, Table

_EARLIEST_YEAR, _LATEST_YEAR = 1000, 2100


class NotUnderstood(Exception):
    """The question cannot be answered; the message says why, in words for its author."""


@dataclass
class Reading:
    """The items of a question about one table, and the conditions found so far."""

    table: Table
    items: list[Item]
    conditions: list[Condition] = field(default_factory=list)
    having: Condition | None = None

    def column_of(self, item: Item | None) -> Column | None:
        """The column an item means in this table, if it means one."""
        if isinstance(item, ColumnItem | UnitItem) and self.table.name in item.columns:
            return self.table.column(item.columns[self.table.name])
        return None

    def at(self, place: int) -> Item | None:
        """The item at a place, None outside."""
        return self.items[place] if 0 <= place < len(self.items) else None

    def number_at(self, place: int) -> float | None:
        """The number at a place, if there is one."""
        item = self.at(place)
        return item.value if isinstance(item, NumberItem) else None

    def numeric_at(self, place: int) -> Column | None:
        """The numeric column named at a place, if there is one."""
        column = self.column_of(self.at(place))
        return column if column is not None and column.numeric else None

    def word_at(self, place: int, word: str) -> bool:
        """Whether a word of the grammar stands at a place."""
        return self.at(place) == WordItem(word)

    def row_at(self, place: int) -> str | None:
        """The row whose label is named at a place, if there is one."""
        item = self.at(place)
        if isinstance(item, ValueItem):
            for table, column, value in item.places:
                if table == self.table.name and column == self.table.label:
                    return value
        return None


def is_comparative(item: Item | None) -> bool:
    """Whether "than" can follow: "larger", "more"."""
    return isinstance(item, DegreeItem) and (
        item.text.endswith("er") or item.text in ("more", "less")
    )


def read_conditions(reading: Reading) -> None:
    """Move every condition of the question from the items to the conditions."""
    _read_comparatives(reading)
    _read_comparisons(reading)
    _read_equal_numbers(reading)
    _read_values(reading)


def _scaled(column: Column, number: float) -> float:
    return number / column.scale if column.scale > 1 and abs(number) >= column.scale else number


def _read_comparatives(reading: Reading) -> None:
    """Such as "larger than France", "more people than Germany", "heavier than 100 u"."""
    place = 0
    while place < len(reading.items):
        item = reading.items[place]
        end = place + 1
        column = None
        if isinstance(item, DegreeItem) and is_comparative(item):
            column = reading.numeric_at(end)
            end += column is not None
        if not (isinstance(item, DegreeItem) and reading.word_at(end, "than")):
            place += 1
            continue
        if column is None and reading.table.name in item.columns:
            column = reading.table.column(item.columns[reading.table.name])
        if column is None:
            column = _named_before(reading, place)
        operator: Operator = ">" if item.most else "<"
        _take_than(reading, (place, end + 1), column, operator)


def _take_than(
    reading: Reading, span: tuple[int, int], column: Column | None, operator: Operator
) -> None:
    start, end = span
    number, row = reading.number_at(end), reading.row_at(end)
    used = end + 1
    if number is not None and column is None:
        column, used = _column_after(reading, used)
    elif number is not None and isinstance(reading.at(used), UnitItem):
        used += 1
    if column is None or (number is None and row is None):
        raise NotUnderstood("I cannot tell which two things to compare.")
    if number is not None:
        condition = Condition(column.name, operator, (_scaled(column, number),))
    else:
        condition = Condition(column.name, operator, (), than_row=row)
    reading.conditions.append(condition)
    del reading.items[start:used]


def _column_after(reading: Reading, place: int) -> tuple[Column | None, int]:
    column = reading.numeric_at(place)
    return (column, place + 1) if column is not None else (None, place)


def _named_before(reading: Reading, place: int) -> Column | None:
    for before in range(place - 1, -1, -1):
        column = reading.numeric_at(before)
        if column is not None:
            return column
    return None


def _read_comparisons(reading: Reading) -> None:
    """Such as "more than 100 million people", "population over 5 million", "between 2 and 5 moons"."""
    last: Column | None = None
    named: list[int] = []
    place = 0
    while place < len(reading.items):
        item = reading.items[place]
        between = reading.word_at(place, "between")
        if not (between or isinstance(item, CompareItem)):
            place += 1
            continue
        first = reading.number_at(place + 1)
        second = reading.number_at(place + 3) if between else None
        if first is None or (between and second is None):
            raise NotUnderstood("I understand a comparison only with a number behind it.")
        end = place + (4 if between else 2)
        if isinstance(reading.at(end), TableItem) and _category_place(reading) is not None:
            operator = cast(
                "Operator", "between" if between else cast("CompareItem", item).operator
            )
            reading.having = Condition("", operator, (first,))
            del reading.items[place:end]
            continue
        column, end = _compared_column(reading, place, end, first, last)
        operator = cast("Operator", "between" if between else cast("CompareItem", item).operator)
        numbers = (first,) if second is None else (first, second)
        values: tuple[Value, ...] = tuple(_scaled(column, number) for number in numbers)
        reading.conditions.append(Condition(column.name, operator, values))
        last = column
        del reading.items[place:end]
        if reading.numeric_at(place - 1) == column:
            named.append(place - 1)
    for spot in reversed(named):
        del reading.items[spot]


def _category_place(reading: Reading) -> int | None:
    for place, item in enumerate(reading.items):
        column = reading.column_of(item)
        if isinstance(item, ColumnItem) and column is not None and column.category:
            return place
    return None


def _compared_column(
    reading: Reading, place: int, end: int, number: float, last: Column | None
) -> tuple[Column, int]:
    column, after = _column_after(reading, end)
    unit = isinstance(reading.at(end), UnitItem)
    before = _named_before(reading, place)
    if column is not None and not (unit and before is not None):
        return column, after
    if before is None:
        before = last
    if before is not None:
        return before, end + 1 if unit else end
    if number == int(number) and _EARLIEST_YEAR <= number <= _LATEST_YEAR:
        for year in reading.table.columns:
            if year.year:
                return year, end
    raise NotUnderstood(
        f"I cannot tell what the number {number:g} counts: say, for example, "
        f"“{_some_numeric(reading.table)} over {number:g}”."
    )


def _some_numeric(table: Table) -> str:
    return next(column.title for column in table.columns if column.numeric)


def _read_equal_numbers(reading: Reading) -> None:
    """Such as "with 2 moons", "atomic number 79", "discovered in 1898", "no moons", "with rings"."""
    place = 0
    while place < len(reading.items):
        spans = _equal_at(reading, place)
        if spans is None:
            place += 1
            continue
        condition, end = spans
        reading.conditions.append(condition)
        del reading.items[place:end]


def _equal_at(reading: Reading, place: int) -> tuple[Condition, int] | None:
    column = reading.column_of(reading.at(place))
    following = reading.column_of(reading.at(place + 1))
    number = reading.number_at(place)
    asked = isinstance(reading.at(place - 1), DegreeItem | WordItem) and not reading.word_at(
        place - 1, "and"
    )
    if number is not None and following is not None and following.numeric and not asked:
        return Condition(following.name, "=", (_scaled(following, number),)), place + 2
    next_number = reading.number_at(place + 1)
    if column is not None and column.numeric and next_number is not None and not asked:
        return Condition(column.name, "=", (_scaled(column, next_number),)), place + 2
    if reading.word_at(place, "not") and following is not None:
        if following.kind == "flag":
            return Condition(following.name, "=", ("no",)), place + 2
        if following.numeric:
            return Condition(following.name, "=", (0,)), place + 2
    if column is not None and column.kind == "flag" and not _names_a_row(reading):
        return Condition(column.name, "=", ("yes",)), place + 1
    return None


def _names_a_row(reading: Reading) -> bool:
    return any(reading.row_at(place) is not None for place in range(len(reading.items)))


def _read_values(reading: Reading) -> None:
    """Such as "in Europe", "not in Asia or Africa", "starting with Z"."""
    found: dict[tuple[str, bool], list[str]] = {}
    rest: list[Item] = []
    negated_column: str | None = None
    negate = False
    for place, item in enumerate(reading.items):
        if isinstance(item, ValueItem):
            column, value = _resolve(reading, item)
            if negate or negated_column == column:
                negated_column = column
            found.setdefault((column, negated_column == column), []).append(value)
            negate = False
        elif isinstance(item, AffixItem):
            operator: Operator = "not like" if negate else "like"
            reading.conditions.append(Condition(reading.table.label, operator, (item.pattern,)))
            negate = False
        elif item == WordItem("not") and isinstance(reading.at(place + 1), ValueItem | AffixItem):
            negate = True
        else:
            rest.append(item)
    for (column, negated), values in found.items():
        unique = tuple(dict.fromkeys(values))
        if len(unique) == 1:
            reading.conditions.append(Condition(column, "!=" if negated else "=", unique))
        else:
            reading.conditions.append(Condition(column, "not in" if negated else "in", unique))
    reading.items = rest


def _resolve(reading: Reading, item: ValueItem) -> tuple[str, str]:
    here = [(column, value) for table, column, value in item.places if table == reading.table.name]
    mentions_table = any(isinstance(other, TableItem) for other in reading.items)
    mentioned = {
        column.name
        for other in reading.items
        if isinstance(other, ColumnItem) and (column := reading.column_of(other)) is not None
    }
    for column_name, value in here:
        if mentions_table and column_name in mentioned:
            return column_name, value
    for column_name, value in here:
        if column_name == reading.table.label:
            return column_name, value
    return here[0]
