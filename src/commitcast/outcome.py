"""Outcomes: the statements that announce operations and decide, once, how each attempt ended.

Invariants:

- An outcome is one INSERT on a unique key and the first wins. Nobody reads an outcome to decide
  it: a COMMIT may still be on its way. Whoever must know contends for it, by inserting
  *rolled_back*; that waits for a transaction that has inserted *committed* and is not over.
- *rolled_back* and its notification are written in one transaction, so there is one notification
  for each *rolled_back* and none for *committed* (G6).
- Locks are taken in one order: the operation's row, its outcome, heads of streams.

Everything here runs inside a transaction that somebody else begins and ends.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import orjson
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Float,
    Integer,
    Text,
    and_,
    bindparam,
    cast,
    false,
    func,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from commitcast.attempt import Announcement, Attempt, Outcome, Verdict
from commitcast.clock import DatabaseClock
from commitcast.concealed import concealed
from commitcast.errors import LogError, OperationLost
from commitcast.log import Decision
from commitcast.notification import (
    DEFAULT_USER_MESSAGE,
    ERASED,
    Failure,
    Layer,
    RollbackNotification,
)
from commitcast.prepared import Prepared
from commitcast.statements import durable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from sqlalchemy.engine import Connection

    from commitcast.clock import Clock
    from commitcast.log import Log


_COLUMNS: Final = (
    ("id", Text), ("attempt", Integer), ("name", Text), ("actor", Text), ("key", Text),
    ("request_hash", Text), ("node", Text), ("term", BigInteger), ("deadline_s", Float),
    ("streams", Text), ("user_message", Text),
)  # fmt: skip


class Outcomes:
    """Statements over the tables of operations and outcomes; holds no connection."""

    def __init__(self, log: Log, clock: Clock | None = None) -> None:
        self._log = log
        self.tables = log.tables
        self.clock = clock if clock is not None else DatabaseClock(log.dialect)
        self._postgresql = log.dialect.name == "postgresql"
        dialect: Any = postgresql if self._postgresql else sqlite
        self._insert_operations = Prepared(self._announcing(dialect), log.dialect)
        outcomes = self.tables.outcomes
        self._roll_back = (
            dialect.insert(outcomes)
            .values(
                operation_id=bindparam("of"),
                attempt=bindparam("nth"),
                outcome=Outcome.ROLLED_BACK.value,
                error=bindparam("why"),
                decided_at=self.clock.now(),
            )
            .on_conflict_do_nothing()
            .returning(outcomes.c.outcome)
        )

    # --- announcing -----------------------------------------------------------------------

    def _announcing(self, dialect: Any) -> Any:
        operations = self.tables.operations
        into = [
            *(name if name != "deadline_s" else "deadline" for name, _ in _COLUMNS),
            "announced_at",
            "shown",
            "settled",
        ]
        given: dict[str, Any]
        if self._postgresql:
            # Two nodes that announce the same keys at once take them in one order.
            arrays = [cast(bindparam(n, type_=ARRAY(t)), ARRAY(t)) for n, t in _COLUMNS]
            columns = (n for n, _ in _COLUMNS)
            rows = func.unnest(*arrays).table_valued(*columns).render_derived(name="given")
            given = {n: rows.c[n] for n, _ in _COLUMNS}
        else:
            given = {name: bindparam(name, type_=kind) for name, kind in _COLUMNS}
        given["deadline_s"] = self.clock.later(given["deadline_s"])
        values = [
            *(given[name] for name, _ in _COLUMNS),
            self.clock.now(),
            literal_column("'[]'", Text),
            false(),
        ]
        query: Any = select(*values)
        # SQLite needs a WHERE before ON CONFLICT
        query = query.order_by(given["id"]) if self._postgresql else query.where(true())
        insert = dialect.insert(operations).from_select(into, query).on_conflict_do_nothing()
        more = [durable()] if self._postgresql else []
        return insert.returning(operations.c.id, *more)

    def announce(self, conn: Connection, wanted: Sequence[Announcement]) -> list[int | Attempt]:
        """Write the attempts; for each its number, or the earlier attempt that is in its way.

        An earlier attempt that rolled back is in nobody's way, unless it had another request.
        """
        answers: list[int | Attempt | None] = [None] * len(wanted)
        first: dict[str, int] = {}
        for index, one in enumerate(wanted):
            first.setdefault(one.id, index)
        fresh = self._insert(conn, [(wanted[index], 1) for index in first.values()])
        for index, one in enumerate(wanted):
            if first[one.id] == index and one.id in fresh:
                answers[index] = 1
        return [
            self._again(conn, wanted[index]) if answer is None else answer
            for index, answer in enumerate(answers)
        ]

    def _again(self, conn: Connection, wanted: Announcement) -> int | Attempt:
        latest = self.latest(conn, wanted.id)
        if latest is None:
            raise LogError(f"operation {wanted.id} was neither announced nor there")
        erased = latest.error == str(ERASED)  # which removed what the request is compared by
        same = erased or latest.request_hash == wanted.request_hash
        if latest.outcome is not Outcome.ROLLED_BACK or not same:
            return latest
        attempt = latest.attempt + 1
        if wanted.id in self._insert(conn, [(wanted, attempt)]):
            return attempt
        return self.latest(conn, wanted.id) or latest

    def _insert(self, conn: Connection, rows: Sequence[tuple[Announcement, int]]) -> set[str]:
        values = [
            {
                "id": a.id, "attempt": attempt, "name": a.name, "actor": a.actor, "key": a.key,
                "request_hash": a.request_hash, "node": a.node, "term": a.term,
                "deadline_s": a.deadline_s, "streams": _json(a.streams),
                "user_message": a.user_message,
            }
            for a, attempt in rows
        ]  # fmt: skip
        if self._postgresql:
            arrays = {name: [row[name] for row in values] for name, _ in _COLUMNS}
            return {row[0] for row in self._insert_operations.all(conn, arrays)}
        return {row[0] for one in values for row in self._insert_operations.all(conn, one)}

    # --- inside the caller's transaction --------------------------------------------------

    def commit(self, conn: Connection, of: str, attempt: int, result_json: str | None) -> None:
        """Insert *committed*; raises `OperationLost` if the attempt has another outcome already."""
        self._log.append(conn, (), Decision(of, attempt, result_json))

    @concealed()
    def show(self, conn: Connection, of: str, attempt: int, streams: Collection[str]) -> None:
        """Note that the transaction shows something on `streams` before the attempt has an outcome.

        Raises `OperationLost` if it has one: what is shown now nobody would take back.
        """
        operations, outcomes = self.tables.operations, self.tables.outcomes
        this = and_(operations.c.id == of, operations.c.attempt == attempt)
        row = conn.execute(
            select(operations.c.streams, operations.c.shown).where(this).with_for_update()
        ).one_or_none()
        # A statement of its own, so that it sees who held the lock until now.
        decided = conn.scalar(
            select(outcomes.c.outcome).where(
                outcomes.c.operation_id == of, outcomes.c.attempt == attempt
            )
        )
        if row is None or decided is not None:
            raise OperationLost(of)
        told = dict.fromkeys([*orjson.loads(row.streams), *streams])
        shown = dict.fromkeys([*orjson.loads(row.shown), *streams])
        conn.execute(update(operations).where(this).values(streams=_json(told), shown=_json(shown)))

    # --- deciding -------------------------------------------------------------------------

    def settle(
        self,
        conn: Connection,
        of: str,
        attempt: int,
        failure: Failure,
        *,
        transaction_id: str | None = None,
        trace_parent: str | None = None,
    ) -> Verdict:
        """Contend for *rolled_back*, and tell it if that wins; who was first is in the answer.

        The notification is a part of the trace of `trace_parent`.
        """
        operations = self.tables.operations
        this = and_(operations.c.id == of, operations.c.attempt == attempt)
        row = conn.execute(select(operations).where(this).with_for_update()).one_or_none()
        if row is None:  # erased, with whoever could have been told
            return Verdict(Outcome.ROLLED_BACK)
        won = conn.scalar(self._roll_back, {"of": of, "nth": attempt, "why": str(failure)})
        if won is None:
            return self._decided(conn, of, attempt)
        streams = tuple(orjson.loads(row.streams))
        shown = tuple(orjson.loads(row.shown))
        notification = RollbackNotification(
            operation_id=of,
            attempt=attempt,
            transaction_id=transaction_id,
            failed_operation=row.name,
            error_message=str(failure),
            affected_layers=(Layer.DATABASE, *((Layer.WEBSOCKET,) if shown else ())),
            recovery_actions=failure.recovery_actions,
            user_message=row.user_message or DEFAULT_USER_MESSAGE,
            retract=shown,
            time=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        )
        told = notification.encoded(streams, row.actor)
        if trace_parent is not None:
            told = [replace(event, trace_parent=trace_parent) for event in told]
        events = self._log.append(conn, told) if told else ()
        conn.execute(update(operations).where(this).values(settled=True))
        return Verdict(Outcome.ROLLED_BACK, None, notification, events)

    def _decided(self, conn: Connection, of: str, attempt: int) -> Verdict:
        outcomes = self.tables.outcomes
        row = conn.execute(
            select(outcomes.c.outcome, outcomes.c.result).where(
                outcomes.c.operation_id == of, outcomes.c.attempt == attempt
            )
        ).one_or_none()
        if row is None:
            raise LogError(f"operation {of}: the outcome that was in the way is gone")
        return Verdict(Outcome(row.outcome), row.result)

    # --- looking --------------------------------------------------------------------------

    def latest(self, conn: Connection, of: str) -> Attempt | None:
        """The newest attempt at an operation."""
        operations = self.tables.operations
        query = (
            self._attempts()
            .where(operations.c.id == of)
            .order_by(operations.c.attempt.desc())
            .limit(1)
        )
        row = conn.execute(query).one_or_none()
        return None if row is None else _attempt(row)

    def unsettled(self, conn: Connection, node: str, *, own: bool, limit: int) -> list[Attempt]:
        """Attempts of `node` that have no outcome; or the orphans of all others."""
        operations, outcomes = self.tables.operations, self.tables.outcomes
        query = self._attempts().where(
            operations.c.settled == false(), outcomes.c.outcome.is_(None)
        )
        if own:
            query = query.where(operations.c.node == node)
        else:
            query = query.where(operations.c.node != node, self._orphan())
        return [_attempt(row) for row in conn.execute(query.limit(limit))]

    def to_be_marked(self, conn: Connection, node: str) -> bool:
        """Whether `mark_settled` has something to do."""
        marked = select(self.tables.operations.c.id).where(self._markable(node))
        return bool(conn.scalar(select(marked.exists())))

    def mark_settled(self, conn: Connection, node: str) -> None:
        """Put aside what has an outcome, of `node` and of dead ones: the reaper looks no more."""
        operations = self.tables.operations
        conn.execute(update(operations).where(self._markable(node)).values(settled=True))

    def _markable(self, node: str) -> Any:
        operations, outcomes, nodes = (
            self.tables.operations, self.tables.outcomes, self.tables.nodes,
        )  # fmt: skip
        decided = select(outcomes.c.outcome).where(
            outcomes.c.operation_id == operations.c.id, outcomes.c.attempt == operations.c.attempt
        )
        living = select(nodes.c.id).where(
            nodes.c.id == operations.c.node, nodes.c.term <= operations.c.term
        )
        return and_(
            operations.c.settled == false(),
            or_(operations.c.node == node, ~living.exists()),
            decided.exists(),
        )

    def newest(
        self, conn: Connection, state: str, limit: int, *, actor: str | None = None
    ) -> list[Attempt]:
        """The newest attempts that are ``open``, ``unknown``, ``committed`` or ``rolled_back``.

        Unknown are those without an outcome whose node is dead or whose deadline has passed.
        """
        operations, outcome = self.tables.operations, self.tables.outcomes.c.outcome
        match state:
            case "open":
                wanted = and_(outcome.is_(None), ~self._orphan())
            case "unknown":
                wanted = and_(outcome.is_(None), self._orphan())
            case _:
                wanted = outcome == Outcome(state).value
        if state in {"open", "unknown"}:
            wanted = and_(wanted, operations.c.settled == false())
        if state == Outcome.ROLLED_BACK:
            wanted = and_(wanted, self.tables.outcomes.c.error.is_distinct_from(str(ERASED)))
        if actor is not None:
            wanted = and_(wanted, operations.c.actor == actor)
        query = self._attempts().where(wanted).order_by(operations.c.announced_at.desc())
        return [_attempt(row) for row in conn.execute(query.limit(limit))]

    def _node_dead(self) -> Any:
        operations, nodes = self.tables.operations, self.tables.nodes
        return or_(nodes.c.id.is_(None), nodes.c.term > operations.c.term)

    def _overdue(self) -> Any:
        return self.tables.operations.c.deadline < self.clock.now()

    def _orphan(self) -> Any:
        return or_(self._node_dead(), self._overdue())

    def _attempts(self) -> Any:
        operations, outcomes, nodes = (
            self.tables.operations, self.tables.outcomes, self.tables.nodes,
        )  # fmt: skip
        return select(
            operations,
            outcomes.c.outcome,
            outcomes.c.result,
            outcomes.c.error,
            outcomes.c.decided_at,
            self._node_dead().label("node_dead"),
            self._overdue().label("overdue"),
        ).select_from(
            operations.outerjoin(
                outcomes,
                and_(
                    outcomes.c.operation_id == operations.c.id,
                    outcomes.c.attempt == operations.c.attempt,
                ),
            ).outerjoin(nodes, nodes.c.id == operations.c.node)
        )


def _attempt(row: Any) -> Attempt:
    return Attempt(
        id=row.id,
        attempt=row.attempt,
        name=row.name,
        actor=row.actor,
        key=row.key,
        request_hash=row.request_hash,
        node=row.node,
        term=row.term,
        announced_at=row.announced_at,
        deadline=row.deadline,
        outcome=None if row.outcome is None else Outcome(row.outcome),
        result_json=row.result,
        error=row.error,
        decided_at=row.decided_at,
        node_dead=bool(row.node_dead),
        overdue=bool(row.overdue),
    )


def _json(values: Iterable[str]) -> str:
    return orjson.dumps(list(values)).decode()
