"""The time by which leases and deadlines are judged: the database's, never a node's own.

On SQLite all nodes are on one machine, whose clock SQLite reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import Float, String, cast, func, literal, literal_column

if TYPE_CHECKING:
    from sqlalchemy import Dialect

# Constants of ours as SQL text, so that they are no parameters of every call.
_FORMAT: Final = literal_column("'%Y-%m-%dT%H:%M:%fZ'", String)
_NOW: Final = literal_column("'now'", String)


class Clock(Protocol):
    """Gives SQL expressions; compare them with columns of the same database."""

    def now(self) -> Any:
        """The current time, also in a transaction that began long ago."""

    def later(self, seconds: Any) -> Any:
        """The current time and `seconds` (a number or an SQL expression), which may be less than 0."""


class DatabaseClock:
    """The clock of the database."""

    def __init__(self, dialect: Dialect) -> None:
        self._postgresql = dialect.name == "postgresql"

    def now(self) -> Any:
        """See `Clock`."""
        if self._postgresql:
            return func.clock_timestamp()
        return func.strftime(_FORMAT, _NOW, type_=String)

    def later(self, seconds: Any) -> Any:
        """See `Clock`."""
        given = literal(seconds, Float) if isinstance(seconds, (int, float)) else seconds
        if self._postgresql:
            zero: Any = (literal_column("0") for _ in range(6))
            return func.clock_timestamp() + func.make_interval(*zero, cast(given, Float))
        shift = func.printf(literal_column("'%+.3f seconds'", String), given)
        return func.strftime(_FORMAT, _NOW, shift, type_=String)
