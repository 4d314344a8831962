"""Writes the answer in words, from a query and the rows it found, and honest refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from commitcast.demo.catalog import Cell, Column, Table
    from commitcast.demo.query import Condition, Query

EXAMPLES = (
    "Which country in Africa has the most people?",
    "How many elements were discovered after 1900?",
    "Average population density by continent",
    "Which planets have more than 20 moons?",
    "Top 5 countries by area",
    "Which countries in Asia are larger than France?",
)

_SHOWN_ROWS = 20
_LARGEST_EXACT = 1_000


def refusal(reason: str) -> str:
    """What to say when a question cannot be answered: why, and what can be asked."""
    examples = "\n".join(f"• {example}" for example in EXAMPLES[:4])
    return f"{reason}\nI cannot answer that from the bundled data. You could ask:\n{examples}"


def number_text(value: Cell, column: Column | None = None) -> str:
    """A cell as people write it: thousands apart, the unit behind, a year as it is."""
    if value is None:
        return "not recorded"
    if isinstance(value, str):
        return value
    if column is not None and column.year:
        return str(int(value))
    if isinstance(value, float) and value != int(value):
        text = f"{value:,.0f}" if abs(value) >= _LARGEST_EXACT else f"{value:,.4g}"
    else:
        text = f"{int(value):,}"
    return f"{text} {column.unit}" if column is not None and column.unit else text


def answer(  # noqa: PLR0911  (one return for each shape of query)
    query: Query, table: Table, rows: Sequence[Sequence[Cell]], *, truncated: bool
) -> str:
    """The answer to a question, from what its query found."""
    if query.shape == "number":
        return _computed(query, table, rows)
    if query.shape == "count":
        return _counted(query, table, rows)
    asked = _asked_whether(query, table)
    if asked is not None:
        name, condition = asked
        return (
            f"Yes: {name} fulfils it ({condition})."
            if rows
            else f"No: {name} does not ({condition})."
        )
    if not rows:
        return f"No {table.singular}{_where(query, table)}."
    if query.shape == "lookup":
        return "\n".join(_looked_up(query, table, row) for row in rows)
    if query.shape == "group":
        return _grouped(query, table, rows)
    if query.shape == "best_of_group":
        return _best_of_group(query, table, rows)
    if query.shape == "rank":
        return _ranked(query, table, rows)
    return _listed(query, table, rows, truncated=truncated)


def _asked_whether(query: Query, table: Table) -> tuple[str, str] | None:
    """The row and the condition of a yes-or-no question ("Is France larger than Germany?")."""
    names = [one for one in query.conditions if one.column == table.label and one.operator == "="]
    others = [one for one in query.conditions if one not in names]
    if query.shape != "lookup" or query.columns or len(names) != 1 or not others:
        return None
    return str(names[0].values[0]), " and ".join(_condition(one, table) for one in others)


def _where(query: Query, table: Table) -> str:
    placed, other = [], []
    for one in query.conditions:
        column = table.column(one.column)
        if column.preposition and one.operator in ("=", "in", "!=", "not in"):
            negated = "not " if one.operator.startswith(("!", "n")) else ""
            values = " or ".join(str(value) for value in one.values)
            placed.append(f" {negated}{column.preposition} {values}")
        else:
            other.append(_condition(one, table))
    return "".join(placed) + (" with " + " and ".join(other) if other else "")


def _condition(condition: Condition, table: Table) -> str:
    column = table.column(condition.column)
    spoken = {"=": "", "!=": "not ", ">": "over ", "<": "under ", ">=": "at least ",
              "<=": "at most ", "in": "", "not in": "not ", "between": "between ",
              "like": "like ", "not like": "not like "}[condition.operator]  # fmt: skip
    if condition.than_row is not None:
        return f"{column.title} {spoken}that of {condition.than_row}"
    joined = " and " if condition.operator == "between" else " or "
    return f"{column.title} {spoken}" + joined.join(
        number_text(value, column) for value in condition.values
    )


def _measure_name(query: Query, table: Table) -> str:
    if query.function == "count":
        return f"number of {table.plural}"
    title = table.column(query.measured).title
    return f"{'average' if query.function == 'avg' else 'total'} {title}"


def _computed(query: Query, table: Table, rows: Sequence[Sequence[Cell]]) -> str:
    value = rows[0][0] if rows else None
    where = _where(query, table)
    if value is None:
        return f"No {table.singular}{where} has a recorded {table.column(query.measured).title}."
    text = number_text(value, table.column(query.measured))
    return f"The {_measure_name(query, table)} of {table.plural}{where} is {text}."


def _counted(query: Query, table: Table, rows: Sequence[Sequence[Cell]]) -> str:
    value = rows[0][0]
    if query.columns:
        title = table.column(query.measured).title
        return f"There are {number_text(value)} values of {title} among {table.plural}."
    noun, verb = (table.singular, "is") if value == 1 else (table.plural, "are")
    return f"There {verb} {number_text(value)} {noun}{_where(query, table)}."


def _looked_up(query: Query, table: Table, row: Sequence[Cell]) -> str:
    shown = [name for name in dict.fromkeys((table.label, *query.columns)) if name != table.label]
    if not shown:
        return f"Yes: {row[0]}{_where(query, table)}."
    facts = [
        f"{table.column(name).title} {number_text(value, table.column(name))}"
        for name, value in zip(shown, row[1:], strict=True)
    ]
    if len(facts) == 1:
        column = table.column(shown[0])
        return f"{row[0]}: {column.title} is {number_text(row[1], column)}."
    return f"{row[0]}: " + ", ".join(facts) + "."


def _grouped(query: Query, table: Table, rows: Sequence[Sequence[Cell]]) -> str:
    column = table.column(query.measured) if query.columns else None
    name = _measure_name(query, table)
    if len(rows) == 1 and query.limit == 1:
        degree = "highest" if query.descending else "lowest"
        return f"{rows[0][0]} has the {degree} {name}: {number_text(rows[0][1], column)}."
    lines = [f"• {row[0]}: {number_text(row[1], column)}" for row in rows]
    group = table.column(query.group or table.label).title
    return f"The {name} by {group}{_where(query, table)}:\n" + _shortened(lines)


def _best_of_group(query: Query, table: Table, rows: Sequence[Sequence[Cell]]) -> str:
    column = table.column(query.measured)
    degree = "highest" if query.descending else "lowest"
    lines = [f"• {row[0]}: {row[1]}, {number_text(row[2], column)}" for row in rows]
    group = table.column(query.group or table.label).title
    return f"The {table.singular} with the {degree} {column.title} by {group}:\n" + _shortened(
        lines
    )


def _ranked(query: Query, table: Table, rows: Sequence[Sequence[Cell]]) -> str:
    column = table.column(query.measured)
    degree = "highest" if query.descending else "lowest"
    if query.limit == 1:
        place = f"{_ordinal(query.skip + 1)} {degree}" if query.skip else degree
        others = ", ".join(
            f"{table.column(name).title} {number_text(value, table.column(name))}"
            for name, value in zip(query.columns[1:], rows[0][2:], strict=True)
        )
        scope = _where(query, table) or f" of all {table.plural}"
        scope = f" of {table.plural}{scope}" if query.conditions else scope
        return (
            f"{rows[0][0]} has the {place} {column.title}{scope}: "
            f"{number_text(rows[0][1], column)}" + (f" ({others})." if others else ".")
        )
    lines = [
        f"{place}. {row[0]}: {number_text(row[1], column)}"
        for place, row in enumerate(rows, start=1 + query.skip)
    ]
    head = f"The {degree} {column.title} of {table.plural}{_where(query, table)}:"
    return head + "\n" + _shortened(lines)


def _ordinal(place: int) -> str:
    return f"{place}" + {1: "st", 2: "nd", 3: "rd"}.get(place, "th")


def _listed(query: Query, table: Table, rows: Sequence[Sequence[Cell]], *, truncated: bool) -> str:
    names = [name for name in dict.fromkeys((table.label, *query.columns)) if name != table.label]
    lines = []
    for row in rows:
        facts = ", ".join(
            number_text(value, table.column(name))
            for name, value in zip(names, row[1:], strict=True)
        )
        lines.append(f"• {row[0]}" + (f": {facts}" if facts else ""))
    count = f"More than {len(rows)}" if truncated else str(len(rows))
    noun = table.singular if len(rows) == 1 else table.plural
    return f"{count} {noun}{_where(query, table)}:\n" + _shortened(lines)


def _shortened(lines: list[str]) -> str:
    if len(lines) <= _SHOWN_ROWS:
        return "\n".join(lines)
    rest = len(lines) - _SHOWN_ROWS
    return "\n".join([*lines[:_SHOWN_ROWS], f"… and {rest} more"])
