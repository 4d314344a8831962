"""What the writers do to the database: every shape of transaction, and what it should leave.

Each event has one row in the writers' own table, saved in the same transaction, and says in
its data whether its work was `doomed`, meant to be rolled back. So rows and events can be
compared both ways, and an event of rolled-back work gives itself away.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import ForeignKey, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from commitcast import Event, emit

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

EVENT_TYPE: Final = "chaos.written"
_NOBODY: Final = -1
_PAUSE_S: Final = 0.02
_PAYLOAD_LENGTHS: Final = (1, 20, 20, 20, 400, 6000)


class Base(DeclarativeBase):
    """The writers' own tables; Commitcast's are elsewhere."""


class Written(Base):
    """One row for each event, in a table as any application would have it."""

    __tablename__ = "commitcast_chaos_written"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    stream: Mapped[str] = mapped_column(index=True)
    payload: Mapped[str]
    parent: Mapped[int | None] = mapped_column(
        ForeignKey("commitcast_chaos_written.id", deferrable=True, initially="DEFERRED")
    )
    """Checked by the database only at COMMIT, which then fails, after the log was written."""


class Marks(Protocol):
    """Who is told of commits, as they happen, so that a kill can be placed around them."""

    def committing(self) -> None:
        """``commit()`` is about to be called."""

    def logged(self) -> None:
        """The log has been written; COMMIT is about to be sent."""

    def committed(self, keys: Sequence[str]) -> None:
        """``commit()`` returned: the rows `keys` must outlive everything."""

    def rolled_back(self) -> None:
        """A transaction was rolled back on purpose."""


class Writer:
    """One of several at work at once; `run` until `stop` is set.

    Takes 1 to 3 of the `streams` per transaction and 1 to 3 events for each, in mixed order,
    in one of the shapes below. An error that is not the writer's own is raised.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        streams: Sequence[str],
        name: str,
        rng: random.Random,
        marks: Marks,
    ) -> None:
        self._engine = engine
        self._streams = streams
        self._name = name
        self._rng = rng
        self._marks = marks
        self._number = 0
        self._shapes: tuple[tuple[Callable[[], Awaitable[None]], int], ...] = (
            (self._plain, 8),
            (self._begin_block, 3),
            (self._core, 3),
            (self._released_savepoint, 3),
            (self._rolled_back_savepoint, 3),
            (self._two_commits, 2),
            (self._joined, 2),
            (self._rolled_back, 2),
            (self._raised, 2),
            (self._joined_and_rolled_back, 2),
            (self._refused_at_commit, 2),
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Write until `stop` is set; the transaction that is open then is finished."""
        shapes, weights = zip(*self._shapes, strict=True)
        while not stop.is_set():
            await self._rng.choices(shapes, weights)[0]()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._rng.uniform(0, _PAUSE_S))

    # --- shapes that commit ---------------------------------------------------------------

    async def _plain(self) -> None:
        async with self._session() as session:
            await self._commit(session, self._add(session))

    async def _begin_block(self) -> None:
        async with self._session() as session:
            async with session.begin():
                keys = self._add(session)
                self._marks.committing()
            self._marks.committed(keys)

    async def _core(self) -> None:
        async with self._engine.connect() as conn:
            keys = await self._insert(conn)
            self._marks.committing()
            await conn.commit()
            self._marks.committed(keys)

    async def _released_savepoint(self) -> None:
        async with self._session() as session:
            keys = self._add(session)
            async with session.begin_nested():
                keys += self._add(session)
                async with session.begin_nested():
                    keys += self._add(session)
            await self._commit(session, keys)

    async def _rolled_back_savepoint(self) -> None:
        async with self._session() as session:
            keys = self._add(session)
            savepoint = await session.begin_nested()
            self._add(session, doomed=True)
            async with session.begin_nested():
                self._add(session, doomed=True)
            await savepoint.rollback()
            keys += self._add(session)
            await self._commit(session, keys)

    async def _two_commits(self) -> None:
        async with self._session() as session:
            await self._commit(session, self._add(session))
            await self._commit(session, self._add(session))

    async def _joined(self) -> None:
        async with self._engine.connect() as conn, conn.begin() as outer:
            async with self._session(conn) as session:
                keys = self._add(session)
                await session.commit()
            self._marks.committing()
            await outer.commit()
            self._marks.committed(keys)

    # --- shapes that must leave nothing ---------------------------------------------------

    async def _rolled_back(self) -> None:
        async with self._session() as session:
            self._add(session, doomed=True)
            await session.flush()
            self._add(session, doomed=True)
            await session.rollback()
            self._marks.rolled_back()

    async def _raised(self) -> None:
        with contextlib.suppress(_OnPurpose):
            async with self._engine.begin() as conn:
                await self._insert(conn, doomed=True)
                raise _OnPurpose
        self._marks.rolled_back()

    async def _joined_and_rolled_back(self) -> None:
        async with self._engine.connect() as conn, conn.begin() as outer:
            async with self._session(conn) as session:
                self._add(session, doomed=True)
                await session.commit()
            await outer.rollback()
            self._marks.rolled_back()

    async def _refused_at_commit(self) -> None:
        async with self._session() as session:
            self._add(session, doomed=True, parent=_NOBODY)
            with contextlib.suppress(IntegrityError):
                await self._commit(session, ["a commit that had to fail"])
            await session.rollback()
            self._marks.rolled_back()

    # --- parts ----------------------------------------------------------------------------

    def _session(self, conn: AsyncConnection | None = None) -> AsyncSession:
        bind = self._engine if conn is None else conn
        return AsyncSession(bind, expire_on_commit=False, join_transaction_mode="create_savepoint")

    async def _commit(self, session: AsyncSession, keys: Sequence[str]) -> None:
        self._marks.committing()
        await session.commit()
        self._marks.committed(keys)

    def _add(
        self, session: AsyncSession, *, doomed: bool = False, parent: int | None = None
    ) -> list[str]:
        """Add rows and emit their events, half of them resolved only at commit."""
        rows = [Written(**values, parent=parent) for values in self._values()]
        session.add_all(rows)
        for row in rows:
            if self._rng.random() < 0.5:  # noqa: PLR2004 - half
                emit(session, row.stream, _event(row, doomed=doomed))
            else:
                emit(session, row.stream, _later(row, doomed=doomed))
        return [row.key for row in rows]

    async def _insert(self, conn: AsyncConnection, *, doomed: bool = False) -> list[str]:
        values = self._values()
        await conn.execute(insert(Written), values)
        for value in values:
            emit(conn, value["stream"], Event(EVENT_TYPE, _data(value, doomed=doomed)))
        return [value["key"] for value in values]

    def _values(self) -> list[dict[str, str]]:
        chosen = self._rng.sample(self._streams, k=self._rng.randint(1, 3))
        streams = [name for name in chosen for _ in range(self._rng.randint(1, 3))]
        self._rng.shuffle(streams)
        values = []
        for stream in streams:
            self._number += 1
            payload = self._rng.choice("abcé\n😀") * self._rng.choice(_PAYLOAD_LENGTHS)
            values.append(
                {"key": f"{self._name}.{self._number}", "stream": stream, "payload": payload}
            )
        return values


class _OnPurpose(Exception):
    """What a writer raises to have its work rolled back."""


def _data(values: dict[str, str], *, doomed: bool) -> dict[str, Any]:
    return {"key": values["key"], "payload": values["payload"], "doomed": doomed}


def _event(row: Written, *, doomed: bool) -> Event:
    return Event(EVENT_TYPE, {"key": row.key, "payload": row.payload, "doomed": doomed})


def _later(row: Written, *, doomed: bool) -> Callable[[], Event]:
    def event() -> Event:
        data = {"key": row.key, "payload": row.payload, "doomed": doomed, "row": row.id}
        return Event(EVENT_TYPE, data)

    return event
