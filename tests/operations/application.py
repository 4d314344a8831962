"""The application whose operations fail in these tests, on one driver, and what it writes."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import ForeignKey, String
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from commitcast import Coordinator, Event

from .judge import PATIENCE_S, Judge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection

    from sqlalchemy.ext.asyncio import AsyncEngine

    from commitcast.operation import Operation
    from commitcast.telemetry import CoordinationEvent

ANN, THREAD, RUN = "user:ann", "thread:7", "run:1"
DRIVERS = ["sqlite+aiosqlite", "postgresql+asyncpg", "postgresql+psycopg"]
ON_POSTGRESQL = DRIVERS[1:]


class Base(DeclarativeBase):
    """The tables of the application under test."""


class Saved(Base):
    """What an operation saves: one row by its last transaction, others by checkpoints."""

    __tablename__ = "saved"

    id: Mapped[int] = mapped_column(primary_key=True)
    operation: Mapped[str] = mapped_column(String(32))
    attempt: Mapped[int]
    last: Mapped[bool] = mapped_column(default=True)
    text: Mapped[str | None] = mapped_column(String(100), unique=True)
    follows: Mapped[int | None] = mapped_column(
        ForeignKey("saved.id", deferrable=True, initially="DEFERRED")
    )


class Boom(Exception):
    """What goes wrong in the work."""


@dataclass
class App:
    """An application with a running coordinator."""

    engine: AsyncEngine
    coordinator: Coordinator
    judge: Judge
    observed: list[CoordinationEvent] = field(default_factory=list)

    @property
    def postgresql(self) -> bool:
        return self.engine.dialect.name == "postgresql"

    def session(self) -> AsyncSession:
        return AsyncSession(self.engine, expire_on_commit=False)

    def operation(self, name: str = "save", **options: Any) -> Operation:
        options = {"user": "ann", "stream": THREAD, **options}
        return self.coordinator.operation(name, **options)

    def follow(self, op: Operation) -> None:
        """Have the judge hear of what follows the operation's outcome."""
        called = self.judge.called[(op.id, op.attempt)]
        op.after_commit(lambda: called.append("committed"))
        op.on_rollback(lambda: called.append("rolled_back"))

    @contextlib.asynccontextmanager
    async def entered(self, **options: Any) -> AsyncIterator[Operation]:
        """An operation that is judged with its followers."""
        async with self.operation(**options) as op:
            self.follow(op)
            yield op

    async def outcomes(self) -> list[str]:
        """How all attempts ended, once they have, in the order of their announcement; judged."""
        await until(lambda: not self._announcing())
        return await self.judge.outcomes()

    def _announcing(self) -> bool:
        """Whether an announcement is on its way, though its task may be gone."""
        running = self.coordinator._operations
        return running is not None and any(op.attempt == 0 for op in running.live)


def save(session: Any, op: Operation, **columns: Any) -> Saved:
    """A row and an event of an operation's, for the next commit of `session`."""
    session.add(row := Saved(operation=op.id, attempt=op.attempt, **columns))
    op.emit(Event("saved", {"attempt": op.attempt, "last": row.last is not False}))
    return row


async def checkpoint(session: AsyncSession, op: Operation, stream: str = RUN) -> None:
    """Show something before the outcome, on a stream that must then be told of a rollback."""
    session.add(Saved(operation=op.id, attempt=op.attempt, last=False))
    op.emit(Event("shown", {"attempt": op.attempt}), stream=stream)
    await session.commit()


@contextlib.asynccontextmanager
async def running(
    engine: AsyncEngine,
    judge: Judge,
    coordinator: Callable[..., Coordinator] = Coordinator,
    streams: Collection[str] = (ANN, THREAD, RUN),
    **options: Any,
) -> AsyncIterator[App]:
    """A coordinator on `engine`, with readers whom the judge compares with the log."""
    options = {"poll_interval_s": 0.1, "lease_s": 2.0, **options}
    app = App(engine, coordinator(engine, **options), judge)
    app.coordinator.observe(app.observed.append)
    async with app.coordinator:
        received: dict[str, list[Any]] = defaultdict(list)
        readers = [
            asyncio.create_task(_read(app.coordinator, stream, received[stream]))
            for stream in streams
        ]
        judge.readers.append(received)
        try:
            yield app
        finally:
            for reader in readers:
                reader.cancel()
            ended = await asyncio.gather(*readers, return_exceptions=True)
            assert all(isinstance(e, asyncio.CancelledError) for e in ended), ended


async def _read(coordinator: Coordinator, stream: str, received: list[Any]) -> None:
    async with coordinator.subscribe(stream, after="earliest") as events:
        async for event in events:
            received.append(event)  # noqa: PERF401 - the judge looks while it goes on


async def until(condition: Callable[[], bool], limit_s: float = PATIENCE_S) -> None:
    """Wait for what the code under test makes true."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - the condition is another's, without a signal
            await asyncio.sleep(0.01)
