"""Delivery: from a commit on this node, or from the log, to this node's readers.

After a commit its events go to the feeds from memory, and hints go to the other nodes. What is
not in memory (another node's commit, a commit whose end nobody saw, a gap) is read from the
log: on a hint, and at the latest on the next poll.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from commitcast.erasures import READ_DEADLINE_S, Erasures
from commitcast.errors import NotRunning, SubscriptionClosed
from commitcast.feed import Feed, Memory
from commitcast.outlast import end

_T = TypeVar("_T")

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from commitcast.event import CommittedEvent
    from commitcast.log import Head, Log, Page
    from commitcast.notifier import Notifier
    from commitcast.settings import Settings
    from commitcast.steps import Steps
    from commitcast.subscription import Subscription
    from commitcast.telemetry import Tracing
    from commitcast.turns import Turns

    _States = dict[str, tuple[Feed, tuple[str | None, int]]]

_logger = logging.getLogger("commitcast")
_HEADS_AT_ONCE: Final = 500
_NO_STATE: Final = (None, 0)


class Delivery:
    """The feeds of one node and the loop that keeps them fresh."""

    def __init__(
        self,
        engine: AsyncEngine,
        log: Log,
        settings: Settings,
        notifier: Notifier,
        steps: Steps,
        tracing: Tracing | None = None,
        turns: Turns | None = None,
    ) -> None:
        self.log = log
        self._turns = turns
        self._steps = steps
        self._tracing = tracing
        self._engine = engine
        self._settings = settings
        self._notifier = notifier
        self.draining = False
        """Set when the node is about to stop: no reader is entered any more."""
        self._feeds: dict[str, Feed] = {}
        self._memory = Memory()
        self._hints: set[str] = set()
        self._looking_up = False
        self._connections = asyncio.Semaphore(settings.read_connections)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._last_read: float | None = None
        self._erasures = Erasures(log.tables)
        self._open = False
        self.on_events: Callable[[Collection[str]], None] | None = None
        """Told the names of streams that have, or may have, new events."""
        self.on_committed: Callable[[Sequence[CommittedEvent]], None] | None = None
        """Given the events of this node's commits, with the times of their COMMIT."""

    # --- the loop -------------------------------------------------------------------------

    async def open(self) -> None:
        """Start taking commits and hints."""
        await self._notifier.start(self._hinted)
        self._open = True

    async def run(self) -> None:
        """Poll, for ever: the fallback for hints that were lost and commits nobody saw."""
        while True:
            await asyncio.sleep(self._settings.poll_interval_s * random.uniform(0.9, 1.1))
            try:
                await self.poll()
            except Exception as error:  # noqa: BLE001 - drivers raise errors of their own on connect
                _logger.warning("commitcast: the log cannot be read: %s", type(error).__name__)
            self._free_memory()

    async def poll(self) -> None:
        """Look up the head of every stream that is read on this node."""
        names = list(self._feeds)
        batches = [names[i : i + _HEADS_AT_ONCE] for i in range(0, len(names), _HEADS_AT_ONCE)]
        for batch in batches or [[]]:
            before = self._states(batch)
            self._learn(await self._heads(batch), before)

    def _states(self, names: Collection[str]) -> _States:
        feeds = {name: self._feeds.get(name) for name in names}
        return {name: (feed, feed.state) for name, feed in feeds.items() if feed is not None}

    def _learn(self, heads: Mapping[str, Head], before: _States) -> None:
        for name, head in heads.items():
            feed, state = before.get(name, (None, _NO_STATE))
            if feed is not None and feed is self._feeds.get(name):
                feed.learn(head, state)
                self.need(feed)

    async def close(self) -> None:
        """Close every subscription and stop."""
        self._open = False
        await self._notifier.close()
        for subscription in self.subscriptions():
            subscription.close("the node stops")
        if self._turns is not None:
            await self._turns.still()
        await end(self._tasks)
        if self._turns is not None:
            await self._turns.end()

    @property
    def last_read_age_s(self) -> float | None:
        """Seconds since the log was last read; None before the first time."""
        return None if self._last_read is None else time.monotonic() - self._last_read

    # --- readers --------------------------------------------------------------------------

    def subscriptions(self) -> list[Subscription]:
        """All that read on this node."""
        return [reader for feed in self._feeds.values() for reader in feed.readers]

    def count_readers(self) -> int:
        """How many read on this node; an exporter of metrics asks from a thread of its own."""
        return sum(feed.count_readers() for feed in list(self._feeds.values()))

    def places(self) -> dict[str, tuple[str | None, int]]:
        """Epoch and last offset that this node has seen of each stream that is read here."""
        return {name: feed.state for name, feed in self._feeds.items()}

    def register(self, subscription: Subscription) -> Feed:
        """Enter a reader, before its first read."""
        if not self._open:
            raise NotRunning(
                "the coordinator is not running: enter it (async with coordinator, or its "
                "lifespan) before subscribing"
            )
        if self.draining:
            raise SubscriptionClosed(subscription.stream, None, "the node drains")
        feed = self._feeds.get(subscription.stream)
        if feed is None:
            feed = Feed(
                subscription.stream, self._settings.stream_buffer_bytes, self._memory, self._tracing
            )
            self._feeds[subscription.stream] = feed
        feed.enter(subscription)
        return feed

    def unregister(self, subscription: Subscription) -> None:
        """Remove a reader; the last one takes the feed along."""
        feed = self._feeds.get(subscription.stream)
        if feed is not None:
            feed.leave(subscription)
            if not feed.has_readers():
                self._drop(feed)

    def _drop(self, feed: Feed) -> None:
        del self._feeds[feed.stream]
        feed.forget()

    async def read(
        self,
        stream: str,
        after: int | None,
        *,
        max_bytes: int,
        unless: Callable[[], bool] | None = None,
    ) -> Page:
        """A page of the log: ``page_events`` events at most, about `max_bytes` of data at most.

        While the database is away it is asked again, with pauses, until `unless` says to stop;
        that raises `SubscriptionClosed`.
        """
        most = self._settings.page_events
        return await self._patiently(
            lambda conn: self.log.page(conn, stream, after, most, max_bytes=max_bytes), unless
        )

    def need(self, feed: Feed) -> None:
        """Read from the log what a feed lacks, unless that is under way."""
        if feed.behind and not feed.filling:
            feed.filling = True
            self._spawn(self._fill(feed))

    def forget(self, stream: str | None = None) -> None:
        """Drop what memory holds of a stream, or of all."""
        for name, feed in self._feeds.items():
            if stream is None or stream == name:
                feed.forget()

    async def _fill(self, feed: Feed) -> None:
        try:
            while feed.behind and feed.has_readers():
                state, edge, known_head = feed.state, feed.edge, feed.known_head
                most = self._settings.stream_buffer_bytes
                page = await self.read(feed.stream, edge, max_bytes=most)
                if not feed.has_readers():
                    return  # the feed was dropped meanwhile
                feed.learn(page.head, state)
                if page.events:
                    feed.take(page.events)
                if feed.edge == edge and feed.known_head in {known_head, page.head.head}:
                    # trimmed, erased, or not there: readers see for themselves
                    feed.known_head = feed.edge = page.head.head
                    feed.forget()
                    feed.wake()
                self._keep_bounds()
        finally:
            feed.filling = False

    def _free_memory(self) -> None:
        for feed in [feed for feed in self._feeds.values() if not feed.has_readers()]:
            self._drop(feed)  # they were dropped without being closed
        for feed in list(self._memory.holders):
            feed.drop_older_than(self._settings.buffer_age_s)
        self._keep_bounds()

    def _keep_bounds(self) -> None:
        most = self._settings.node_buffer_bytes
        if self._memory.bytes > most:
            self._memory.free(most // 2)

    # --- commits of this node -------------------------------------------------------------

    def publish(self, events: Sequence[CommittedEvent]) -> None:
        """Hand committed events over, from memory, and hint other nodes; in the event loop."""
        if not self._open:
            return
        self._steps.handed_over(events)
        if self.on_committed is not None:
            self.on_committed(events)
        first = events[0].stream
        if len(events) == 1 or all(e.stream == first for e in events):
            self._take(first, events)
            names: Collection[str] = (first,)
        else:
            by_stream: dict[str, list[Any]] = {}
            for event in events:
                by_stream.setdefault(event.stream, []).append(event)
            for name, own in by_stream.items():
                self._take(name, own)
            names = by_stream.keys()
        self._notifier.hint(names)
        if self.on_events is not None:
            self.on_events(names)

    def _take(self, name: str, events: Sequence[Any]) -> None:
        feed = self._feeds.get(name)
        if feed is not None:
            feed.take(events)
            if feed.behind:
                self.need(feed)
            self._keep_bounds()
        elif self._tracing is not None and self.on_events is None:
            for event in events:  # nobody reads it here, and no relay does
                self._tracing.deliver(event).end()

    def changed(self, names: Collection[str]) -> None:
        """Streams may have events that nobody handed over: read them from the log."""
        self._hinted(names)
        self._notifier.hint(names)

    # --- hints ----------------------------------------------------------------------------

    def _hinted(self, names: Collection[str]) -> None:
        if not self._open:
            return
        if self.on_events is not None:
            self.on_events(names)
        self._hints.update(name for name in names if name in self._feeds)
        if self._hints and not self._looking_up:
            self._looking_up = True
            self._spawn(self._look_up())

    async def _look_up(self) -> None:
        """Look up all that was hinted at, in one read; hints of meanwhile go into the next."""
        try:
            while self._hints:
                names = [self._hints.pop() for _ in range(min(_HEADS_AT_ONCE, len(self._hints)))]
                before = self._states(names)
                heads = await self._patiently(
                    lambda conn, names=names: self.log.heads(conn, names)  # type: ignore[misc]
                )
                self._learn(heads, before)
        finally:
            self._looking_up = False

    # --- the database ---------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection to read with, one of ``read_connections``; for a short time."""
        async with (
            self._connections,
            asyncio.timeout(READ_DEADLINE_S),
            self._engine.connect() as conn,
        ):
            yield conn

    async def _heads(self, names: list[str]) -> dict[str, Head]:
        async with self.reading() as conn:
            heads = await self.log.heads(conn, names)
            if await self._erasures.look(conn):
                self.forget()
        self._last_read = time.monotonic()
        return heads

    async def _patiently(
        self, read: Callable[[Any], Awaitable[_T]], unless: Callable[[], bool] | None = None
    ) -> _T:
        pause_s = 0.05
        while True:
            if not self._open or (unless is not None and unless()):
                raise SubscriptionClosed("", None, "closed while the log was read")
            try:
                if self._turns is None:
                    result = await self._once(read)
                else:
                    result = await self._turns.outlast(self._once(read))
            except Exception as error:  # noqa: BLE001 - drivers raise errors of their own on connect
                if self._turns is not None:
                    self._turns.check()  # the same task would be asked again for ever
                _logger.warning("commitcast: reading the log again: %s", type(error).__name__)
                await asyncio.sleep(random.uniform(pause_s / 2, pause_s))
                pause_s = min(pause_s * 2, 5.0)
            else:
                self._last_read = time.monotonic()
                return result

    async def _once(self, read: Callable[[Any], Awaitable[_T]]) -> _T:
        async with self.reading() as conn:
            return await read(conn)

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, SubscriptionClosed):
            _logger.error("commitcast: delivery failed: %s", type(error).__name__, exc_info=error)
