"""What a client of a real server sees of a transaction: nothing before its commit (G1, G2)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from commitcast import Event, emit

from .live import say, serving

if TYPE_CHECKING:
    from conftest import Database

pytestmark = pytest.mark.anyio


async def test_g1_an_open_transaction_sends_nothing_and_its_commit_sends_all(
    database: Database,
) -> None:
    engine = database.engine()
    async with serving(database.coordinator(engine, drain_s=0)) as site:
        client = await site.listen("thread:7")
        place = await client.named("subscribed")
        assert place == {"stream": "thread:7", "epoch": "new", "offset": 0, "recovered": False}
        async with AsyncSession(engine) as session:
            emit(session, "thread:7", Event("said", {"n": 1}))
            await session.flush()
            await session.connection()
            if database.kind == "postgresql":  # SQLite has one writer: the marker would wait for us
                await say(engine, "thread:7", 0)
                assert await client.numbers(1) == [0]
            await session.commit()
        assert await client.numbers(1) == [1]


async def test_g1_only_readers_of_the_committed_stream_are_sent_it(database: Database) -> None:
    engine = database.engine()
    async with serving(database.coordinator(engine, drain_s=0)) as site:
        one, two = await site.listen("thread:1"), await site.listen("thread:2")
        await one.named("subscribed")
        await two.named("subscribed")
        await say(engine, "thread:1", 1)
        await say(engine, "thread:2", 2)
        assert await two.numbers(1) == [2]
        assert await one.numbers(1) == [1]


async def test_g2_rolled_back_work_sends_nothing_savepoints_included(database: Database) -> None:
    engine = database.engine()
    async with serving(database.coordinator(engine, drain_s=0)) as site:
        client = await site.listen("thread:7")
        await client.named("subscribed")
        async with AsyncSession(engine) as session:
            emit(session, "thread:7", Event("said", {"n": -1}))
            await session.connection()
            await session.rollback()
            async with session.begin_nested() as inner:
                emit(session, "thread:7", Event("said", {"n": -2}))
                await inner.rollback()
            async with session.begin_nested():
                emit(session, "thread:7", Event("said", {"n": 1}))
            await session.commit()
        message = await client.message()
        assert message is not None
        assert (message.n, message.json["offset"]) == (1, 1)


async def test_g2_a_released_savepoint_is_not_a_commit(database: Database) -> None:
    engine = database.engine()
    async with serving(database.coordinator(engine, drain_s=0)) as site:
        client = await site.listen("thread:7")
        await client.named("subscribed")
        async with AsyncSession(engine) as session:
            async with session.begin_nested():
                emit(session, "thread:7", Event("said", {"n": -1}))
            await session.rollback()
        await say(engine, "thread:7", 1)
        assert await client.numbers(1) == [1]


async def test_g2_the_commit_of_a_session_joined_to_an_outer_transaction_is_no_commit(
    database: Database,
) -> None:
    engine = database.engine()
    async with serving(database.coordinator(engine, drain_s=0)) as site:
        client = await site.listen("thread:7")
        await client.named("subscribed")
        async with engine.connect() as conn:
            outer = await conn.begin()
            async with AsyncSession(conn, join_transaction_mode="create_savepoint") as session:
                emit(session, "thread:7", Event("said", {"n": -1}))
                await session.commit()
            await outer.rollback()
        await say(engine, "thread:7", 1)
        assert await client.numbers(1) == [1]


async def test_g1_a_cancelled_commit_sends_exactly_what_the_database_kept(
    database: Database,
) -> None:
    """A CancelledError out of commit() is not a rollback (DESIGN, section 9)."""
    engine = database.engine()
    coordinator = database.coordinator(engine, drain_s=0, poll_interval_s=0.1)
    async with serving(coordinator) as site:
        client = await site.listen("thread:7")
        await client.named("subscribed")

        async def commit(n: int) -> None:
            async with AsyncSession(engine) as session:
                emit(session, "thread:7", Event("said", {"n": n}))
                await session.commit()

        tasks = []
        for n in range(20):
            task = asyncio.create_task(commit(n))
            for _ in range(n % 7):
                await asyncio.sleep(0)
            task.cancel()
            tasks.append(task)
        await asyncio.gather(*tasks, return_exceptions=True)
        await say(engine, "thread:7", 99)
        seen: list[int] = []
        while 99 not in seen:
            seen += await client.numbers(1)
        kept = []
        async with coordinator.subscribe("thread:7", after="earliest") as log:
            while 99 not in kept:
                kept.append((await anext(log)).data["n"])
        assert seen == kept


async def test_g1_a_commit_that_the_database_refuses_sends_nothing(database: Database) -> None:
    engine = database.engine()
    tables = MetaData()
    owners = Table("owners", tables, Column("id", Integer, primary_key=True))
    reference = ForeignKey("owners.id", deferrable=True, initially="DEFERRED")
    things = Table("things", tables, Column("owner", reference))
    async with engine.begin() as conn:
        await conn.run_sync(tables.create_all)
    async with serving(database.coordinator(engine, drain_s=0, poll_interval_s=0.05)) as site:
        client = await site.listen("thread:7")
        await client.named("subscribed")
        async with AsyncSession(engine) as session:
            await session.execute(things.insert().values(owner=1))
            emit(session, "thread:7", Event("said", {"n": -1}))
            with pytest.raises(IntegrityError):  # by COMMIT, after our statement ran
                await session.commit()
        async with AsyncSession(engine) as session:
            await session.execute(owners.insert().values(id=1))
            await session.execute(things.insert().values(owner=1))
            emit(session, "thread:7", Event("said", {"n": 1}))
            await session.commit()
        message = await client.message()
        assert message is not None
        assert (message.n, message.json["offset"]) == (1, 1)
