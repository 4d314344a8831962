"""Step 0004: ids of 255 characters, and streams' names that hold such an id escaped.

On PostgreSQL widening a varchar changes the catalogue alone: no table or index is written anew.
SQLite keeps no lengths, so there is nothing to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

if TYPE_CHECKING:
    from commitcast.schema import Naming

_BEFORE: Final = 200
_AFTER: Final = (
    ("streams", "name", 3100),
    ("events", "actor", 255),
    ("events", "operation", 255),
    ("operations", "actor", 255),
    ("operations", "key", 255),
)


def widen(op: Any, naming: Naming) -> None:
    """Make room."""
    for table, column, length in _AFTER:
        _alter(op, naming, table, column, length)


def narrow(op: Any, naming: Naming) -> None:
    """Take it back; PostgreSQL refuses if something needs it."""
    for table, column, _ in _AFTER:
        _alter(op, naming, table, column, _BEFORE)


def _alter(op: Any, naming: Naming, table: str, column: str, length: int) -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column(
            f"{naming.prefix}{table}", column, type_=sa.String(length), schema=naming.schema
        )
