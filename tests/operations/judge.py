"""The one assertion of these tests: each attempt has one outcome, and a failure was told once.

It judges from what the database holds, read without any of our code, and from what readers got.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import create_engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from commitcast.notification import NOTIFICATION_TYPE
from commitcast.schema import Naming, Tables

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

PATIENCE_S = 40.0
_SYNC = {"postgresql": "postgresql+psycopg", "sqlite": "sqlite+pysqlite"}

Key = tuple[str, int]


@dataclass
class Judge:
    """Judges all attempts that were ever announced in one database."""

    url: URL
    called: dict[Key, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Followers that were called, for those attempts that registered some."""
    events_required: bool = True
    """Whether an operation that commits emits; none can above READ COMMITTED."""
    readers: list[dict[str, list[Any]]] = field(default_factory=list)
    """What live readers of streams have received, stream by stream."""

    def __post_init__(self) -> None:
        self.tables = Tables(Naming.of(self.url.get_backend_name()))
        driver = _SYNC[self.url.get_backend_name()]
        self.observer: Engine = create_engine(self.url.set(drivername=driver), poolclass=NullPool)

    async def outcomes(self) -> list[str]:
        """Wait until nothing is open, then judge; the outcomes in the order of announcement."""
        async with asyncio.timeout(PATIENCE_S):
            while await asyncio.to_thread(self.open) != 0:  # noqa: ASYNC110 - it is the database
                await asyncio.sleep(0.02)
            while not await asyncio.to_thread(self._all_told):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.02)
        return await asyncio.to_thread(self.judged)

    def open(self) -> int | None:
        """How many attempts have no outcome; None while the database is away."""
        operations, outcomes = self.tables.operations, self.tables.outcomes
        decided = select(outcomes).where(
            outcomes.c.operation_id == operations.c.id, outcomes.c.attempt == operations.c.attempt
        )
        query = select(func.count()).select_from(operations).where(~decided.exists())
        with contextlib.suppress(DBAPIError), self.observer.connect() as conn:
            return conn.scalar(query)
        return None

    def _all_told(self) -> bool:
        streams = self.tables.streams
        with self.observer.connect() as conn:
            heads = dict(map(tuple, conn.execute(select(streams.c.name, streams.c.head))))
        return all(self.called.values()) and all(
            len(received) >= heads.get(stream, 0)
            for reader in self.readers
            for stream, received in reader.items()
        )

    # --- judging --------------------------------------------------------------------------

    def judged(self) -> list[str]:
        """The outcomes of all attempts. Fails unless each is what the rows and the log say."""
        with self.observer.connect() as conn:
            attempts = self._attempts(conn)
            log = self._log(conn)
            rows = self._rows(conn)
        shown: dict[Key, set[str]] = defaultdict(set)
        told: dict[Key, Counter[str]] = defaultdict(Counter)
        saved: Counter[Key] = Counter()
        ids: dict[Key, set[str]] = defaultdict(set)
        for stream, event in log:
            data = orjson.loads(event.data)
            key = (event.operation, data.get("attempt"))
            if event.type == NOTIFICATION_TYPE:
                assert data["operation_id"] == event.operation
                told[key][stream] += 1
                ids[key].add(event.event_id)
            elif event.type == "shown":
                shown[key].add(stream)
            elif event.type == "saved":
                saved[key] += data["last"]
        for key, attempt in attempts.items():
            streams = orjson.loads(attempt.streams)
            assert set(streams) >= shown[key], (key, streams, shown[key])
            match attempt.outcome:
                case "committed":
                    assert not told[key], f"{key} committed and was told: {told[key]}"
                    assert rows[key] == 1, f"{key} committed without its row: {rows[key]}"
                    assert saved[key] == self.events_required, f"{key} committed, no event"
                case "rolled_back":
                    assert told[key] == Counter(streams), f"{key} rolled back, told {told[key]}"
                    assert len(ids[key]) == 1
                    assert rows[key] == 0, f"{key} rolled back and left its row"
                    assert saved[key] == 0, f"{key} rolled back and left its event"
                case other:
                    raise AssertionError(f"{key} has the outcome {other}")
            if key in self.called:
                assert self.called[key] == [attempt.outcome], key
        strangers = {k for k in (*told, *rows, *saved, *shown) if k not in attempts}
        assert not strangers, f"never announced: {strangers}"
        self._judge_readers(log)
        return [attempt.outcome for attempt in attempts.values()]

    def _judge_readers(self, log: list[tuple[str, Any]]) -> None:
        written: dict[str, list[str]] = defaultdict(list)
        for stream, event in log:
            written[stream].append(event.event_id)
        for reader in self.readers:
            for stream, received in reader.items():
                got = [event.id for event in received]
                assert got == written[stream], f"a reader of {stream} saw something else"

    def _attempts(self, conn: Connection) -> dict[Key, Any]:
        operations, outcomes = self.tables.operations, self.tables.outcomes
        both = (outcomes.c.operation_id == operations.c.id) & (
            outcomes.c.attempt == operations.c.attempt
        )
        query = select(operations, outcomes.c.outcome, outcomes.c.error).select_from(
            operations.outerjoin(outcomes, both)
        )
        order = (operations.c.announced_at, operations.c.attempt)
        attempts = {(row.id, row.attempt): row for row in conn.execute(query.order_by(*order))}
        assert conn.scalar(select(func.count()).select_from(outcomes)) == len(attempts)
        return attempts

    def _log(self, conn: Connection) -> list[tuple[str, Any]]:
        streams, events = self.tables.streams, self.tables.events
        query = (
            select(streams.c.name, events)
            .join(events, events.c.stream_id == streams.c.id)
            .order_by(streams.c.name, events.c.offset)
        )
        return [(row.name, row) for row in conn.execute(query)]

    def _rows(self, conn: Connection) -> Counter[Key]:
        from .application import Saved

        query = select(Saved.operation, Saved.attempt).where(Saved.last)
        return Counter((of, nth) for of, nth in conn.execute(query))

    # --- looking closer -------------------------------------------------------------------

    def notifications(self) -> list[tuple[str, dict[str, Any]]]:
        """(stream, data) of every rollback notification, stream by stream."""
        with self.observer.connect() as conn:
            log = self._log(conn)
        return [(s, orjson.loads(e.data)) for s, e in log if e.type == NOTIFICATION_TYPE]

    async def committed(self) -> list[str]:
        """The operations that have committed so far; none while the database is away."""
        outcomes = self.tables.outcomes
        query = select(outcomes.c.operation_id).where(outcomes.c.outcome == "committed")

        def look() -> list[str]:
            with contextlib.suppress(DBAPIError), self.observer.connect() as conn:
                return list(conn.scalars(query))
            return []

        return await asyncio.to_thread(look)

    def errors(self) -> list[str | None]:
        """What operators find as the cause, in the order of announcement."""
        with self.observer.connect() as conn:
            return [attempt.error for attempt in self._attempts(conn).values()]
