"""What each migration does. A step that was released is never changed."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateSchema

from commitcast.migrations import upkeep
from commitcast.migrations.widths import narrow, widen

if TYPE_CHECKING:
    from collections.abc import Callable

    from commitcast.schema import Naming


@dataclass(frozen=True)
class Step:
    """One migration, forward and back."""

    upgrade: Callable[[Any, Naming], None]
    downgrade: Callable[[Any, Naming], None]


_EMIT = """
CREATE FUNCTION {q}{p}emit(stream text, type text, data jsonb DEFAULT '{{}}'::jsonb)
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
#variable_conflict use_column
DECLARE
    a_stream ALIAS FOR $1;
    a_type ALIAS FOR $2;
    a_data ALIAS FOR $3;
    stream_key bigint;
    new_offset bigint;
BEGIN
    IF a_stream IS NULL OR a_stream !~ '^[A-Za-z0-9][A-Za-z0-9._:/@+=-]{{0,199}}$' THEN
        RAISE EXCEPTION 'commitcast: % is not a stream name', quote_nullable(left(a_stream, 80))
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF a_type IS NULL OR a_type !~ '^[A-Za-z][A-Za-z0-9._:-]{{0,99}}$'
       OR starts_with(a_type, 'commitcast.') THEN
        RAISE EXCEPTION 'commitcast: % is not an event type', quote_nullable(left(a_type, 80))
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF a_data IS NULL OR octet_length(a_data::text) > 65536 THEN
        RAISE EXCEPTION 'commitcast: event data must be given and take at most 65536 bytes'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'commitcast: emit at READ COMMITTED, not %',
            current_setting('transaction_isolation') USING ERRCODE = 'feature_not_supported';
    END IF;
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    INSERT INTO {q}{p}streams AS s (name, head, tail) VALUES (a_stream, 1, 1)
        ON CONFLICT (name) DO UPDATE SET head = s.head + 1
        RETURNING s.id, s.head INTO stream_key, new_offset;
    INSERT INTO {q}{p}events (stream_id, "offset", event_id, type, data, created_at)
        VALUES (stream_key, new_offset, replace(gen_random_uuid()::text, '-', ''), a_type,
                a_data::text, statement_timestamp());
    RETURN new_offset;
END
$body$
"""


def _create_log(op: Any, naming: Naming) -> None:
    schema, prefix = naming.schema, naming.prefix
    bind = op.get_bind()
    postgresql = bind.dialect.name == "postgresql"
    if postgresql and schema is not None:
        op.execute(CreateSchema(schema, if_not_exists=True))
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    moment = sa.DateTime(timezone=True).with_variant(sqlite.TEXT(), "sqlite")
    streams = f"{schema}.{prefix}streams" if schema else f"{prefix}streams"

    installation = op.create_table(
        f"{prefix}installation",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("incarnation", sa.String(32), nullable=False),
        schema=schema,
    )
    op.create_table(
        f"{prefix}streams",
        sa.Column("id", big, sa.Identity(), primary_key=True),
        sa.Column("name", sa.String(200), nullable=False, unique=True),
        sa.Column("head", sa.BigInteger, nullable=False),
        sa.Column("tail", sa.BigInteger, nullable=False),
        schema=schema,
        sqlite_autoincrement=True,
    )
    op.create_table(
        f"{prefix}events",
        sa.Column("stream_id", big, primary_key=True, autoincrement=False),
        sa.Column("offset", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("event_id", sa.String(32), nullable=False),
        sa.Column("type", sa.String(100), nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("operation", sa.String(200)),
        sa.Column("actor", sa.String(200)),
        sa.Column("trace_parent", sa.String(55)),
        sa.Column("created_at", moment, nullable=False),
        schema=schema,
    )
    op.create_table(
        f"{prefix}relays",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("owner", sa.String(32)),
        sa.Column("leased_until", moment),
        schema=schema,
    )
    op.create_table(
        f"{prefix}deliveries",
        sa.Column("relay", sa.String(100), primary_key=True),
        sa.Column(
            "stream_id",
            big,
            sa.ForeignKey(f"{streams}.id", ondelete="CASCADE"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("delivered", sa.BigInteger, nullable=False),
        schema=schema,
    )
    op.bulk_insert(installation, [{"id": 1, "incarnation": uuid.uuid4().hex}])
    if postgresql:
        qualifier = upkeep.qualifier(bind, naming)
        # heads are updated over and over; room in the page keeps that off the indexes
        op.execute(sa.DDL(f"ALTER TABLE {qualifier}{prefix}streams SET (fillfactor = 50)"))
        op.execute(sa.DDL(_EMIT.format(q=qualifier, p=prefix).replace("%", "%%")))


def _drop_log(op: Any, naming: Naming) -> None:
    schema, prefix = naming.schema, naming.prefix
    if op.get_bind().dialect.name == "postgresql":
        qualifier = upkeep.qualifier(op.get_bind(), naming)
        op.execute(sa.DDL(f"DROP FUNCTION {qualifier}{prefix}emit(text, text, jsonb)"))
    for name in ("deliveries", "relays", "events", "streams", "installation"):
        op.drop_table(f"{prefix}{name}", schema=schema)


def _prepare_upkeep(op: Any, naming: Naming) -> None:
    upkeep.upgrade(op, naming)


def _undo_upkeep(op: Any, naming: Naming) -> None:
    upkeep.downgrade(op, naming)
    if op.get_bind().dialect.name == "postgresql":
        upkeep.replace_emit(op, naming, _EMIT)


def _create_operations(op: Any, naming: Naming) -> None:
    schema, prefix = naming.schema, naming.prefix
    moment = sa.DateTime(timezone=True).with_variant(sqlite.TEXT(), "sqlite")
    op.create_table(
        f"{prefix}nodes",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("term", sa.BigInteger, nullable=False),
        sa.Column("heartbeat", moment),
        schema=schema,
    )
    op.create_table(
        f"{prefix}operations",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("actor", sa.String(200)),
        sa.Column("key", sa.String(200)),
        sa.Column("request_hash", sa.String(32)),
        sa.Column("node", sa.String(32), nullable=False),
        sa.Column("term", sa.BigInteger, nullable=False),
        sa.Column("announced_at", moment, nullable=False),
        sa.Column("deadline", moment, nullable=False),
        sa.Column("streams", sa.Text, nullable=False),
        sa.Column("shown", sa.Text, nullable=False),
        sa.Column("user_message", sa.Text),
        sa.Column("settled", sa.Boolean, nullable=False),
        schema=schema,
    )
    still_open = sa.column("settled", sa.Boolean) == sa.false()
    op.create_index(
        f"{prefix}operations_open",
        f"{prefix}operations",
        ["node"],
        schema=schema,
        postgresql_where=still_open,
        sqlite_where=still_open,
    )
    op.create_index(
        f"{prefix}operations_announced_at", f"{prefix}operations", ["announced_at"], schema=schema
    )
    op.create_table(
        f"{prefix}outcomes",
        sa.Column("operation_id", sa.String(32), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("outcome", sa.String(12), nullable=False),
        sa.Column("result", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("decided_at", moment, nullable=False),
        schema=schema,
    )


def _drop_operations(op: Any, naming: Naming) -> None:
    for name in ("outcomes", "operations", "nodes"):
        op.drop_table(f"{naming.prefix}{name}", schema=naming.schema)


STEPS: Final = {
    "0001": Step(_create_log, _drop_log),
    "0002": Step(_create_operations, _drop_operations),
    "0003": Step(_prepare_upkeep, _undo_upkeep),
    "0004": Step(widen, narrow),
}
