"""Runs SQL that a model wrote against the bundled data, in a SQLite connection of its own.

Whatever the model writes, it can only read: one SELECT over the bundled tables, within
MAX_MILLISECONDS and MAX_ROWS. The connection is made for one query, holds nothing but the bundled
rows, and SQLite's own authorizer (https://www.sqlite.org/c3ref/set_authorizer.html) refuses
everything else, so nothing here depends on recognising bad SQL by its text.

SQLite looks at the clock between two instructions, never inside one. So no instruction may take
long: values are short, and no function is allowed whose work grows with the product of two.
"""

from __future__ import annotations

import math
import sqlite3
import time
from dataclasses import dataclass

from commitcast.demo.catalog import Cell, load_catalog, rows_of

MAX_ROWS = 50
MAX_SQL_CHARACTERS = 4_000
MAX_CELL_CHARACTERS = 200
MAX_MILLISECONDS = 1_000
_INSTRUCTIONS_BETWEEN_LOOKS = 200
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 4_000,  # bytes of a value, and of a row that is sorted or kept
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 50,
    sqlite3.SQLITE_LIMIT_COLUMN: 60,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 20,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
}

_ALLOWED_FUNCTIONS = frozenset(
    [
        "abs",
        "avg",
        "coalesce",
        "count",
        "group_concat",
        "ifnull",
        "iif",
        "instr",
        "length",
        "like",
        "lower",
        "max",
        "min",
        "nullif",
        "rank",
        "dense_rank",
        "row_number",
        "replace",
        "round",
        "substr",
        "substring",
        "sum",
        "total",
        "upper",
    ]
)

_SQL_TYPES = {"text": "TEXT", "flag": "TEXT", "integer": "INTEGER", "real": "REAL"}


class QueryRefused(Exception):
    """The SQL was not run to its end; the message says why, in words for its author."""


@dataclass(frozen=True)
class Result:
    """What a query found: column names and at most MAX_ROWS rows."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    truncated: bool


def _build() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=0)
    for table in load_catalog().tables:
        columns = ", ".join(
            f'"{column.name}" {_SQL_TYPES[column.kind]}'
            + (f" GENERATED ALWAYS AS ({column.computed}) VIRTUAL" if column.computed else "")
            for column in table.columns
        )
        connection.execute(f'CREATE TABLE "{table.name}" ({columns})')
        rows = rows_of(table.name)
        names = ", ".join(f'"{name}"' for name in rows[0])
        marks = ", ".join("?" for _ in rows[0])
        connection.executemany(
            f'INSERT INTO "{table.name}" ({names}) VALUES ({marks})',  # noqa: S608  (our own names)
            [tuple(row.values()) for row in rows],
        )
    return connection


def _only_reading(
    action: int, first: str | None, second: str | None, _db: str | None, _by: str | None
) -> int:
    if action == sqlite3.SQLITE_SELECT:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_READ and not (first or "").startswith("sqlite_"):
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _ALLOWED_FUNCTIONS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _lock_down(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA query_only = ON")
    for category, limit in _LIMITS.items():
        connection.setlimit(category, limit)
    connection.set_authorizer(_only_reading)
    deadline = time.monotonic() + MAX_MILLISECONDS / 1_000
    connection.set_progress_handler(
        lambda: time.monotonic() > deadline, _INSTRUCTIONS_BETWEEN_LOOKS
    )


def run_query(sql: str) -> Result:
    """Run one SELECT over the bundled tables and return what it found.

    Blocks for about MAX_MILLISECONDS at most: call it from a worker thread. Raises QueryRefused
    for SQL that is not one SELECT over these tables, fails, or takes too long.
    """
    if len(sql) > MAX_SQL_CHARACTERS:
        raise QueryRefused(f"The SQL is longer than {MAX_SQL_CHARACTERS} characters.")
    connection = _build()
    try:
        _lock_down(connection)
        # what is an EXPLAIN already cannot be explained: SQLite's grammar tells them apart for us
        connection.execute(f"EXPLAIN {sql}").close()
        cursor = connection.execute(sql)
        if cursor.description is None:
            raise QueryRefused("That is not a SELECT; only one SELECT can be run.")
        rows = cursor.fetchmany(MAX_ROWS + 1)
        columns = tuple(_short(str(column[0])) for column in cursor.description)
    except (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeError) as error:
        raise QueryRefused(_explain(error)) from error
    finally:
        connection.close()
    shown = tuple(tuple(_plain(value) for value in row) for row in rows[:MAX_ROWS])
    return Result(columns, shown, truncated=len(rows) > MAX_ROWS)


def _plain(value: object) -> Cell:
    """A value as JSON can carry it: no bytes, no infinity, no text without end."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return _short(value.hex() if isinstance(value, bytes) else str(value))


def _short(text: str) -> str:
    return text if len(text) <= MAX_CELL_CHARACTERS else text[: MAX_CELL_CHARACTERS - 1] + "…"


def _explain(error: Exception) -> str:
    text = str(error)
    if "interrupted" in text:
        return f"The query took longer than {MAX_MILLISECONDS} ms and was stopped."
    if "use function" in text:  # not authorized to use function: …
        return f"{text}; only {', '.join(sorted(_ALLOWED_FUNCTIONS))} are allowed."
    if "not authorized" in text or "prohibited" in text or 'near "EXPLAIN"' in text:
        return "Only one SELECT over the bundled tables is allowed; nothing was changed."
    return f"SQLite says: {text}"
