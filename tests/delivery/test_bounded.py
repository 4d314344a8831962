"""G10: memory is bounded, and a slow client is nobody's problem but its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from commitcast import Event, emit

from .live import PATIENCE_S, say, serving

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from conftest import Database

pytestmark = pytest.mark.anyio
LARGE = "x" * 60_000


async def shout(engine: AsyncEngine, stream: str, *numbers: int) -> None:
    async with AsyncSession(engine) as session:
        for n in numbers:
            emit(session, stream, Event("shouted", {"n": n, "text": LARGE}))
        await session.commit()


async def test_g10_a_client_that_does_not_read_is_disconnected_and_its_neighbour_is_not_slowed(
    database: Database,
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(
        engine, drain_s=0, write_deadline_s=1.0, stream_buffer_bytes=1_000_000
    )
    async with serving(coordinator) as site:
        slow = await site.listen("thread:7", slow=True)
        delivery = coordinator._delivery
        assert delivery is not None
        await slow.named("subscribed")
        (its,) = delivery.subscriptions()
        neighbour = await site.listen("thread:7")
        await neighbour.named("subscribed")
        for first in range(0, 160, 10):
            await shout(engine, "thread:7", *range(first, first + 10))
            assert await neighbour.numbers(10) == list(range(first, first + 10))
            for feed in delivery._feeds.values():
                assert feed.bytes <= 1_000_000
        async with asyncio.timeout(PATIENCE_S):
            await its.wait_closed()
        await say(engine, "thread:7", 160)
        assert await neighbour.numbers(1) == [160]
        seen = []
        while (message := await slow.message()) is not None:  # what was under way arrives
            seen.append(message.n)
        assert slow.ended_cleanly  # so that the server has nothing to complain about in its log
        assert seen == list(range(len(seen)))
        assert len(seen) < 160
        back = await site.listen("thread:7", headers={"Last-Event-ID": slow.last_id or ""})
        assert (await back.named("subscribed"))["recovered"] is True
        assert await back.numbers(161 - len(seen)) == list(range(len(seen), 161))


async def test_g10_feeds_hold_no_more_than_a_stream_and_a_node_may(database: Database) -> None:
    engine = database.engine()
    coordinator = database.coordinator(
        engine, stream_buffer_bytes=500_000, node_buffer_bytes=1_200_000, poll_interval_s=3600.0
    )
    async with coordinator:
        delivery = coordinator._delivery
        assert delivery is not None
        streams = [f"thread:{n}" for n in range(5)]
        readers = [coordinator.subscribe(stream, after="earliest") for stream in streams]
        for reader in readers:
            await reader.start()
        for n in range(12):
            for stream in streams:
                await shout(engine, stream, n)
                feeds = delivery._feeds.values()
                assert max(feed.bytes for feed in feeds) <= 500_000
                assert sum(feed.bytes for feed in feeds) == delivery._memory.bytes <= 1_200_000
        for reader in readers:  # what memory has no more is in the log
            assert [(await anext(reader)).data["n"] for _ in range(12)] == list(range(12))
            reader.close()
        assert delivery._memory.bytes == 0


async def test_g10_events_do_not_stay_in_memory_for_ever(database: Database) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, buffer_age_s=1e-9, poll_interval_s=3600.0)
    async with coordinator, coordinator.subscribe("thread:7") as reader:
        delivery = coordinator._delivery
        assert delivery is not None
        await say(engine, "thread:7", 1, 2)
        delivery._free_memory()
        assert delivery._memory.bytes == 0
        assert [(await anext(reader)).data["n"] for _ in range(2)] == [1, 2]


async def test_g10_events_that_wait_for_a_gap_count_and_go_when_it_is_filled(
    database: Database,
) -> None:
    engine, other = database.engine(), database.engine()
    coordinator = database.coordinator(engine, poll_interval_s=3600.0)
    database.coordinator(other)
    async with coordinator, coordinator.subscribe("thread:7") as reader:
        delivery = coordinator._delivery
        assert delivery is not None
        for n in range(0, 20, 2):
            await say(other, "thread:7", n)
            await say(engine, "thread:7", n + 1)
        assert [(await anext(reader)).data["n"] for _ in range(20)] == list(range(20))
        feed = delivery._feeds["thread:7"]
        assert not feed._ahead
        assert feed.bytes == sum(cost for _, cost in feed._held)


async def test_g10_a_replay_hands_out_a_chunk_at_a_time(database: Database) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, chunk_bytes=150_000)
    for first in range(0, 30, 10):
        await shout(engine, "thread:7", *range(first, first + 10))
    await say(engine, "thread:7", *range(30, 60))
    async with coordinator, coordinator.subscribe("thread:7", after="earliest") as reader:
        seen: list[int] = []
        while len(seen) < 60:
            batch = await reader.next_batch()
            assert isinstance(batch, list)
            assert sum(len(event.data_json) for event in batch) <= 150_000
            seen += [event.data["n"] for event in batch]
        assert seen == list(range(60))


async def test_g10_connections_of_a_user_and_of_a_node_are_limited(database: Database) -> None:
    coordinator = database.coordinator(
        drain_s=0, max_connections=3, max_connections_per_user=2, retry_ms=2000
    )
    async with serving(coordinator) as site:
        for user in ("ann", "ann", "bob"):
            await (await site.listen("thread:7", user=user)).named("subscribed")
        for user in ("ann", "cid"):
            away = await site.get("/realtime/sse?stream=thread:7", user=user)
            assert away.status == 503
            assert int(away.headers["retry-after"]) >= 1
            await away.problem()
        # an EventSource gives up for good on any status but 200
        browser = await site.get(
            "/realtime/sse?stream=thread:7", user="cid", headers={"Accept": "text/event-stream"}
        )
        assert browser.status == 200
        body = (await browser.body()).decode()
        retry = int(body.split("retry: ")[1].split("\n")[0])
        assert 2000 <= retry <= 6000
        (bobs,) = [c for c in site.clients if c.user == "bob"]
        delivery = coordinator._delivery
        assert delivery is not None
        readers = delivery.subscriptions()
        await bobs.close()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait(
                [asyncio.create_task(reader.wait_closed()) for reader in readers],
                return_when=asyncio.FIRST_COMPLETED,
            )
            while (found := await site.get("/realtime/sse?stream=t", user="cid")).status != 200:
                await found.close()
        await found.named("subscribed")
        for reader in readers:
            reader.close()
