"""The world of the state machine: processes, their tasks, the database's failures, and time.

What is real: every statement (`Outcomes`, `Nodes`, `Log.append`), `Node` and `Reaper`. What is the
test's own: the clock, the order of things, and the tasks that settle (`Operations` in few words:
until the database has taken it).

A node that runs heartbeats by itself whenever time passes, so that whatever else happens it must
never be declared dead, unless the test itself has spoiled a heartbeat of it.
"""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING, Any, ClassVar, Final

from commitcast.attempt import Attempt, Outcome, Verdict
from commitcast.notification import LEFT_WITHOUT_COMMIT, Failure

from .ledger import Key, Ledger, Snapshot, Work
from .process import BEAT_S, LEASE_S, Process
from .simulated import Failed, Request, Store, Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection

    from commitcast.outcome import Outcomes

HOPELESS: Final = 60
"""More steps than any task takes."""
PATIENCE: Final = 12


class World:
    """Processes around one database; what happens next is for a subclass to say."""

    store: ClassVar[Store]
    outcomes: ClassVar[Outcomes]

    def __init__(self) -> None:
        super().__init__()
        self.store.empty()
        self.ledger = Ledger()
        self.processes: list[Process] = []
        self.away: str | None = None
        """``hanging`` or ``refusing`` while nobody reaches the database."""
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
                    raise Failed("rolled back")  # noqa: TRY301 - so that it is rolled back
        except Failed:
            self.check(by)
            raise
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
        except (Failed, TimeoutError) as error:
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
            if task.over or (self.is_blocked() and step > PATIENCE):
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

    def is_blocked(self) -> bool:
        """Whether there are tasks that cannot come to their end now."""
        return self.away is not None

    # --- what tasks do --------------------------------------------------------------------

    def _begin_look(self, process: Process) -> Task:
        if process.look is None:
            process.look = Task("look", process.reaper.look(), self.store.now)
        return process.look

    def _begin_beat(self, process: Process) -> Task:
        process.beat = Task("beat", process.node.beat(), self.store.now)
        return process.beat

    def _reap(self, process: Process, fault: str = "done", at: int = -1) -> None:
        self.finish(process, self._begin_look(process), fault, at)
        for task in list(process.settling.values()):
            self.finish(process, task)

    def _leave(self, process: Process, work: Work) -> None:
        work.left = True
        self.start_settling(process, work, LEFT_WITHOUT_COMMIT)

    # --- time and nodes -------------------------------------------------------------------

    def _pass(self, seconds: float) -> None:
        until = self.store.now + seconds
        for process in self.running():
            if process.beat is not None:
                self.finish(process, process.beat)
        while (at := min(map(self._next, self.running()), default=until)) < until:
            self.store.now = max(at, self.store.now)
            for process in self.running():
                if self._next(process) <= at:
                    self._tick(process)
        self.store.now = until

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

    def _resume(self, process: Process) -> None:
        process.state, process.spoiled = "running", True

    def is_steady(self) -> bool:
        """Every node has had the time to heartbeat since the database was away."""
        heard = (p.heard_at >= self.back_at and not p.spoiled for p in self.running())
        return self.away is None and all(heard)

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
        if not self.processes or sys.exc_info()[0] is not None:  # what was found is not hidden
            return
        self.away = None
        for process in self.stopped():
            self._resume(process)
        if not self.running():
            self._join("done")
        for _ in range(2):
            for _ in range(5):  # a heartbeat may have been parked since long ago
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
        self.store.now += seconds
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
