"""A feed: what this node has in memory of one stream, shared by all of its readers.

Invariants:

- `events` are contiguous and end at `edge`, the last offset that this node has seen.
- Events come in order: what does not follow `edge` waits in `ahead` for what is missing, and the
  stream is read from the log (`behind`) in the meantime. Nothing is handed out past a gap.
- Memory is bounded by bytes and by age, of events that wait for others as well; what is no longer
  here is in the log.
- Readers are woken when the feed has moved, and by nothing else.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from commitcast.event import NEW_EPOCH, CommittedEvent, Position

if TYPE_CHECKING:
    from collections.abc import Sequence

    from commitcast.log import Head
    from commitcast.subscription import Subscription
    from commitcast.telemetry import Tracing

_MAX_AHEAD: Final = 256
_MAX_EARLY: Final = 64


@dataclass
class Memory:
    """What all feeds of a node hold, in bytes."""

    bytes: int = 0
    holders: dict[Feed, None] = field(default_factory=dict)
    """The feeds that hold anything; who has done so for longest comes first."""

    def free(self, most: int) -> None:
        """Have feeds forget, the longest holder first, until there are at most `most` bytes."""
        while self.bytes > most:
            next(iter(self.holders)).forget()


class Feed:
    """The newest events of one stream, and who reads it on this node."""

    def __init__(
        self,
        stream: str,
        max_bytes: int,
        memory: Memory | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.stream = stream
        self._tracing = tracing
        self._readers: dict[weakref.ref[Subscription], None] = {}
        self._dropped: deque[weakref.ref[Subscription]] = deque()
        self.epoch: str | None = None
        self.edge = 0
        self.known_head = 0
        self.events: deque[CommittedEvent] = deque()
        self.bytes = 0
        self.filling = False
        self._memory = memory if memory is not None else Memory()
        self._max_bytes = max_bytes
        self._ahead: dict[int, CommittedEvent] = {}
        self._early: deque[Sequence[CommittedEvent]] = deque(maxlen=_MAX_EARLY)
        self._held: deque[tuple[float, int]] = deque()

    @property
    def readers(self) -> list[Subscription]:
        """Those that read on; who was dropped without being closed is not among them."""
        return [reader for known in self._readers if (reader := known()) is not None]

    def has_readers(self) -> bool:
        """Whether anybody reads on."""
        self._forget_dropped()
        return bool(self._readers)

    def count_readers(self) -> int:
        """How many there are; from any thread, unlike `readers`."""
        return len(self._readers) - len(self._dropped)

    def enter(self, reader: Subscription) -> None:
        """From now on `reader` is woken."""
        # the collector runs in any thread and at any time, also while the readers are walked
        self._readers[weakref.ref(reader, self._dropped.append)] = None

    def leave(self, reader: Subscription) -> None:
        """Undo `enter`."""
        self._readers.pop(weakref.ref(reader), None)

    def _forget_dropped(self) -> None:
        while self._dropped:
            self._readers.pop(self._dropped.popleft(), None)

    @property
    def behind(self) -> bool:
        """Whether the log is known to hold events that are not here yet."""
        return self.epoch is not None and self.known_head > self.edge

    def take(self, events: Sequence[CommittedEvent]) -> None:
        """Add committed events, from memory or from a page of the log.

        Wakes the readers if the feed has moved: a page that one reader fetched mostly holds
        nothing that is new to the others.
        """
        first, before = events[0], self.state
        if self.epoch is None:
            # The first reader's first read is under way: what it will have missed comes after it.
            # Only the latest are kept; they tell that those before them are to be read.
            self._early.append(events)
            return
        if first.epoch != self.epoch:
            self._change_epoch(first)
        for event in events:
            if event.offset == self.edge + 1 and event.epoch == self.epoch:
                self._append(event)
            elif event.offset > self.edge:
                self._keep_ahead(event)
        while (following := self._pop_ahead(self.edge + 1)) is not None:
            if following.epoch == self.epoch:
                self._append(following)
        self.known_head = max(self.known_head, events[-1].offset)
        if self.state != before:
            self.wake()

    @property
    def state(self) -> tuple[str | None, int]:
        """What changes with each event and each epoch; see `learn`."""
        return self.epoch, self.edge

    def learn(self, head: Head, since: tuple[str | None, int]) -> None:
        """Take in what a read of the log said about the stream's head.

        A read may be older than a commit that came from memory meanwhile. That there is no such
        stream any more, or fewer events than before, is believed only if the feed's `state` is
        what it was when the read began, `since`.
        """
        unmoved = self.state == since
        if self.epoch is None:
            self._begin(head.epoch, head.head)
            early = list(self._early)
            self._early.clear()
            for events in early:
                self.take(events)
        elif head.epoch != self.epoch:
            if head.epoch == NEW_EPOCH and not unmoved:
                return
            if self.epoch == NEW_EPOCH and head.tail == 1:
                self.epoch = head.epoch
                self.known_head = head.head
            else:
                self._begin(head.epoch, head.head)
                self.wake()
        elif head.head > self.known_head:
            self.known_head = head.head
        elif unmoved and head.head < self.edge:  # an older copy of the database, put in its place
            self._begin(head.epoch, head.head)
            self.wake()

    def forget(self) -> None:
        """Drop what is in memory, after an erasure; readers go to the log."""
        if self._tracing is not None:
            for event in self.events:
                event.delivered()
        self.events.clear()
        self._held.clear()
        self._ahead.clear()
        self._count(-self.bytes)

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
        return self.edge > position.offset or position.offset > self.known_head

    def drop_older_than(self, age_s: float) -> None:
        """Free memory of events that have been here for longer."""
        limit = time.monotonic() - age_s
        while self._held and self._held[0][0] < limit:
            self._pop()

    def wake(self) -> None:
        """Let every reader look again."""
        for known in self._readers:
            reader = known()
            if reader is not None:
                reader.wake()

    def _change_epoch(self, first: CommittedEvent) -> None:
        if self.epoch == NEW_EPOCH and first.offset == 1:
            self.epoch = first.epoch
        elif self.epoch != NEW_EPOCH:
            self._begin(first.epoch, first.offset - 1)

    def _begin(self, epoch: str, edge: int) -> None:
        self.forget()
        self.epoch = epoch
        self.edge = self.known_head = edge

    def _append(self, event: CommittedEvent) -> None:
        if self._ahead:
            self._pop_ahead(event.offset)
        if self._tracing is not None:
            event.delivery = self._tracing.deliver(event)
        cost = _cost(event)
        self.events.append(event)
        self._held.append((time.monotonic(), cost))
        self.edge = event.offset
        self._count(cost)
        while self.bytes > self._max_bytes and len(self.events) > 1:
            self._pop()

    def share_deliveries(self, events: Sequence[CommittedEvent]) -> None:
        """A reader is given these, from the log; who writes one has delivered ours as well."""
        if self._tracing is None or not self.events:
            return
        first = self.events[0].offset
        for event in events:
            if event.epoch == self.epoch and first <= event.offset <= self.edge:
                event.delivery = self.events[event.offset - first].delivery

    def _pop(self) -> None:
        event = self.events.popleft()
        if event.delivery is not None:
            event.delivered()
        self._count(-self._held.popleft()[1])

    def _keep_ahead(self, event: CommittedEvent) -> None:
        cost = _cost(event)
        full = len(self._ahead) >= _MAX_AHEAD or self.bytes + cost > self._max_bytes
        if not full and event.offset not in self._ahead:
            self._ahead[event.offset] = event
            self._count(cost)

    def _pop_ahead(self, offset: int) -> CommittedEvent | None:
        event = self._ahead.pop(offset, None)
        if event is not None:
            self._count(-_cost(event))
        return event

    def _count(self, bytes_: int) -> None:
        self.bytes += bytes_
        self._memory.bytes += bytes_
        if self.bytes:
            self._memory.holders.setdefault(self)
        else:
            self._memory.holders.pop(self, None)


def _cost(event: CommittedEvent) -> int:
    """About what an event takes in memory: its data, its frame and what a protocol made of it."""
    return 3 * sys.getsizeof(event.data_json) + 800
