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
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import orjson
from sqlalchemy import (
    ARRAY,
    BigInteger,
    String,
    Text,
    and_,
    bindparam,
    case,
    collate,
    func,
    literal_column,
    or_,
    select,
    true,
)
from sqlalchemy.dialects import postgresql, sqlite

from commitcast.errors import EmitRefused, IsolationRefused, LogError
from commitcast.event import NEW_EPOCH, CommittedEvent, EncodedEvent, Position

if TYPE_CHECKING:
    import weakref
    from collections.abc import Sequence

    from sqlalchemy import Dialect, Executable
    from sqlalchemy.engine import Connection, RootTransaction
    from sqlalchemy.ext.asyncio import AsyncConnection
    from sqlalchemy.sql.compiler import SQLCompiler

    from commitcast.schema import Tables


_CLUSTER: Final = "commitcast.cluster"
_SEPARATOR: Final = "|"  # no stream's name has one


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
        stream_id, name, head, incarnation, lineage, time, written, _ = text.split(_SEPARATOR)
        return cls(int(stream_id), name, int(head), incarnation, lineage, time, int(written))


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Written:
    """Events that our statement wrote in a transaction whose COMMIT has yet to return."""

    root: weakref.ref[RootTransaction]
    events: tuple[CommittedEvent, ...]

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
        self._append = _Prepared(
            _append_postgresql(tables) if self._postgresql else _upsert_sqlite(tables), dialect
        )
        self._append_one = _Prepared(_append_one_postgresql(tables), dialect)
        self._cluster = _cluster()
        self._insert = _Prepared(tables.events.insert(), dialect)
        self._page = _page(tables, postgresql=self._postgresql)
        self._heads = _heads(tables, postgresql=self._postgresql)

    # --- inside the caller's transaction -------------------------------------------------

    def autocommit_level(self, conn: Connection) -> str:
        """``AUTOCOMMIT`` if the driver commits each statement by itself, else an empty string."""
        if self._postgresql:
            single = getattr(conn.connection.dbapi_connection, "autocommit", False)
        else:
            # pysqlite's mode without transactions is also what one has who sends BEGIN himself
            driver: Any = conn.connection.driver_connection
            without = driver.isolation_level is None or getattr(driver, "autocommit", 0) is True
            single = without and not driver.in_transaction
        return "AUTOCOMMIT" if single else ""

    def append(
        self, conn: Connection, events: Sequence[EncodedEvent]
    ) -> tuple[CommittedEvent, ...]:
        """Write `events`, in order, as the transaction's last statement; returns their places.

        Raises `LogError` unless each was written, `IsolationRefused` above READ COMMITTED.
        """
        cluster = self._cluster_of(conn)
        rows = self._append_rows(conn, events)
        last = {row.name: row for row in rows}
        count = Counter(e.stream for e in events)
        if last.keys() != count.keys():
            raise LogError(f"the log took {len(last)} of {len(count)} streams; rolled back")
        following = {name: last[name].head - n for name, n in count.items()}
        committed = []
        for e in events:
            row = last[e.stream]
            following[e.stream] += 1
            committed.append(
                CommittedEvent(
                    stream=e.stream,
                    epoch=epoch_of(row.incarnation, cluster, row.lineage, row.id),
                    offset=following[e.stream],
                    id=e.id,
                    type=e.type,
                    time=row.time,
                    data_json=e.data_json,
                    actor=e.actor,
                    operation=e.operation,
                )
            )
        if self._postgresql:
            written = rows[0].written
        else:
            written = self._insert_sqlite(conn, events, committed, last)
        if written != len(events):
            raise LogError(f"the log took {written} of {len(events)} events; rolled back")
        return tuple(committed)

    def _append_rows(self, conn: Connection, events: Sequence[EncodedEvent]) -> Sequence[Any]:
        if not self._postgresql:
            count = sorted(Counter(e.stream for e in events).items())
            return self._append.all(conn, {"counts": orjson.dumps(count).decode()})
        if len(events) == 1:
            # half the time of the general statement, and what most transactions need
            e = events[0]
            return self._checked(
                self._append_one.all(
                    conn,
                    {
                        "name": e.stream,
                        "event_id": e.id,
                        "type": e.type,
                        "data": e.data_json,
                        "operation": e.operation,
                        "actor": e.actor,
                        "trace_parent": e.trace_parent,
                    },
                )
            )
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

    def _cluster_of(self, conn: Connection) -> str:
        """The database cluster behind a connection; asked once for each (``Connection.info``)."""
        if not self._postgresql:
            return "sqlite"
        known = conn.info.get(_CLUSTER)
        if known is None:
            known = conn.info[_CLUSTER] = str(conn.execute(self._cluster).scalar_one())
        return str(known)

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

    async def page(self, conn: AsyncConnection, stream: str, after: int | None, limit: int) -> Page:
        """At most `limit` events with offsets after `after`; None reads the head alone."""
        cluster = await conn.run_sync(self._cluster_of)
        parameters = {"name": stream, "after": after or 0, "limit": 0 if after is None else limit}
        rows = (await conn.execute(self._page, parameters)).all()
        if not rows:
            raise LogError("Commitcast's installation row is missing; run `commitcast migrate`")
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
                )
                for row in rows
                if row.offset is not None
            ),
        )

    async def heads(self, conn: AsyncConnection, streams: Sequence[str]) -> dict[str, Head]:
        """The heads of `streams`, in one snapshot; those without events are `NOT_YET`."""
        cluster = await conn.run_sync(self._cluster_of)
        rows = (await conn.execute(self._heads, {"names": list(streams)})).all()
        if not rows:
            raise LogError("Commitcast's installation row is missing; run `commitcast migrate`")
        found = {
            row.name: Head(
                epoch_of(row.incarnation, cluster, row.lineage, row.id), row.head, row.tail
            )
            for row in rows
            if row.name is not None
        }
        return {name: found.get(name, NOT_YET) for name in streams}


class _Prepared:
    """A statement compiled once and run with the driver's own parameters.

    Half the time of ``conn.execute`` goes into what never changes between two calls.
    """

    def __init__(self, statement: Executable, dialect: Dialect) -> None:
        self._statement = statement
        self._dialect = dialect
        self._sql = ""
        self._order: tuple[str, ...] | None = None

    def _arguments(self, values: dict[str, Any]) -> Any:
        return tuple([values[name] for name in self._order]) if self._order else values

    def _ready(self) -> str:
        if not self._sql:
            statement: Any = self._statement
            compiled: SQLCompiler = statement.compile(dialect=self._dialect)
            if compiled.positional:
                self._order = tuple(compiled.positiontup or ())
            self._sql = str(compiled)
        return self._sql

    def all(self, conn: Connection, values: dict[str, Any]) -> Sequence[Any]:
        sql = self._ready()
        return conn.exec_driver_sql(sql, self._arguments(values)).all()

    def many(self, conn: Connection, rows: list[dict[str, Any]]) -> None:
        sql = self._ready()
        conn.exec_driver_sql(sql, [self._arguments(row) for row in rows])


@functools.lru_cache(maxsize=65_536)
def epoch_of(incarnation: str, cluster: str, timeline: str, stream_id: int) -> str:
    """The epoch of a stream: changes whenever its offsets could be used again (DESIGN §6)."""
    text = f"{incarnation}|{cluster}|{timeline}|{stream_id}".encode()
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def _cluster() -> Any:
    """The cluster's identity, which a copy made by ``initdb`` and a restore has another of."""
    return select(func.pg_control_system().table_valued("system_identifier").c.system_identifier)


def _constant(text: str) -> Any:
    """A constant of ours as SQL text, so that it is no parameter of every call."""
    return literal_column("'" + text + "'", Text)


def _setting(name: str) -> Any:
    return func.current_setting(_constant(name), type_=Text)


def _lineage(*, postgresql: bool) -> Any:
    """The timeline, which grows when a replica is promoted. Only a primary can be asked."""
    if not postgresql:
        return _constant("")
    walfile = func.pg_walfile_name(func.pg_current_wal_lsn(), type_=Text)
    return func.left(walfile, literal_column("8"), type_=Text)


def _time(column: Any, *, postgresql: bool) -> Any:
    if not postgresql:
        return column
    return func.to_char(
        func.timezone(_constant("UTC"), column), _constant('YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
    )


def _durable() -> Any:
    """Raises ``synchronous_commit`` to ``on`` for the transaction, where it is weaker."""
    weaker = (
        _setting("synchronous_commit") == _constant(value)
        for value in ("off", "local", "remote_write")
    )
    raised = func.set_config(_constant("synchronous_commit"), _constant("on"), true())
    return case((or_(*weaker), raised), else_=_constant("")).label("durable")


def _read_committed() -> Any:
    """False above READ COMMITTED, where nothing must be locked or written."""
    return or_(
        _setting("transaction_isolation") == _constant("read committed"),
        _setting("transaction_isolation") == _constant("read uncommitted"),
    )


def _placed_postgresql(tables: Tables, heads: Any, written: Any) -> Any:
    """A row a stream, as one text: the driver describes and converts one column, not eight."""
    installation = tables.installation
    return select(
        func.concat_ws(
            _constant(_SEPARATOR),
            heads.c.id,
            heads.c.name,
            heads.c.head,
            installation.c.incarnation,
            _lineage(postgresql=True),
            _time(func.statement_timestamp(), postgresql=True),
            select(func.count()).select_from(written).scalar_subquery(),
            _durable(),
        )
    ).select_from(heads.join(installation, installation.c.id == literal_column("1")))


def _append_one_postgresql(tables: Tables) -> Any:
    """One event to one stream: what `_append_postgresql` does, in half the time."""
    streams, events = tables.streams, tables.events
    new: Any = select(
        bindparam("name", type_=Text), literal_column("1"), literal_column("1")
    ).where(_read_committed())
    upsert = postgresql.insert(streams).from_select(["name", "head", "tail"], new)
    heads = (
        upsert.on_conflict_do_update(
            index_elements=[streams.c.name], set_={"head": streams.c.head + literal_column("1")}
        )
        .returning(streams.c.id, streams.c.name, streams.c.head)
        .cte("heads")
    )
    columns = ("event_id", "type", "data", "operation", "actor", "trace_parent")
    row = select(
        heads.c.id,
        heads.c.head,
        *(bindparam(name, type_=Text) for name in columns),
        func.statement_timestamp(),
    )
    written = (
        events.insert()
        .from_select(["stream_id", "offset", *columns, "created_at"], row)
        .returning(events.c.offset)
        .cte("written")
    )
    return _placed_postgresql(tables, heads, written)


def _append_postgresql(tables: Tables) -> Any:
    streams, events = tables.streams, tables.events

    def array(name: str) -> Any:
        return bindparam(name, type_=ARRAY(Text))

    columns = ("name", "event_id", "type", "data", "operation", "actor", "trace_parent")
    unnested = (
        func.unnest(
            array("names"),
            array("ids"),
            array("types"),
            array("datas"),
            array("operations"),
            array("actors"),
            array("traces"),
        )
        .table_valued(*columns, with_ordinality="place")
        .render_derived(name="unnested")
    )
    given = (
        select(*unnested.c)
        # Above READ COMMITTED nothing is locked or written, and no row comes back.
        .where(_read_committed())
        .cte("given")
    )
    counted = (
        select(given.c.name, func.count().label("n"), literal_column("1", BigInteger).label("tail"))
        .group_by(given.c.name)
        .order_by(collate(given.c.name, "C"))
    )
    upsert = postgresql.insert(streams).from_select(["name", "head", "tail"], counted)
    heads = (
        upsert.on_conflict_do_update(
            index_elements=[streams.c.name],
            set_={"head": streams.c.head + upsert.excluded.head},
        )
        .returning(streams.c.id, streams.c.name, streams.c.head)
        .cte("heads")
    )
    numbered = select(
        *given.c,
        func.count().over(partition_by=given.c.name).label("n"),
        func.row_number().over(partition_by=given.c.name, order_by=given.c.place).label("nth"),
    ).subquery("numbered")
    rows = select(
        heads.c.id,
        heads.c.head - numbered.c.n + numbered.c.nth,
        *(numbered.c[name] for name in columns[1:]),
        func.statement_timestamp(),
    ).select_from(numbered.join(heads, heads.c.name == numbered.c.name))
    written = (
        events.insert()
        .from_select(
            ["stream_id", "offset", *columns[1:], "created_at"],
            rows,
        )
        .returning(events.c.offset)
        .cte("written")
    )
    return _placed_postgresql(tables, heads, written)


def _upsert_sqlite(tables: Tables) -> Any:
    streams, installation = tables.streams, tables.installation
    counts = func.json_each(bindparam("counts", type_=Text)).table_valued("value")
    counted = select(
        func.json_extract(counts.c.value, _constant("$[0]")),
        func.json_extract(counts.c.value, _constant("$[1]")),
        literal_column("1"),
    ).where(true())
    upsert = sqlite.insert(streams).from_select(["name", "head", "tail"], counted)
    incarnation = (
        select(installation.c.incarnation)
        .where(installation.c.id == literal_column("1"))
        .scalar_subquery()
    )
    return upsert.on_conflict_do_update(
        index_elements=[streams.c.name],
        set_={"head": streams.c.head + upsert.excluded.head},
    ).returning(
        streams.c.id,
        streams.c.name,
        streams.c.head,
        incarnation.label("incarnation"),
        _lineage(postgresql=False).label("lineage"),
        func.strftime(_constant("%Y-%m-%dT%H:%M:%fZ"), _constant("now")).label("time"),
    )


def _page(tables: Tables, *, postgresql: bool) -> Any:
    streams, events, installation = tables.streams, tables.events, tables.installation
    after = bindparam("after", type_=BigInteger)
    # Offsets are contiguous, so a range of them is a page; no LIMIT, no LATERAL.
    wanted = and_(
        events.c.stream_id == streams.c.id,
        events.c.offset > after,
        events.c.offset <= after + bindparam("limit", type_=BigInteger),
    )
    return (
        select(
            installation.c.incarnation,
            _lineage(postgresql=postgresql).label("lineage"),
            streams.c.id,
            streams.c.head,
            streams.c.tail,
            events.c.offset,
            events.c.event_id,
            events.c.type,
            events.c.data,
            events.c.actor,
            events.c.operation,
            _time(events.c.created_at, postgresql=postgresql).label("time"),
        )
        .select_from(
            installation.outerjoin(streams, streams.c.name == bindparam("name")).outerjoin(
                events, wanted
            )
        )
        .where(installation.c.id == literal_column("1"))
        .order_by(events.c.offset)
    )


def _heads(tables: Tables, *, postgresql: bool) -> Any:
    streams, installation = tables.streams, tables.installation
    return (
        select(
            installation.c.incarnation,
            _lineage(postgresql=postgresql).label("lineage"),
            streams.c.id,
            streams.c.name,
            streams.c.head,
            streams.c.tail,
        )
        .select_from(
            installation.outerjoin(
                streams, streams.c.name.in_(bindparam("names", expanding=True, type_=String))
            )
        )
        .where(installation.c.id == literal_column("1"))
    )
