"""The log: appending events inside a caller's transaction, and reading them back.

Appending locks the heads of its streams in one order (by name, byte-wise), so that writers of
several streams cannot deadlock, and fails unless every event it was given was written (G4).
Reading takes tail, head and events from one statement, so from one snapshot.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self

import orjson
from sqlalchemy.exc import IntegrityError

from commitcast import statements
from commitcast.cluster import cluster_of
from commitcast.errors import EmitRefused, IsolationRefused, LogError, OperationLost
from commitcast.event import NEW_EPOCH, CommittedEvent, EncodedEvent, Position
from commitcast.pages import NO_LIMIT
from commitcast.prepared import Prepared

if TYPE_CHECKING:
    import weakref
    from collections.abc import Collection, Sequence

    from sqlalchemy import Dialect
    from sqlalchemy.engine import Connection, RootTransaction
    from sqlalchemy.ext.asyncio import AsyncConnection

    from commitcast.schema import Tables
    from commitcast.telemetry import Span


"""SQLSTATE: insufficient privilege (PostgreSQL, appendix A)."""


class _Placed(NamedTuple):
    """Where a stream's head is after our statement."""

    id: int
    name: str
    head: int
    incarnation: str
    lineage: str
    time: str
    written: int

    @classmethod
    def read(cls, text: str) -> Self:
        stream_id, name, head, incarnation, lineage, time, written, _ = text.split(
            statements.SEPARATOR
        )
        return cls(int(stream_id), name, int(head), incarnation, lineage, time, int(written))


class Decision(NamedTuple):
    """The outcome *committed* of an attempt, to be inserted with the transaction's events."""

    operation_id: str
    attempt: int
    result_json: str | None


class Binding(Protocol):
    """What an operation ties to a transaction; called in the thread that commits."""

    def write(self, conn: Connection, log: Log, streams: Collection[str]) -> Decision | None:
        """What the transaction decides, or nothing yet; `streams` have events in it.

        May run statements, which come before the log's own. What it raises keeps the transaction
        from committing.
        """

    def committed(self) -> None:
        """COMMIT returned."""


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Written:
    """What our statements wrote in a transaction whose COMMIT has yet to return."""

    root: weakref.ref[RootTransaction]
    events: tuple[CommittedEvent, ...]
    binding: Binding | None = None
    """The operation that the transaction decides."""
    span: Span | None = None
    """The commit's, where commits are traced."""

    def has_ended(self) -> bool:
        """Whether the transaction is over, either way."""
        root = self.root()
        return root is None or not root.is_active

    def has_committed(self, conn: Connection) -> bool:
        """Whether COMMIT returned without an error.

        After a COMMIT that failed SQLAlchemy keeps the transaction on its connection until it is
        rolled back; after one that returned it does not.
        """
        root = self.root()
        return root is not None and not root.is_active and conn.get_transaction() is not root


@dataclass(frozen=True, slots=True)
class Head:
    """The state of one stream in one snapshot. `tail` is the first offset that is still kept."""

    epoch: str
    head: int
    tail: int

    @property
    def position(self) -> Position:
        """The place of a reader that wants nothing of the past."""
        return Position(self.epoch, self.head)


NOT_YET: Final = Head(NEW_EPOCH, 0, 1)
"""A stream that has no events yet."""


@dataclass(frozen=True, slots=True)
class Page:
    """A stream's head and the events after a position, from one snapshot."""

    head: Head
    events: tuple[CommittedEvent, ...]


class Log:
    """Statements over one set of tables and one dialect; holds no connection."""

    def __init__(self, tables: Tables, dialect: Dialect) -> None:
        if dialect.name not in {"postgresql", "sqlite"}:
            raise EmitRefused(
                f"Commitcast keeps its log in PostgreSQL or SQLite, not in {dialect.name}"
            )
        self.tables = tables
        self.dialect = dialect
        self._postgresql = dialect.name == "postgresql"
        self._append = Prepared(
            statements.append_postgresql(tables)
            if self._postgresql
            else statements.upsert_sqlite(tables),
            dialect,
        )
        self._append_one = Prepared(statements.append_one_postgresql(tables), dialect)
        self._decide = Prepared(statements.decide(tables, postgresql=self._postgresql), dialect)
        self._decide_and_append_one = Prepared(
            statements.append_one_postgresql(tables, deciding=True), dialect
        )
        self._insert = Prepared(tables.events.insert(), dialect)
        self._page = statements.page(tables, postgresql=self._postgresql)
        self._heads = statements.heads(tables, postgresql=self._postgresql)

    # --- inside the caller's transaction -------------------------------------------------

    def autocommit_level(self, conn: Connection) -> str:
        """``AUTOCOMMIT`` if the driver commits each statement by itself, else an empty string."""
        if self._postgresql:
            single = getattr(conn.connection.dbapi_connection, "autocommit", False)
        else:
            # pysqlite's mode without transactions is also what one has who sends BEGIN himself
            found: Any = conn.connection.dbapi_connection
            driver = conn.dialect.get_driver_connection(found)  # one that is detached has none
            without = driver.isolation_level is None or getattr(driver, "autocommit", 0) is True
            single = without and not driver.in_transaction
        return "AUTOCOMMIT" if single else ""

    def append(
        self, conn: Connection, events: Sequence[EncodedEvent], decision: Decision | None = None
    ) -> tuple[CommittedEvent, ...]:
        """Write `events`, in order, as the transaction's last statement; returns their places.

        A `decision` comes before the heads of the streams (one order of locks everywhere).

        Raises `LogError` unless each was written, `IsolationRefused` above READ COMMITTED, and
        `OperationLost` if the attempt has an outcome already.
        """
        if decision is not None:
            try:
                return self._decide_with(conn, events, decision)
            except IntegrityError as error:
                raise OperationLost(decision.operation_id) from error
        cluster = cluster_of(conn)
        rows = self._append_rows(conn, events)
        if self._postgresql and len(events) == 1:
            if len(rows) != 1:
                raise LogError(f"the log took {len(rows)} events, not 1; rolled back")
            row = rows[0]
            return (_committed(events[0], row, cluster, row.head),)
        last = {row.name: row for row in rows}
        count = Counter(e.stream for e in events)
        if last.keys() != count.keys():
            raise LogError(f"the log took {len(last)} of {len(count)} streams; rolled back")
        following = {name: last[name].head - n for name, n in count.items()}
        committed = []
        for e in events:
            row = last[e.stream]
            following[e.stream] += 1
            committed.append(_committed(e, row, cluster, following[e.stream]))
        if self._postgresql:
            written = rows[0].written
        else:
            written = self._insert_sqlite(conn, events, committed, last)
        if written != len(events):
            raise LogError(f"the log took {written} of {len(events)} events; rolled back")
        return tuple(committed)

    def _decide_with(
        self, conn: Connection, events: Sequence[EncodedEvent], decision: Decision
    ) -> tuple[CommittedEvent, ...]:
        values = decision._asdict()
        if not self._postgresql or len(events) != 1:
            self._decide.run(conn, values)
            return self.append(conn, events) if events else ()
        cluster = cluster_of(conn)  # one round trip for both
        rows = self._checked(
            self._decide_and_append_one.all(conn, {**values, **_values(events[0])})
        )
        return (_committed(events[0], rows[0], cluster, rows[0].head),)

    def _append_rows(self, conn: Connection, events: Sequence[EncodedEvent]) -> Sequence[_Placed]:
        if not self._postgresql:
            count = sorted(Counter(e.stream for e in events).items())
            rows = self._append.all(conn, {"counts": orjson.dumps(count).decode()})
            return [_Placed._make((*row, len(events))) for row in rows]
        if len(events) == 1:
            # half the time of the general statement, and what most transactions need
            return self._checked(self._append_one.all(conn, _values(events[0])))
        rows = self._append.all(
            conn,
            {
                "names": [e.stream for e in events],
                "ids": [e.id for e in events],
                "types": [e.type for e in events],
                "datas": [e.data_json for e in events],
                "operations": [e.operation for e in events],
                "actors": [e.actor for e in events],
                "traces": [e.trace_parent for e in events],
            },
        )
        return self._checked(rows)

    @staticmethod
    def _checked(rows: Sequence[Any]) -> Sequence[_Placed]:
        if not rows:
            raise IsolationRefused(
                "the transaction runs above READ COMMITTED, where the shared head of a stream "
                "makes most concurrent writers abort; emit at READ COMMITTED"
            )
        return [_Placed.read(row[0]) for row in rows]

    def _insert_sqlite(
        self,
        conn: Connection,
        events: Sequence[EncodedEvent],
        committed: Sequence[CommittedEvent],
        last: dict[str, Any],
    ) -> int:
        self._insert.many(
            conn,
            [
                {
                    "stream_id": last[e.stream].id,
                    "offset": c.offset,
                    "event_id": e.id,
                    "type": e.type,
                    "data": e.data_json,
                    "operation": e.operation,
                    "actor": e.actor,
                    "trace_parent": e.trace_parent,
                    "created_at": c.time,
                }
                for e, c in zip(events, committed, strict=True)
            ],
        )
        return len(events)  # SQLite's INSERT of each row either raised or wrote it

    # --- reading --------------------------------------------------------------------------

    async def page(
        self,
        conn: AsyncConnection,
        stream: str,
        after: int | None,
        limit: int,
        *,
        max_bytes: int = NO_LIMIT,
    ) -> Page:
        """At most `limit` events with offsets after `after`; None reads the head alone.

        The data of all but the first is `max_bytes` at most, and no more is read to find that out.
        """
        cluster = await conn.run_sync(cluster_of)
        parameters = {
            "name": stream,
            "after": after or 0,
            "limit": 0 if after is None else limit,
            "max_bytes": max_bytes,
        }
        rows = await self._read(conn, self._page, parameters)
        first = rows[0]
        if first.id is None:
            return Page(NOT_YET, ())
        epoch = epoch_of(first.incarnation, cluster, first.lineage, first.id)
        return Page(
            Head(epoch, first.head, first.tail),
            tuple(
                CommittedEvent(
                    stream=stream,
                    epoch=epoch,
                    offset=row.offset,
                    id=row.event_id,
                    type=row.type,
                    time=row.time,
                    data_json=row.data,
                    actor=row.actor,
                    operation=row.operation,
                    trace_parent=row.trace_parent,
                )
                for row in rows
                if row.offset is not None
            ),
        )

    async def heads(self, conn: AsyncConnection, streams: Sequence[str]) -> dict[str, Head]:
        """The heads of `streams`, in one snapshot; those without events are `NOT_YET`."""
        cluster = await conn.run_sync(cluster_of)
        rows = await self._read(conn, self._heads, {"names": list(streams)})
        found = {
            row.name: Head(
                epoch_of(row.incarnation, cluster, row.lineage, row.id), row.head, row.tail
            )
            for row in rows
            if row.name is not None
        }
        return {name: found.get(name, NOT_YET) for name in streams}

    @staticmethod
    async def _read(conn: AsyncConnection, statement: Any, parameters: Any) -> Sequence[Any]:
        rows = (await conn.execute(statement, parameters)).all()
        if not rows:
            raise LogError("Commitcast's installation row is missing; run `commitcast migrate`")
        return rows


@functools.lru_cache(maxsize=65_536)
def epoch_of(incarnation: str, cluster: str, timeline: str, stream_id: int) -> str:
    """The epoch of a stream: changes whenever its offsets could be used again (DESIGN §6)."""
    text = f"{incarnation}|{cluster}|{timeline}|{stream_id}".encode()
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def _values(e: EncodedEvent) -> dict[str, Any]:
    return {
        "name": e.stream,
        "event_id": e.id,
        "type": e.type,
        "data": e.data_json,
        "operation": e.operation,
        "actor": e.actor,
        "trace_parent": e.trace_parent,
    }


def _committed(e: EncodedEvent, row: _Placed, cluster: str, offset: int) -> CommittedEvent:
    return CommittedEvent(
        stream=e.stream,
        epoch=epoch_of(row.incarnation, cluster, row.lineage, row.id),
        offset=offset,
        id=e.id,
        type=e.type,
        time=row.time,
        data_json=e.data_json,
        actor=e.actor,
        operation=e.operation,
        trace_parent=e.trace_parent,
    )
