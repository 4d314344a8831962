"""The relay: hands committed events to the ``deliver`` callable of a socket layer a team has.

Promises, for all nodes that share a database and a relay name:

- Every event committed after the relay was first started is handed over at least once, in its
  stream's order; an event id that was seen before is a repetition (after a crash or a failure).
- One node at a time hands over, under a lease in the database; when it dies, another goes on
  from what the database says was delivered, within the lease.
- An event that ``deliver`` raises on, or does not return from within ``deliver_limit_s``, is tried
  again, with growing pauses, and holds up its own stream only. A call that does not heed its
  cancellation keeps its stream; where none of them returns, another node may take over.
- A function that is not async is called in the event loop, and must not block.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import literal, select

from commitcast.lease import Lease, insert_into
from commitcast.score import LayerPair
from commitcast.sqlite import READ_ONLY_OPTION
from commitcast.undelivered import Undelivered

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from commitcast.event import CommittedEvent
    from commitcast.log import Log
    from commitcast.steps import Steps
    from commitcast.telemetry import Tracing

_logger = logging.getLogger("commitcast")
_STREAMS_AT_ONCE: Final = 16
_TURN_S: Final = 0.25
"""How long a stream with a backlog is delivered before others are looked for."""
_SLOW_S: Final = 0.5
"""How long others wait for a call of ``deliver``; then it goes on beside them."""
_BUSY_AT_ONCE: Final = 256
_GRACE_S: Final = 2.0
_STOP_WITHIN_S: Final = 5.0
_MAX_TIMED: Final = 10_000
"""Most events whose COMMIT is remembered until they are delivered; the oldest go untimed."""


class _LeaseLost(Exception):
    """Another node delivers now."""


class _Place:
    """One of those that streams are delivered at; a slow one gives it back before it is done."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places: asyncio.Semaphore | None = places

    def give(self) -> None:
        """Give it back, once."""
        places, self._places = self._places, None
        if places is not None:
            places.release()


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
        limit_s: float,
        poll_interval_s: float,
        page_events: int,
        steps: Steps,
        tracing: Tracing | None = None,
    ) -> None:
        self._hinted = asyncio.Event()
        self._engine = engine
        self._tracing = tracing
        self._reader = engine.execution_options(**{READ_ONLY_OPTION: True})
        self._log = log
        self._tables = log.tables
        self._deliver = deliver
        self._name = name
        self._undelivered = Undelivered(self._reader, log.tables, name, poll_interval_s)
        self._lease = Lease(engine, log.tables, name=name, lease_s=lease_s, taken=self._taken)
        self._limit_s = limit_s
        self._poll_interval_s = poll_interval_s
        self._page_events = page_events
        self._places = asyncio.Semaphore(_STREAMS_AT_ONCE)
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._error: BaseException | None = None
        self._returned = time.monotonic()
        self.overdue: set[str] = set()
        """Streams whose last call of ``deliver`` was not done at its deadline."""
        self._retry_at: dict[str, tuple[float, float]] = {}
        self._steps = steps
        self._committed_at: dict[tuple[str, int], float] = {}

    def hint(self, streams: Collection[str]) -> None:
        """There may be something to deliver in these."""
        if self._lease.is_ours:  # who takes it looks at all
            self._undelivered.name(streams)
            self._hinted.set()

    def _taken(self) -> None:
        self._undelivered.look_soon()
        self._hinted.set()

    def committed(self, events: Sequence[CommittedEvent]) -> None:
        """Keep when COMMIT returned, for what this node is to deliver: the log does not have it."""
        if not self._steps.health.full or not self._lease.is_ours:
            return
        for event in events:
            if event.committed_at is not None:
                self._committed_at[event.epoch, event.offset] = event.committed_at
        while len(self._committed_at) > _MAX_TIMED:
            del self._committed_at[next(iter(self._committed_at))]

    async def open(self) -> None:
        """Enter the relay in the database: what is committed from now on is its own."""
        await self._lease.renew()

    async def run(self) -> None:
        """Deliver, for ever: drain, then wait for a hint or the poll."""
        renewing = asyncio.create_task(self._lease.run())
        try:
            while True:
                self._hinted.clear()
                try:
                    if self.stuck and self._lease.is_ours:
                        _logger.error(
                            "commitcast: no call of deliver returns; another node may try"
                        )
                        await self._lease.give_up()
                    if self._lease.is_ours:
                        await self._drain()
                    else:
                        self._retry_at.clear()
                        self._cancel()
                except _LeaseLost:
                    self._lease.lose()
                except Exception as error:  # noqa: BLE001 - drivers raise their own on connect
                    self._undelivered.look_next_poll()
                    _logger.warning("commitcast: relay waits: %s", type(error).__name__)
                try:
                    async with asyncio.timeout(self._pause_s()):
                        await self._hinted.wait()
                except TimeoutError:
                    pass
        finally:
            renewing.cancel()
            self._cancel()
            await asyncio.wait({renewing, *self._busy.values()}, timeout=_STOP_WITHIN_S)
            await self._lease.release()

    @property
    def stuck(self) -> bool:
        """Whether as many calls as may be under way are past their deadline, and none returns."""
        late = time.monotonic() - self._returned > self._limit_s + _GRACE_S
        return self._is_full() and late

    def _cancel(self) -> None:
        for task in self._busy.values():
            task.cancel()

    def _pause_s(self) -> float:
        if not self._lease.is_ours or self._is_full():  # what changes that sets the event
            return self._poll_interval_s
        due = min([self._undelivered.look_at, *(at for at, _ in self._retry_at.values())])
        return max(0.01, min(self._poll_interval_s, due - time.monotonic()))

    def _is_full(self) -> bool:
        return len(self._busy) >= _BUSY_AT_ONCE

    # --- delivering -----------------------------------------------------------------------

    async def _drain(self) -> None:
        while not self._is_full() and (due := await self._due()):
            begun = set()
            for found in due:
                if self._is_full():
                    self._undelivered.name([found.name])
                    continue
                await self._places.acquire()
                task = asyncio.create_task(
                    self._deliver_stream(
                        found.id, found.name, found.delivered, _Place(self._places)
                    )
                )
                self._busy[found.name] = task
                task.add_done_callback(functools.partial(self._done, found.name))
                begun.add(task)
            # What takes longer goes on beside the others, and says when it has returned.
            await asyncio.wait(begun, timeout=_SLOW_S)
            error, self._error = self._error, None
            if error is not None:
                raise error

    def _done(self, stream: str, task: asyncio.Task[None]) -> None:
        del self._busy[stream]
        self._returned = time.monotonic()
        self.hint([stream])
        if not task.cancelled() and task.exception() is not None:
            self._error = task.exception()

    async def _due(self) -> list[Any]:
        """Streams to deliver now, some at a time; those that wait to be tried again are passed over."""
        now = time.monotonic()
        self._undelivered.name([name for name, (at, _) in self._retry_at.items() if at <= now])
        while (found := await self._undelivered.next()) is not None:
            page, named = found
            for name in named.difference(f.name for f in page):
                self._retry_at.pop(name, None)  # erased or trimmed: nothing to try again
            now = time.monotonic()
            due = [
                f
                for f in page
                if f.name not in self._busy and self._retry_at.get(f.name, (0.0, 0.0))[0] <= now
            ]
            if due:
                return due
        return []

    async def _deliver_stream(
        self, stream_id: int, stream: str, delivered: int, place: _Place
    ) -> None:
        try:
            await self._deliver_turn(stream_id, stream, delivered, place)
        finally:
            place.give()

    async def _deliver_turn(
        self, stream_id: int, stream: str, delivered: int, place: _Place
    ) -> None:
        """Deliver one page, or of a backlog as many as fit in a turn, so that others have theirs.

        A new turn begins with a look at its stream, which takes too long to have for each page.
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
                    if not self._lease.is_ours:
                        raise _LeaseLost
                    if not await self._hand_over(event, place):
                        break
                    reached = event.offset
            finally:
                if reached > delivered:
                    await self._confirm_even_if_stopped(stream_id, reached)
            whole = reached - delivered == self._page_events
            if not whole or time.monotonic() >= until:
                return
            delivered = reached

    async def _hand_over(self, event: CommittedEvent, place: _Place) -> bool:
        slow = asyncio.get_running_loop().call_later(_SLOW_S, place.give)
        limit = asyncio.timeout(self._limit_s)
        try:
            with self._traced(event):
                began = time.monotonic()
                result = self._deliver(event)
                if time.monotonic() - began > _SLOW_S:
                    _logger.warning(
                        "commitcast: deliver held the event loop for %.1f s; a function that "
                        "blocks must be async and use asyncio.to_thread",
                        time.monotonic() - began,
                    )
                if inspect.isawaitable(result):
                    async with limit:
                        await result
        except Exception as error:  # noqa: BLE001 - whatever the team's callable raises
            pause_s = min(max(self._retry_at.get(event.stream, (0, 0.05))[1] * 2, 0.1), 30.0)
            self._retry_at[event.stream] = (time.monotonic() + pause_s, pause_s)
            if limit.expired():
                self._past_deadline(event)
            _logger.warning(
                "commitcast: deliver raised %s for event %s of %s; again in %.1f s",
                type(error).__name__, event.id, event.stream, pause_s,
            )  # fmt: skip
            return False
        finally:
            slow.cancel()
        self._retry_at.pop(event.stream, None)
        self.overdue.discard(event.stream)
        committed_at = self._committed_at.pop((event.epoch, event.offset), None)
        if committed_at is not None:
            self._steps.delivered(event, committed_at)
        return True

    def _past_deadline(self, event: CommittedEvent) -> None:
        self.overdue.add(event.stream)
        with contextlib.suppress(Exception):  # a monitor of the team's own
            self._steps.health.track_coordination_event(
                "deliver.deadline", LayerPair.DATABASE_SOCKET, None,
                detail=f"deliver did not return within {self._limit_s:g} s",
            )  # fmt: skip

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
            if owner != self._lease.owner:
                raise _LeaseLost
            insert = insert_into(conn, deliveries).from_select(
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
