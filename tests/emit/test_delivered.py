"""From commit to subscription: what a running coordinator hands over, and when."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session

from commitcast import CommittedEvent, Event, Subscription, emit, sqlite

if TYPE_CHECKING:
    from conftest import Database


async def until(subscription: Subscription, last: str) -> list[CommittedEvent]:
    """What the subscription gives, up to the event of type `last`."""
    found = []
    async with asyncio.timeout(20):
        async for event in subscription:
            found.append(event)
            if event.type == last:
                break
    return found


@pytest.mark.anyio
async def test_g1_g2_a_subscriber_gets_what_committed_and_nothing_else(database: Database) -> None:
    engine = database.engine()
    scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
    async with (
        database.coordinator(engine, poll_interval_s=60) as coordinator,
        coordinator.subscribe("s") as subscription,
    ):
        async with AsyncSession(engine) as session:
            emit(session, "s", Event("a"))
            async with session.begin_nested():
                emit(session, "s", Event("b"))
            savepoint = await session.begin_nested()
            emit(session, "s", Event("gone"))
            await savepoint.rollback()
            await session.commit()
            emit(session, "s", Event("gone"))
            await session.rollback()
            async with session.begin():
                emit(session, "s", Event("c"))
        async with engine.begin() as conn:
            emit(conn, "s", Event("d"))
            async with AsyncSession(bind=conn, join_transaction_mode="create_savepoint") as joined:
                emit(joined, "s", Event("e"))
                await joined.commit()
        async with engine.connect() as conn:
            await conn.begin()
            async with AsyncSession(bind=conn) as joined:
                emit(joined, "s", Event("gone"))
                await joined.commit()
            await conn.rollback()
        emit(scoped, "s", Event("last"))
        await scoped.commit()
        await scoped.remove()
        found = await until(subscription, "last")
        assert [e.type for e in found] == ["a", "b", "c", "d", "e", "last"]
        assert [e.offset for e in found] == [1, 2, 3, 4, 5, 6]


@pytest.mark.anyio
async def test_g3_a_session_in_a_thread_is_delivered_without_a_poll(database: Database) -> None:
    async with (
        database.coordinator(poll_interval_s=60) as coordinator,
        coordinator.subscribe("s") as subscription,
    ):
        driver = "sqlite+pysqlite" if database.kind == "sqlite" else "postgresql+psycopg"
        engine = create_engine(database.url.set(drivername=driver))
        if database.kind == "sqlite":
            sqlite.configure(engine)
        coordinator.attach(engine)

        def work() -> None:
            with Session(engine) as session:
                emit(session, "s", Event("session"))
                session.commit()
            with engine.begin() as conn:
                emit(conn, "s", Event("connection"))
            with Session(engine) as session:
                emit(session, "s", Event("gone"))
                session.flush()
                session.connection()
                session.rollback()
                emit(session, "s", Event("last"))
                session.commit()

        await asyncio.to_thread(work)
        found = await until(subscription, "last")
        assert [e.type for e in found] == ["session", "connection", "last"]
        engine.dispose()


@pytest.mark.anyio
async def test_g3_the_commit_of_a_connection_is_delivered_without_a_poll(
    database: Database,
) -> None:
    """SQLAlchemy tells nobody that the COMMIT of a Core connection has returned."""
    engine = database.engine()
    async with (
        database.coordinator(engine, poll_interval_s=60) as coordinator,
        coordinator.subscribe("s") as subscription,
        engine.connect() as conn,
    ):
        await conn.begin()
        emit(conn, "s", Event("last"))
        await conn.commit()
        assert [e.type for e in await until(subscription, "last")] == ["last"]


@pytest.mark.anyio
async def test_g1_g3_g5_cancelled_commits_are_delivered_as_the_database_says(
    database: Database,
) -> None:
    """Cancelled anywhere: the subscriber gets, once each, what is in the log, and at once."""
    engine = database.engine()
    chance = random.Random(11)
    outcomes: list[Any] = []

    async def writer(number: int) -> None:
        async with AsyncSession(engine) as session:
            emit(session, "s", Event("e", number))
            await session.commit()

    async with (
        database.coordinator(engine, poll_interval_s=60) as coordinator,
        coordinator.subscribe("s") as subscription,
    ):
        for number in range(80):
            task = asyncio.create_task(writer(number))
            for _ in range(chance.randint(0, 20)):
                await asyncio.sleep(0)
            if chance.random() < 0.8:
                await asyncio.sleep(chance.random() * 0.02)
            task.cancel()
            outcomes += await asyncio.gather(task, return_exceptions=True)
        async with AsyncSession(engine) as session:
            emit(session, "s", Event("last", -1))
            await session.commit()
        live = await until(subscription, "last")
        async with coordinator.subscribe("s", after="earliest") as late:
            logged = await until(late, "last")
    assert [e.frame for e in live] == [e.frame for e in logged]
    assert [e.offset for e in live] == list(range(1, len(live) + 1))
    numbers = [e.data for e in live]
    assert len(set(numbers)) == len(numbers)
    assert {number for number, outcome in enumerate(outcomes) if outcome is None} <= set(numbers)


@pytest.mark.anyio
async def test_g2_a_commit_that_the_database_refuses_is_not_delivered(database: Database) -> None:
    """The statement has run, COMMIT fails: a constraint that is checked only then."""
    if database.kind == "sqlite":
        ddl = "CREATE TABLE child (id integer REFERENCES child (pk) DEFERRABLE INITIALLY DEFERRED,"
        ddl += " pk integer PRIMARY KEY)"
    else:
        ddl = "CREATE TABLE child (pk integer PRIMARY KEY,"
        ddl += " id integer REFERENCES child (pk) DEFERRABLE INITIALLY DEFERRED)"
    engine = database.engine()
    async with (
        database.coordinator(engine, poll_interval_s=60) as coordinator,
        coordinator.subscribe("s") as subscription,
    ):
        async with engine.begin() as conn:
            await conn.exec_driver_sql(ddl)
        async with AsyncSession(engine) as session:
            connection = await session.connection()
            await connection.exec_driver_sql("INSERT INTO child (pk, id) VALUES (1, 99)")
            emit(session, "s", Event("gone"))
            with pytest.raises(Exception, match=r"(?i)foreign key|child"):
                await session.commit()
            await session.rollback()
            emit(session, "s", Event("last"))
            await session.commit()
        found = await until(subscription, "last")
        assert [(e.type, e.offset) for e in found] == [("last", 1)]


@pytest.mark.anyio
async def test_g3_synchronous_commit_is_raised_for_a_transaction_with_events(
    database: Database,
) -> None:
    if database.kind == "sqlite":
        pytest.skip("a setting of PostgreSQL")
    from sqlalchemy import event as sa_event
    from sqlalchemy import text

    engine = database.engine()
    seen: list[str] = []
    database.coordinator(engine)

    @sa_event.listens_for(engine.sync_engine, "commit")  # after ours: it is the last listener
    def look(conn: Any) -> None:
        seen.append(conn.exec_driver_sql("SHOW synchronous_commit").scalar())

    async with AsyncSession(engine) as session:
        for level in ("off", "local", "remote_write", "on", "remote_apply"):
            for streams in ([], ["a"], ["a", "b"]):
                await session.execute(text(f"SET synchronous_commit = {level}"))
                for stream in streams:
                    emit(session, stream, Event("e"))
                await session.commit()
    weak = [["off"], ["local"], ["remote_write"]]
    assert [seen[i : i + 3] for i in range(0, 15, 3)] == [
        *([*level, "on", "on"] for level in weak),
        ["on"] * 3,
        ["remote_apply"] * 3,
    ]
