"""The relay: hands committed events to the ``deliver`` callable of a socket layer a team has.

Promises, for all nodes that share a database and a relay name:

- Every event committed after the relay was first started is handed over at least once, in its
  stream's order; an event id that was seen before is a repetition (after a crash or a failure).
- One node at a time hands over, under a lease in the database; when it dies, another goes on
  from what the database says was delivered, within the lease.
- An event that ``deliver`` raises on is tried again, with growing pauses, and holds up its own
  stream only.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import random
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, literal, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from commitcast.sqlite import READ_ONLY_OPTION

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from commitcast.event import CommittedEvent
    from commitcast.log import Log
    from commitcast.steps import Steps
    from commitcast.telemetry import Tracing

_logger = logging.getLogger("commitcast")
_STREAMS_AT_ONCE: Final = 16
_UNDELIVERED_AT_ONCE: Final = 1000
_TURN_S: Final = 0.25
"""How long a stream with a backlog is delivered before others are looked for."""
_MAX_TIMED: Final = 10_000
"""Most events whose COMMIT is remembered until they are delivered; the oldest go untimed."""


class _LeaseLost(Exception):
    """Another node delivers now."""


class Relay:
    """Delivers one log to one callable."""

    def __init__(  # noqa: PLR0913 - what it shares with its coordinator
        self,
        engine: AsyncEngine,
        log: Log,
        deliver: Callable[[CommittedEvent], Any],
        *,
        name: str = "default",
        lease_s: float,
        poll_interval_s: float,
        page_events: int,
        steps: Steps,
        tracing: Tracing | None = None,
    ) -> None:
        self._engine = engine
        self._tracing = tracing
        self._reader = engine.execution_options(**{READ_ONLY_OPTION: True})
        self._log = log
        self._tables = log.tables
        self._deliver = deliver
        self._name = name
        self._lease_s = lease_s
        self._poll_interval_s = poll_interval_s
        self._page_events = page_events
        self._owner = uuid.uuid4().hex
        self._owned_until = 0.0
        self._hinted = asyncio.Event()
        self._retry_at: dict[str, tuple[float, float]] = {}
        self._turn = 0
        """The stream's id after which the next look begins; 0 is the first."""
        self._steps = steps
        self._committed_at: dict[tuple[str, int], float] = {}

    def hint(self, _streams: Collection[str]) -> None:
        """There may be something to deliver."""
        self._hinted.set()

    def committed(self, events: Sequence[CommittedEvent]) -> None:
        """Keep when COMMIT returned, for what this node is to deliver: the log does not have it."""
        if not self._steps.health.full or not self._owns():
            return
        for event in events:
            if event.committed_at is not None:
                self._committed_at[event.epoch, event.offset] = event.committed_at
        while len(self._committed_at) > _MAX_TIMED:
            del self._committed_at[next(iter(self._committed_at))]

    async def open(self) -> None:
        """Enter the relay in the database: what is committed from now on is its own."""
        await self._renew_once()

    async def run(self) -> None:
        """Deliver, for ever: drain, then wait for a hint or the poll."""
        renewing = asyncio.create_task(self._renew())
        try:
            while True:
                self._hinted.clear()
                try:
                    if self._owns():
                        await self._drain()
                    else:
                        self._retry_at.clear()
                except _LeaseLost:
                    self._owned_until = 0.0
                except Exception as error:  # noqa: BLE001 - drivers raise their own on connect
                    _logger.warning("commitcast: relay waits: %s", type(error).__name__)
                try:
                    async with asyncio.timeout(self._pause_s()):
                        await self._hinted.wait()
                except TimeoutError:
                    pass
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            await self._release()

    def _owns(self) -> bool:
        return time.monotonic() < self._owned_until

    def _pause_s(self) -> float:
        due = min((at for at, _ in self._retry_at.values()), default=float("inf"))
        return max(0.01, min(self._poll_interval_s, due - time.monotonic()))

    # --- the lease ------------------------------------------------------------------------

    async def _renew(self) -> None:
        while True:
            try:
                await self._renew_once()
            except Exception as error:  # noqa: BLE001 - drivers raise their own on connect
                _logger.warning("commitcast: relay lease: %s", type(error).__name__)
            await asyncio.sleep(self._lease_s / 4 * random.uniform(0.9, 1.1))

    async def _renew_once(self) -> None:
        asked = time.monotonic()
        if await self._acquire():
            if not self._owns():
                self._hinted.set()
            self._owned_until = asked + self._lease_s * 0.8
        else:
            self._owned_until = 0.0

    async def _acquire(self) -> bool:
        relays = self._tables.relays
        async with self._engine.begin() as conn:
            now, until = await self._clock(conn)
            insert = self._insert(conn, relays).values(
                name=self._name, owner=self._owner, leased_until=until
            )
            # not rowcount, which drivers keep for UPDATE and DELETE only
            first = insert.on_conflict_do_nothing().returning(relays.c.name)
            if await conn.scalar(first) is not None:
                await self._start_from_here(conn)
                return True
            taken = await conn.execute(
                update(relays)
                .where(
                    relays.c.name == self._name,
                    or_(
                        relays.c.owner == self._owner,
                        relays.c.owner.is_(None),
                        relays.c.leased_until < now,
                    ),
                )
                .values(owner=self._owner, leased_until=until)
            )
            return bool(taken.rowcount == 1)

    async def _release(self) -> None:
        relays = self._tables.relays
        try:
            async with asyncio.timeout(2), self._engine.begin() as conn:
                await conn.execute(
                    update(relays)
                    .where(relays.c.name == self._name, relays.c.owner == self._owner)
                    .values(owner=None)
                )
        except Exception as error:  # noqa: BLE001 - drivers raise their own on connect
            _logger.info("commitcast: relay lease runs out by itself: %s", type(error).__name__)

    async def _start_from_here(self, conn: AsyncConnection) -> None:
        """A new relay begins with what is committed after it: the past was never its own."""
        streams, deliveries = self._tables.streams, self._tables.deliveries
        await conn.execute(
            deliveries.insert().from_select(
                ["relay", "stream_id", "delivered"],
                select(literal(self._name), streams.c.id, streams.c.head),
            )
        )

    async def _clock(self, conn: AsyncConnection) -> tuple[Any, Any]:
        lease = timedelta(seconds=self._lease_s)
        if conn.dialect.name == "sqlite":  # one machine, one clock
            now = datetime.now(UTC)
            return now.isoformat(), (now + lease).isoformat()
        moment = (await conn.execute(select(func.clock_timestamp()))).scalar_one()
        return moment, moment + lease

    @staticmethod
    def _insert(conn: AsyncConnection, table: Any) -> Any:
        dialect: Any = sqlite if conn.dialect.name == "sqlite" else postgresql
        return dialect.insert(table)

    # --- delivering -----------------------------------------------------------------------

    async def _drain(self) -> None:
        while True:
            due = await self._due()
            if not due:
                return
            queue = iter(due)

            async def worker(queue: Any = queue) -> None:
                for found in queue:
                    await self._deliver_stream(found.id, found.name, found.delivered)

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._guarded(worker)) for _ in range(_STREAMS_AT_ONCE)]
            for task in tasks:
                error = task.result()
                if error is not None:
                    raise error

    @staticmethod
    async def _guarded(worker: Callable[[], Any]) -> Exception | None:
        """What `worker` raised: in a group it would come out as an ExceptionGroup."""
        try:
            await worker()
        except Exception as error:  # noqa: BLE001 - the loop decides
            return error
        return None

    async def _due(self) -> list[Any]:
        """Streams to deliver now, a page at most; each call goes on after the last one's.

        Those that wait to be tried again are passed over, however many they are.
        """
        seen: set[str] | None = None
        while True:
            if self._turn == 0:
                seen, began = set(), time.monotonic()
            page = await self._undelivered(self._turn)
            full = len(page) == _UNDELIVERED_AT_ONCE
            self._turn = page[-1].id if full else 0
            now = time.monotonic()
            due = [f for f in page if self._retry_at.get(f.name, (0.0, 0.0))[0] <= now]
            if due:
                return due
            if seen is None:
                continue
            seen.update(found.name for found in page)
            if not full:
                for name, (at, _) in list(self._retry_at.items()):
                    if at <= began and name not in seen:  # erased or trimmed: nothing to try again
                        del self._retry_at[name]
                return []

    async def _undelivered(self, after_id: int) -> list[Any]:
        streams, deliveries = self._tables.streams, self._tables.deliveries
        delivered = func.coalesce(deliveries.c.delivered, 0)
        async with self._reader.connect() as conn:
            rows = await conn.execute(
                select(streams.c.id, streams.c.name, delivered.label("delivered"))
                .select_from(
                    streams.outerjoin(
                        deliveries,
                        (deliveries.c.stream_id == streams.c.id)
                        & (deliveries.c.relay == self._name),
                    )
                )
                .where(streams.c.head > delivered, streams.c.id > after_id)
                .order_by(streams.c.id)
                .limit(_UNDELIVERED_AT_ONCE)
            )
            return list(rows)

    async def _deliver_stream(self, stream_id: int, stream: str, delivered: int) -> None:
        """Deliver one page, or of a backlog as many as fit in a turn, so that others have theirs.

        A new turn begins with a look at all streams, which takes too long to have for each page.
        """
        until = time.monotonic() + _TURN_S
        epoch: str | None = None
        while True:
            async with self._reader.connect() as conn:
                page = await self._log.page(conn, stream, delivered, self._page_events)
            if epoch not in {None, page.head.epoch}:
                return  # erased and made again meanwhile: the next turn begins it anew
            epoch = page.head.epoch
            if page.head.tail > delivered + 1:
                _logger.error(
                    "commitcast: events %d to %d of %s were trimmed before they were delivered; "
                    "keep events longer",
                    delivered + 1, page.head.tail - 1, stream,
                )  # fmt: skip
                delivered = page.head.tail - 1
                await self._confirm(stream_id, delivered)
            reached = delivered
            try:
                for event in page.events:
                    if not self._owns():
                        raise _LeaseLost
                    if not await self._hand_over(event):
                        break
                    reached = event.offset
            finally:
                if reached > delivered:
                    await self._confirm_even_if_stopped(stream_id, reached)
            whole = reached - delivered == self._page_events
            if not whole or time.monotonic() >= until:
                return
            delivered = reached

    async def _hand_over(self, event: CommittedEvent) -> bool:
        try:
            with self._traced(event):
                result = self._deliver(event)
                if inspect.isawaitable(result):
                    await result
        except Exception as error:  # noqa: BLE001 - whatever the team's callable raises
            pause_s = min(max(self._retry_at.get(event.stream, (0, 0.05))[1] * 2, 0.1), 30.0)
            self._retry_at[event.stream] = (time.monotonic() + pause_s, pause_s)
            _logger.warning(
                "commitcast: deliver raised %s for event %s of %s; again in %.1f s",
                type(error).__name__, event.id, event.stream, pause_s,
            )  # fmt: skip
            return False
        self._retry_at.pop(event.stream, None)
        committed_at = self._committed_at.pop((event.epoch, event.offset), None)
        if committed_at is not None:
            self._steps.delivered(event, committed_at)
        return True

    @contextlib.contextmanager
    def _traced(self, event: CommittedEvent) -> Iterator[None]:
        """So that the spans that ``deliver`` makes are children of the delivery's."""
        if self._tracing is None:
            yield
            return
        span = self._tracing.deliver(event)
        span.enter()
        try:
            yield
        except BaseException as error:
            span.end(error)
            raise
        finally:
            span.leave()
            span.end()

    async def _confirm_even_if_stopped(self, stream_id: int, delivered: int) -> None:
        """So that a node that stops in good order leaves no repetition to the next."""
        confirming = asyncio.ensure_future(self._confirm(stream_id, delivered))
        try:
            await asyncio.shield(confirming)
        except asyncio.CancelledError:
            await asyncio.wait({confirming}, timeout=2)
            if not confirming.done():
                confirming.cancel()
            await asyncio.gather(confirming, return_exceptions=True)
            raise

    async def _confirm(self, stream_id: int, delivered: int) -> None:
        streams, deliveries = self._tables.streams, self._tables.deliveries
        relays = self._tables.relays
        async with self._engine.begin() as conn:
            owner = (
                await conn.execute(
                    select(relays.c.owner).where(relays.c.name == self._name).with_for_update()
                )
            ).scalar()
            if owner != self._owner:
                raise _LeaseLost
            insert = self._insert(conn, deliveries).from_select(
                ["relay", "stream_id", "delivered"],
                select(literal(self._name), streams.c.id, literal(delivered)).where(
                    streams.c.id == stream_id
                ),
            )
            await conn.execute(
                insert.on_conflict_do_update(
                    index_elements=[deliveries.c.relay, deliveries.c.stream_id],
                    set_={"delivered": delivered},
                )
            )
