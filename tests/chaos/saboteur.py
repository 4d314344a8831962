"""The load server with one promise of the library broken on purpose: ``saboteur.py NAME …``."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert

from commitcast import Position, emit
from commitcast.attempt import Announcement, Attempt, Verdict
from commitcast.chaos import server, workload
from commitcast.chaos.workload import Writer
from commitcast.chaos.workload import Written as Row
from commitcast.delivery import Delivery
from commitcast.event import CommittedEvent, EncodedEvent
from commitcast.handover import Receiver
from commitcast.log import Written
from commitcast.node import Node
from commitcast.notification import Failure, RollbackNotification
from commitcast.operations import Operations
from commitcast.outcome import Outcomes
from commitcast.subscription import Subscription

buffer: Any = sys.modules["commitcast.pending"].Buffer
start = Subscription.start
encoded = RollbackNotification.encoded
settle = Operations._try


def send_before_commit() -> None:
    """G1: readers get what is about to be committed."""
    Receiver.look_for = Receiver.take


def keep_what_was_rolled_back() -> None:
    """G2: the events of a rolled-back savepoint stay with the transaction."""
    buffer.drop_scope = buffer.drop_since = lambda _self, _mark: None


def skip_the_replay() -> None:
    """G3: whoever comes back goes on with what is new, and is told that nothing is missing."""

    async def from_now(self: Subscription) -> None:
        after, self._after = self._after, None
        await start(self)
        self._after, self.recovered = after, after is not None

    Subscription.start = from_now


def hear_no_commit() -> None:
    """G3: nothing but a reader's first read ever looks at the log."""

    async def no_poll(self: Delivery) -> None: ...

    def not_heard(self: Receiver, written: Written) -> None: ...

    def not_told(self: Delivery, events: Sequence[CommittedEvent]) -> None: ...

    Delivery.publish = not_told
    Receiver.look_for = not_heard
    Receiver.take = not_heard
    Delivery.poll = no_poll


def replay_one_too_many() -> None:
    """G5: whoever comes back is given the last event again."""

    async def one_back(self: Subscription) -> None:
        first = self._feed is None
        await start(self)
        if first and self.recovered and self._position and self._position.offset > 0:
            self._position = Position(self._position.epoch, self._position.offset - 1)

    Subscription.start = one_back


def emit_after_the_commit() -> None:
    """G3: rows in one transaction, their events in the next; only a kill in between shows it."""

    async def two_writes(self: Writer) -> None:
        rows = [Row(**values) for values in self._values()]
        async with self._session() as session:
            session.add_all(rows)
            await session.commit()
            for row in rows:
                emit(session, row.stream, workload._event(row, doomed=False))
            await self._commit(session, [row.key for row in rows])

    Writer._plain = two_writes


def tell_nobody() -> None:
    """G6: what is rolled back is settled and not told."""

    def nothing(
        self: RollbackNotification, streams: tuple[str, ...], actor: str | None
    ) -> list[EncodedEvent]:
        return []

    RollbackNotification.encoded = nothing


def tell_twice() -> None:
    """G6: each failure is told two times."""

    def twice(
        self: RollbackNotification, streams: tuple[str, ...], actor: str | None
    ) -> list[EncodedEvent]:
        return 2 * encoded(self, streams, actor)

    RollbackNotification.encoded = twice


def tell_after_the_outcome() -> None:
    """G6: the outcome in one transaction, its notification in the next."""
    kept: dict[str, list[EncodedEvent]] = {}

    def later(
        self: RollbackNotification, streams: tuple[str, ...], actor: str | None
    ) -> list[EncodedEvent]:
        kept[self.event_id] = encoded(self, streams, actor)
        return []

    async def two_writes(
        self: Operations,
        of: str,
        nth: int,
        failure: Failure,
        transaction_id: str | None,
        told: Sequence[str],
    ) -> Verdict:
        verdict = await settle(self, of, nth, failure, transaction_id, told)
        if verdict.notification is not None:
            events = kept.pop(verdict.notification.event_id)
            log = self.outcomes._log
            self._deliver(await self._writer.run(lambda conn: log.append(conn, events)))
        return verdict

    RollbackNotification.encoded = later
    Operations._try = two_writes


def insert_no_outcome() -> None:
    """G6: a commit is taken for a rollback, since its outcome is not in it."""

    def nothing(
        self: Outcomes, conn: Connection, of: str, attempt: int, result_json: str | None
    ) -> None: ...

    Outcomes.commit = nothing


def commit_too_late() -> None:
    """G6: a transaction commits although its operation was rolled back by another node."""

    def whatever(
        self: Outcomes, conn: Connection, of: str, attempt: int, result_json: str | None
    ) -> None:
        values = {"outcome": "committed", "result": result_json, "decided_at": self.clock.now()}
        into = insert(self.tables.outcomes).values(operation_id=of, attempt=attempt, **values)
        conn.execute(into.on_conflict_do_nothing())

    Outcomes.commit = whatever


def declare_nobody_dead() -> None:
    """G6: what a killed node left stays open."""

    async def no_one(self: Node) -> int:
        return 0

    Node.declare_deaths = no_one


def try_again_whatever_came_of_it() -> None:
    """G6: a key that has committed is another attempt."""

    def again(self: Outcomes, conn: Connection, wanted: Announcement) -> int | Attempt:
        latest = self.latest(conn, wanted.id)
        attempt = 1 if latest is None else latest.attempt + 1
        self._insert(conn, [(wanted, attempt)])
        return attempt

    Outcomes._again = again


SABOTAGE: dict[str, Callable[[], None]] = {
    sabotage.__name__: sabotage
    for sabotage in (
        send_before_commit,
        keep_what_was_rolled_back,
        skip_the_replay,
        hear_no_commit,
        replay_one_too_many,
        emit_after_the_commit,
        tell_nobody,
        tell_twice,
        tell_after_the_outcome,
        insert_no_outcome,
        commit_too_late,
        declare_nobody_dead,
        try_again_whatever_came_of_it,
    )
}

if __name__ == "__main__":
    SABOTAGE[sys.argv[1]]()
    server.main(sys.argv[2:])
