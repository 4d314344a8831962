"""Reads back what the database holds when everything has come to rest.

It reads the tables themselves, not through Commitcast's reading side, which is on trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from commitcast.chaos.record import BusinessRow, LogEvent
from commitcast.chaos.workload import Base, Written
from commitcast.schema import Naming, Tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine


@dataclass(frozen=True)
class Evidence:
    """The log of the campaign's streams, and the writers' rows."""

    log: Sequence[LogEvent]
    heads: Mapping[str, int]
    tails: Mapping[str, int]
    rows: Sequence[BusinessRow]


async def prepare(engine: AsyncEngine) -> None:
    """Make the writers' table, empty."""
    async with engine.begin() as conn:
        await conn.run_sync(Base.metadata.drop_all)
        await conn.run_sync(Base.metadata.create_all)


async def remove(engine: AsyncEngine) -> None:
    """Drop the writers' table."""
    async with engine.begin() as conn:
        await conn.run_sync(Base.metadata.drop_all)


async def heads(engine: AsyncEngine, streams: Sequence[str]) -> Mapping[str, int]:
    """The last offset of each of `streams`; those without events are left out."""
    table = Tables(Naming.of(engine.dialect.name)).streams
    async with engine.connect() as conn:
        named = select(table.c.name, table.c.head).where(table.c.name.in_(streams))
        return {row.name: row.head for row in await conn.execute(named)}


async def read(engine: AsyncEngine, streams: Sequence[str]) -> Evidence:
    """Everything that the database holds of `streams`."""
    async with engine.connect() as conn:
        return await conn.run_sync(_read, streams)


def _read(conn: Connection, names: Sequence[str]) -> Evidence:
    tables = Tables(Naming.of(conn.dialect.name))
    streams, events = tables.streams, tables.events
    kept = conn.execute(select(streams).where(streams.c.name.in_(names))).all()
    log = conn.execute(
        select(streams.c.name, events.c.offset, events.c.event_id, events.c.type, events.c.data)
        .join_from(events, streams, events.c.stream_id == streams.c.id)
        .where(streams.c.name.in_(names))
        .order_by(streams.c.name, events.c.offset)
    ).all()
    with Session(conn) as session:
        rows = session.scalars(select(Written).order_by(Written.id)).all()
    return Evidence(
        log=[LogEvent(*row) for row in log],
        heads={row.name: row.head for row in kept},
        tails={row.name: row.tail for row in kept},
        rows=[BusinessRow(row.id, row.key, row.stream, row.payload) for row in rows],
    )
