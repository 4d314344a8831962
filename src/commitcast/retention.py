"""Retention: trimming the log by age and by count, and removing a person's data.

A trim moves the stream's tail and deletes the events before it in one transaction, in small
batches, so that a reader either finds an event or sees from the tail that it is gone.
"""

from __future__ import annotations

import asyncio
import logging
import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, delete, func, or_, select, true, update

from commitcast.sqlite import READ_ONLY_OPTION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from commitcast.schema import Tables
    from commitcast.settings import Retention

_logger = logging.getLogger("commitcast")
_STREAMS_AT_ONCE: Final = 200
_EVENTS_AT_ONCE: Final = 1000
ERASED_TYPE: Final = "commitcast.erased"
"""What an event becomes when the data of its actor was erased; its offset stays taken."""


class Trimmer:
    """Trims every stream of one log, for ever."""

    def __init__(self, engine: AsyncEngine, tables: Tables, retention: Retention) -> None:
        self._engine = engine
        self._reader = engine.execution_options(**{READ_ONLY_OPTION: True})
        self._tables = tables
        self._retention = retention

    async def run(self) -> None:
        """Trim now and then, at intervals with jitter so that nodes do not coincide."""
        while True:
            await asyncio.sleep(self._retention.every_s * random.uniform(0.8, 1.2))
            try:
                await self.trim()
            except Exception as error:  # noqa: BLE001 - drivers raise their own on connect
                _logger.warning("commitcast: trimming failed: %s", type(error).__name__)

    async def trim(self) -> int:
        """Remove what the limits say; returns how many events went."""
        while await self._trim_operations():
            pass
        removed = 0
        last_id = 0
        while True:
            async with self._reader.connect() as conn:
                due, last_id = await self._due(conn, last_id)
            for stream_id in due:
                while gone := await self._trim_stream(stream_id):
                    removed += gone
            if last_id == 0:
                return removed

    async def _due(self, conn: AsyncConnection, last_id: int) -> tuple[list[int], int]:
        streams, events = self._tables.streams, self._tables.events
        oldest = and_(events.c.stream_id == streams.c.id, events.c.offset == streams.c.tail)
        rows = (
            await conn.execute(
                select(streams.c.id, streams.c.head, streams.c.tail, events.c.created_at)
                .select_from(streams.outerjoin(events, oldest))
                .where(streams.c.id > last_id)
                .order_by(streams.c.id)
                .limit(_STREAMS_AT_ONCE)
            )
        ).all()
        limit = self._retention.max_events_per_stream
        cutoff = await self._cutoff(conn, self._retention.max_age)
        due = [
            row.id
            for row in rows
            if row.created_at is not None
            and (
                (limit is not None and row.head - row.tail + 1 > limit)
                or (cutoff is not None and row.created_at < cutoff)
            )
        ]
        return due, rows[-1].id if len(rows) == _STREAMS_AT_ONCE else 0

    @staticmethod
    async def _cutoff(conn: AsyncConnection, max_age: timedelta | None) -> Any:
        if max_age is None:
            return None
        if conn.dialect.name == "sqlite":
            now = datetime.fromisoformat(
                (
                    await conn.execute(select(func.strftime("%Y-%m-%dT%H:%M:%fZ", "now")))
                ).scalar_one()
            )
            before = (now - max_age).astimezone(UTC)
            return before.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        now = (await conn.execute(select(func.clock_timestamp()))).scalar_one()
        return now - max_age

    async def _trim_operations(self) -> int:
        """One batch of settled operations that are old; a key is forgotten with its last attempt."""
        operations = self._tables.operations
        async with self._reader.connect() as conn:
            cutoff = await self._cutoff(conn, self._retention.operations_max_age)
            if cutoff is None:
                return 0
            old = (
                await conn.execute(
                    select(operations.c.id, operations.c.attempt)
                    .where(operations.c.announced_at < cutoff, operations.c.settled == true())
                    .limit(_EVENTS_AT_ONCE // 4)
                )
            ).all()
        if old:
            async with self._engine.begin() as conn:
                await _delete_attempts(conn, self._tables, [(row.id, row.attempt) for row in old])
        return len(old)

    async def _trim_stream(self, stream_id: int) -> int:
        streams, events = self._tables.streams, self._tables.events
        limit = self._retention.max_events_per_stream
        async with self._engine.begin() as conn:
            row = (
                await conn.execute(
                    select(streams.c.head, streams.c.tail)
                    .where(streams.c.id == stream_id)
                    .with_for_update(skip_locked=True)  # a busy stream is trimmed another time
                )
            ).one_or_none()
            if row is None:
                return 0
            keep_from = row.tail if limit is None else max(row.tail, row.head - limit + 1)
            cutoff = await self._cutoff(conn, self._retention.max_age)
            if cutoff is not None:
                young = (
                    await conn.execute(
                        select(func.min(events.c.offset)).where(
                            events.c.stream_id == stream_id,
                            events.c.offset >= row.tail,
                            events.c.offset < row.tail + _EVENTS_AT_ONCE,
                            events.c.created_at >= cutoff,
                        )
                    )
                ).scalar()
                old_until = (
                    min(row.tail + _EVENTS_AT_ONCE, row.head + 1) if young is None else young
                )
                keep_from = max(keep_from, old_until)
            keep_from = min(keep_from, row.tail + _EVENTS_AT_ONCE)
            if keep_from <= row.tail:
                return 0
            await conn.execute(
                update(streams).where(streams.c.id == stream_id).values(tail=keep_from)
            )
            await conn.execute(
                delete(events).where(events.c.stream_id == stream_id, events.c.offset < keep_from)
            )
            return int(keep_from - row.tail)


async def _delete_attempts(
    conn: AsyncConnection, tables: Tables, attempts: Sequence[tuple[str, int]]
) -> None:
    for table, of in (
        (tables.operations, tables.operations.c.id),
        (tables.outcomes, tables.outcomes.c.operation_id),
    ):
        these = (and_(of == key, table.c.attempt == attempt) for key, attempt in attempts)
        await conn.execute(delete(table).where(or_(*these)))


async def erase_operations(engine: AsyncEngine, tables: Tables, actor: str) -> int:
    """Delete what `actor` did that has an outcome, with its result; returns how many attempts."""
    operations, outcomes = tables.operations, tables.outcomes
    decided = and_(
        outcomes.c.operation_id == operations.c.id, outcomes.c.attempt == operations.c.attempt
    )
    erased = 0
    while True:
        async with engine.begin() as conn:
            query = select(operations.c.id, operations.c.attempt).where(
                operations.c.actor == actor, select(outcomes.c.outcome).where(decided).exists()
            )
            mine = (await conn.execute(query.limit(_EVENTS_AT_ONCE // 4))).all()
            if not mine:
                return erased
            await _delete_attempts(conn, tables, [(row.id, row.attempt) for row in mine])
            erased += len(mine)


async def erase_stream(engine: AsyncEngine, tables: Tables, stream: str) -> int:
    """Delete a stream with its events; made again, it has another epoch. Returns streams gone."""
    streams, events, deliveries = tables.streams, tables.events, tables.deliveries
    async with engine.begin() as conn:
        stream_id = (
            await conn.execute(
                select(streams.c.id).where(streams.c.name == stream).with_for_update()
            )
        ).scalar()
        if stream_id is None:
            return 0
        await conn.execute(delete(events).where(events.c.stream_id == stream_id))
        await conn.execute(delete(deliveries).where(deliveries.c.stream_id == stream_id))
        await conn.execute(delete(streams).where(streams.c.id == stream_id))
        return 1


async def erase_actor(engine: AsyncEngine, tables: Tables, actor: str) -> int:
    """Empty every event of `actor`; offsets stay contiguous. Returns how many events.

    An event becomes type ``commitcast.erased`` with empty data and no actor.
    """
    events = tables.events
    erased = 0
    while True:
        async with engine.begin() as conn:
            keys = (
                await conn.execute(
                    select(events.c.stream_id, events.c.offset)
                    .where(events.c.actor == actor)
                    .limit(_EVENTS_AT_ONCE // 4)
                )
            ).all()
            if not keys:
                return erased
            await conn.execute(
                update(events)
                .where(
                    or_(
                        *(
                            and_(events.c.stream_id == k.stream_id, events.c.offset == k.offset)
                            for k in keys
                        )
                    )
                )
                .values(type=ERASED_TYPE, data="{}", actor=None, operation=None, trace_parent=None)
            )
            erased += len(keys)
