"""Erasure: removing a stream, or what the tables hold of a person.

All of it goes in transactions of bounded size and may be repeated: what a first try left, a second
removes. Each transaction also moves `installation.erasures`, by which every node learns within its
poll interval that what it has in memory may be erased.

What is not decided yet is decided first: an open operation of the person is rolled back, so that
its transaction cannot commit what would be left behind. Its outcome stays for as long as
operations are kept, with no more in it than ids and times, since a transaction that comes too
late must find it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import orjson
from sqlalchemy import delete, select, tuple_, update

from commitcast.attempt import Outcome
from commitcast.concealed import concealing
from commitcast.log import Log
from commitcast.notification import ERASED
from commitcast.outcome import Outcomes
from commitcast.retention import delete_attempts

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from commitcast.schema import Tables

ERASED_TYPE: Final = "commitcast.erased"
"""What an event becomes when the data of its actor was erased; its offset stays taken."""
_EVENTS_AT_ONCE: Final = 1000
_ATTEMPTS_AT_ONCE: Final = 250
_BUSY_PAUSE_S: Final = 0.05
_EMPTY: Final[dict[str, Any]] = {
    "actor": None, "key": None, "request_hash": None, "user_message": None,
}  # fmt: skip


class Eraser:
    """Erases from one log."""

    def __init__(self, engine: AsyncEngine, tables: Tables) -> None:
        self._engine = concealing(engine)
        self._tables = tables
        self._outcomes = Outcomes(Log(tables, engine.dialect))

    async def erase_stream(self, stream: str) -> int:
        """Delete a stream with its events; made again, it has another epoch. Returns streams gone.

        A stream of many events is emptied from its oldest event on before it goes.
        """
        streams, events = self._tables.streams, self._tables.events
        while True:
            async with self._engine.begin() as conn:
                row = (
                    await conn.execute(
                        select(streams).where(streams.c.name == stream).with_for_update()
                    )
                ).one_or_none()
                if row is None:
                    return 0
                keep_from = row.tail + _EVENTS_AT_ONCE
                whole = keep_from > row.head
                of = events.c.stream_id == row.id
                await conn.execute(
                    delete(events).where(of if whole else of & (events.c.offset < keep_from))
                )
                this = streams.c.id == row.id
                if whole:
                    deliveries = self._tables.deliveries
                    await conn.execute(delete(deliveries).where(deliveries.c.stream_id == row.id))
                    await conn.execute(delete(streams).where(this))
                else:
                    await conn.execute(update(streams).where(this).values(tail=keep_from))
                await self._count(conn)
                if whole:
                    break
        return 1

    async def erase_user(self, user: str, own_stream: str) -> int:
        """Remove what the tables hold of `user`; returns how many attempts, events and streams.

        Args:
            user: the actor of events and operations.
            own_stream: their own stream, which goes whole.
        """
        erased = await self._erase_operations(user, own_stream)
        erased += await self._empty_events(user)
        return erased + await self.erase_stream(own_stream)

    async def _count(self, conn: AsyncConnection) -> None:
        installation = self._tables.installation
        await conn.execute(update(installation).values(erasures=installation.c.erasures + 1))

    # --- events ---------------------------------------------------------------------------

    async def _empty_events(self, user: str) -> int:
        """Empty every event of `user`; offsets stay contiguous. Returns how many events."""
        events = self._tables.events
        key = tuple_(events.c.stream_id, events.c.offset)
        theirs = select(events.c.stream_id, events.c.offset).where(events.c.actor == user)
        free = theirs.limit(_EVENTS_AT_ONCE).with_for_update(skip_locked=True)
        empty = update(events).values(
            type=ERASED_TYPE, data="{}", actor=None, operation=None, trace_parent=None
        )
        erased = 0
        while True:
            async with self._engine.begin() as conn:
                # a trim may hold some, in another order: whoever waited for it could deadlock
                done = (await conn.execute(empty.where(key.in_(free)))).rowcount
                if done:
                    await self._count(conn)
                left = None if done else await conn.scalar(theirs.limit(1))
            erased += done
            if left is not None:
                await asyncio.sleep(_BUSY_PAUSE_S)
            elif not done:
                return erased

    # --- operations -----------------------------------------------------------------------

    async def _erase_operations(self, user: str, own_stream: str) -> int:
        """Roll back what is open, then remove every attempt of `user`; returns how many."""
        operations, outcomes = self._tables.operations, self._tables.outcomes
        query = (
            select(operations.c.id, operations.c.attempt, outcomes.c.outcome)
            .select_from(
                operations.outerjoin(
                    outcomes,
                    (outcomes.c.operation_id == operations.c.id)
                    & (outcomes.c.attempt == operations.c.attempt),
                )
            )
            .where(operations.c.actor == user)
            .limit(_ATTEMPTS_AT_ONCE)
        )
        erased = 0
        while True:
            async with self._engine.connect() as conn:
                found = (await conn.execute(query)).all()
            if not found:
                return erased
            by_outcome: dict[str | None, list[tuple[str, int]]] = {}
            for row in found:
                by_outcome.setdefault(row.outcome, []).append((row.id, row.attempt))
            for of, attempt in by_outcome.get(None, ()):
                await self._roll_back(of, attempt, own_stream)  # the next look finds its outcome
            committed = by_outcome.get(Outcome.COMMITTED.value, [])
            rolled_back = by_outcome.get(Outcome.ROLLED_BACK.value, [])
            async with self._engine.begin() as conn:
                if committed:
                    await delete_attempts(conn, self._tables, committed)
                if rolled_back:
                    await self._empty_attempts(conn, rolled_back)
                await self._count(conn)
            erased += len(committed) + len(rolled_back)

    async def _roll_back(self, of: str, attempt: int, own_stream: str) -> None:
        """Contend for the outcome; others who saw something of it are told, the person is not."""

        def decide(conn: Connection) -> None:
            operations = self._tables.operations
            this = (operations.c.id == of) & (operations.c.attempt == attempt)
            row = conn.execute(select(operations).where(this).with_for_update()).one_or_none()
            if row is None:
                return
            others = {
                name: orjson.dumps([s for s in orjson.loads(row._mapping[name]) if s != own_stream])  # noqa: SLF001 - public, in spite of its name
                for name in ("streams", "shown")
            }
            conn.execute(
                update(operations)
                .where(this)
                .values(
                    actor=None,
                    user_message=None,
                    **{name: text.decode() for name, text in others.items()},
                )
            )
            self._outcomes.settle(conn, of, attempt, ERASED)
            conn.execute(update(operations).where(this).values(actor=row.actor))

        async with self._engine.begin() as conn:
            await conn.run_sync(decide)

    async def _empty_attempts(self, conn: AsyncConnection, attempts: list[tuple[str, int]]) -> None:
        operations, outcomes = self._tables.operations, self._tables.outcomes
        these = tuple_(operations.c.id, operations.c.attempt).in_(attempts)
        await conn.execute(
            update(operations).where(these).values(**_EMPTY, streams="[]", shown="[]")
        )
        decided = tuple_(outcomes.c.operation_id, outcomes.c.attempt).in_(attempts)
        await conn.execute(update(outcomes).where(decided).values(result=None, error=str(ERASED)))
