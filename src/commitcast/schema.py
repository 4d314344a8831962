"""Commitcast's own tables, in MetaData of their own.

On PostgreSQL they live in a schema (default ``commitcast``) and every name is qualified, so
search_path does not matter; on SQLite, which has no schemas, names get a prefix.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    false,
)
from sqlalchemy.dialects import sqlite

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_SCHEMA: Final = "commitcast"
DEFAULT_PREFIX: Final = "commitcast_"
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")
_TAKEN: Final = {"schema": "pg_", "prefix": "sqlite_"}
"""How names begin that PostgreSQL and SQLite keep for themselves."""
_TABLES: Final = (
    "installation", "streams", "events", "relays", "deliveries", "nodes", "operations", "outcomes",
    "version",
)  # fmt: skip


@dataclass(frozen=True)
class Naming:
    """Where the tables live: `schema` on PostgreSQL, `prefix` elsewhere (or as well)."""

    schema: str | None = DEFAULT_SCHEMA
    prefix: str = ""

    def __post_init__(self) -> None:
        for what, value in (("schema", self.schema), ("prefix", self.prefix or None)):
            if value is None:
                continue
            if not _NAME.fullmatch(value):
                raise ValueError(
                    f"{what} {value!r} must be 1 to 40 of a-z 0-9 _, not beginning with a digit"
                )
            if value.startswith(_TAKEN[what]):
                raise ValueError(
                    f"{what} {value!r} cannot be used: the database keeps names that begin with "
                    f"{_TAKEN[what]!r} for itself"
                )

    @classmethod
    def of(cls, dialect: str, schema: str | None = None, prefix: str | None = None) -> Naming:
        """The naming for a dialect, with its defaults where an option is not given."""
        if dialect == "sqlite":
            return cls(None, DEFAULT_PREFIX if prefix is None else prefix)
        return cls(DEFAULT_SCHEMA if schema is None else schema, prefix or "")


def widened(length: int) -> String:
    """A text that version 0002 had with 200 characters. SQLite keeps no lengths, so not there."""
    return String(length).with_variant(String(200), "sqlite")


class Tables:
    """The tables of one naming, as SQLAlchemy Table objects in `metadata`."""

    def __init__(self, naming: Naming) -> None:
        self.naming = naming
        self.metadata = MetaData(schema=naming.schema)
        big = BigInteger().with_variant(Integer(), "sqlite")
        moment = DateTime(timezone=True).with_variant(sqlite.TEXT(), "sqlite")

        def table(name: str, *columns: Any, **options: Any) -> Table:
            return Table(naming.prefix + name, self.metadata, *columns, **options)

        self.installation = table(
            "installation",
            Column("id", Integer, primary_key=True, autoincrement=False),
            Column("incarnation", String(32), nullable=False),
            Column("erasures", BigInteger, nullable=False, server_default="0"),
        )
        """One row. `incarnation` changes when the database was restored from a copy (DESIGN §6),
        `erasures` grows with every erasing transaction, so that nodes drop what they remember."""

        self.streams = table(
            "streams",
            Column("id", big, Identity(), primary_key=True),
            Column("name", widened(3100), nullable=False, unique=True),
            Column("head", BigInteger, nullable=False),
            Column("tail", BigInteger, nullable=False),
            Column("oldest_at", moment),
            Column("full_at", BigInteger),
            sqlite_autoincrement=True,
        )
        """`head` is the last offset, `tail` the first that is still kept (head + 1 if none).
        Surrogate ids are never used again, so a stream made again has another epoch.

        For trimming: no event is older than `oldest_at`, and the append that brings `head` to
        `full_at` makes `oldest_at` null, which says that the stream is to be looked at."""
        Index(f"{naming.prefix}streams_oldest_at", self.streams.c.oldest_at)

        self.events = table(
            "events",
            Column("stream_id", big, primary_key=True, autoincrement=False),
            Column("offset", BigInteger, primary_key=True, autoincrement=False),
            Column("event_id", String(32), nullable=False),
            Column("type", String(100), nullable=False),
            Column("data", Text, nullable=False),
            Column("operation", widened(255)),
            Column("actor", widened(255)),
            Column("trace_parent", String(55)),
            Column("created_at", moment, nullable=False),
        )
        """The log. It is the outbox: written in the caller's transaction.

        No foreign key: rows come and go only under the lock of their stream's row, and the check
        would be one more query in every commit."""
        has_actor = self.events.c.actor.is_not(None)
        Index(
            f"{naming.prefix}events_actor",
            self.events.c.actor,
            postgresql_where=has_actor,
            sqlite_where=has_actor,
        )

        self.relays = table(
            "relays",
            Column("name", String(100), primary_key=True),
            Column("owner", String(32)),
            Column("leased_until", moment),
        )
        """Who hands events to a ``deliver`` callable: one owner at a time."""

        self.deliveries = table(
            "deliveries",
            Column("relay", String(100), primary_key=True),
            Column(
                "stream_id",
                big,
                ForeignKey(self.streams.c.id, ondelete="CASCADE"),
                primary_key=True,
                autoincrement=False,
            ),
            Column("delivered", BigInteger, nullable=False),
        )
        """How far each stream has been handed to a ``deliver`` callable."""
        Index(f"{naming.prefix}deliveries_stream_id", self.deliveries.c.stream_id)

        self.nodes = table(
            "nodes",
            Column("id", String(32), primary_key=True),
            Column("term", BigInteger, nullable=False),
            Column("heartbeat", moment),
        )
        """One row a node. `term` grows when it is declared dead or leaves; `heartbeat` is then
        null, so that nobody declares it again."""

        self.operations = table(
            "operations",
            Column("id", String(32), primary_key=True),
            Column("attempt", Integer, primary_key=True, autoincrement=False),
            Column("name", String(100), nullable=False),
            Column("actor", widened(255)),
            Column("key", widened(255)),
            Column("request_hash", String(32)),
            Column("node", String(32), nullable=False),
            Column("term", BigInteger, nullable=False),
            Column("announced_at", moment, nullable=False),
            Column("deadline", moment, nullable=False),
            Column("streams", Text, nullable=False),
            Column("shown", Text, nullable=False),
            Column("user_message", Text),
            Column("settled", Boolean, nullable=False, default=False),
        )
        """Announced attempts. With a key, the id is made from actor, name and key, so that the
        primary key is what is unique. `streams` (JSON) are told of a rollback, `shown` are those
        of them that something was shown on. `settled` only spares the reaper a look: the truth is
        in `outcomes`."""
        operations = self.operations.c
        Index(
            f"{naming.prefix}operations_open",
            operations.node,
            postgresql_where=operations.settled == false(),
            sqlite_where=operations.settled == false(),
        )
        Index(f"{naming.prefix}operations_announced_at", operations.announced_at)
        has_actor = operations.actor.is_not(None)
        Index(
            f"{naming.prefix}operations_actor",
            operations.actor,
            postgresql_where=has_actor,
            sqlite_where=has_actor,
        )

        self.outcomes = table(
            "outcomes",
            Column("operation_id", String(32), primary_key=True),
            Column("attempt", Integer, primary_key=True, autoincrement=False),
            Column("outcome", String(12), nullable=False),
            Column("result", Text),
            Column("error", Text),
            Column("decided_at", moment, nullable=False),
        )
        """One row an attempt, ever: the first INSERT wins, by the primary key."""

    @property
    def version_table(self) -> str:
        """The name of the table that says which migrations have run."""
        return f"{self.naming.prefix}version"


def include_object(
    *, schema: str | None = None, prefix: str | None = None
) -> Callable[[Any, str | None, str, bool, Any], bool]:
    """An ``include_object`` filter for Alembic's ``env.py``: autogenerate leaves our tables alone.

    Give the `schema` and `prefix` that the coordinator is given. Combine it with your own
    filter with ``and``.
    """
    ours = Naming.of("postgresql", schema, prefix)
    embedded = Naming.of("sqlite", schema, prefix)
    own_names = {embedded.prefix + name for name in _TABLES}

    def keep(obj: Any, name: str | None, kind: str, _reflected: bool, _other: Any) -> bool:
        table = obj if kind == "table" else getattr(obj, "table", None)
        if table is None:
            return True
        if ours.schema is not None and table.schema == ours.schema:
            return table.name not in {ours.prefix + n for n in _TABLES}
        return (name if kind == "table" else table.name) not in own_names

    return keep
