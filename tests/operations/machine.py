"""The state machine: nodes, operations and time, with every failure that the database can make.

What is real: every statement (`Outcomes`, `Nodes`, `Log.append`), `Node` and `Reaper`. What is the
test's own: the clock, the order of things, and the tasks that work on operations and settle them
(`Operations` in few words: settle until the database has taken it).

A node that runs heartbeats by itself whenever time passes, so that whatever else happens it must
never be declared dead, unless the test itself has spoiled a heartbeat of it.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from commitcast.errors import OperationLost
from commitcast.event import EncodedEvent
from commitcast.node import Node, Nodes
from commitcast.notification import LEFT_WITHOUT_COMMIT, Failure
from commitcast.outcome import Announcement, Attempt, Outcome, Outcomes, Verdict
from commitcast.reaper import Reaper

from .ledger import Key, Ledger, Snapshot, Work
from .simulated import Channel, Failed, Request, Store, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy.engine import Connection

LEASE_S: Final = 10.0
BEAT_S: Final = LEASE_S / 4
MOST_NODES: Final = 4
HOPELESS: Final = 60
"""More steps than any task takes."""

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


class Undone(Exception):
    """Rolls a transaction back after its work."""


class Process:
    """One process: a node, its reaper, and the operations that its tasks hold."""

    def __init__(self, world: Machine, name: str) -> None:
        self.name = name
        self.state = "running"
        self.live: dict[Key, Work] = {}
        self.settling: dict[Key, Task] = {}
        self.beat: Task | None = None
        self.look: Task | None = None
        self.other: Task | None = None
        self.due = world.store.now + BEAT_S
        self.heard_at = world.store.now
        """When the database had its last heartbeat."""
        self.spoiled = False
        """The test has spoiled its last heartbeat."""
        channel: Any = Channel()
        store = world.store
        nodes = Nodes(store.tables, store.dialect, store.clock)
        self.node = Node(channel, nodes, LEASE_S, self._lost, monotonic=lambda: store.now)
        self.node._id = name
        self.reaper = Reaper(
            channel,
            world.outcomes,
            self.node,
            lambda attempt: self.holds((attempt.id, attempt.attempt)),
            lambda attempt, why: world.start_settling(self, attempt, why),
        )

    def _lost(self) -> None:
        for work in self.live.values():
            work.lost = True

    def holds(self, key: Key) -> bool:
        return key in self.live or key in self.settling

    def tasks(self) -> list[Task]:
        some = (self.beat, self.look, self.other, *self.settling.values())
        return [task for task in some if task is not None]

    def end(self) -> None:
        """As kill -9 does it."""
        self.state = "gone"
        for task in self.tasks():
            task.kill()
        self.live, self.settling = {}, {}
        self.beat = self.look = self.other = None


class Machine(RuleBasedStateMachine):
    """See the module; `store` is set by `machine_on`."""

    store: ClassVar[Store]
    outcomes: ClassVar[Outcomes]

    def __init__(self) -> None:
        super().__init__()
        self.store.empty()
        self.ledger = Ledger()
        self.processes: list[Process] = []
        self.away: str | None = None
        self.back_at = 0.0
        self.count = itertools.count(1)

    # --- who is there ---------------------------------------------------------------------

    def running(self) -> list[Process]:
        return [p for p in self.processes if p.state == "running"]

    def stopped(self) -> list[Process]:
        return [p for p in self.processes if p.state == "stopped"]

    def held(self) -> list[tuple[Process, Work]]:
        """Operations that a task still works on."""
        return [(p, w) for p in self.running() for w in p.live.values() if not w.left]

    def parked(self) -> list[tuple[Process, Task]]:
        return [(p, task) for p in self.running() for task in p.tasks()]

    # --- transactions ---------------------------------------------------------------------

    def transact(
        self,
        by: Process,
        work: Callable[[Connection], Any],
        how: str,
        then: Callable[[Any], None] = lambda _: None,
        *,
        writes: bool = True,
    ) -> Any:
        """One transaction; raises `Failed` if it is rolled back, or if nobody is to hear of it."""
        if self.away is not None:
            raise Failed("the database is away")
        try:
            with self.store.transaction() as conn:
                result = work(conn)
                if how == "failed":
                    raise Undone
        except Undone:
            raise Failed("rolled back") from None
        then(result)
        if writes:
            self.check(by)
        if how == "unheard":
            raise Failed("committed, and the connection is lost")
        return result

    def check(self, by: Process) -> None:
        """Look at what a transaction of `by` has changed."""
        before, now = self.ledger.seen, self.store.now
        self.ledger.check(Snapshot.of(self.store.look()))
        found = self.ledger.seen
        for key, outcome in found.outcomes.items():
            if outcome == Outcome.ROLLED_BACK and key not in before.outcomes:
                self._check_right(by, before, key, now)
        for process in self.processes:
            old, new = before.nodes.get(process.name), found.nodes.get(process.name)
            died = old is not None and old[1] is not None and (new is None or new[0] > old[0])
            if died and process is not by:
                silent_s = now - process.heard_at
                assert silent_s > LEASE_S, f"{process.name} was declared dead too early"
                living = process.state == "running" and not process.spoiled
                assert not living, f"{process.name} lives, and was declared dead"

    def _check_right(self, by: Process, before: Snapshot, key: Key, now: float) -> None:
        """Only an orphan is settled by others, or by its node while a task works on it."""
        work = self.ledger.work[key]
        if before.is_orphan(before.operations[key], now):
            return
        assert by.name == work.node, f"{key} was settled by {by.name} while its node lives"
        assert key not in by.live or work.left or work.lost, f"{key} was settled at work"

    # --- tasks ----------------------------------------------------------------------------

    def do(self, process: Process, task: Task, how: str = "done") -> None:
        """Do what a task has asked for, or let it hear what was done."""
        now = self.store.now
        if not task.is_answered:
            if self.away == "hanging" or task.request is None:
                return
            self._answer(process, task, task.request, how)
            if how == "late" and self.away is None:
                return
        task.hear(now)
        if task.over:
            self._ended(process, task)

    def _answer(self, process: Process, task: Task, request: Request, how: str) -> None:
        beat = task.kind == "beat"
        spoiled = how == "failed" and self.away is None
        try:
            # A heartbeat changes nothing else; what it finds is looked at when it fails.
            result = self.transact(process, request.work, how, writes=request.writes and not beat)
        except Failed as error:
            task.answer(None, error)
            spoiled = spoiled or (how != "unheard" and self.away is None)
        else:
            task.answer(result)
            if beat and result is not True:
                self.check(process)
            elif beat:
                term = self.ledger.seen.nodes[process.name][0]
                assert term == process.node.current.term, "it lives on under an old term"
        if beat and spoiled:
            process.spoiled = True
        elif beat and self.away is None:
            process.spoiled, process.heard_at = False, self.store.now

    def _ended(self, process: Process, task: Task) -> None:
        match task.kind:
            case "beat":
                process.beat, process.due = None, self.store.now + BEAT_S
            case "look":
                process.look = None
            case "other":
                process.other = None

    def finish(self, process: Process, task: Task, fault: str = "done", at: int = -1) -> None:
        """Take a task to its end, unless the database is away."""
        for step in range(HOPELESS):
            if task.over or (self.away is not None and step > 2):  # noqa: PLR2004 - enough to see
                return
            self.do(process, task, fault if step == at else "done")
        raise AssertionError(f"{task.kind} does not end")

    def start_settling(self, process: Process, attempt: Attempt | Work, why: Failure) -> bool:
        """As `Operations.start_settling`: one task for an attempt, however many ask."""
        key = (attempt.id, attempt.attempt)
        if key not in process.settling:
            settling = self._settle(process, key, why)
            process.settling[key] = Task("settle", settling, self.store.now)
        return True

    async def _settle(self, process: Process, key: Key, why: Failure) -> None:
        def work(conn: Connection) -> Verdict:
            decided = self.ledger.seen.outcomes.get(key)
            verdict = self.outcomes.settle(conn, *key, why)
            assert (verdict.notification is None) == (decided is not None), "who was first?"
            return verdict

        while True:
            try:
                verdict = await process.node._writer.run(work)
            except Failed:
                continue
            break
        assert verdict.outcome == self.ledger.seen.outcomes[key], "an outcome that is not there"
        del process.settling[key]
        if key in process.live and process.live[key].left:
            del process.live[key]

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

    def _announce(
        self, process: Process, wanted: list[Wish], deadline_s: float, how: str
    ) -> None:
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

        def transaction(conn: Connection) -> None:
            self._write(conn, work, "done")
            self.outcomes.commit(conn, *work.key, '{"saved":1}')
            self.store.log.append(conn, [self._event(work, "done", stream)])

        decided = self.ledger.seen.outcomes.get(work.key)
        try:
            self.transact(process, transaction, how)
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
            self.outcomes.show(conn, *work.key, {stream})
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

    def _leave(self, process: Process, work: Work) -> None:
        work.left = True
        self.start_settling(process, work, LEFT_WITHOUT_COMMIT)

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
        self.do(*self._pick(self.parked(), what), how)

    @precondition(lambda self: self.running())
    @rule(node=which, at=st.integers(0, 9), fault=fate)
    def reap(self, node: int, at: int, fault: str) -> None:
        """A whole look of the reaper, and the settlings that it begins."""
        process = self._pick(self.running(), node)
        self._reap(process, fault, at)

    def _reap(self, process: Process, fault: str = "done", at: int = -1) -> None:
        self.finish(process, self._begin_look(process), fault, at)
        for task in list(process.settling.values()):
            self.finish(process, task)

    @precondition(lambda self: self.running())
    @rule(node=which, kind=st.sampled_from(("look", "beat")))
    def begin(self, node: int, kind: str) -> None:
        """What begins is parked at its first request."""
        process = self._pick(self.running(), node)
        if kind == "beat" and process.beat is None:
            self._begin_beat(process)
        elif kind == "look":
            self._begin_look(process)

    def _begin_look(self, process: Process) -> Task:
        if process.look is None:
            process.look = Task("look", process.reaper.look(), self.store.now)
        return process.look

    def _begin_beat(self, process: Process) -> Task:
        process.beat = Task("beat", process.node.beat(), self.store.now)
        return process.beat

    # --- rules: time and nodes ------------------------------------------------------------

    @rule(seconds=st.sampled_from((0.5, 2.0, 5.0, 7.0, 7.4, 10.1, 12.0, 16.0)))
    def time_passes(self, seconds: float) -> None:
        """Meanwhile every node that runs heartbeats as it does, or tries to."""
        self._pass(seconds)

    def _pass(self, seconds: float) -> None:
        until = self.store.now + seconds
        for process in self.running():
            if process.beat is not None:
                self.finish(process, process.beat)
        while (at := min(map(self._next, self.running()), default=until)) < until:
            self.store.set_time(max(at, self.store.now))
            for process in self.running():
                if self._next(process) <= at:
                    self._tick(process)
        self.store.set_time(until)

    def _next(self, process: Process) -> float:
        beat = process.beat
        if beat is None or beat.request is None:
            return process.due
        return beat.asked_at + beat.request.limit_s

    def _tick(self, process: Process) -> None:
        beat = process.beat
        if beat is None:
            self.finish(process, self._begin_beat(process))
        else:
            beat.answer(None, TimeoutError("the database hangs"))
            self.do(process, beat)

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

    def _resume(self, process: Process) -> None:
        process.state, process.spoiled = "running", True

    @precondition(lambda self: self.running() and self.is_steady())
    @rule(kind=kinds, seconds=st.sampled_from((5.0, 7.4, 10.1, 16.0)), node=which, looks=st.booleans())
    def outage(self, kind: str, seconds: float, node: int, looks: bool) -> None:
        """Nobody reaches the database for a while, and then somebody looks at once."""
        self.away = kind
        self._pass(seconds)
        self.away, self.back_at = None, self.store.now
        if looks:
            self._reap(self._pick(self.running(), node))

    def is_steady(self) -> bool:
        """Every node has had the time to heartbeat since the database was away."""
        heard = (p.heard_at >= self.back_at and not p.spoiled for p in self.running())
        return self.away is None and all(heard)

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
        elif len(running) < 2 or (event == "join" and len(running + stopped) < MOST_NODES):  # noqa: PLR2004 - one is to stay
            self._join(how)
        elif event == "stop":
            self._pick(running, node).state = "stopped"
        elif event == "kill":
            self._pick(running + stopped, node).end()
        elif event == "leave" and self.away != "hanging":
            self._leave_nodes(self._pick(running, node), how)

    def _join(self, how: str) -> None:
        process = Process(self, f"node{len(self.processes)}")
        joining = Task("other", process.node.join(), self.store.now)
        self.processes.append(process)
        if self.away is None:
            self.do(process, joining, how)
        if how in {"failed", "unheard"} or self.away is not None:
            process.end()

    def _leave_nodes(self, process: Process, how: str) -> None:
        """It settles what it can and declares itself dead."""
        for work in process.live.values():
            self._leave(process, work)
        for task in list(process.settling.values()):
            self.finish(process, task)
        process.other = Task("other", process.node.leave(), self.store.now)
        self.finish(process, process.other, how, 0)
        process.end()

    def _pick(self, some: list[Any], index: int) -> Any:
        return some[index % len(some)]

    # --- the end --------------------------------------------------------------------------

    def teardown(self) -> None:
        """Whatever has happened, what is left is settled: orphans soon, the rest by its deadline."""
        if not self.processes:
            return
        self.away = None
        for process in self.stopped():
            self._resume(process)
        if not self.running():
            self._join("done")
        for _ in range(2):
            for _ in range(4):
                self._rest(LEASE_S * 0.45)
            self._reap_all()
            if not self._nobodys():
                break
        assert not self._nobodys(), "nobody works on it, and nobody settles it"
        self._rest(100.0)
        self._reap_all()
        if not self._is_tidy():
            self._reap_all()
        assert not self.ledger.seen.open(), "open for ever"
        assert self._is_tidy(), "looked at for ever"
        self.ledger.check_retracted()
        self._check_lists()
        for process in self.processes:
            process.end()

    def _nobodys(self) -> list[Key]:
        """Open attempts that no task holds."""
        held = {work.key for _, work in self.held()}
        return [row.key for row in self.ledger.seen.open() if row.key not in held]

    def _is_tidy(self) -> bool:
        """Every attempt is marked, and no dead node is kept."""
        found = self.ledger.seen
        marked = all(row.settled for row in found.operations.values())
        return marked and found.nodes.keys() == {p.name for p in self.running()}

    def _rest(self, seconds: float) -> None:
        """Time passes with one heartbeat of each node at its end."""
        self.store.set_time(self.store.now + seconds)
        for process in self.running():
            self.finish(process, process.beat or self._begin_beat(process))

    def _reap_all(self) -> None:
        for process in self.running():
            for task in process.tasks():
                self.finish(process, task)
            self._reap(process)

    def _check_lists(self) -> None:
        """Every attempt is in one list."""
        found = self.ledger.seen
        with self.store.transaction() as conn:
            for outcome in Outcome:
                listed = {(a.id, a.attempt) for a in self.outcomes.newest(conn, outcome, 1000)}
                assert listed == {key for key, of in found.outcomes.items() if of == outcome}
            for state in ("open", "unknown"):
                assert not self.outcomes.newest(conn, state, 1000)


def machine_on(store: Store) -> type[Machine]:
    """The machine over one database."""
    outcomes = Outcomes(store.log, store.clock)
    return type("MachineOnStore", (Machine,), {"store": store, "outcomes": outcomes})
