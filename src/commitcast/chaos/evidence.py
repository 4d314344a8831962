"""Reads back what the database holds when everything has come to rest.

It reads the tables themselves, not through Commitcast's reading side, which is on trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson
from sqlalchemy import and_, delete, func, select
from sqlalchemy.orm import Session

from commitcast.chaos.attempt import Worked
from commitcast.chaos.record import (
    AttemptRow,
    BusinessRow,
    LogEvent,
    NodeRow,
    OutcomeRow,
    WorkRow,
)
from commitcast.chaos.workload import Base, Written
from commitcast.schema import Naming, Tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine


@dataclass(frozen=True)
class Evidence:
    """The log of the campaign's streams, its users' operations, and the writers' rows."""

    log: Sequence[LogEvent]
    heads: Mapping[str, int]
    tails: Mapping[str, int]
    rows: Sequence[BusinessRow]
    attempts: Sequence[AttemptRow]
    outcomes: Sequence[OutcomeRow]
    work: Sequence[WorkRow]


async def prepare(engine: AsyncEngine) -> None:
    """Make the writers' tables, empty."""
    async with engine.begin() as conn:
        await conn.run_sync(Base.metadata.drop_all)
        await conn.run_sync(Base.metadata.create_all)


async def remove(engine: AsyncEngine, users: Sequence[str]) -> None:
    """Drop the writers' tables, and delete the operations of `users`."""
    tables = Tables(Naming.of(engine.dialect.name))
    operations, outcomes = tables.operations, tables.outcomes
    theirs = select(operations.c.id).where(operations.c.actor.in_(users))
    async with engine.begin() as conn:
        await conn.execute(delete(outcomes).where(outcomes.c.operation_id.in_(theirs)))
        await conn.execute(delete(operations).where(operations.c.actor.in_(users)))
        await conn.run_sync(Base.metadata.drop_all)


async def heads(engine: AsyncEngine, streams: Sequence[str]) -> Mapping[str, int]:
    """The last offset of each of `streams`; those without events are left out."""
    table = Tables(Naming.of(engine.dialect.name)).streams
    async with engine.connect() as conn:
        named = select(table.c.name, table.c.head).where(table.c.name.in_(streams))
        return {row.name: row.head for row in await conn.execute(named)}


async def unsettled(engine: AsyncEngine, users: Sequence[str]) -> int:
    """How many attempts of `users` have no outcome."""
    tables = Tables(Naming.of(engine.dialect.name))
    operations, outcomes = tables.operations, tables.outcomes
    this = and_(
        outcomes.c.operation_id == operations.c.id, outcomes.c.attempt == operations.c.attempt
    )
    query = (
        select(func.count())
        .select_from(operations.outerjoin(outcomes, this))
        .where(operations.c.actor.in_(users), outcomes.c.outcome.is_(None))
    )
    async with engine.connect() as conn:
        return (await conn.execute(query)).scalar_one()


async def nodes(engine: AsyncEngine, users: Sequence[str]) -> Sequence[NodeRow]:
    """The nodes that announced anything for `users`, and are not forgotten."""
    tables = Tables(Naming.of(engine.dialect.name))
    known, operations = tables.nodes, tables.operations
    announced = select(operations.c.node).where(operations.c.actor.in_(users))
    async with engine.connect() as conn:
        rows = await conn.execute(select(known).where(known.c.id.in_(announced)))
        return [NodeRow(row.id, row.term, row.heartbeat is not None) for row in rows]


async def read(engine: AsyncEngine, streams: Sequence[str], users: Sequence[str]) -> Evidence:
    """Everything that the database holds of `streams` and of the operations of `users`."""
    async with engine.connect() as conn:
        return await conn.run_sync(_read, streams, users)


def delivered(sink: Path) -> Sequence[str]:
    """The frames in the file of a ``deliver`` callable, but those that a kill cut off."""
    frames = []
    for line in sink.read_bytes().split(b"\n") if sink.exists() else ():
        length, _, frame = line.partition(b" ")
        if length == b"%d" % len(frame):
            frames.append(frame.decode())
    return frames


def _read(conn: Connection, names: Sequence[str], users: Sequence[str]) -> Evidence:
    tables = Tables(Naming.of(conn.dialect.name))
    streams, events = tables.streams, tables.events
    operations, outcomes = tables.operations, tables.outcomes
    kept = conn.execute(select(streams).where(streams.c.name.in_(names))).all()
    log = conn.execute(
        select(streams.c.name, events.c.offset, events.c.event_id, events.c.type, events.c.data)
        .join_from(events, streams, events.c.stream_id == streams.c.id)
        .where(streams.c.name.in_(names))
        .order_by(streams.c.name, events.c.offset)
    ).all()
    theirs = operations.c.actor.in_(users)
    announced = conn.execute(select(operations).where(theirs)).all()
    decided = conn.execute(
        select(outcomes).where(outcomes.c.operation_id.in_(select(operations.c.id).where(theirs)))
    ).all()
    with Session(conn) as session:
        rows = session.scalars(select(Written).order_by(Written.id)).all()
        work = session.scalars(select(Worked).order_by(Worked.id)).all()
    return Evidence(
        log=[LogEvent(*row) for row in log],
        heads={row.name: row.head for row in kept},
        tails={row.name: row.tail for row in kept},
        rows=[BusinessRow(row.id, row.key, row.stream, row.payload) for row in rows],
        attempts=[
            AttemptRow(
                row.id, row.attempt, row.name, row.actor,
                tuple(orjson.loads(row.streams)), tuple(orjson.loads(row.shown)),
            )
            for row in announced
        ],
        outcomes=[
            OutcomeRow(row.operation_id, row.attempt, row.outcome, row.result, row.error)
            for row in decided
        ],
        work=[WorkRow(row.operation, row.attempt) for row in work],
    )  # fmt: skip
