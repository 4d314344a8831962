"""G3 and G5: a reader that stays or comes back sees everything after its position, once."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from commitcast import Event, emit, sqlite
from commitcast.errors import SubscriptionClosed
from commitcast.notifier import InProcessNotifier

from .live import PATIENCE_S, say, serving

if TYPE_CHECKING:
    from collections.abc import Collection

    from conftest import Database

pytestmark = pytest.mark.anyio


class _Deaf:
    """A notifier that loses every hint."""

    async def start(self, on_hint: Any) -> None: ...
    def hint(self, streams: Collection[str]) -> None: ...
    async def close(self) -> None: ...


@pytest.mark.parametrize("by", ["header", "query"])
async def test_g3_a_client_that_comes_back_is_sent_all_it_missed_once(
    database: Database, by: str
) -> None:
    engine = database.engine()
    async with serving(database.coordinator(engine, drain_s=0, page_events=7)) as site:
        client = await site.listen("thread:7")
        await client.named("subscribed")
        await say(engine, "thread:7", 1, 2, 3)
        assert await client.numbers(2) == [1, 2]
        await client.close()
        await say(engine, "thread:7", *range(4, 60))
        if by == "header":
            again = await site.listen("thread:7", headers={"Last-Event-ID": client.last_id or ""})
        else:
            again = await site.listen("thread:7", cursor=client.last_id)
        assert (await again.named("subscribed"))["recovered"] is True
        assert await again.numbers(57) == list(range(3, 60))
        await say(engine, "thread:7", 60)
        assert await again.numbers(1) == [60]


async def test_g3_the_header_of_a_browser_that_comes_back_wins_over_the_cursor_of_its_page(
    database: Database,
) -> None:
    engine = database.engine()
    async with serving(database.coordinator(engine, drain_s=0)) as site:
        await say(engine, "thread:7", 1, 2, 3)
        first = await site.listen("thread:7", cursor="earliest")
        await first.named("subscribed")
        assert await first.numbers(2) == [1, 2]
        epoch, _ = (first.last_id or "").split(":")
        again = await site.listen(
            "thread:7", cursor=f"{epoch}:0", headers={"Last-Event-ID": f"{epoch}:2"}
        )
        assert (await again.named("subscribed"))["offset"] == 2
        assert await again.numbers(1) == [3]


async def test_g3_without_a_position_a_client_starts_from_now_and_is_told(
    database: Database,
) -> None:
    engine = database.engine()
    async with serving(database.coordinator(engine, drain_s=0)) as site:
        await say(engine, "thread:7", 1)
        client = await site.listen("thread:7")
        place = await client.named("subscribed")
        assert (place["offset"], place["recovered"]) == (1, False)
        await say(engine, "thread:7", 2)
        assert await client.numbers(1) == [2]


async def test_g3_a_reader_of_a_stream_that_does_not_exist_yet_sees_its_first_event(
    database: Database,
) -> None:
    engine = database.engine()
    async with serving(database.coordinator(engine, drain_s=0)) as site:
        client = await site.listen("thread:new")
        place = await client.named("subscribed")
        assert client.last_id == "new:0"
        await client.close()
        await say(engine, "thread:new", 1, 2)
        again = await site.listen("thread:new", headers={"Last-Event-ID": "new:0"})
        place = await again.named("subscribed")
        assert (place["epoch"], place["recovered"]) == ("new", True)
        assert await again.numbers(2) == [1, 2]


async def test_g3_g5_subscribers_that_attach_at_any_moment_see_all_after_it_once_in_order(
    database: Database,
) -> None:
    """The cut-over from the log to live, under concurrent commits: no gap, nothing twice."""
    engine = database.engine()
    coordinator = database.coordinator(
        engine, page_events=5, stream_buffer_bytes=9000, read_connections=2, poll_interval_s=0.2
    )
    total, seed = 150, random.Random(7)
    seen: list[tuple[int, list[int]]] = []
    attached: asyncio.Queue[int] = asyncio.Queue()

    async def read(after: str | None) -> None:
        async with coordinator.subscribe("thread:7", after=after) as subscription:
            assert subscription.position is not None
            start = subscription.position.offset
            attached.put_nowait(start)
            offsets: list[int] = []
            while not offsets or offsets[-1] < total + 1:
                offsets.append((await anext(subscription)).offset)
        seen.append((start, offsets))

    async def write(count: int) -> None:
        for n in range(count):
            await say(engine, "thread:7", n)

    async with coordinator, asyncio.timeout(PATIENCE_S * 2), asyncio.TaskGroup() as group:
        writers = [group.create_task(write(total // 6)) for _ in range(6)]
        for n in range(40):
            group.create_task(read("earliest" if n % 4 == 0 else None))
            for _ in range(seed.randrange(60)):
                await asyncio.sleep(0)
        await asyncio.wait(writers)
        starts = [await attached.get() for _ in range(40)]
        await say(engine, "thread:7", -1)  # who attached after all others waits for this one
    assert any(0 < start < total for start in starts)
    assert len(seen) == 40
    for start, offsets in seen:
        assert offsets == list(range(start + 1, total + 2))
    assert not coordinator._stack


async def test_g3_commits_of_another_node_arrive_by_polling(database: Database) -> None:
    other = database.engine()
    database.coordinator(other)  # attached, so that it can emit; no hint goes from it to us
    coordinator = database.coordinator(drain_s=0, poll_interval_s=0.05)
    async with serving(coordinator) as site:
        client = await site.listen("thread:7")
        await client.named("subscribed")
        for n in range(5):
            await say(other, "thread:7", n)
        assert await client.numbers(5) == [0, 1, 2, 3, 4]


async def test_g3_a_hint_brings_another_nodes_commit_without_waiting_for_the_poll(
    database: Database,
) -> None:
    notifier = InProcessNotifier()
    engines = [database.engine(), database.engine()]
    here, there = (
        database.coordinator(e, drain_s=0, poll_interval_s=3600.0, notifier=notifier.endpoint())
        for e in engines
    )
    async with there, serving(here) as site:
        client = await site.listen("thread:7")
        await client.named("subscribed")
        for n in range(5):
            await say(engines[1], "thread:7", n)
        assert await client.numbers(5) == [0, 1, 2, 3, 4]


async def test_g3_a_lost_hint_delays_an_event_and_loses_none(database: Database) -> None:
    engines = [database.engine(), database.engine()]
    here, there = (
        database.coordinator(e, drain_s=0, poll_interval_s=0.1, notifier=_Deaf()) for e in engines
    )
    async with there, serving(here) as site:
        client = await site.listen("thread:7")
        await client.named("subscribed")
        for n in range(10):
            await say(engines[n % 2], "thread:7", n)
        assert await client.numbers(10) == list(range(10))


async def test_g3_g4_an_event_of_this_node_waits_for_one_of_another_that_came_before_it(
    database: Database,
) -> None:
    engines = [database.engine(), database.engine()]
    here = database.coordinator(engines[0], drain_s=0, poll_interval_s=3600.0)
    database.coordinator(engines[1])
    async with serving(here) as site:
        client = await site.listen("thread:7")
        await client.named("subscribed")
        await say(engines[1], "thread:7", 1, 2, 3)  # nobody tells us
        await say(engines[0], "thread:7", 4)
        assert await client.numbers(4) == [1, 2, 3, 4]


async def test_g3_the_commit_of_a_core_connection_that_stays_open_is_delivered(
    database: Database,
) -> None:
    """`connection.commit()` fires no session event (DESIGN, section 9)."""
    engine = database.engine()
    async with serving(database.coordinator(engine, drain_s=0, poll_interval_s=3600.0)) as site:
        client = await site.listen("thread:7")
        await client.named("subscribed")
        async with engine.connect() as conn:
            await conn.begin()
            emit(conn, "thread:7", Event("said", {"n": 1}))
            await conn.commit()
            assert await client.numbers(1) == [1]
            await conn.begin()
            emit(conn, "thread:7", Event("said", {"n": -1}))
            await conn.rollback()
            await conn.begin()
            emit(conn, "thread:7", Event("said", {"n": 2}))
            await conn.commit()
            assert await client.numbers(1) == [2]


async def test_g3_the_commit_of_a_sync_session_in_a_thread_is_delivered(
    database: Database,
) -> None:
    driver = "sqlite+pysqlite" if database.kind == "sqlite" else "postgresql+psycopg"
    sync = create_engine(database.url.set(drivername=driver))
    if database.kind == "sqlite":
        sqlite.configure(sync)
    coordinator = database.coordinator(drain_s=0, poll_interval_s=3600.0)
    coordinator.attach(sync)

    def work() -> None:
        for n in (1, 2, 3):
            with Session(sync) as session:
                emit(session, "thread:7", Event("said", {"n": n}))
                session.commit()

    async with serving(coordinator) as site:
        client = await site.listen("thread:7")
        await client.named("subscribed")
        thread = threading.Thread(target=work)
        thread.start()
        assert await client.numbers(3) == [1, 2, 3]
        await asyncio.to_thread(thread.join)
    sync.dispose()


async def test_g3_g5_a_position_kept_in_python_continues_after_a_restart(
    database: Database,
) -> None:
    engine = database.engine()
    first = database.coordinator(engine)
    async with first, first.subscribe("thread:7") as subscription:
        await say(engine, "thread:7", 1, 2, 3)
        assert (await anext(subscription)).data == {"n": 1}
        position = subscription.position
        waiting = asyncio.ensure_future(_exhaust(subscription))
    with pytest.raises(SubscriptionClosed):
        await waiting
    first.detach()
    await say_anew(database, 4)
    second = database.coordinator(database.engine())
    async with second, second.subscribe("thread:7", after=str(position)) as again:
        assert [(await anext(again)).data["n"] for _ in range(3)] == [2, 3, 4]


async def _exhaust(subscription: Any) -> None:
    async for _ in subscription:
        pass


async def say_anew(database: Database, n: int) -> None:
    engine = database.engine()
    worker = database.coordinator(engine)  # never entered: it emits, nothing more
    await say(engine, "thread:7", n)
    worker.detach()


async def test_g3_a_start_that_was_cancelled_can_be_made_again(database: Database) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine)
    await say(engine, "thread:7", 1)
    async with coordinator:
        subscription = coordinator.subscribe("thread:7", after="earliest")
        for turns in range(12):
            attempt = asyncio.ensure_future(subscription.start())
            for _ in range(turns):
                await asyncio.sleep(0)
            attempt.cancel()
            await asyncio.gather(attempt, return_exceptions=True)
        assert (await anext(subscription)).data == {"n": 1}
        subscription.close()
        delivery = coordinator._delivery
        assert delivery is not None
        assert not delivery._feeds


async def test_g3_a_reader_dropped_without_closing_leaves_no_feed_behind(
    database: Database,
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, poll_interval_s=0.02)
    async with coordinator:
        subscription = coordinator.subscribe("thread:7")
        await subscription.start()
        delivery = coordinator._delivery
        assert delivery is not None
        assert delivery._feeds
        del subscription
        async with asyncio.timeout(PATIENCE_S):
            while delivery._feeds:
                await delivery.poll()
                await asyncio.sleep(0)


async def test_g4_g5_64_concurrent_writers_and_three_nodes_each_reader_sees_1_to_n_once(
    database: Database,
) -> None:
    notifier = InProcessNotifier()
    engines = [database.engine(pool_size=10, pool_timeout=60) for _ in range(3)]
    nodes = [
        database.coordinator(e, drain_s=0, poll_interval_s=0.3, notifier=notifier.endpoint())
        for e in engines
    ]
    total = 64 * 4

    async def write(writer: int) -> None:
        for _ in range(4):
            async with AsyncSession(engines[writer % 3]) as session:
                emit(session, "thread:hot", Event("said", {"n": writer}))
                if writer % 2:
                    emit(session, f"thread:{writer}", Event("said", {"n": writer}))
                await session.commit()

    async with (
        serving(nodes[0]) as one,
        serving(nodes[1]) as two,
        serving(nodes[2]) as three,
    ):
        clients = [await site.listen("thread:hot") for site in (one, two, three) for _ in (1, 2)]
        for client in clients:
            await client.named("subscribed")
        async with asyncio.timeout(PATIENCE_S * 2), asyncio.TaskGroup() as group:
            readers = [group.create_task(offsets(client, total)) for client in clients]
            for writer in range(64):
                group.create_task(write(writer))
        for reader in readers:
            assert reader.result() == list(range(1, total + 1))


async def offsets(client: Any, count: int) -> list[int]:
    found = []
    for _ in range(count):
        message = await client.message()
        assert message is not None
        assert message.event is None, message
        found.append(message.json["offset"])
    return found
