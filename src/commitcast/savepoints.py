"""The savepoints of one transaction of a connection, and what rolling one of them back undoes.

SQLAlchemy names a savepoint after it has told of it, and gives no more than that name when one
ends. What it does hand out is the innermost `NestedTransaction`, and whether one is still active:
which of them an event was about is seen at the next look. Nothing is derived from how it counts.

One that was not seen to begin, since it is older than the coordinator, began before every emit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.engine import NestedTransaction


@dataclass(slots=True)
class _Savepoint:
    begun: int
    transaction: NestedTransaction | None = None
    """None until it is seen."""

    @property
    def is_over(self) -> bool:
        return self.transaction is not None and not self.transaction.is_active


class Savepoints:
    """Those that are open, oldest first."""

    __slots__ = ("_open", "_rolling_back_at")

    def __init__(self) -> None:
        self._open: list[_Savepoint] = []
        self._rolling_back_at: int | None = None

    @property
    def begun(self) -> list[int]:
        """When those began that were open at the last look; 0 if that was not seen."""
        return [savepoint.begun for savepoint in self._open]

    @property
    def has_rolled_back(self) -> bool:
        """Whether the rollback of one is over, which the next look then sees."""
        return self._rolling_back_at is not None and any(one.is_over for one in self._open)

    def begins(self, order: int) -> None:
        """One is about to begin, at a `commitcast.pending.moment`; `look` before."""
        self._open.append(_Savepoint(order))

    def rolls_back(self, order: int) -> None:
        """One is about to be rolled back; `look` before."""
        self._rolling_back_at = order

    def look(self, innermost: NestedTransaction | None) -> tuple[int, int] | None:
        """What was rolled back since the last look: all that was made from one moment to another."""
        self._see(innermost)
        over = [savepoint for savepoint in self._open if savepoint.is_over]
        if over:
            self._open = [savepoint for savepoint in self._open if not savepoint.is_over]
        ended, self._rolling_back_at = self._rolling_back_at, None
        if ended is None:
            return None
        return min((savepoint.begun for savepoint in over), default=0), ended

    def _see(self, innermost: NestedTransaction | None) -> None:
        last = self._open[-1] if self._open else None
        new = innermost is not None and innermost.is_active
        if new and all(savepoint.transaction is not innermost for savepoint in self._open):
            if last is None or last.transaction is not None:
                last = _Savepoint(0)
                self._open.append(last)
            last.transaction = innermost
        elif last is not None and last.transaction is None:
            self._open.pop()  # SAVEPOINT failed
