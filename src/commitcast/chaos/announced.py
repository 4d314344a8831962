"""What the writers do as operations: every shape of one, and what the writer was told of its end.

The work of each attempt has one row of its own, in a table that names operation and attempt,
besides the rows and events of `workload`, which name them too. So it can be told from the
database alone which attempts have committed, whatever Commitcast wrote about them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import ForeignKey, UniqueConstraint, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from commitcast import (
    AlreadyCommitted,
    Event,
    InProgress,
    OperationLost,
    OperationTimedOut,
    OutcomeUnknown,
)
from commitcast.chaos.workload import EVENT_TYPE, Base, Marks, Writer, Written

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Callable, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

    from commitcast import Coordinator
    from commitcast.operation import Operation

_NOBODY: Final = -1
_CANCELLED_WITHIN_S: Final = (0.0, 0.003, 0.03)
_DEADLINES_S: Final = (0.001, 0.02, 0.05)
_KEYS_A_SECOND: Final = 4
_REMEMBERED_S: Final = 6
"""How long a key is tried again: through a kill, a start, and the lease of who had it."""


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


class OperationWriter(Writer):
    """A `Writer` whose transactions all belong to operations of one of `users`."""

    def __init__(
        self,
        engine: AsyncEngine,
        streams: Sequence[str],
        name: str,
        rng: random.Random,
        marks: OperationMarks,
        *,
        coordinator: Coordinator,
        users: Sequence[str],
    ) -> None:
        super().__init__(engine, streams, name, rng, marks)
        self._coordinator = coordinator
        self._users = users
        self._told = marks
        self._shapes = (
            (self._begun, 6),
            (self._bound, 4),
            (self._bound_connection, 2),
            (self._with_checkpoint, 3),
            (self._failing_after_checkpoint, 2),
            (self._failing_in_the_work, 2),
            (self._failing_before_the_work, 1),
            (self._failing_at_commit, 2),
            (self._failing_at_a_bound_commit, 1),
            (self._failing_after_the_commit, 1),
            (self._left_without_commit, 1),
            (self._bound_and_left_without_commit, 1),
            (self._timed_out, 2),
            (self._cancelled, 5),
            (self._keyed, 5),
        )

    # --- shapes that commit ---------------------------------------------------------------

    async def _begun(self) -> None:
        async with self._operation() as attempt:
            await attempt.work()

    async def _bound(self) -> None:
        async with self._operation() as attempt:
            await attempt.bound_work()

    async def _bound_connection(self) -> None:
        async with self._operation() as attempt, self._engine.connect() as conn:
            await conn.begin()
            attempt.operation.bind(conn)
            values = self._values()
            await conn.execute(insert(Written), values)
            await conn.execute(insert(Worked), [attempt.row])
            for value in values:
                attempt.emit(value["key"], value["stream"], value["payload"])
            attempt.committing()
            await conn.commit()
            attempt.committed([value["key"] for value in values])

    async def _with_checkpoint(self) -> None:
        async with self._operation() as attempt:
            await attempt.work(checkpoints=self._rng.randint(1, 2))

    # --- shapes that must leave nothing but what a checkpoint left ------------------------

    async def _failing_after_checkpoint(self) -> None:
        async with self._operation() as attempt:
            await attempt.work(checkpoints=self._rng.randint(1, 2), error=_OnPurpose())

    async def _failing_in_the_work(self) -> None:
        async with self._operation() as attempt:
            await attempt.work(error=_OnPurpose())

    async def _failing_before_the_work(self) -> None:
        async with self._operation():
            raise _OnPurpose

    async def _failing_at_commit(self) -> None:
        async with self._operation() as attempt:
            await attempt.work(parent=_NOBODY)

    async def _failing_at_a_bound_commit(self) -> None:
        async with self._operation() as attempt:
            await attempt.bound_work(parent=_NOBODY)

    async def _left_without_commit(self) -> None:
        async with self._operation():
            pass

    async def _bound_and_left_without_commit(self) -> None:
        async with self._operation() as attempt, self._session() as session:
            attempt.operation.bind(session)
            attempt.add(session, doomed=True)
            await session.flush()
            await session.rollback()

    # --- shapes that may end either way ---------------------------------------------------

    async def _failing_after_the_commit(self) -> None:
        async with self._operation() as attempt:
            await attempt.work()
            raise _OnPurpose

    async def _timed_out(self) -> None:
        deadline_s = self._rng.choice(_DEADLINES_S)
        async with self._operation(deadline_s=deadline_s) as attempt:
            await attempt.work(pause_s=self._rng.uniform(0, 2 * deadline_s))

    async def _cancelled(self) -> None:
        shape = self._rng.choice((self._begun, self._bound, self._with_checkpoint))
        task = asyncio.create_task(shape())
        with contextlib.suppress(TimeoutError):
            within_s = self._rng.choice(_CANCELLED_WITHIN_S)
            await asyncio.wait_for(asyncio.shield(task), self._rng.uniform(0, within_s))
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()

    async def _keyed(self) -> None:
        """An operation that others, of this and of the next server lives, try as well."""
        second = int(time.time()) - self._rng.randint(0, _REMEMBERED_S)
        number = self._rng.randrange(_KEYS_A_SECOND)
        key = f"{second}.{number}"
        user = self._users[number % len(self._users)]
        error = _OnPurpose() if self._rng.random() < 0.2 else None  # noqa: PLR2004 - a fifth
        with contextlib.suppress(AlreadyCommitted, InProgress):
            async with self._operation(user=user, id=key, request={"key": key}) as attempt:
                attempt.operation.result = attempt.row
                await attempt.work(error=error, pause_s=self._rng.uniform(0, 0.1))

    # --- parts ----------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _operation(
        self, *, user: str | None = None, **options: Any
    ) -> AsyncIterator[_Attempt]:
        """Enter an operation, and mark what is known of its end; errors on purpose stay here."""
        operation = self._coordinator.operation(
            "chaos",
            user=user if user is not None else self._rng.choice(self._users),
            stream=self._rng.choice(self._streams),
            **options,
        )
        attempt = _Attempt(operation, self._told, self._values, self._session)
        try:
            async with operation:
                self._told.announced(operation.id, operation.attempt)
                yield attempt
        except AlreadyCommitted as already:
            self._told.answered(operation.id, already.result)
            raise
        except (OperationLost, OperationTimedOut, OutcomeUnknown):
            pass
        except (_OnPurpose, IntegrityError):
            attempt.failed = True
        finally:
            if operation.attempt:
                for outcome in attempt.known():
                    self._told.said(operation.id, operation.attempt, outcome)


class _Attempt:
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


class _OnPurpose(Exception):
    """What a writer raises to have its operation rolled back."""
