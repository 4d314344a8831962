"""A subscription: one reader's place in one stream.

The reader is registered before its first read of the log, so that no commit falls between the
two; then it reads pages until it is where the feed is, and is live. A reader is handed only the
event that follows the one before (G4, G5). When a page does not begin there, the position is
lost and the reader is told, never left silent (G3).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from commitcast.errors import CommitcastError, PositionLost, SubscriptionClosed
from commitcast.event import NEW_EPOCH, Position

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from commitcast.event import CommittedEvent
    from commitcast.feed import Feed
    from commitcast.log import Page
    from commitcast.steps import Steps

_PAUSE_S = 0.1
EARLIEST = "earliest"
"""Read from the first event that is still kept."""


class AccessDenied(CommitcastError):
    """Authorisation no longer allows the stream to its reader (G7)."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Events after the reader's place are gone: reload the state, reading goes on from here."""

    stream: str
    position: Position


class Source(Protocol):
    """Where a subscription reads: the node's delivery."""

    def register(self, subscription: Subscription) -> Feed:
        """Enter a reader."""

    def unregister(self, subscription: Subscription) -> None:
        """Remove a reader."""

    async def read(
        self,
        stream: str,
        after: int | None,
        *,
        max_bytes: int,
        unless: Callable[[], bool] | None = None,
    ) -> Page:
        """A page of the log; None as place reads the head alone."""

    def need(self, feed: Feed) -> None:
        """Read what a feed lacks."""


class Subscription:
    """An async iterator of the committed events of one stream, in order, each once.

    Leave it with ``async with`` or `close`. Nothing is read before it is first awaited.
    """

    def __init__(
        self,
        source: Source,
        stream: str,
        after: Position | str | None,
        *,
        steps: Steps,
        on_reset: Callable[[Reset], object] | None = None,
        authorize: Callable[[], Awaitable[bool]] | None = None,
        chunk_bytes: int = 64 * 1024,
    ) -> None:
        if isinstance(after, str) and after != EARLIEST:
            after = Position.parse(after)
        self.stream = stream
        self.recovered = False
        """True once started, if a position was given and all that follows it will be read."""
        self.allowed: bool | None = None
        """What authorisation last answered; None if it was never asked."""
        self._source = source
        self._steps = steps
        self._caught_up_at: float | None = None
        self._after = after
        self._on_reset = on_reset
        self._authorize = authorize
        self._chunk_bytes = chunk_bytes
        self._feed: Feed | None = None
        self._position: Position | None = None
        self._lost = False
        self._woken = False
        self._waiters: list[asyncio.Future[None]] = []
        self._ended = asyncio.Event()
        self._closed: str | None = None
        self._entered = False
        self._first_page: Page | None = None
        self._ready: deque[CommittedEvent] = deque()
        self._handed: CommittedEvent | None = None

    @property
    def position(self) -> Position | None:
        """The place after the last event that was handed out; None before the first read."""
        if self._ready:
            first = self._ready[0]
            return Position(first.epoch, first.offset - 1)
        return self._position

    @property
    def reading_from(self) -> Position | None:
        """The place that authorisation decides about: what follows it is wanted.

        What was asked for until the first read, then `position`. None is from now on, and
        `EARLIEST` is offset 0.
        """
        if self._position is not None:
            return self.position
        return Position(NEW_EPOCH, 0) if isinstance(self._after, str) else self._after

    def wake(self) -> None:
        """There may be something new."""
        self._woken = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def close(self, reason: str = "closed by the reader") -> None:
        """Stop reading; whoever waits in it gets `SubscriptionClosed` with the position."""
        if self._closed is None:
            self._closed = reason
            self._first_page = None
            self._source.unregister(self)
            self.wake()
            self._ended.set()

    async def wait_closed(self) -> str:
        """Wait until it is closed, by whomever; returns the reason."""
        await self._ended.wait()
        return self._closed or ""

    async def aclose(self) -> None:
        """As `close`, for ``contextlib.aclosing``."""
        self.close()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> CommittedEvent:
        if self._handed is not None:  # whoever asks for the next one has done with this one
            self._handed.delivered()
        while not self._ready:
            batch = await self.next_batch()
            if isinstance(batch, Reset):
                if self._on_reset is None:
                    raise PositionLost(self.stream, batch.position)
                told = self._on_reset(batch)
                if inspect.isawaitable(told):
                    await told
            else:
                self._ready.extend(batch)
        event = self._ready.popleft()
        self._handed = event if event.delivery is not None else None
        return event

    async def enter(self) -> None:
        """Register, then ask authorisation: the first thing that `start` does.

        On its own it is for who has to answer a client before anything is read.

        Raises `AccessDenied`.
        """
        if self._entered:
            return
        self._check_open()
        if self._feed is None:  # it is there if an earlier try was cancelled
            self._feed = self._source.register(self)
        await self._check_access()
        self._entered = True

    async def start(self) -> None:
        """Register and find the first place; `recovered` and `position` are known afterwards."""
        if self._position is not None:
            return
        await self.enter()
        feed, after = self._feed, self._after
        if feed is None:  # pragma: no cover - set by enter
            raise SubscriptionClosed(self.stream, None, "not started")
        state = feed.state
        page = await self._read(after.offset if isinstance(after, Position) else None)
        head = page.head
        feed.learn(head, state)
        resumes = isinstance(after, Position) and _follows(after, page)
        replays = head.tail <= head.head if isinstance(after, str) else resumes and page.events
        if not replays:  # else its first page is asked about before it is handed out
            await self._check_access()
        if after is None:
            self._reach(head.position)
        elif isinstance(after, str):
            self._position = Position(head.epoch, head.tail - 1)
            self.recovered = True
        elif resumes:
            self._position = after
            self.recovered = True
            self._first_page = page if page.events else None
        else:
            self._reach(head.position)
            self._lost = True

    def reset_told(self) -> None:
        """The reader knows by other means that its position was lost; no `Reset` follows."""
        self._lost = False

    async def next_batch(self) -> list[CommittedEvent] | Reset:
        """The next events, at least one, as many as fit in a chunk; or `Reset`. Waits for them.

        Raises:
            SubscriptionClosed: it was closed meanwhile.
            AccessDenied: authorisation was withdrawn.
        """
        await self.start()
        feed = self._feed
        while True:
            self._check_open()
            if feed is None or self._position is None:  # pragma: no cover - set by start
                raise SubscriptionClosed(self.stream, None, "not started")
            if self._lost:
                self._lost = False
                return Reset(self.stream, self._position)
            self._woken = False
            outcome = await self._look(feed, self._position)
            if isinstance(outcome, Reset):
                return outcome
            if outcome is not None:
                return self._hand_out(feed, outcome)
            if feed.differs(self._position):
                continue
            self._reach(self._position)
            if feed.behind:
                self._source.need(feed)
            await self._wait()

    def frame_written(self, *events: CommittedEvent) -> None:
        """Say that `events` were written to the client; call it when the write has returned.

        For code with sockets of its own; ``/sse`` does it by itself. Health then knows how long
        after their COMMIT they left. Events of before the reader had caught up (a replay) and those
        that came from the log are not timed. Given nothing it does nothing.
        """
        if events:
            self._steps.frame_written(events, since=self._caught_up_at, allowed=self.allowed)
        for event in events:
            if event.delivery is not None:
                event.delivered()

    def _hand_out(self, feed: Feed, events: list[CommittedEvent]) -> list[CommittedEvent]:
        self._position = events[-1].position
        if self._caught_up_at is None and not feed.differs(self._position):
            self._reach(self._position)
        return events

    def _reach(self, position: Position) -> Position:
        """Be at the end of what there is: what is committed from now on is live."""
        self._position = position
        if self._caught_up_at is None:
            self._caught_up_at = self._steps.clock()
        return position

    async def _look(self, feed: Feed, position: Position) -> list[CommittedEvent] | Reset | None:
        """What follows `position` in memory, or else in the log; None if nothing does."""
        if self._first_page is None:
            events = feed.after(position, self._chunk_bytes)
            if events:
                return events
            if not feed.differs(position):
                return None
        outcome = await self._read_page(feed, position)
        if outcome:
            return outcome
        if self._position is not None and feed.differs(self._position):
            # the log and the feed disagree, until the next commit or poll
            await self._pause()
        return None

    async def _read_page(self, feed: Feed, position: Position) -> list[CommittedEvent] | Reset:
        """What follows `position` in the log, at most a chunk (G10), if it still may be read."""
        page = self._first_page
        if page is None:
            state = feed.state
            page = await self._read(position.offset)
            feed.learn(page.head, state)
        await self._check_access()
        self._first_page = None
        if page.events:
            feed.take(page.events)
            feed.share_deliveries(page.events)
        if feed.behind:  # others read it as well, and this one may leave before it gets there
            self._source.need(feed)
        if not _follows(position, page) or (
            page.events and page.events[0].offset != position.offset + 1
        ):
            return Reset(self.stream, self._reach(page.head.position))
        if not page.events and position.epoch != page.head.epoch:
            self._position = Position(page.head.epoch, position.offset)
        return list(page.events)

    async def _read(self, after: int | None) -> Page:
        try:
            page = await self._source.read(
                self.stream,
                after,
                max_bytes=self._chunk_bytes,
                unless=lambda: self._closed is not None,
            )
        except SubscriptionClosed:
            self.close("the node stops")
        self._check_open()
        return page

    async def _wait(self) -> None:
        """Wait for `wake`. An ``asyncio.Event`` does the same in twice the time, for each event."""
        if self._woken:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PAUSE_S):
                await self._wait()

    def _check_open(self) -> None:
        if self._closed is not None:
            raise SubscriptionClosed(self.stream, self._position, self._closed)

    async def _check_access(self) -> None:
        if self._authorize is None:
            return
        self.allowed = await self._authorize()
        if not self.allowed:
            self.close("access was withdrawn")
            raise AccessDenied(f"the reader may not read stream {self.stream!r}")


def _follows(position: Position, page: Page) -> bool:
    """Whether everything after `position` is still there to be read."""
    head = page.head
    if position.epoch != head.epoch:
        return position == Position(NEW_EPOCH, 0) and head.tail == 1
    return head.tail - 1 <= position.offset <= head.head
