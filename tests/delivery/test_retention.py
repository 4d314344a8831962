"""Trimming in batches, and the removal of a person's data, from memory as well."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select

from commitcast.settings import Retention

from .live import PATIENCE_S, say, serving

if TYPE_CHECKING:
    from conftest import Database

pytestmark = pytest.mark.anyio


async def test_g10_the_log_is_trimmed_by_itself_in_batches_and_the_newest_stay(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commitcast.retention._EVENTS_AT_ONCE", 4)
    monkeypatch.setattr("commitcast.retention._STREAMS_AT_ONCE", 2)
    engine = database.engine()
    keep = Retention(max_age=None, max_events_per_stream=3, every_s=0.01)
    coordinator = database.coordinator(engine, retention=keep)
    for n in range(5):
        await say(engine, f"thread:{n}", *range(n * 5))
    events, streams = coordinator.tables.events, coordinator.tables.streams
    async with coordinator, asyncio.timeout(PATIENCE_S):
        left = None
        while left != 12:
            async with engine.connect() as conn:
                left = (await conn.execute(select(func.count()).select_from(events))).scalar()
    async with engine.connect() as conn:
        rows = (await conn.execute(select(streams.c.name, streams.c.head, streams.c.tail))).all()
    assert {r.name: (r.head, r.tail) for r in rows} == {
        f"thread:{n}": (n * 5, n * 5 - 2) for n in range(1, 5)
    }


async def test_a_persons_events_are_emptied_and_others_miss_nothing(database: Database) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, drain_s=0)
    async with serving(coordinator) as site:
        reader = await site.listen("thread:7")
        await reader.named("subscribed")
        await say(engine, "thread:7", 1, actor="ann")
        await say(engine, "thread:7", 2, actor="bob")
        await say(engine, "user:ann", 3)
        assert await reader.numbers(2) == [1, 2]
        epoch = (reader.last_id or "").split(":")[0]
        assert await coordinator.erase(user="ann") == 2
        back = await site.listen("thread:7", cursor=f"{epoch}:0")
        assert (await back.named("subscribed"))["recovered"] is True
        first = await back.message()
        assert first is not None
        assert (first.json["type"], first.json["data"]) == ("commitcast.erased", {})
        assert "actor" not in first.json
        assert await back.numbers(1) == [2]
        hers = await site.listen("user:ann", user="ann")
        assert (await hers.named("subscribed"))["epoch"] == "new"


async def test_an_erased_stream_is_gone_from_the_memory_of_every_node(database: Database) -> None:
    engines = [database.engine(), database.engine()]
    here, there = (database.coordinator(e, drain_s=0, poll_interval_s=0.1) for e in engines)
    async with serving(here) as one, serving(there) as two:
        clients = [await one.listen("thread:7"), await two.listen("thread:7")]
        for client in clients:
            await client.named("subscribed")
        await say(engines[0], "thread:7", 1)
        for client in clients:
            assert await client.numbers(1) == [1]
        await here.erase(stream="thread:7")
        for client in clients:
            assert (await client.named("reset"))["epoch"] == "new"
        for node in (here, there):
            delivery = node._delivery
            assert delivery is not None
            assert delivery._memory.bytes == 0


async def test_settled_operations_are_kept_for_their_age_and_open_ones_stay(
    database: Database,
) -> None:
    keep = Retention(operations_max_age=timedelta(microseconds=1), every_s=0)
    coordinator = database.coordinator(retention=keep)
    async with coordinator, asyncio.timeout(PATIENCE_S):
        for n in range(3):
            async with coordinator.operation("save", user="ann", id=f"k{n}") as op, op.begin():
                pass
        async with coordinator.operation("save", user="ann", id="open") as still_open:
            left = 4
            while left > 1:  # once the reaper has seen that they are settled
                await coordinator.trim()
                found = [
                    await coordinator.operations(s, everyone=True) for s in ("open", "committed")
                ]
                left = sum(map(len, found))
            assert [a.id for a in found[0]] == [still_open.id]
        async with coordinator.operation("save", user="ann", id="k0") as again, again.begin():
            pass
        assert again.attempt == 1, "the key was forgotten with its attempts"


async def test_a_persons_operations_are_erased_and_nobody_elses(database: Database) -> None:
    coordinator = database.coordinator()
    async with coordinator:
        for user in ("ann", "bob"):
            async with coordinator.operation("save", user=user, id="k") as op, op.begin():
                op.result = {"said by": user}
            async with coordinator.operation("save", user=user):
                pass  # left without commit
        assert await coordinator.erase(user="ann") == 2 + 1 + 1  # attempts, notification, stream
        kept = [
            await coordinator.operations(s, everyone=True) for s in ("committed", "rolled_back")
        ]
        assert [a.actor for some in kept for a in some] == ["bob", "bob"]
