"""Deliberate breaks of the library, one rule each: what the state machine must catch.

Each replaces the smallest piece that keeps a rule, and says what the rule is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, false, select, update
from sqlalchemy.dialects import sqlite

from commitcast.attempt import Attempt, Outcome, Verdict
from commitcast.log import Decision, Log
from commitcast.node import Node, Nodes
from commitcast.notification import (
    LEFT_WITHOUT_COMMIT,
    NOTIFICATION_TYPE,
    Failure,
    RollbackNotification,
)
from commitcast.outcome import Outcomes
from commitcast.reaper import Reaper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest
    from sqlalchemy.engine import Connection

    from commitcast.event import EncodedEvent


@dataclass(frozen=True)
class Break:
    """One rule that is broken."""

    name: str
    reason: str
    caught_as: str
    """What the machine says of it (a regular expression)."""
    make: Callable[[pytest.MonkeyPatch], None]


BREAKS: Final[list[Break]] = []


def _break(reason: str, caught_as: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    def add(make: Callable[[Any], None]) -> Callable[[Any], None]:
        BREAKS.append(Break(make.__name__, reason, caught_as, make))
        return make

    return add


# --- outcomes ------------------------------------------------------------------------------


@_break("whoever lost the race for the outcome has nothing to tell", "who was first|too often")
def settle_tells_although_it_lost(patch: pytest.MonkeyPatch) -> None:
    real = Outcomes.settle

    def settle(
        self: Outcomes, conn: Connection, of: str, attempt: int, failure: Failure, **more: Any
    ) -> Verdict:
        verdict = real(self, conn, of, attempt, failure, **more)
        if verdict.notification is None:
            _tell(self, conn, of, attempt)
        return verdict

    patch.setattr(Outcomes, "settle", settle)


@_break("outcome and notification are one transaction, or a crash in between tells nobody", "told")
def notification_outside_of_the_transaction(patch: pytest.MonkeyPatch) -> None:
    real = Log.append

    def append(
        self: Log,
        conn: Connection,
        events: Sequence[EncodedEvent],
        decision: Decision | None = None,
    ) -> Any:
        if events and events[0].type == NOTIFICATION_TYPE:
            conn.connection.commit()  # the outcome is decided; now tell it
        return real(self, conn, events, decision)

    patch.setattr(Log, "append", append)


@_break("the first outcome wins: a second must fail its transaction", "rows without outcome|was ")
def commit_on_conflict_do_nothing(patch: pytest.MonkeyPatch) -> None:
    def commit(
        self: Outcomes, conn: Connection, of: str, attempt: int, result_json: str | None
    ) -> None:
        values = {
            "operation_id": of,
            "attempt": attempt,
            "outcome": Outcome.COMMITTED.value,
            "result": result_json,
            "decided_at": self.clock.now(),
        }
        insert: Any = sqlite.insert(self.tables.outcomes).values(values)
        conn.execute(insert.on_conflict_do_nothing())

    patch.setattr(Outcomes, "commit", commit)


@_break("what is shown after the outcome nobody would take back", "too rarely|retract")
def show_without_looking_at_the_outcome(patch: pytest.MonkeyPatch) -> None:
    real = Outcomes.show

    def show(self: Outcomes, conn: Connection, of: str, attempt: int, streams: Any) -> None:
        try:
            real(self, conn, of, attempt, streams)
        except Exception:  # noqa: BLE001 - the rule that is broken
            return

    patch.setattr(Outcomes, "show", show)


@_break("a checkpoint's stream must be told as well", "too rarely|retract")
def show_does_not_remember(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outcomes, "show", lambda *_: None)


@_break("each attempt is told under an id of its own", "too often|too rarely")
def event_id_of_the_operation_alone(patch: pytest.MonkeyPatch) -> None:
    identity = property(lambda self: self.operation_id[:32])
    patch.setattr(RollbackNotification, "event_id", identity)


@_break("a retry is an attempt of its own, with an outcome of its own", "is attempt")
def retry_takes_the_number_again(patch: pytest.MonkeyPatch) -> None:
    def again(self: Outcomes, conn: Connection, wanted: Any) -> int | Attempt | None:
        latest = self.latest(conn, wanted.id)
        rolled_back = latest is not None and latest.outcome is Outcome.ROLLED_BACK
        return latest.attempt if rolled_back and latest else latest

    patch.setattr(Outcomes, "_again", again)


@_break(
    "an attempt that is open or committed keeps its key", "announced twice|was retried|is attempt"
)
def retry_beside_an_open_attempt(patch: pytest.MonkeyPatch) -> None:
    real = Outcomes.latest

    def latest(self: Outcomes, conn: Connection, of: str) -> Attempt | None:
        found = real(self, conn, of)
        if found is None or found.outcome is not None:
            return found
        values = {name: getattr(found, name) for name in Attempt.__slots__}
        return Attempt(**{**values, "outcome": Outcome.ROLLED_BACK})

    patch.setattr(Outcomes, "latest", latest)


# --- who may settle ------------------------------------------------------------------------


@_break("work is touched only after its node's death is committed", "while its node lives")
def reaper_settles_what_is_no_orphan(patch: pytest.MonkeyPatch) -> None:
    real = Outcomes.unsettled

    def unsettled(
        self: Outcomes, conn: Connection, node: str, *, own: bool, limit: int
    ) -> list[Attempt]:
        if own:
            return real(self, conn, node, own=True, limit=limit)
        everyone = {row.node for row in conn.execute(select(self.tables.operations.c.node))}
        return [
            attempt
            for other in sorted(everyone - {node})
            for attempt in real(self, conn, other, own=True, limit=limit)
        ]

    patch.setattr(Outcomes, "unsettled", unsettled)


@_break("what a task of the node still works on is not an orphan", "was settled at work")
def reaper_settles_what_is_at_work(patch: pytest.MonkeyPatch) -> None:
    real = Reaper.__init__

    def init(self: Reaper, *arguments: Any) -> None:
        writer, outcomes, node, _, settle = arguments
        real(self, writer, outcomes, node, lambda _: False, settle)

    patch.setattr(Reaper, "__init__", init)


@_break("an announcement may come after its node is forgotten", "nobody settles it|whose is it")
def orphans_of_forgotten_nodes_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    def node_dead(self: Outcomes) -> Any:
        return self.tables.nodes.c.term > self.tables.operations.c.term

    patch.setattr(Outcomes, "_node_dead", node_dead)


@_break("`settled` puts aside what has an outcome, and nothing else", "put aside open")
def open_attempts_are_put_aside(patch: pytest.MonkeyPatch) -> None:
    def markable(self: Outcomes, node: str) -> Any:
        operations = self.tables.operations
        return and_(operations.c.settled == false(), operations.c.node == node)

    patch.setattr(Outcomes, "_markable", markable)


# --- nodes ---------------------------------------------------------------------------------


@_break("a node that was declared dead must hear of it", "nobody settles it|open for ever|dead")
def heartbeat_takes_any_term(patch: pytest.MonkeyPatch) -> None:
    def heartbeat(self: Nodes, conn: Connection, node: Any) -> bool:
        nodes = self._nodes
        this = update(nodes).where(nodes.c.id == node.id)
        done = conn.execute(this.values(heartbeat=self._clock.now()))
        return bool(done.rowcount == 1)

    patch.setattr(Nodes, "heartbeat", heartbeat)


@_break("a node that heartbeats while it is judged lives", "dead")
def death_without_compare_and_set(patch: pytest.MonkeyPatch) -> None:
    def declare_dead(self: Nodes, conn: Connection, node: Any, silent_s: float | None) -> bool:
        nodes = self._nodes
        this = update(nodes).where(nodes.c.id == node.id)
        done = conn.execute(this.values(term=nodes.c.term + 1, heartbeat=None))
        return bool(done.rowcount == 1)

    patch.setattr(Nodes, "declare_dead", declare_dead)


@_break("a node is silent for a whole lease before it is declared dead", "too early|dead")
def half_a_lease_is_enough(patch: pytest.MonkeyPatch) -> None:
    others, declare_dead = Nodes.others, Nodes.declare_dead
    patch.setattr(Nodes, "others", lambda self, c, n, s: others(self, c, n, s and s / 2))
    patch.setattr(
        Nodes, "declare_dead", lambda self, c, n, s: declare_dead(self, c, n, s and s / 2)
    )


@_break("after an outage the living need the time to heartbeat", "lives, and was declared dead")
def judges_right_after_an_outage(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Node, "may_judge", lambda _: True)


@_break("the second of two nodes that settle must find the first", "was |who was first|too often")
def outcome_overwrites(patch: pytest.MonkeyPatch) -> None:
    real = Outcomes.settle

    def settle(self: Outcomes, conn: Connection, of: str, attempt: int, *rest: Any) -> Verdict:
        outcomes = self.tables.outcomes
        this = and_(outcomes.c.operation_id == of, outcomes.c.attempt == attempt)
        conn.execute(outcomes.delete().where(this))
        return real(self, conn, of, attempt, *rest)

    patch.setattr(Outcomes, "settle", settle)


@_break("a heartbeat does not bring back what is under an old term", "was settled|nobody|dead|open")
def joins_again_under_the_old_term(patch: pytest.MonkeyPatch) -> None:
    real = Nodes.join

    def join(self: Nodes, conn: Connection, node: str, above: int = 0) -> Any:
        joined = real(self, conn, node, above)
        nodes = self._nodes
        conn.execute(update(nodes).where(nodes.c.id == node).values(term=max(above, 1)))
        return type(joined)(node, max(above, 1))

    patch.setattr(Nodes, "join", join)


def _tell(outcomes: Outcomes, conn: Connection, of: str, attempt: int) -> None:
    again = RollbackNotification(
        of, attempt, None, "answer", str(LEFT_WITHOUT_COMMIT), (), (), "", (), ""
    )
    outcomes._log.append(conn, again.encoded(("user:1",), None))
