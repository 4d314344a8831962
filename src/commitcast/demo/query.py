"""A question that was understood, and the SQL that answers it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from commitcast.demo.catalog import Table

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "between", "in", "not in", "like", "not like"]
Value = str | float


@dataclass(frozen=True)
class Condition:
    """What the rows must fulfil: `column operator values`."""

    column: str
    operator: Operator
    values: tuple[Value, ...]
    than_row: str | None = None
    """Compare with this row's number instead of with a value ("larger than France")."""


@dataclass(frozen=True)
class Query:
    """One SELECT: what is shown of which rows."""

    table: str
    shape: Literal["list", "lookup", "rank", "count", "number", "group", "best_of_group"]
    columns: tuple[str, ...] = ()
    """Shown for list and lookup; the measured column comes first for all others."""
    function: str | None = None
    conditions: tuple[Condition, ...] = ()
    group: str | None = None
    descending: bool = True
    limit: int | None = None
    skip: int = 0
    having: Condition | None = None

    @property
    def measured(self) -> str:
        """The column that is ranked, added up or averaged."""
        return self.columns[0]


MEASURE = "result"
"""The name of a computed number in the result."""


def write_sql(query: Query, table: Table) -> str:
    """The SELECT for a query, over the tables of the catalog."""
    clauses = [f"SELECT {_shown(query, table)}", f"FROM {query.table}"]
    where = [_condition(condition, table) for condition in query.conditions]
    if query.shape in ("rank", "best_of_group", "number") and query.columns:
        where.append(f"{query.measured} IS NOT NULL")
    if where:
        clauses.append("WHERE " + " AND ".join(where))
    if query.group is not None:
        clauses.append(f"GROUP BY {query.group}")
    if query.having is not None:
        clauses.append(
            f"HAVING count(*) {query.having.operator} {_literal(query.having.values[0])}"
        )
    clauses.extend(_order(query, table))
    return "\n".join(clauses)


def _measure(query: Query) -> str:
    if query.function == "count":
        return f"count(DISTINCT {query.measured})" if query.columns else "count(*)"
    rounded = f"{query.function}({query.measured})"
    return f"round({rounded}, 2)" if query.function == "avg" else rounded


def _shown(query: Query, table: Table) -> str:
    match query.shape:
        case "list" | "lookup" | "rank":
            return ", ".join(dict.fromkeys((table.label, *query.columns)))
        case "count" | "number":
            return f"{_measure(query)} AS {MEASURE}"
        case "group":
            return f"{query.group}, {_measure(query)} AS {MEASURE}"
        case "best_of_group":
            # SQLite takes the other columns from the row that holds the max or min:
            # https://www.sqlite.org/lang_select.html#bareagg
            function = "max" if query.descending else "min"
            return f"{query.group}, {table.label}, {function}({query.measured}) AS {query.measured}"


def _order(query: Query, table: Table) -> list[str]:
    direction = "DESC" if query.descending else "ASC"
    clauses = []
    match query.shape:
        case "list" | "lookup":
            clauses.append(f"ORDER BY {table.label}")
        case "rank":
            clauses.append(f"ORDER BY {query.measured} {direction}, {table.label}")
        case "group":
            clauses.append(f"ORDER BY {MEASURE} {direction}, {query.group}")
        case "best_of_group":
            clauses.append(f"ORDER BY {query.group}")
        case "count" | "number":
            pass
    if query.limit is not None:
        clauses.append(f"LIMIT {query.limit}" + (f" OFFSET {query.skip}" if query.skip else ""))
    return clauses


def _literal(value: Value) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(int(value)) if value == int(value) else repr(value)


def _condition(condition: Condition, table: Table) -> str:
    name = condition.column
    if condition.than_row is not None:
        row = _literal(condition.than_row)
        other = f"(SELECT {name} FROM {table.name} WHERE {table.label} = {row})"  # noqa: S608
        return f"{name} {condition.operator} {other}"
    values = [_literal(value) for value in condition.values]
    match condition.operator:
        case "between":
            return f"{name} BETWEEN {values[0]} AND {values[1]}"
        case "in" | "not in":
            return f"{name} {condition.operator.upper()} ({', '.join(values)})"
        case "like" | "not like":
            return f"{name} {condition.operator.upper()} {values[0]}"
        case _:
            return f"{name} {condition.operator} {values[0]}"
