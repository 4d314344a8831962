"""G3: where a position cannot be kept the client is told, never left silent."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, update

from commitcast import Position
from commitcast.errors import PositionLost
from commitcast.settings import Retention

from .live import PATIENCE_S, say, serving

if TYPE_CHECKING:
    from commitcast import Coordinator
    from commitcast.log import Page
    from commitcast.subscription import Reset
    from conftest import Database

pytestmark = pytest.mark.anyio


def keep(count: int | None = None, age: timedelta | None = None) -> Retention:
    return Retention(max_age=age, max_events_per_stream=count, every_s=0)


async def place_of(client: Any) -> tuple[str, str]:
    place = await client.named("subscribed")
    assert place["recovered"] is False
    return place["epoch"], f"{place['epoch']}:{place['offset']}"


async def test_g3_a_position_before_the_trim_by_count_is_told(database: Database) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, drain_s=0, retention=keep(3))
    async with serving(coordinator) as site:
        client = await site.listen("thread:7")
        await client.named("subscribed")
        await say(engine, "thread:7", *range(1, 11))
        assert await client.numbers(1) == [1]
        epoch = (client.last_id or "").split(":")[0]
        assert await coordinator.trim() == 7
        lost = await site.listen("thread:7", cursor=f"{epoch}:6")
        assert await lost.named("subscribed") == {
            "stream": "thread:7", "epoch": epoch, "offset": 10, "recovered": False,
        }  # fmt: skip
        kept = await site.listen("thread:7", cursor=f"{epoch}:7")
        assert (await kept.named("subscribed"))["recovered"] is True
        assert await kept.numbers(3) == [8, 9, 10]
        await say(engine, "thread:7", 11)
        assert await lost.numbers(1) == [11]


async def test_g3_a_position_before_the_trim_by_age_is_told(database: Database) -> None:
    engine = database.engine()
    retention = keep(age=timedelta(hours=1))
    coordinator = database.coordinator(engine, drain_s=0, retention=retention)
    await say(engine, "thread:7", 1, 2, 3, 4)
    events = coordinator.tables.events
    async with engine.begin() as conn:
        old: Any = "2020-01-01T00:00:00.000Z"
        if database.kind == "postgresql":
            row = (await conn.execute(select(events.c.created_at).limit(1))).scalar_one()
            old = row - timedelta(hours=2)
        await conn.execute(update(events).where(events.c.offset <= 2).values(created_at=old))
    async with serving(coordinator) as site:
        first = await site.listen("thread:7", cursor="earliest")
        epoch = (await first.named("subscribed"))["epoch"]
        assert await coordinator.trim() == 2
        assert await coordinator.trim() == 0
        lost = await site.listen("thread:7", cursor=f"{epoch}:1")
        assert (await lost.named("subscribed"))["recovered"] is False
        kept = await site.listen("thread:7", cursor=f"{epoch}:2")
        assert (await kept.named("subscribed"))["recovered"] is True
        assert await kept.numbers(2) == [3, 4]


async def test_g3_a_trim_between_two_pages_of_a_replay_is_told(database: Database) -> None:
    engine = database.engine()
    coordinator = database.coordinator(
        engine, drain_s=0, page_events=2, retention=keep(3), poll_interval_s=3600.0
    )
    await say(engine, "thread:7", *range(1, 11))
    async with serving(coordinator) as site:
        trim_before(coordinator, read=3)
        client = await site.listen("thread:7", cursor="earliest")
        assert (await client.named("subscribed"))["recovered"] is True
        assert await client.numbers(2) == [1, 2]
        assert (await client.named("reset"))["offset"] == 10
        await say(engine, "thread:7", 11)
        assert await client.numbers(1) == [11]


def trim_before(coordinator: Coordinator, *, read: int) -> None:
    """Trim just before the n-th read of a page."""
    delivery = coordinator._delivery
    assert delivery is not None
    honest, reads = delivery.read, 0

    async def reading(*args: Any, **options: Any) -> Page:
        nonlocal reads
        reads += 1
        if reads == read:
            await coordinator.trim()
        return await honest(*args, **options)

    delivery.read = reading  # type: ignore[method-assign]


@pytest.mark.parametrize("cursor", ["EPOCH:5", "0123456789abcdef:1", "lost:0", "new:1"])
async def test_g3_a_position_ahead_of_the_head_or_of_another_epoch_is_told(
    database: Database, cursor: str
) -> None:
    engine = database.engine()
    async with serving(database.coordinator(engine, drain_s=0)) as site:
        await say(engine, "thread:7", 1, 2, 3)
        epoch, _ = await place_of(await site.listen("thread:7"))
        client = await site.listen("thread:7", cursor=cursor.replace("EPOCH", epoch))
        assert await client.named("subscribed") == {
            "stream": "thread:7", "epoch": epoch, "offset": 3, "recovered": False,
        }  # fmt: skip
        await say(engine, "thread:7", 4)
        assert await client.numbers(1) == [4]


async def test_g3_a_last_event_id_that_is_no_position_is_not_recovered(
    database: Database,
) -> None:
    engine = database.engine()
    async with serving(database.coordinator(engine, drain_s=0)) as site:
        await say(engine, "thread:7", 1)
        client = await site.listen("thread:7", headers={"Last-Event-ID": "of some other server"})
        assert (await client.named("subscribed"))["recovered"] is False


async def test_g3_a_stream_erased_and_made_again_has_another_epoch_and_its_readers_are_told(
    database: Database,
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, drain_s=0, poll_interval_s=0.1)
    async with serving(coordinator) as site:
        staying = await site.listen("thread:7")
        await staying.named("subscribed")
        await say(engine, "thread:7", 1, 2)
        assert await staying.numbers(2) == [1, 2]
        old = staying.last_id or ""
        assert await coordinator.erase(stream="thread:7") == 1
        assert await staying.named("reset") == {
            "stream": "thread:7", "epoch": "new", "offset": 0, "recovered": False,
        }  # fmt: skip
        await say(engine, "thread:7", 3, 4)
        assert await staying.numbers(2) == [3, 4]
        assert staying.last_id != old
        late = await site.listen("thread:7", cursor=old)
        assert (await late.named("subscribed"))["recovered"] is False


async def test_g3_a_stream_erased_by_another_node_is_told_and_costs_few_reads(
    database: Database,
) -> None:
    engines = [database.engine(), database.engine()]
    here, there = (database.coordinator(e, drain_s=0, poll_interval_s=0.3) for e in engines)
    async with there, serving(here) as site:
        staying = await site.listen("thread:7")
        await staying.named("subscribed")
        await say(engines[0], "thread:7", 1)
        assert await staying.numbers(1) == [1]
        reads = count_reads(here)
        await there.erase(stream="thread:7")
        new = await site.listen("thread:7")  # while this node's memory still has the old stream
        assert (await new.named("subscribed"))["epoch"] == "new"
        assert (await staying.named("reset"))["epoch"] == "new"
        assert len(reads) < 15
        await say(engines[1], "thread:7", 2)
        assert await staying.numbers(1) == [2]
        assert await new.numbers(1) == [2]


def count_reads(coordinator: Coordinator) -> list[object]:
    delivery = coordinator._delivery
    assert delivery is not None
    honest: Any = delivery.read
    reads: list[object] = []

    async def reading(*args: Any, **options: Any) -> Page:
        reads.append(args)
        page: Page = await honest(*args, **options)
        return page

    delivery.read = reading  # type: ignore[method-assign]
    return reads


async def test_g3_after_a_restore_connected_and_returning_clients_are_told(
    database: Database,
) -> None:
    engines = [database.engine(), database.engine()]
    here, other = (database.coordinator(e, drain_s=0, poll_interval_s=0.1) for e in engines)
    async with serving(here) as one, serving(other) as two:
        clients = [await one.listen("thread:7"), await two.listen("thread:7")]
        for client in clients:
            await client.named("subscribed")
        await say(engines[0], "thread:7", 1, 2)
        for client in clients:
            assert await client.numbers(2) == [1, 2]
        old = clients[0].last_id or ""
        await here.mark_restored()
        for client in clients:
            reset = await client.named("reset")
            assert (reset["offset"], reset["recovered"]) == (2, False)
            assert reset["epoch"] != old.split(":")[0]
        back = await one.listen("thread:7", headers={"Last-Event-ID": old})
        assert (await back.named("subscribed"))["recovered"] is False
        await say(engines[1], "thread:7", 3)
        for client in [*clients, back]:
            assert await client.numbers(1) == [3]


async def test_g3_an_older_copy_put_in_the_databases_place_is_seen_from_its_head(
    database: Database,
) -> None:
    """Nobody called `commitcast restored`: what can be seen of it is told all the same."""
    engine = database.engine()
    coordinator = database.coordinator(engine, drain_s=0, poll_interval_s=0.05)
    async with serving(coordinator) as site:
        client = await site.listen("thread:7")
        await client.named("subscribed")
        await say(engine, "thread:7", 1, 2, 3)
        assert await client.numbers(3) == [1, 2, 3]
        streams, events = coordinator.tables.streams, coordinator.tables.events
        async with engine.begin() as conn:  # as a copy of before the last two would look
            await conn.execute(events.delete().where(events.c.offset > 1))
            await conn.execute(update(streams).values(head=1))
        assert (await client.named("reset"))["offset"] == 1
        await say(engine, "thread:7", 4)
        assert await client.numbers(1) == [4]


async def test_g3_a_python_reader_is_told_by_an_exception_or_by_its_reset_hook(
    database: Database,
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine)
    await say(engine, "thread:7", 1, 2)
    told: list[Reset] = []

    async def told_later(reset: Reset) -> None:
        told.append(reset)

    async with coordinator:
        gone = Position("0123456789abcdef", 1)
        with pytest.raises(PositionLost, match="reload the state") as lost:
            await anext(coordinator.subscribe("thread:7", after=gone))
        assert lost.value.position.offset == 2
        async with asyncio.timeout(PATIENCE_S):
            for hook in (told.append, told_later):
                reader = coordinator.subscribe("thread:7", after=gone, on_reset=hook)
                await reader.start()
                assert reader.recovered is False
                await say(engine, "thread:7", 3)
                assert (await anext(reader)).data == {"n": 3}
                reader.close()
        assert [r.position.offset for r in told] == [2, 3]
