"""Delivery: from a commit on this node, or from the log, to this node's readers.

After a commit its events go to the feeds from memory, and hints go to the other nodes. What is
not in memory (another node's commit, a commit whose end nobody saw, a gap) is read from the
log: on a hint, and at the latest on the next poll.

SQLAlchemy says that a session's COMMIT has returned; of a Core connection, a cancelled commit
or a thread it says nothing. Such commits are looked at until their transaction is over, and
then the log is read, which alone knows whether they committed.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from commitcast.errors import NotRunning
from commitcast.feed import Feed
from commitcast.subscription import Subscription

_T = TypeVar("_T")

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from commitcast.log import Head, Log, Page, Written
    from commitcast.notifier import Notifier
    from commitcast.settings import Settings

_logger = logging.getLogger("commitcast")
_LOOK_FIRST_S: Final = 0.002
_LOOK_LAST_S: Final = 0.05
_HEADS_AT_ONCE: Final = 500


class Delivery:
    """The feeds of one node and the loop that keeps them fresh."""

    def __init__(
        self, engine: AsyncEngine, log: Log, settings: Settings, notifier: Notifier
    ) -> None:
        self.log = log
        self._engine = engine
        self._settings = settings
        self._notifier = notifier
        self._feeds: dict[str, Feed] = {}
        self._connections = asyncio.Semaphore(settings.read_connections)
        self._tasks: set[asyncio.Task[None]] = set()
        self._unresolved: dict[Written, None] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._look_s = _LOOK_FIRST_S
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._last_read: float | None = None
        self._open = False
        self.on_events: Callable[[Collection[str]], None] | None = None
        """Told the names of streams that have, or may have, new events."""

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
            except (SQLAlchemyError, OSError) as error:
                _logger.warning("commitcast: the log cannot be read: %s", type(error).__name__)
            self._free_memory()

    async def poll(self) -> None:
        """Look up the head of every stream that is read on this node."""
        names = list(self._feeds)
        batches = [names[i : i + _HEADS_AT_ONCE] for i in range(0, len(names), _HEADS_AT_ONCE)]
        for batch in batches or [[]]:
            heads = await self._heads(batch)
            for name, head in heads.items():
                feed = self._feeds.get(name)
                if feed is not None:
                    feed.learn(head, polled=True)
                    self.need(feed)

    async def close(self) -> None:
        """Close every subscription and stop."""
        self._open = False
        if self._looking is not None:
            self._looking.cancel()
        await self._notifier.close()
        for subscription in self.subscriptions():
            subscription.close("the node stops")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def last_read_age_s(self) -> float | None:
        """Seconds since the log was last read; None before the first time."""
        return None if self._last_read is None else time.monotonic() - self._last_read

    # --- readers --------------------------------------------------------------------------

    def subscriptions(self) -> list[Subscription]:
        """All that read on this node."""
        return [reader for feed in self._feeds.values() for reader in feed.readers]

    def register(self, subscription: Subscription) -> Feed:
        """Enter a reader, before its first read."""
        if not self._open:
            raise NotRunning(
                "the coordinator is not running: enter it (async with coordinator, or its "
                "lifespan) before subscribing"
            )
        feed = self._feeds.get(subscription.stream)
        if feed is None:
            feed = Feed(subscription.stream, self._settings.stream_buffer_bytes)
            self._feeds[subscription.stream] = feed
        feed.readers.add(subscription)
        return feed

    def unregister(self, subscription: Subscription) -> None:
        """Remove a reader; the last one takes the feed along."""
        feed = self._feeds.get(subscription.stream)
        if feed is not None:
            feed.readers.discard(subscription)
            if not feed.readers:
                del self._feeds[subscription.stream]

    async def read(self, stream: str, after: int | None) -> Page:
        """A page of the log. While the database is away it is asked again, with pauses."""
        return await self._patiently(
            lambda conn: self.log.page(conn, stream, after, self._settings.page_events)
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
            while feed.behind and feed.readers:
                edge = feed.edge
                page = await self.read(feed.stream, edge)
                feed.learn(page.head)
                if page.events:
                    feed.take(page.events)
                if feed.edge == edge:  # trimmed, erased, or not there: readers see for themselves
                    feed.known_head = feed.edge = page.head.head
                    feed.forget()
                    feed.wake()
        finally:
            feed.filling = False

    def _free_memory(self) -> None:
        total = 0
        for feed in self._feeds.values():
            feed.drop_older_than(self._settings.buffer_age_s)
            total += feed.bytes
        for feed in sorted(self._feeds.values(), key=lambda f: -f.bytes):
            if total <= self._settings.node_buffer_bytes:
                break
            total -= feed.bytes
            feed.forget()

    # --- commits of this node -------------------------------------------------------------

    def written(self, written: Written) -> None:
        """Our statement ran; see `committed`, or look when the transaction is over."""
        self._in_loop(self._look_for, written)

    def committed(self, written: Written) -> None:
        """COMMIT returned: hand the events over, from memory."""
        self._in_loop(self._publish, written)

    def _in_loop(self, function: Callable[[Any], None], argument: Any) -> None:
        if not self._open:
            return
        if threading.get_ident() == self._thread:
            function(argument)
        else:
            self._loop.call_soon_threadsafe(function, argument)

    def _look_for(self, written: Written) -> None:
        self._unresolved[written] = None
        self._look_s = _LOOK_FIRST_S
        if self._looking is None:
            self._looking = self._loop.call_later(self._look_s, self._look)

    def _publish(self, written: Written) -> None:
        self._unresolved.pop(written, None)
        events = written.events
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
            self.need(feed)

    def _look(self) -> None:
        self._looking = None
        over = [w for w in self._unresolved if w.has_ended()]
        for written in over:
            del self._unresolved[written]
            names = {e.stream for e in written.events}
            self._hinted(names)
            self._notifier.hint(names)
        if self._unresolved and self._open:
            self._look_s = min(self._look_s * 1.5, _LOOK_LAST_S)
            self._looking = self._loop.call_later(self._look_s, self._look)

    # --- hints ----------------------------------------------------------------------------

    def _hinted(self, names: Collection[str]) -> None:
        if not self._open:
            return
        if self.on_events is not None:
            self.on_events(names)
        ours = [name for name in names if name in self._feeds]
        if ours:
            self._spawn(self._look_up(ours))

    async def _look_up(self, names: list[str]) -> None:
        for name, head in (await self._patiently(lambda c: self.log.heads(c, names))).items():
            feed = self._feeds.get(name)
            if feed is not None:
                feed.learn(head)
                self.need(feed)

    # --- the database ---------------------------------------------------------------------

    async def _heads(self, names: list[str]) -> dict[str, Head]:
        async with self._connections, self._engine.connect() as conn:
            heads = await self.log.heads(conn, names)
        self._last_read = time.monotonic()
        return heads

    async def _patiently(self, read: Callable[[Any], Awaitable[_T]]) -> _T:
        pause_s = 0.05
        while True:
            try:
                async with self._connections, self._engine.connect() as conn:
                    result = await read(conn)
            except (SQLAlchemyError, OSError) as error:
                _logger.warning("commitcast: reading the log again: %s", type(error).__name__)
                await asyncio.sleep(random.uniform(pause_s / 2, pause_s))
                pause_s = min(pause_s * 2, 5.0)
            else:
                self._last_read = time.monotonic()
                return result

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("commitcast: delivery failed: %s", type(error).__name__, exc_info=error)
