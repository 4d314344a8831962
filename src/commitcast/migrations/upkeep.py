"""Step 0003: what trimming and erasing look things up by, and `emit` in SQL as strict as Python's.

The function runs with the rights of its owner, so that a role that may only emit needs no right
on the tables, which would let it write what no check has seen. No longer may everybody call it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

if TYPE_CHECKING:
    from commitcast.schema import Naming

_EMIT: Final = r"""
CREATE FUNCTION {q}{p}emit(stream text, type text, data jsonb DEFAULT '{{}}'::jsonb)
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
#variable_conflict use_column
DECLARE
    a_stream ALIAS FOR $1;
    a_type ALIAS FOR $2;
    a_data ALIAS FOR $3;
    encoded text;
    stream_key bigint;
    new_offset bigint;
BEGIN
    IF a_stream IS NULL OR length(regexp_replace(a_stream, '~[0-9A-F]{{2}}', '~', 'g')) > 1030
       OR a_stream COLLATE "C" !~ '^[A-Za-z0-9][A-Za-z0-9._:/@+=~-]*$' THEN
        RAISE EXCEPTION 'commitcast: % is not a stream name', quote_nullable(left(a_stream, 80))
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF a_type IS NULL OR a_type COLLATE "C" !~ '^[A-Za-z][A-Za-z0-9._:-]{{0,99}}$' THEN
        RAISE EXCEPTION 'commitcast: % is not an event type', quote_nullable(left(a_type, 80))
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF starts_with(a_type, 'commitcast.') OR a_type IN (
        'transaction_started', 'transaction_committed', 'transaction_rolled_back',
        'coordination_failed', 'layer_sync_error') THEN
        RAISE EXCEPTION 'commitcast: % is a type that only Commitcast sends', quote_literal(a_type)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF a_data IS NULL OR octet_length(a_data::text) > 131072 THEN
        RAISE EXCEPTION 'commitcast: event data must be given and take at most 65536 bytes'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF jsonb_path_exists(a_data, 'strict $.** ? (@.type() == "number"
        && (@ > 1.7976931348623157e308 || @ < -1.7976931348623157e308))') THEN
        RAISE EXCEPTION 'commitcast: a number in the event data is larger than clients can read'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Send it as a string.';
    END IF;
    IF jsonb_path_exists(a_data, 'strict $.**{{254}} ? (@.type() == "array"
        || @.type() == "object")') THEN
        RAISE EXCEPTION 'commitcast: the event data is nested more than 254 deep'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Send what is so deep as a string.';
    END IF;
    -- as Python encodes: no spaces between values, and nothing that a client takes for a line's end
    encoded := regexp_replace(a_data::text, '("(?:[^"\\]|\\.)*")|([,:]) ', '\1\2', 'g');
    IF current_setting('server_encoding') = 'UTF8' THEN
        encoded := replace(replace(replace(encoded, chr(8232), '\u2028'), chr(8233), '\u2029'),
                           chr(133), '\u0085');
    END IF;
    IF octet_length(encoded) > 65536 THEN
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
        ON CONFLICT (name) DO UPDATE SET head = s.head + 1, oldest_at =
            CASE WHEN s.head + 1 >= s.full_at THEN NULL ELSE s.oldest_at END
        RETURNING s.id, s.head INTO stream_key, new_offset;
    INSERT INTO {q}{p}events (stream_id, "offset", event_id, type, data, created_at)
        VALUES (stream_key, new_offset, replace(gen_random_uuid()::text, '-', ''), a_type,
                encoded, statement_timestamp());
    RETURN new_offset;
END
$body$
"""


def qualifier(bind: Any, naming: Naming) -> str:
    """What stands before a name in SQL text: the schema, quoted if it is a word of SQL."""
    if naming.schema is None:
        return ""
    return f"{bind.dialect.identifier_preparer.quote_schema(naming.schema)}."


def replace_emit(op: Any, naming: Naming, function: str) -> None:
    """Put `function` in the place of the one there is."""
    q, p = qualifier(op.get_bind(), naming), naming.prefix
    op.execute(sa.DDL(f"DROP FUNCTION {q}{p}emit(text, text, jsonb)"))
    op.execute(sa.DDL(function.format(q=q, p=p).replace("%", "%%")))


def upgrade(op: Any, naming: Naming) -> None:
    """See the module; indexes that somebody made before, under these names, are kept."""
    schema, p = naming.schema, naming.prefix
    moment = sa.DateTime(timezone=True).with_variant(sqlite.TEXT(), "sqlite")
    op.add_column(
        f"{p}installation",
        sa.Column("erasures", sa.BigInteger, nullable=False, server_default="0"),
        schema=schema,
    )
    op.add_column(f"{p}streams", sa.Column("oldest_at", moment), schema=schema)
    op.add_column(f"{p}streams", sa.Column("full_at", sa.BigInteger), schema=schema)
    for table, column in (("streams", "oldest_at"), ("deliveries", "stream_id")):
        op.create_index(
            f"{p}{table}_{column}", f"{p}{table}", [column], schema=schema, if_not_exists=True
        )
    has_actor = sa.column("actor").is_not(None)
    for table in ("events", "operations"):
        op.create_index(
            f"{p}{table}_actor", f"{p}{table}", ["actor"], schema=schema, if_not_exists=True,
            postgresql_where=has_actor, sqlite_where=has_actor,
        )  # fmt: skip
    if op.get_bind().dialect.name == "postgresql":
        replace_emit(op, naming, _EMIT)
        q = qualifier(op.get_bind(), naming)
        op.execute(sa.DDL(f"REVOKE ALL ON FUNCTION {q}{p}emit(text, text, jsonb) FROM PUBLIC"))


def downgrade(op: Any, naming: Naming) -> None:
    """Undo `upgrade`, but for the function."""
    schema, p = naming.schema, naming.prefix
    for table, column in (
        ("streams", "oldest_at"), ("deliveries", "stream_id"), ("events", "actor"),
        ("operations", "actor"),
    ):  # fmt: skip
        op.drop_index(f"{p}{table}_{column}", f"{p}{table}", schema=schema)
    for table, column in (
        ("streams", "full_at"), ("streams", "oldest_at"), ("installation", "erasures"),
    ):  # fmt: skip
        op.drop_column(f"{p}{table}", column, schema=schema)
