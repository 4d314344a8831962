"""A feed: what this node has in memory of one stream, shared by all of its readers.

Invariants:

- `events` are contiguous and end at `edge`, the last offset that this node has seen.
- Events come in order: what does not follow `edge` waits in `ahead` for what is missing, and the
  stream is read from the log (`behind`) in the meantime. Nothing is handed out past a gap.
- Memory is bounded by bytes and by age; what is no longer here is in the log.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Final

from commitcast.event import NEW_EPOCH, CommittedEvent, Position

if TYPE_CHECKING:
    from collections.abc import Sequence

    from commitcast.log import Head
    from commitcast.subscription import Subscription

_MAX_AHEAD: Final = 256


class Feed:
    """The newest events of one stream, and who reads it on this node."""

    def __init__(self, stream: str, max_bytes: int) -> None:
        self.stream = stream
        self.readers: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self.epoch: str | None = None
        self.edge = 0
        self.known_head = 0
        self.events: deque[CommittedEvent] = deque()
        self.bytes = 0
        self.filling = False
        self._max_bytes = max_bytes
        self._ahead: dict[int, CommittedEvent] = {}
        self._early: list[Sequence[CommittedEvent]] = []
        self._times: deque[float] = deque()

    @property
    def behind(self) -> bool:
        """Whether the log is known to hold events that are not here yet."""
        return self.epoch is not None and self.known_head > self.edge

    def take(self, events: Sequence[CommittedEvent]) -> None:
        """Add committed events, from memory or from a page of the log; wakes the readers."""
        first = events[0]
        if self.epoch is None:
            # The first reader's first read is under way: what it will have missed comes after it.
            self._early.append(events)
            return
        if first.epoch != self.epoch:
            if self.epoch == NEW_EPOCH and first.offset == 1:
                self.epoch = first.epoch
            elif self.epoch != NEW_EPOCH:
                self._begin(first.epoch, first.offset - 1)
        for event in events:
            if event.offset == self.edge + 1 and event.epoch == self.epoch:
                self._append(event)
            elif event.offset > self.edge and len(self._ahead) < _MAX_AHEAD:
                self._ahead[event.offset] = event
        while (following := self._ahead.pop(self.edge + 1, None)) is not None:
            if following.epoch == self.epoch:
                self._append(following)
        self.known_head = max(self.known_head, events[-1].offset)
        self.wake()

    def learn(self, head: Head, *, polled: bool = False) -> None:
        """Take in what a read of the log said about the stream's head.

        A page that found no stream may be older than the stream's first commit, so only the poll
        (`polled`), which comes again, may conclude from it that the stream was erased.
        """
        if self.epoch is None:
            self._begin(head.epoch, head.head)
            early, self._early = self._early, []
            for events in early:
                self.take(events)
        elif head.epoch != self.epoch:
            if head.epoch == NEW_EPOCH and not polled:
                return
            if self.epoch == NEW_EPOCH and head.tail == 1:
                self.epoch = head.epoch
                self.known_head = head.head
            else:
                self._begin(head.epoch, head.head)
                self.wake()
        elif head.head > self.known_head:
            self.known_head = head.head

    def forget(self) -> None:
        """Drop what is in memory, after an erasure; readers go to the log."""
        self.events.clear()
        self._times.clear()
        self._ahead.clear()
        self.bytes = 0

    def after(self, position: Position, max_bytes: int) -> list[CommittedEvent]:
        """Events that follow `position` without a gap, about `max_bytes` at most; or none."""
        if not self.events or position.offset >= self.edge:
            return []
        first = self.events[0].offset
        if position.epoch != self.epoch and not (position.epoch == NEW_EPOCH and first == 1):
            return []
        start = position.offset + 1 - first
        if start < 0:
            return []
        found: list[CommittedEvent] = []
        size = 0
        for index in range(start, len(self.events)):
            event = self.events[index]
            size += len(event.data_json)
            if found and size > max_bytes:
                break
            found.append(event)
        return found

    def differs(self, position: Position) -> bool:
        """Whether a reader at `position` has to ask the log."""
        if self.epoch is None or position.epoch != self.epoch:
            return True
        return self.edge > position.offset

    def drop_older_than(self, age_s: float) -> None:
        """Free memory of events that have been here for longer."""
        limit = time.monotonic() - age_s
        while self._times and self._times[0] < limit:
            self._pop()

    def wake(self) -> None:
        """Let every reader look again."""
        for reader in self.readers:
            reader.wake()

    def _begin(self, epoch: str, edge: int) -> None:
        self.forget()
        self.epoch = epoch
        self.edge = self.known_head = edge

    def _append(self, event: CommittedEvent) -> None:
        self.events.append(event)
        self._times.append(time.monotonic())
        self.edge = event.offset
        self.bytes += event.size_bytes
        while self.bytes > self._max_bytes and len(self.events) > 1:
            self._pop()

    def _pop(self) -> None:
        self._times.popleft()
        self.bytes -= self.events.popleft().size_bytes
