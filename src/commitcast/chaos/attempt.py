"""One attempt at an operation: the work a writer does in it, and what it may conclude of its end.

The work of each attempt has one row of its own, in a table that names operation and attempt,
besides the rows and events of `workload`, which name them too. So it can be told from the
database alone which attempts have committed, whatever Commitcast wrote about them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from commitcast import Event
from commitcast.chaos.workload import EVENT_TYPE, Base, Marks, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.ext.asyncio import AsyncSession

    from commitcast.operation import Operation


class Worked(Base):
    """One row for each attempt whose transaction committed."""

    __tablename__ = "commitcast_chaos_worked"
    __table_args__ = (UniqueConstraint("operation", "attempt"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    operation: Mapped[str]
    attempt: Mapped[int]
    parent: Mapped[int | None] = mapped_column(
        ForeignKey("commitcast_chaos_worked.id", deferrable=True, initially="DEFERRED")
    )
    """Checked at COMMIT, as `Written.parent`, when the outcome has been inserted."""


class OperationMarks(Marks, Protocol):
    """Who is told of operations, as they happen."""

    def announced(self, operation: str, attempt: int) -> None:
        """The operation was entered: from now on it has to have one outcome."""

    def said(self, operation: str, attempt: int, outcome: str) -> None:
        """It was left, and this is what is known of its end."""

    def answered(self, operation: str, result: object) -> None:
        """`AlreadyCommitted` was raised with `result`."""


class Attempt:
    """One attempt, and what its writer may conclude of it without asking anybody."""

    def __init__(
        self,
        operation: Operation,
        marks: OperationMarks,
        values: Callable[[], list[dict[str, str]]],
        session: Callable[[], AsyncSession],
    ) -> None:
        self.operation = operation
        self.failed = False
        """An error was raised that no commit can have followed."""
        self._marks = marks
        self._values = values
        self._session = session
        self._tried = False
        self._returned = False

    @property
    def row(self) -> dict[str, Any]:
        """The row of this attempt's work."""
        return {"operation": self.operation.id, "attempt": self.operation.attempt}

    def committing(self) -> None:
        """The commit is about to be called."""
        self._tried = True
        self._marks.committing()

    def committed(self, keys: Sequence[str]) -> None:
        """The commit returned."""
        self._returned = True
        self._marks.committed(keys)

    def known(self) -> set[str]:
        """What the library said of the end, in each of the ways in which it says it."""
        said = {str(self.operation.outcome)} if self.operation.outcome is not None else set()
        if self._returned:
            said.add("committed")
        elif self.failed or not self._tried:
            said.add("rolled_back")
        return said or {"unknown"}

    async def work(
        self,
        *,
        checkpoints: int = 0,
        error: Exception | None = None,
        parent: int | None = None,
        pause_s: float = 0.0,
    ) -> None:
        """Work in a transaction of the library's, which commits it at the end."""
        doomed = error is not None or parent is not None
        async with self.operation.begin() as session:
            for _ in range(checkpoints):
                shown = self.add(session, checkpoint=True)
                self._marks.committing()
                await session.commit()
                self._marks.committed(shown)
            keys = self.add(session, doomed=doomed)
            session.add(Worked(**self.row, parent=parent))
            if error is not None:
                await session.flush()
                raise error
            if pause_s:
                await asyncio.sleep(pause_s)
            self.committing()
        self.committed(keys)

    async def bound_work(self, *, parent: int | None = None) -> None:
        """Work in a session of the writer's own, which the writer commits."""
        async with self._session() as session:
            self.operation.bind(session)
            keys = self.add(session, doomed=parent is not None)
            session.add(Worked(**self.row, parent=parent))
            self.committing()
            await session.commit()
            self.committed(keys)

    def add(
        self, session: AsyncSession, *, doomed: bool = False, checkpoint: bool = False
    ) -> list[str]:
        """Add rows as a plain transaction does, with their events."""
        values = self._values()
        session.add_all(Written(**value) for value in values)
        for value in values:
            self.emit(
                value["key"], value["stream"], value["payload"],
                doomed=doomed, checkpoint=checkpoint,
            )  # fmt: skip
        return [value["key"] for value in values]

    def emit(
        self,
        key: str,
        stream: str,
        payload: str,
        *,
        doomed: bool = False,
        checkpoint: bool = False,
    ) -> None:
        """Emit the event of a row."""
        whose = {**self.row, "checkpoint": checkpoint}
        data = {"key": key, "payload": payload, "doomed": doomed, **whose}
        self.operation.emit(Event(EVENT_TYPE, data), stream=stream)
