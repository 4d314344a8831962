"""The load server with one promise of the library broken on purpose: ``saboteur.py NAME …``."""

import sys
from collections.abc import Callable
from typing import Any

from commitcast import Position, emit
from commitcast.chaos import server, workload
from commitcast.chaos.workload import Writer
from commitcast.chaos.workload import Written as Row
from commitcast.delivery import Delivery
from commitcast.log import Written
from commitcast.subscription import Subscription

buffer: Any = sys.modules["commitcast.emit"]._Buffer
start = Subscription.start


def send_before_commit() -> None:
    """G1: readers get what is about to be committed."""
    Delivery.written = Delivery._publish


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

    def not_heard(self: Delivery, written: Written) -> None: ...

    Delivery.written = not_heard
    Delivery.committed = not_heard
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


SABOTAGE: dict[str, Callable[[], None]] = {
    sabotage.__name__: sabotage
    for sabotage in (
        send_before_commit,
        keep_what_was_rolled_back,
        skip_the_replay,
        hear_no_commit,
        replay_one_too_many,
        emit_after_the_commit,
    )
}

if __name__ == "__main__":
    SABOTAGE[sys.argv[1]]()
    server.main(sys.argv[2:])
