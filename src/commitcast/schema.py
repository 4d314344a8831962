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
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.dialects import sqlite

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_SCHEMA: Final = "commitcast"
DEFAULT_PREFIX: Final = "commitcast_"
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")
_TABLES: Final = ("installation", "streams", "events", "relays", "deliveries", "version")


@dataclass(frozen=True)
class Naming:
    """Where the tables live: `schema` on PostgreSQL, `prefix` elsewhere (or as well)."""

    schema: str | None = DEFAULT_SCHEMA
    prefix: str = ""

    def __post_init__(self) -> None:
        for what, value in (("schema", self.schema), ("prefix", self.prefix)):
            if value and not _NAME.fullmatch(value):
                raise ValueError(
                    f"{what} {value!r} must be 1 to 40 of a-z 0-9 _, not beginning with a digit"
                )

    @classmethod
    def of(cls, dialect: str, schema: str | None = None, prefix: str | None = None) -> Naming:
        """The naming for a dialect, with its defaults where an option is not given."""
        if dialect == "sqlite":
            return cls(None, DEFAULT_PREFIX if prefix is None else prefix)
        return cls(DEFAULT_SCHEMA if schema is None else schema, prefix or "")


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
        )
        """One row: what changes when the database was restored from a copy (DESIGN §6)."""

        self.streams = table(
            "streams",
            Column("id", big, Identity(), primary_key=True),
            Column("name", String(200, collation=None), nullable=False, unique=True),
            Column("head", BigInteger, nullable=False),
            Column("tail", BigInteger, nullable=False),
            sqlite_autoincrement=True,
        )
        """`head` is the last offset, `tail` the first that is still kept (head + 1 if none).
        Surrogate ids are never used again, so a stream made again has another epoch."""

        self.events = table(
            "events",
            Column("stream_id", big, primary_key=True, autoincrement=False),
            Column("offset", BigInteger, primary_key=True, autoincrement=False),
            Column("event_id", String(32), nullable=False),
            Column("type", String(100), nullable=False),
            Column("data", Text, nullable=False),
            Column("operation", String(200)),
            Column("actor", String(200)),
            Column("trace_parent", String(55)),
            Column("created_at", moment, nullable=False),
        )
        """The log. It is the outbox: written in the caller's transaction.

        No foreign key: rows come and go only under the lock of their stream's row, and the check
        would be one more query in every commit."""

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
