"""Judges sends: each against the work it was made in, when that has ended."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from commitcast.audit import callsite
from commitcast.audit.channel import (
    Channel,
    Origin,
    Unit,
    current_task,
    current_unit,
    inside_send,
    origin,
    sent_at,
)
from commitcast.audit.findings import Findings
from commitcast.audit.message import of_arguments
from commitcast.audit.queues import Handed, Queues, may_be_sent, new, tells
from commitcast.audit.report import AuditReport, BreachKind
from commitcast.audit.rollbacks import Rollback, Rollbacks
from commitcast.audit.sessions import Sessions
from commitcast.audit.states import States, Told
from commitcast.audit.transactions import Transactions
from commitcast.audit.work import Outcome, Send
from commitcast.score import LayerPair

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Iterator

    from commitcast.audit.callsite import Chain
    from commitcast.audit.message import Message
    from commitcast.audit.options import Options
    from commitcast.audit.sessions import Note
    from commitcast.audit.work import Held, Work
    from commitcast.health import CoordinationHealthMonitor

_P = ParamSpec("_P")
_T = TypeVar("_T")

_logger = logging.getLogger("commitcast")

_LONGEST_MS = 1_000.0
"""What leaves longer after a COMMIT, such as a model's first token, hardly tells of it."""
_SHORTEST_MS = 0.001
"""A send before its commit is never 0 ms ahead of it, however coarse the clock."""


class Judge:
    """What `Shadow` finds out, from what its hooks tell."""

    def __init__(
        self,
        monitor: CoordinationHealthMonitor,
        options: Options,
        engines: Iterable[Any] | None,
        *,
        joined_commits: bool,
    ) -> None:
        self.monitor = monitor
        self.lock = threading.RLock()
        self.clock = time.monotonic
        self.transactions = Transactions(self, engines)
        self.sessions = Sessions(self, joined_commits=joined_commits)
        self.rollbacks = Rollbacks(self.clock, self._told, self._untold)
        self.states = States(self._apart)
        self.queues = Queues()
        self.options = options
        self._findings = Findings()
        self._sends = self._transactions = self._rolled_back = 0
        self._complained: set[str] = set()

    # --- being told of sends --------------------------------------------------------------

    def sending(self, message: Message, channel: Channel, generator: Any = None) -> Send | None:
        """A message is about to leave; None if it is not judged.

        `generator` is one that waits for the send, and is not on the stack.
        """
        options = self.options
        if options.ignores(message.value):
            return None
        unit = current_unit.get()
        if not options.judges(unit):
            return None
        at = self.clock()
        called = origin.get()
        chain = callsite.suspended(generator)
        found = _Lines(chain, called.chain if called is not None else ())
        with self.lock:
            notice = options.is_notice(message.value)
            send = Send(message.event_type, channel, unit, at, notice)
            send.since = called.committed_at if called else self._just_committed()
            works, notes = self._beside(called, unit, chain)
            handed = self.queues.held(generator) or (called.handed if called else None)
            if handed is not None and tells(message.value, handed.item):
                self.transactions.look()  # the works are those of another task
                handed.follow(send, lines=not works and not notes)
                works_told = (*works, *(w for w in handed.works if w.open))
            else:
                works_told = tuple(works)
            if works or notes:
                send.chain = found()
                for work in works:
                    if work.thread and callsite.meet(send.chain, work.last) is None:
                        send.chain += work.waiting()  # a thread has the event loop send for it
                    work.hold(send)
                for note in notes:
                    note.holding.add(send, note.added)
            if notice:
                self.rollbacks.notice(channel, unit, at)
            whole = send.counted = not inside_send.get()
            self._isolation(message, send, found)
            if whole and self.states:
                self._state(message, send, works_told, found)
            return send

    def sent(self, send: Send) -> None:
        """It has left."""
        now = self.clock()
        with self.lock:
            if not send.counted:
                return
            self._sends += 1
            if send.late and not send.waiting:
                self._judge(send)
            elif not send.held:
                self._step(send.event_type, LayerPair.TRANSACTION_BOUNDARY, 0.0)
                gap = 0.0 if send.since is None else (now - send.since) * 1_000
                if 0 < gap <= _LONGEST_MS:
                    self._step(send.event_type, LayerPair.DATABASE_SOCKET, gap)
            sent_at.set(now)

    def answered(self, channel: Channel, values: Iterable[Any]) -> None:
        """A request is answered with these, one of which may tell that it failed."""
        with self.lock:
            unit = current_unit.get()
            said = [value for value in values if isinstance(value, Mapping | str)]
            if any(self.options.is_notice(value) for value in said):
                self.rollbacks.notice(channel, unit, self.clock())

    def handing(self, item: object) -> None:
        """Something is put into a queue, and may come out of it in a task that sends it."""
        works, notes = self._beside(None, current_unit.get(), ())
        committed_at = self._just_committed()
        if not (works or notes or self.rollbacks.pending or committed_at or len(self.queues)):
            return
        if not may_be_sent(item) or not callsite.is_called_by_app():
            return
        with self.lock:
            at = self.clock()
            if (works or self.rollbacks.pending) and self._is_notice(item):
                self.rollbacks.promise(current_unit.get(), at)
            if self.queues.again(item, tuple(works)) and not notes:
                return
            if not (works or notes or committed_at):
                self.queues.forget(item)
                return
            handed = new(item, at)
            handed.works, handed.chain = tuple(works), callsite.lines()
            if not works and not notes:
                handed.committed_at = committed_at
            elif not handed.chain:
                handed.chain = works[0].last if works else notes[0].added
            for work in works:
                work.hold(handed)
            for note in notes:
                note.holding.add(handed, note.added)
            self.queues.put(handed)

    def failed(self, send: Send) -> None:
        """The send raised: nothing left."""
        send.void = True

    def caller(self) -> Origin:
        """Where a send is called, and beside what; no lines if nothing may come of it."""
        works = self.transactions.current()
        notes = tuple((note, note.cycle) for note in self.sessions.unflushed())
        wanted = works or notes or self.options.isolates or self.states
        lines = callsite.lines() if wanted else ()
        return Origin(lines, works, notes, self._just_committed(), self.queues.held())

    # --- being told of works --------------------------------------------------------------

    def work_ended(self, work: Work, outcome: Outcome, *, here: bool) -> None:
        """A work is over, just now; `here` if the running code ended it."""
        at = self.clock()
        changed, states, last = work.changed, work.states, work.last
        where: Chain = ()
        task: asyncio.Task[Any] | None = None
        if outcome is Outcome.COMMITTED:
            work.committed_at = at
        else:
            where, task = _rolled_back_at(work, here=here)
        held = work.end()
        if changed:
            self._transactions += 1
            if outcome is Outcome.ROLLED_BACK:
                self._rolled_back += 1
                if not work.announced:
                    self._await_notice(work.began, held, where, task)
        for each in held:
            self.learn(each.send, outcome, each.cause, at)
        if outcome is Outcome.COMMITTED and states:
            self.states.committed(states, at, last)

    def changes_dropped(self, work: Work, held: list[Held]) -> None:
        """A savepoint was rolled back, and with it what these sends were made beside."""
        work.dropped = held
        for each in held:
            self.learn(each.send, Outcome.ROLLED_BACK, each.cause)

    def rolled_back(self, work: Work) -> None:
        """A joined session's transaction was rolled back, of which nothing but a savepoint tells."""
        with self.lock:
            where, task = _rolled_back_at(work, here=True)
            self._transactions += 1
            self._rolled_back += 1
            self._await_notice(work.began, work.dropped or [], where, task)
            work.dropped = None

    def never_written(self, held: list[Held]) -> None:
        """A session was rolled back whose changes the database refused, and these told of them."""
        with self.lock:
            self._transactions += 1
            self._rolled_back += 1
            began = min(each.send.at for each in held)
            self._await_notice(began, held, callsite.lines(), current_task())

    def learn(
        self, send: Send, outcome: Outcome, cause: Chain = (), at: float | None = None
    ) -> None:
        """One of the things that a send waited for has ended."""
        with self.lock:
            if send.learn(outcome, self.clock() if at is None else at, cause):
                self._judge(send)

    def finish(self) -> None:
        """Judge what is still pending."""
        with self.lock:
            self.transactions.finish()
            self.sessions.finish()
            self.rollbacks.finish()
            self.states.finish()
            self.queues.clear()

    def report(self) -> AuditReport:
        """What was found so far."""
        with self.lock:
            return AuditReport(
                score=self.monitor.get_health_score(),
                sends=self._sends,
                transactions=self._transactions,
                rollbacks=self._rolled_back,
                findings=self._findings.all(),
            )

    def guarded(self, function: Callable[_P, _T]) -> Callable[_P, _T | None]:
        """Of a hook: what goes wrong in the judge is logged, once for each hook, and never raised."""

        @functools.wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _T | None:
            try:
                return function(*args, **kwargs)
            except Exception:  # the app must not notice its judge
                name = getattr(function, "__qualname__", repr(function))
                if name not in self._complained:
                    self._complained.add(name)
                    _logger.exception("commitcast: %s failed; what it saw is not judged", name)
                return None

        return call

    # --- judging --------------------------------------------------------------------------

    def _just_committed(self) -> float | None:
        at = self.transactions.last_commit()
        return at if at is not None and at > sent_at.get() else None

    def _beside(
        self, called: Origin | None, unit: Unit | None, generator: Chain
    ) -> tuple[list[Work], list[Note]]:
        works = list(self.transactions.current())
        notes, flushed = self.sessions.carried(called)
        more = flushed if called is None else [*called.works, *flushed]
        if generator and unit is not None:
            # A plain generator runs in threads, whose context variables do not come back.
            code = generator[0][0]
            begun = self.transactions.of_unit(unit)
            more = [*more, *(w for w in begun if any(code is line[0] for line in w.last))]
        if unit is not None and unit.task() is current_task():
            more = [*more, *(w for w in self.transactions.of_unit(unit) if w.left)]
        for work in more:
            if work.open and work not in works:
                works.append(work)
        notes += [note for note in self.sessions.unflushed() if note not in notes]
        return works, notes

    def _judge(self, send: Send) -> None:
        if isinstance(send, Handed):
            for follower in send.followers:
                self.learn(follower, send.outcome, send.cause, send.committed_at)
            return
        if send.void or not send.counted:
            return
        pair = LayerPair.TRANSACTION_BOUNDARY
        kind: BreachKind | None = None
        gap: float | None = 0.0
        if send.rolled_back:
            if not send.notice:
                gap, kind = None, BreachKind.SENT_FOR_ROLLED_BACK_WORK
        elif send.committed_at is not None:
            gap = max(_SHORTEST_MS, (send.committed_at - send.at) * 1_000)
            kind = BreachKind.SENT_BEFORE_COMMIT
        detail = ""
        if kind is not None:
            detail = self._findings.add(
                kind, send.event_type, gap, send.chain, send.cause, send.count
            )
        for _ in range(send.count):
            self._step(send.event_type, pair, gap, detail)

    def _is_notice(self, item: object) -> bool:
        parts = (item, getattr(item, "data", None))  # an event of an SSE library has data
        values = [of_arguments((part,)).value for part in parts]
        return any(value is not None and self.options.is_notice(value) for value in values)

    def _await_notice(
        self, began: float, held: list[Held], where: Chain, task: asyncio.Task[Any] | None
    ) -> None:
        unit = current_unit.get()
        if not self.options.judges(unit):
            return
        shown: list[Channel] = []
        noticed: list[Channel] = []
        for send in _sends(held):
            if send.void:
                continue
            if send.notice:
                noticed.append(send.channel)
            elif send.channel not in shown:
                shown.append(send.channel)
        waiting = [c for c in shown if not c.closed and not any(n.tells(c) for n in noticed)]
        if not shown and unit is not None and unit.channel.closed:
            return
        if shown and not waiting and all(c.closed for c in shown):
            return
        found = Rollback(self.clock(), began, where, shown=waiting, was_shown=bool(shown))
        self.rollbacks.add(found, task)

    def _told(self, _rollback: Rollback, gap_ms: float) -> None:
        self._step("rollback", LayerPair.ROLLBACK_NOTIFICATION, gap_ms)

    def _untold(self, rollback: Rollback) -> None:
        kind = BreachKind.ROLLBACK_NOT_TOLD
        detail = self._findings.add(kind, "rollback", None, rollback.chain)
        self._step("rollback", LayerPair.ROLLBACK_NOTIFICATION, None, detail)

    def _isolation(self, message: Message, send: Send, lines: _Lines) -> None:
        allowed = self.options.may_see_it(send.channel, message.value)
        if allowed is None:
            return
        detail = ""
        if not allowed:
            kind = BreachKind.SENT_TO_ANOTHER_USER
            detail = self._findings.add(kind, send.event_type, None, lines())
        self._step(send.event_type, LayerPair.ISOLATION, 0.0 if allowed else None, detail)

    def _state(self, message: Message, send: Send, works: tuple[Work, ...], lines: _Lines) -> None:
        told = self.states.told(message.value, works, send.at)
        if told is None:
            return
        key, state, behind_ms = told
        if behind_ms is not None:
            self._step(send.event_type, LayerPair.AGENT_STATE, behind_ms)
        else:
            self.states.hold(key, Told(send.event_type, state, send.at, lines()))

    def _apart(self, told: Told, at: float | None, cause: Chain) -> None:
        ahead = None if at is None else max(_SHORTEST_MS, (at - told.at) * 1_000)
        kind = BreachKind.STATE_APART
        detail = self._findings.add(kind, told.event_type, ahead, told.chain, cause)
        gap = None if ahead is None else -ahead
        self._step(told.event_type, LayerPair.AGENT_STATE, gap, detail)

    def _step(
        self, event_type: str, pair: LayerPair, gap_ms: float | None, detail: str = ""
    ) -> None:
        self.monitor.track_coordination_event(event_type, pair, gap_ms, detail=detail)


def _rolled_back_at(work: Work, *, here: bool) -> tuple[Chain, asyncio.Task[Any] | None]:
    # SQLAlchemy closes an asynchronous session in a task of its own, for which the session's waits.
    where = callsite.lines() if here else ()
    if where:
        return where, current_task()
    return work.waiting() or work.last, None if work.task is None else work.task()


def _sends(held: list[Held]) -> Iterator[Send]:
    for each in held:
        if isinstance(each.send, Handed):
            yield from each.send.followers
        else:
            yield each.send


class _Lines:
    """The lines of a send, looked for when they are wanted."""

    __slots__ = ("_called", "_waiting")

    def __init__(self, waiting: Chain, called: Chain) -> None:
        self._waiting = waiting
        self._called = called

    def __call__(self) -> Chain:
        return self._waiting + (self._called or callsite.lines())
