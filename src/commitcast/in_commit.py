"""Functions of the caller's that run inside a commit: those given to `emit`, and ``op.result``.

The session that commits has flushed, so ids are there; it takes no SQL any more.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import InstrumentedAttribute

from commitcast.errors import InvalidEvent

if TYPE_CHECKING:
    from collections.abc import Callable


def call(function: Callable[[], Any], purpose: str) -> Any:
    """What `function` returns.

    Raises InvalidEvent, with `purpose`, the function and the attribute in it, where it reads an
    attribute that is not loaded or runs SQL in the session that commits; else what it raises.
    """
    try:
        return function()
    except DBAPIError:
        raise
    except SQLAlchemyError as error:
        attribute = _attribute_read(error)
        what = "runs SQL" if attribute is None else f"reads {attribute}, which is not loaded"
        raise InvalidEvent(
            f"the function {_name_of(function)}, {purpose}, {what}. It is called inside the "
            "commit, where a session takes no SQL: load before the commit what it reads "
            "(session.flush(), then session.refresh(…)), or read it before and give the value"
        ) from error


def _name_of(function: Callable[[], Any]) -> str:
    name = getattr(function, "__qualname__", None) or repr(function)
    code = getattr(function, "__code__", None)
    if code is None:
        return name
    return f"{name} (line {code.co_firstlineno} of {getattr(function, '__module__', '?')})"


def _attribute_read(error: BaseException) -> str | None:
    """The mapped attribute that was being read when the error was raised."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        reader = frame.f_locals.get("self")
        if isinstance(reader, InstrumentedAttribute):
            return str(reader)
    return None
