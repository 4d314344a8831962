"""Errors of Commitcast's own statements, without what was in the statements.

SQLAlchemy puts the parameters of a statement into its error's text, and PostgreSQL puts whole rows
into the DETAIL of its own. Event data, users' messages and ids would so reach logs and error
trackers. The SQL text, the class, SQLSTATE and the database's first line stay.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.exc import StatementError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncEngine

_AFTER: Final = ("\nDETAIL:", "\nCONTEXT:", "\nHINT:")
_MOST_CAUSES: Final = 8


def concealing(engine: AsyncEngine) -> AsyncEngine:
    """An engine over the same pool whose errors, and whose log, show no parameters.

    Transactions are at READ COMMITTED on PostgreSQL, whatever `engine` has.
    """
    level = {} if engine.dialect.name == "sqlite" else {"isolation_level": "READ COMMITTED"}
    made = engine.execution_options(**level)
    made.sync_engine.hide_parameters = True
    return made


@contextlib.contextmanager
def concealed() -> Iterator[None]:
    """What is raised inside shows no parameters and no rows."""
    try:
        yield
    except Exception as error:
        conceal(error)
        raise


def conceal(error: BaseException) -> None:
    """Take parameters and rows out of an error, and out of the driver's errors behind it."""
    found: Any = error
    for _ in range(_MOST_CAUSES):
        if found is None:
            return
        if isinstance(found, StatementError):
            found.hide_parameters = True
        if found.args and isinstance(found.args[0], str):
            found.args = (_first_part(found.args[0]), *found.args[1:])
        if getattr(found, "detail", None):  # asyncpg keeps what it prints in fields
            found.detail = None
        found = getattr(found, "orig", None) or found.__cause__


def _first_part(text: str) -> str:
    for mark in _AFTER:
        text = text.partition(mark)[0]
    return text
