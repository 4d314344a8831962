"""A transaction with changes, and the sends that were made while it was open.

Memory is bounded: what is nested by savepoints, not what is changed, and at most `MOST_HELD` sends;
later ones are counted with one of the same line and type.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

from commitcast.audit import callsite
from commitcast.audit.channel import current_unit

if TYPE_CHECKING:
    import asyncio

    from sqlalchemy.engine import Connection, RootTransaction

    from commitcast.audit.callsite import Chain
    from commitcast.audit.channel import Channel, Unit

MOST_HELD: Final = 1_000

_moments = itertools.count(1)


class Outcome(Enum):
    """How the changes that a send was made beside ended."""

    COMMITTED = auto()
    ROLLED_BACK = auto()
    NOTHING = auto()
    """They never reached the database."""


@dataclass(slots=True, eq=False)
class Send:
    """One message that is leaving, and what is known of the work it was made in."""

    event_type: str
    channel: Channel
    unit: Unit | None
    at: float
    """Seconds of `time.monotonic`, when the app handed it over."""
    notice: bool = False
    chain: Chain = ()
    count: int = 1
    waiting: int = 0
    """Works that have not ended."""
    held: bool = False
    since: float | None = None
    """When the COMMIT returned that it is the first send after."""
    counted: bool = True
    """False: part of a send that is judged as a whole."""
    void: bool = False
    """The send raised, so nothing left."""
    rolled_back: bool = False
    committed_at: float | None = None
    cause: Chain = ()
    """Lines of the change."""
    late: bool = False
    """It tells of work that had been rolled back before."""

    def learn(self, outcome: Outcome, at: float, cause: Chain) -> bool:
        """One of its works has ended; returns whether it was the last."""
        self.waiting -= 1
        if outcome is Outcome.ROLLED_BACK:
            self.rolled_back, self.cause = True, cause
        elif outcome is Outcome.COMMITTED and not self.rolled_back:
            self.committed_at, self.cause = at, cause
        return self.waiting == 0


@dataclass(slots=True)
class Held:
    """A send, and the work as it was then."""

    moment: int
    send: Send
    cause: Chain


@dataclass(slots=True)
class Holding:
    """Sends that wait for something to end."""

    sends: list[Held] = field(default_factory=list)
    over: dict[tuple[Any, ...], Send] = field(default_factory=dict)

    def add(self, send: Send, cause: Chain) -> None:
        """Hold a send until it is taken."""
        send.held = True
        if len(self.sends) >= MOST_HELD:
            key = (send.event_type, send.chain[:1])
            same = self.over.get(key)
            if same is not None or len(self.over) >= MOST_HELD:
                if same is not None:
                    same.count += 1
                return
            self.over[key] = send
        send.waiting += 1
        self.sends.append(Held(next(_moments), send, cause))

    def take(self, since: int = 0) -> list[Held]:
        """Those held since a moment, which are then held no more."""
        taken = [held for held in self.sends if held.moment > since]
        self.sends = [held for held in self.sends if held.moment <= since]
        if not self.sends:
            self.over = {}
        return taken


@dataclass(slots=True)
class _Level:
    name: str | None
    first: int | None = None
    """When something was first changed in it."""


class Work:
    """One root transaction of a connection that changed something."""

    __slots__ = (
        "__weakref__",
        "_levels",
        "aborted",
        "announced",
        "began",
        "committed_at",
        "committing",
        "conn",
        "dropped",
        "ended",
        "holding",
        "judge",
        "last",
        "root",
        "states",
        "task",
        "thread",
        "unit",
    )

    def __init__(self, judge: object, conn: Connection, root: RootTransaction, at: float) -> None:
        self.judge = judge
        self.conn = weakref.ref(conn)
        self.root = weakref.ref(root)
        self.began = at
        self.unit = current_unit.get()
        self.task: weakref.ref[asyncio.Task[Any]] | None = None
        """The task, or else the thread, that changed something last."""
        self.thread: int | None = None
        self.committed_at: float | None = None
        self.announced = False
        """It decides an operation of Commitcast's, whose failure is told, and timed, by that."""
        self._levels = [_Level(None)]
        self.holding = Holding()
        self.last: Chain = ()
        self.dropped: list[Held] | None = None
        """Sends beside changes that were rolled back to a savepoint, the last time there were any."""
        self.states: dict[tuple[int, str], Any] = {}
        """What the session's objects say of watched rows: committed when this is."""
        self.committing = self.aborted = self.ended = False

    @property
    def open(self) -> bool:
        """Whether it has changes that are neither committed nor rolled back."""
        return not self.ended and self.changed

    @property
    def changed(self) -> bool:
        """Whether it has changes left."""
        return any(level.first is not None for level in self._levels)

    def change(self, chain: Chain, task: asyncio.Task[Any] | None) -> None:
        """Something was changed, by these lines in this task."""
        self.last = chain
        self.task = None if task is None else weakref.ref(task)
        self.thread = threading.get_ident() if task is None else None
        if self._levels[-1].first is None:
            self._levels[-1].first = next(_moments)

    def hold(self, send: Send, cause: Chain = ()) -> None:
        """Judge a send when this has ended; `cause` are lines of changes that were not yet sent."""
        self.holding.add(send, cause + self.last)

    def savepoint(self, name: str) -> None:
        """A savepoint was made."""
        self._levels.append(_Level(name))

    def release(self, name: str) -> None:
        """What was changed since the savepoint belongs to what is around it."""
        for level in self._above(name):
            if self._levels[-1].first is None:
                self._levels[-1].first = level.first

    def roll_back_to(self, name: str) -> list[Held]:
        """Changes since the savepoint are gone; returns the sends made since the first of them."""
        firsts = [level.first for level in self._above(name) if level.first is not None]
        if not firsts:
            return []
        return self.holding.take(min(firsts))

    def _above(self, name: str) -> list[_Level]:
        at = next((n for n, level in enumerate(self._levels) if level.name == name), None)
        if at is None:
            return []
        taken, self._levels = self._levels[at:], self._levels[:at]
        return taken

    def waiting(self) -> Chain:
        """The lines at which who changed it waits, if that is somewhere else than here."""
        if self.task is not None:
            return callsite.waiting_task(self.task())
        return callsite.waiting_thread(self.thread)

    @property
    def left(self) -> bool:
        """Whether the function that changed it, in a thread, has returned and left it open."""
        return self.thread is not None and not callsite.runs(self.thread, self.last)

    def over(self) -> bool:
        """Whether a COMMIT that was sent has returned, as far as SQLAlchemy knows."""
        conn, root = self.conn(), self.root()
        if conn is None or root is None:
            return True
        # After a COMMIT that failed the transaction stays on its connection until it is rolled back.
        return not root.is_active and conn.get_transaction() is not root

    def end(self) -> list[Held]:
        """It is over: returns the sends that waited, and keeps nothing."""
        self.ended = True
        self.unit = self.task = self.thread = None
        self.states = {}
        self.last = ()
        return self.holding.take()
