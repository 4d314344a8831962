"""Retention: trimming the log by age and by count.

A trim moves the tails of some streams and deletes the events before them in one transaction, so
that a reader either finds an event or sees from the tail that it is gone.

Which streams are looked at, an index says: those whose oldest event may be too old (`oldest_at`),
those that are new, and those that an append has filled up (`full_at`, see `commitcast.schema`).
All others cost nothing. A stream that has been without events for as long as events are kept is
removed; made again it has another epoch, as after an erasure.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    and_,
    bindparam,
    case,
    delete,
    func,
    null,
    select,
    true,
    tuple_,
    update,
)

from commitcast.clock import DatabaseClock
from commitcast.concealed import concealing
from commitcast.sqlite import READ_ONLY_OPTION

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from commitcast.schema import Tables
    from commitcast.settings import Retention

_logger = logging.getLogger("commitcast")
_STREAMS_AT_ONCE: Final = 200
_EVENTS_AT_ONCE: Final = 1000
"""Most events that one transaction deletes, and most attempts at operations times four."""


class Trimmer:
    """Trims every stream of one log, for ever."""

    def __init__(self, engine: AsyncEngine, tables: Tables, retention: Retention) -> None:
        self._engine = concealing(engine)
        self._reader = self._engine.execution_options(**{READ_ONLY_OPTION: True})
        self._tables = tables
        self._retention = retention
        self._clock = DatabaseClock(engine.dialect)
        self._place = self._placing()

    async def run(self) -> None:
        """Trim now and then, at intervals with jitter so that nodes do not coincide."""
        whole = True  # the limit may be another than the one by which streams were marked
        while True:
            await asyncio.sleep(self._retention.every_s * random.uniform(0.8, 1.2))
            try:
                await self.trim(whole=whole)
                whole = False
            except Exception as error:  # noqa: BLE001 - drivers raise their own on connect
                _logger.warning("commitcast: trimming failed: %s", type(error).__name__)

    async def trim(self, *, whole: bool = True) -> int:
        """Remove what the limits say; returns how many events went.

        With `whole`, all streams are counted, not only those that were marked as full.
        """
        while await self._trim_operations():
            pass
        if whole and self._retention.max_events_per_stream is not None:
            await self._mark_full(self._retention.max_events_per_stream)
        oldest_at = self._tables.streams.c.oldest_at
        cutoff = await self._cutoff(self._retention.max_age)
        removed = await self._trim_where(oldest_at.is_(None), cutoff)
        if cutoff is not None:
            removed += await self._trim_where(oldest_at < cutoff, cutoff)
        return removed

    async def _cutoff(self, max_age: timedelta | None) -> Any:
        if max_age is None:
            return None
        async with self._reader.connect() as conn:
            return await conn.scalar(select(self._clock.later(-max_age.total_seconds())))

    async def _trim_operations(self) -> int:
        """One batch of settled operations that are old; a key is forgotten with its last attempt."""
        operations = self._tables.operations
        cutoff = await self._cutoff(self._retention.operations_max_age)
        if cutoff is None:
            return 0
        async with self._reader.connect() as conn:
            old = (
                await conn.execute(
                    select(operations.c.id, operations.c.attempt)
                    .where(operations.c.announced_at < cutoff, operations.c.settled == true())
                    .order_by(operations.c.announced_at)
                    .limit(_EVENTS_AT_ONCE // 4)
                )
            ).all()
        if old:
            async with self._engine.begin() as conn:
                await delete_attempts(conn, self._tables, [(row.id, row.attempt) for row in old])
        return len(old)

    async def _mark_full(self, limit: int) -> None:
        """Mark every stream that holds more than `limit` events, whoever filled it."""
        streams = self._tables.streams
        last_id = 0
        while True:
            full = and_(
                streams.c.head - streams.c.tail >= limit,
                streams.c.oldest_at.is_not(None),
                streams.c.id > last_id,
            )
            query = select(streams.c.id).where(full).order_by(streams.c.id).limit(_STREAMS_AT_ONCE)
            async with self._reader.connect() as conn:
                found = (await conn.scalars(query)).all()
            if not found:
                return
            last_id = found[-1]
            free = select(streams.c.id).where(streams.c.id.in_(found))
            async with self._engine.begin() as conn:
                await conn.execute(
                    update(streams)
                    .where(streams.c.id.in_(free.with_for_update(skip_locked=True)))
                    .values(oldest_at=null())
                )

    async def _trim_where(self, due: Any, cutoff: Any) -> int:
        streams = self._tables.streams
        query = select(streams.c.id).where(due).order_by(streams.c.oldest_at)
        removed = 0
        while True:
            async with self._reader.connect() as conn:  # so that an idle log is not locked
                if await conn.scalar(query.limit(1)) is None:
                    return removed
            async with self._engine.begin() as conn:
                batch = query.limit(_STREAMS_AT_ONCE)
                # who waits for a busy stream would make others wait; it is trimmed another time
                ids = (await conn.scalars(batch.with_for_update(skip_locked=True))).all()
                if not ids:
                    return removed
                removed += await self._trim_these(conn, ids, cutoff)

    async def _trim_these(self, conn: AsyncConnection, ids: Sequence[int], cutoff: Any) -> int:
        """Trim streams whose rows are locked; what is over the most events is left for the next."""
        streams, events = self._tables.streams, self._tables.events
        limit = self._retention.max_events_per_stream
        young: Any = null()
        if cutoff is not None:
            young = (
                select(events.c.offset)
                .where(
                    events.c.stream_id == streams.c.id,
                    events.c.offset >= streams.c.tail,
                    events.c.offset < streams.c.tail + _EVENTS_AT_ONCE,
                    events.c.created_at >= cutoff,
                )
                .order_by(events.c.offset)
                .limit(1)
                .scalar_subquery()
            )
        rows = await conn.execute(
            select(streams, young.label("young")).where(streams.c.id.in_(ids))
        )
        room = _EVENTS_AT_ONCE
        placed: list[dict[str, Any]] = []
        empty: list[int] = []
        removed: list[dict[str, Any]] = []
        for row in rows.all():
            if room == 0:
                break
            if row.tail > row.head and row.oldest_at is not None:
                empty.append(row.id)
                continue
            keep_from = row.tail if limit is None else max(row.tail, row.head - limit + 1)
            if cutoff is not None:
                old = min(row.tail + _EVENTS_AT_ONCE, row.head + 1)
                keep_from = max(keep_from, old if row.young is None else row.young)
            keep_from = min(keep_from, row.tail + room)
            room -= keep_from - row.tail
            if keep_from > row.tail:
                removed.append({"of": row.id, "keep_from": keep_from})
            full_at = None if limit is None else keep_from + limit
            still_full = full_at is not None and row.head >= full_at
            placed.append(
                {"of": row.id, "keep_from": keep_from, "full": full_at, "again": still_full}
            )
        if placed:
            await conn.execute(self._place, placed)
        if removed:
            before = events.c.offset < bindparam("keep_from", type_=BigInteger)
            await conn.execute(
                delete(events).where(events.c.stream_id == bindparam("of"), before), removed
            )
        if empty:
            await self._remove(conn, empty)
        return _EVENTS_AT_ONCE - room

    def _placing(self) -> Any:
        """Give a stream its new tail, and say when it is to be looked at again."""
        streams, events = self._tables.streams, self._tables.events
        keep_from = bindparam("keep_from", type_=BigInteger)
        oldest = select(events.c.created_at).where(
            events.c.stream_id == streams.c.id, events.c.offset == keep_from
        )
        known = func.coalesce(oldest.scalar_subquery(), self._clock.now())
        return (
            update(streams)
            .where(streams.c.id == bindparam("of"))
            .values(
                tail=keep_from,
                full_at=bindparam("full", type_=BigInteger),
                oldest_at=case((bindparam("again", type_=Boolean), null()), else_=known),
            )
        )

    async def _remove(self, conn: AsyncConnection, ids: Sequence[int]) -> None:
        """Remove streams without events, unless a relay that runs has yet to look at them."""
        streams, deliveries, relays = (
            self._tables.streams, self._tables.deliveries, self._tables.relays,
        )  # fmt: skip
        delivered = and_(
            deliveries.c.stream_id == streams.c.id,
            deliveries.c.relay == relays.c.name,
            deliveries.c.delivered >= streams.c.head,
        )
        waits = select(relays.c.name).where(
            relays.c.owner.is_not(None), ~select(deliveries.c.relay).where(delivered).exists()
        )
        awaited = (
            await conn.scalars(select(streams.c.id).where(streams.c.id.in_(ids), waits.exists()))
        ).all()
        if awaited:
            await conn.execute(
                update(streams).where(streams.c.id.in_(awaited)).values(oldest_at=self._clock.now())
            )
        gone = sorted(set(ids) - set(awaited))
        await conn.execute(delete(deliveries).where(deliveries.c.stream_id.in_(gone)))
        await conn.execute(delete(streams).where(streams.c.id.in_(gone)))


async def delete_attempts(
    conn: AsyncConnection, tables: Tables, attempts: Sequence[tuple[str, int]]
) -> None:
    """Delete attempts at operations, with their outcomes."""
    operations, outcomes = tables.operations, tables.outcomes
    for table, of in ((operations, operations.c.id), (outcomes, outcomes.c.operation_id)):
        await conn.execute(delete(table).where(tuple_(of, table.c.attempt).in_(attempts)))
