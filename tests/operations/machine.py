"""The state machine: what may happen to operations, nodes and the database, in any order.

The world that it happens in is in `world`, what must hold of the tables in `ledger`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from commitcast.attempt import Announcement, Attempt, Outcome
from commitcast.errors import OperationLost
from commitcast.event import EncodedEvent
from commitcast.outcome import Outcomes

from .ledger import Work
from .process import LEASE_S, Process
from .simulated import Failed
from .world import World

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, RootTransaction

    from .simulated import Store

MOST_NODES: Final = 4

which = st.integers(0, 11)
"""One of those that there are, counted around."""
fate = st.sampled_from(("done", "done", "done", "done", "failed", "unheard"))
"""What becomes of a transaction: rolled back; or committed, and nobody hears of it."""
kinds = st.sampled_from(("hanging", "refusing"))
streams = st.sampled_from(("thread:1", "thread:2", "thread:3"))
deadlines = st.sampled_from((1.0, 30.0, 30.0))
Wish = tuple[str | None, str, str]
wishes = st.lists(
    st.tuples(st.sampled_from((None, "a", "b")), st.sampled_from("xxxy"), streams),
    min_size=1,
    max_size=3,
)
"""Key, request and stream of what is to be announced."""


class Machine(World, RuleBasedStateMachine):
    """The rules; `machine_on` says on which database."""

    # --- rules: operations ----------------------------------------------------------------

    @precondition(lambda self: self.running())
    @rule(node=which, wanted=wishes, deadline_s=deadlines, how=fate)
    def announce(self, node: int, wanted: list[Wish], deadline_s: float, how: str) -> None:
        self._announce(self._pick(self.running(), node), wanted, deadline_s, how)

    @precondition(lambda self: self.running())
    @rule(node=which, request=st.sampled_from("xxxy"), stream=streams, how=fate)
    def send_again(self, node: int, request: str, stream: str, how: str) -> None:
        """What clients do: the same key, at whichever node."""
        self._announce(self._pick(self.running(), node), [("a", request, stream)], 30.0, how)

    def _announce(self, process: Process, wanted: list[Wish], deadline_s: float, how: str) -> None:
        me = process.node.current
        announced = [
            Announcement(
                id=f"op{next(self.count)}" if key is None else f"key-{key}",
                name="answer",
                node=me.id,
                term=me.term,
                deadline_s=deadline_s + LEASE_S,
                streams=("user:1", stream),
                actor="1",
                key=key,
                request_hash=request,
            )
            for key, request, stream in wanted
        ]
        new: list[Work] = []

        def then(answers: list[int | Attempt]) -> None:
            new.extend(self._check_announced(announced, answers))

        try:
            self.transact(process, lambda c: self.outcomes.announce(c, announced), how, then)
        except Failed:
            return  # what was announced after all is nobody's, and its node finds it
        for work in new:
            process.live[work.key] = work

    def _check_announced(
        self, announced: list[Announcement], answers: list[int | Attempt]
    ) -> list[Work]:
        """A new attempt where there is none or where the last, of the same request, failed."""
        seen, new = self.ledger.seen, []
        for one, answer in zip(announced, answers, strict=True):
            works = [w for w in self.ledger.work.values() if w.id == one.id]
            last = max(works, key=lambda w: w.attempt, default=None)
            before = None if last is None else seen.operations.get(last.key)
            failed = last is not None and seen.outcomes.get(last.key) == Outcome.ROLLED_BACK
            if last is None or (failed and before and before.request_hash == one.request_hash):
                attempt = 1 if last is None else last.attempt + 1
                assert answer == attempt, f"{one.id} is attempt {answer}, not {attempt}"
                work = Work(one.id, attempt, one.node, one.term, list(one.streams))
                self.ledger.work[work.key] = work
                new.append(work)
            else:
                assert isinstance(answer, Attempt), f"{one.id} was announced twice"
                assert (answer.id, answer.attempt) == last.key
                assert answer.outcome == seen.outcomes.get(last.key)
                if before is not None:
                    orphan = seen.is_orphan(before, self.store.now)
                    assert answer.orphan == orphan, f"{one.id}: whose is it?"
        return new

    @precondition(lambda self: self.held())
    @rule(what=which, stream=streams, how=fate)
    def commit(self, what: int, stream: str, how: str) -> None:
        """The business transaction, also of an owner that was taken for dead."""
        process, work = self._pick(self.held(), what)

        decided = self.ledger.seen.outcomes.get(work.key)
        try:
            self.transact(process, lambda conn: self._business(conn, work, stream), how)
        except OperationLost:
            assert decided is not None, f"{work.key} is open, and could not commit"
            self._leave(process, work)
        except Failed:
            if how == "unheard":
                self._leave(process, work)
        else:
            del process.live[work.key]

    @precondition(lambda self: self.held())
    @rule(what=which, stream=streams, how=fate)
    def checkpoint(self, what: int, stream: str, how: str) -> None:
        """A commit inside an operation: what it shows must be taken back if it fails."""
        process, work = self._pick(self.held(), what)

        def transaction(conn: Connection) -> None:
            self._write(conn, work, f"part{work.checkpoints}")
            self.outcomes.show(conn, work.id, work.attempt, {stream})
            self.store.log.append(conn, [self._event(work, "part", stream)])

        def then(_: object) -> None:
            work.checkpoints += 1
            work.told = list(dict.fromkeys([*work.told, stream]))
            work.shown = list(dict.fromkeys([*work.shown, stream]))

        decided = self.ledger.seen.outcomes.get(work.key)
        try:
            self.transact(process, transaction, how, then)
        except OperationLost:
            assert decided is not None, f"{work.key} is open, and could not show"
            self._leave(process, work)
        except Failed:
            pass

    @precondition(lambda self: self.held())
    @rule(what=which, whole=st.booleans(), how=fate)
    def leave(self, what: int, whole: bool, how: str) -> None:
        process, work = self._pick(self.held(), what)
        self._leave(process, work)
        if whole:
            self.finish(process, process.settling[work.key], how, 0)

    def _business(self, conn: Connection, work: Work, stream: str) -> None:
        self._write(conn, work, "done")
        self.outcomes.commit(conn, work.id, work.attempt, '{"saved":1}')
        self.store.log.append(conn, [self._event(work, "done", stream)])

    def _write(self, conn: Connection, work: Work, kind: str) -> None:
        row = {"operation": work.id, "attempt": work.attempt, "kind": kind}
        conn.execute(self.store.work.insert(), row)

    def _event(self, work: Work, kind: str, stream: str) -> EncodedEvent:
        data = f'{{"attempt":{work.attempt}}}'
        return EncodedEvent(f"e{next(self.count)}", stream, kind, data, operation=work.id)

    # --- rules: tasks ---------------------------------------------------------------------

    @precondition(lambda self: self.parked())
    @rule(what=which, how=st.sampled_from(("done", "done", "done", "late", "failed", "unheard")))
    def step(self, what: int, how: str) -> None:
        """One task goes one step on, in between the steps of others."""
        process, task = self._pick(self.parked(), what)
        self.do(process, task, how)

    @precondition(lambda self: self.running())
    @rule(node=which, at=st.integers(0, 9), fault=fate)
    def reap(self, node: int, at: int, fault: str) -> None:
        """A whole look of the reaper, and the settlings that it begins."""
        process = self._pick(self.running(), node)
        self._reap(process, fault, at)

    @precondition(lambda self: self.running())
    @rule(node=which, kind=st.sampled_from(("look", "beat")))
    def begin(self, node: int, kind: str) -> None:
        """What begins is parked at its first request."""
        process = self._pick(self.running(), node)
        if kind == "beat" and process.beat is None:
            self._begin_beat(process)
        elif kind == "look":
            self._begin_look(process)

    # --- rules: time and nodes ------------------------------------------------------------

    @rule(seconds=st.sampled_from((0.5, 2.0, 5.0, 7.0, 7.4, 10.1, 12.0, 16.0)))
    def time_passes(self, seconds: float) -> None:
        """Meanwhile every node that runs heartbeats as it does, or tries to."""
        self._pass(seconds)

    @precondition(lambda self: len(self.running()) > 1)
    @rule(
        node=which,
        seconds=st.sampled_from((5.0, 10.1, 12.0, 16.0)),
        wakes_at=st.integers(0, 7),
        beats=st.booleans(),
        at=st.integers(0, 9),
        fault=fate,
    )
    def freeze(
        self, node: int, seconds: float, wakes_at: int, beats: bool, at: int, fault: str
    ) -> None:
        """A process is stopped, past its lease or not, and goes on while another looks."""
        process, other = self._pick(self.running(), node), self._pick(self.running(), node + 1)
        process.state = "stopped"
        self._pass(seconds)
        look = self._begin_look(other)
        for _ in range(wakes_at):
            self.do(other, look)
        self._resume(process)
        if beats:
            self.finish(process, process.beat or self._begin_beat(process))
        self._reap(other, fault, at)

    @precondition(lambda self: self.running() and self.is_steady())
    @rule(
        kind=kinds, seconds=st.sampled_from((5.0, 7.4, 10.1, 16.0)), node=which, looks=st.booleans()
    )
    def outage(self, kind: str, seconds: float, node: int, looks: bool) -> None:
        """Nobody reaches the database for a while, and then somebody looks at once."""
        self.away = kind
        self._pass(seconds)
        self.away, self.back_at = None, self.store.now
        if looks:
            self._reap(self._pick(self.running(), node))

    @rule(kind=kinds)
    def database(self, kind: str) -> None:
        """It goes away or comes back, between any two steps."""
        if self.away is not None:
            self.away, self.back_at = None, self.store.now
        elif self.is_steady():
            self.away = kind

    @initialize(nodes=st.integers(2, 3))
    def first(self, nodes: int) -> None:
        for _ in range(nodes):
            self._join("done")
        self._pass(LEASE_S + 1)
        for process in self.processes:
            self._announce(process, [(None, "x", "thread:1"), ("b", "x", "thread:2")], 30.0, "done")

    @rule(
        node=which,
        event=st.sampled_from(("stop", "stop", "resume", "resume", "kill", "leave", "join")),
        how=fate,
    )
    def signal(self, node: int, event: str, how: str) -> None:
        """A process is stopped (SIGSTOP), goes on, dies (kill -9), ends in order, or begins."""
        running, stopped = self.running(), self.stopped()
        if event == "resume" and stopped:
            self._resume(self._pick(stopped, node))
        elif len(running) < 2 or (event == "join" and len(running + stopped) < MOST_NODES):
            self._join(how)
        elif event == "stop":
            self._pick(running, node).state = "stopped"
        elif event == "kill":
            self._pick(running + stopped, node).end()
        elif event == "leave" and self.away != "hanging":
            self._leave_nodes(self._pick(running, node), how)


class SlowMachine(Machine):
    """On PostgreSQL also with a COMMIT that is on its way while others go on."""

    def __init__(self) -> None:
        super().__init__()
        self.slow: tuple[Process, Work, RootTransaction] | None = None

    def is_blocked(self) -> bool:
        return super().is_blocked() or self.slow is not None

    @precondition(lambda self: self.slow is None and self.away is None and self.held())
    @rule(what=which, stream=streams)
    def commit_slowly(self, what: int, stream: str) -> None:
        """All is written, and COMMIT is sent; whoever contends now has to wait."""
        process, work = self._pick(self.held(), what)
        decided = self.ledger.seen.outcomes.get(work.key)
        transaction = self.store.begin_another()
        try:
            self._business(transaction.connection, work, stream)
        except OperationLost:
            transaction.connection.close()
            assert decided is not None, f"{work.key} is open, and could not commit"
        else:
            self.slow = (process, work, transaction)

    @precondition(lambda self: self.slow is not None)
    @rule(arrives=st.booleans())
    def commit_arrives(self, arrives: bool) -> None:
        """Or it does not. Its process may be dead by now."""
        if self.slow is None:
            return
        (process, work, transaction), self.slow = self.slow, None
        with transaction.connection:  # closed, so rolled back, if it does not arrive
            if not arrives:
                return
            transaction.commit()
        self.check(process)
        if not work.left:
            process.live.pop(work.key, None)

    def teardown(self) -> None:
        self.commit_arrives(arrives=sys.exc_info()[0] is None)
        super().teardown()


def machine_on(store: Store) -> type[Machine]:
    """The machine over one database."""
    outcomes = Outcomes(store.log, store.clock)
    base = SlowMachine if store.postgresql else Machine
    return type("MachineOnStore", (base,), {"store": store, "outcomes": outcomes})
