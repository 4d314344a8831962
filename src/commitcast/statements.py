"""The log's SQL, as SQLAlchemy expressions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Integer,
    String,
    Text,
    and_,
    bindparam,
    case,
    cast,
    collate,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
)
from sqlalchemy.dialects import postgresql, sqlite

from commitcast.pages import last_of_page

if TYPE_CHECKING:
    from commitcast.schema import Tables

SEPARATOR: Final = "|"
"""Between the fields of a placed stream; no stream's name has one."""


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


def _now_sqlite() -> Any:
    return func.strftime(_constant("%Y-%m-%dT%H:%M:%fZ"), _constant("now"))


def durable() -> Any:
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


def _placed_postgresql(
    tables: Tables, stream_id: Any, name: Any, head: Any, written: Any, moment: Any
) -> Any:
    """A stream's place as one text: the driver describes and converts one column, not eight."""
    installation = tables.installation
    incarnation = (
        select(installation.c.incarnation)
        .where(installation.c.id == literal_column("1"))
        .scalar_subquery()
    )
    return func.concat_ws(
        _constant(SEPARATOR),
        stream_id,
        name,
        head,
        incarnation,
        _lineage(postgresql=True),
        _time(moment, postgresql=True),
        written,
        durable(),
    )


def decide(tables: Tables, *, postgresql: bool) -> Any:
    """The outcome *committed* of an attempt; the primary key refuses a second outcome."""
    outcomes = tables.outcomes
    now = func.clock_timestamp() if postgresql else _now_sqlite()
    row = select(
        bindparam("operation_id", type_=Text),
        bindparam("attempt", type_=Integer),
        _constant("committed"),
        bindparam("result_json", type_=Text),
        now,
    )
    columns = ["operation_id", "attempt", "outcome", "result", "decided_at"]
    insert = outcomes.insert().from_select(columns, row)
    return insert.returning(outcomes.c.attempt, durable()) if postgresql else insert


def _added(streams: Any, count: Any) -> dict[str, Any]:
    """What an append of `count` events changes in a stream's row; full, trimming is to look."""
    head = streams.c.head + count
    looked_at = case((head >= streams.c.full_at, null()), else_=streams.c.oldest_at)
    return {"head": head, "oldest_at": looked_at}


def append_one_postgresql(tables: Tables, *, deciding: bool = False) -> Any:
    """One event to one stream: what `append_postgresql` does, in half the time.

    With `deciding`, the outcome of an attempt as well, before the stream's head is locked.
    """
    streams, events = tables.streams, tables.events
    new: Any = select(
        bindparam("name", type_=Text), literal_column("1"), literal_column("1")
    ).where(_read_committed())
    if deciding:
        new = new.select_from(decide(tables, postgresql=True).cte("decided"))
    upsert = postgresql.insert(streams).from_select(["name", "head", "tail"], new)
    heads = (
        upsert.on_conflict_do_update(
            index_elements=[streams.c.name], set_=_added(streams, literal_column("1"))
        )
        .returning(streams.c.id, streams.c.head)
        .cte("heads")
    )
    columns = ("event_id", "type", "data", "operation", "actor", "trace_parent")
    row = select(
        heads.c.id,
        heads.c.head,
        *(bindparam(name, type_=Text) for name in columns),
        func.statement_timestamp(),
    )
    return (
        events.insert()
        .from_select(["stream_id", "offset", *columns, "created_at"], row)
        .returning(
            _placed_postgresql(
                tables,
                events.c.stream_id,
                _constant(""),
                events.c.offset,
                literal_column("1"),
                events.c.created_at,
            )
        )
    )


def append_postgresql(tables: Tables) -> Any:
    """Any number of events to any number of streams, whose heads are locked in one order."""
    streams, events = tables.streams, tables.events

    def array(name: str) -> Any:
        return cast(bindparam(name, type_=ARRAY(Text)), ARRAY(Text))  # SQLAlchemy 2.0.0 adds none

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
            set_=_added(streams, upsert.excluded.head),
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
    count = select(func.count()).select_from(written).scalar_subquery()
    return select(
        _placed_postgresql(
            tables, heads.c.id, heads.c.name, heads.c.head, count, func.statement_timestamp()
        )
    )


def upsert_sqlite(tables: Tables) -> Any:
    """The new heads of streams; SQLite has no INSERT in a WITH, so the events come after."""
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
        set_=_added(streams, upsert.excluded.head),
    ).returning(
        streams.c.id,
        streams.c.name,
        streams.c.head,
        incarnation.label("incarnation"),
        _lineage(postgresql=False).label("lineage"),
        _now_sqlite().label("time"),
    )


def page(tables: Tables, *, postgresql: bool) -> Any:
    """A stream's head and tail with the events after an offset, from one snapshot."""
    streams, events, installation = tables.streams, tables.events, tables.installation
    after = bindparam("after", type_=BigInteger)
    # Offsets are contiguous, so a range of them is a page; no LIMIT, no LATERAL.
    wanted = and_(
        events.c.stream_id == streams.c.id,
        events.c.offset > after,
        events.c.offset <= last_of_page(tables, after, postgresql=postgresql),
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
            events.c.trace_parent,
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


def heads(tables: Tables, *, postgresql: bool) -> Any:
    """The heads of some streams; one row at least, while the installation is there."""
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
