"""What the writers do as operations: every shape of one, and what the writer was told of its end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from commitcast import (
    AlreadyCommitted,
    InProgress,
    OperationLost,
    OperationTimedOut,
    OutcomeUnknown,
)
from commitcast.chaos.attempt import Attempt, Worked
from commitcast.chaos.workload import Writer, Written

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from commitcast import Coordinator
    from commitcast.chaos.attempt import OperationMarks

_NOBODY: Final = -1
_CANCELLED_WITHIN_S: Final = (0.0, 0.003, 0.03)
_DEADLINES_S: Final = (0.001, 0.02, 0.05)
_KEYS: Final = 3
_NEW_KEYS_EVERY_S: Final = 5
_OLD_KEYS: Final = 2
"""Keys are tried again for so many times 5 s: through a kill, a start, and the dead one's lease."""


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

    async def run(self, stop: asyncio.Event) -> None:
        """As `Writer.run`, but first try again what an earlier life may have begun."""
        await self._keyed()
        await super().run(stop)

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
        age = self._rng.randint(0, _OLD_KEYS)
        number = self._rng.randrange(_KEYS)
        key = f"{int(time.time() / _NEW_KEYS_EVERY_S) - age}.{number}"
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
    ) -> AsyncIterator[Attempt]:
        """Enter an operation, and mark what is known of its end; errors on purpose stay here."""
        operation = self._coordinator.operation(
            "chaos",
            user=user if user is not None else self._rng.choice(self._users),
            stream=self._rng.choice(self._streams),
            **options,
        )
        attempt = Attempt(operation, self._told, self._values, self._session)
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


class _OnPurpose(Exception):
    """What a writer raises to have its operation rolled back."""
