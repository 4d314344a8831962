"""Trimming in batches, and the removal of a person's data, from memory as well."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event as sa_event
from sqlalchemy import func, insert, literal, select, text

from commitcast.retention import Trimmer
from commitcast.settings import Retention

from .live import PATIENCE_S, say, serving

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from commitcast import Coordinator
    from commitcast.log import Written
    from commitcast.schema import Tables
    from commitcast.subscription import Reset
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


# --- what trimming costs -----------------------------------------------------------------------


async def fill(engine: AsyncEngine, tables: Tables, count: int, *, age: timedelta, of: str) -> None:
    """Streams of two events each, looked at already, whose events are as old as `age`."""
    at: Any = datetime.now(UTC) - age
    if engine.dialect.name == "sqlite":
        at = at.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    streams, events = tables.streams, tables.events
    async with engine.begin() as conn:
        names = [{"name": f"{of}:{n}", "head": 2, "tail": 1, "oldest_at": at} for n in range(count)]
        await conn.execute(insert(streams), names)
        for offset in (1, 2):
            what = [literal(v) for v in (offset, f"{of}{offset}", "said", "{}")]
            rows = select(streams.c.id, *what, streams.c.oldest_at)
            into = ["stream_id", "offset", "event_id", "type", "data", "created_at"]
            mine = rows.where(streams.c.name.startswith(f"{of}:"))
            await conn.execute(insert(events).from_select(into, mine))


async def test_g10_many_due_streams_are_trimmed_in_few_transactions(database: Database) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, retention=Retention(every_s=0))
    await fill(engine, coordinator.tables, 3000, age=timedelta(days=8), of="old")
    await fill(engine, coordinator.tables, 10, age=timedelta(days=1), of="young")
    statements: list[str] = []
    sa_event.listen(
        engine.sync_engine,
        "before_cursor_execute",
        lambda _conn, _cursor, text, *_: statements.append(text),
    )
    assert await coordinator.trim() == 6000
    writing = [text for text in statements if text.startswith(("UPDATE", "DELETE"))]
    assert len(writing) < 100, "one stream for each transaction would be thousands"
    assert await coordinator.trim() == 0
    streams = coordinator.tables.streams
    async with engine.connect() as conn:
        kept = select(func.count()).select_from(streams).where(streams.c.tail == 1)
        assert await conn.scalar(kept) == 10


async def test_g10_a_trim_costs_no_more_where_more_streams_have_nothing_to_do_with_it(
    database: Database,
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, retention=Retention(every_s=0))
    best: list[float] = []
    for idle in (500, 19_500):
        young = timedelta(hours=len(best) + 1)
        await fill(engine, coordinator.tables, idle, age=young, of=f"idle{idle}")
        took = []
        for n in range(5):
            await fill(engine, coordinator.tables, 20, age=timedelta(days=8), of=f"due{idle}-{n}")
            began = time.perf_counter()
            assert await coordinator._trimmer().trim(whole=False) == 40
            took.append(time.perf_counter() - began)
        best.append(min(took))
    assert best[1] < best[0] * 4, "forty times as many streams that nothing is wrong with"


@pytest.mark.parametrize("by", ["emit", "emit of several", "sql"])
async def test_g10_the_append_that_fills_a_stream_marks_it(database: Database, by: str) -> None:
    if by == "sql" and database.kind == "sqlite":
        pytest.skip("a function of PostgreSQL")
    engine = database.engine()
    keep = Retention(max_events_per_stream=3, every_s=0)
    coordinator = database.coordinator(engine, retention=keep)
    trimmer, events = coordinator._trimmer(), coordinator.tables.events

    async def append(count: int) -> None:
        if by == "sql":
            async with engine.begin() as conn:
                for _ in range(count):
                    await conn.execute(text("SELECT commitcast.emit('thread:7', 'said')"))
        elif by == "emit":
            for n in range(count):
                await say(engine, "thread:7", n)
        else:
            await say(engine, "thread:7", *range(count))

    await append(2)
    removed = []
    for count in (0, 1, 1, 0, 5):
        await append(count)
        removed.append(await trimmer.trim(whole=False))
    assert removed == [0, 0, 1, 0, 5]
    async with engine.connect() as conn:
        assert list(await conn.scalars(select(events.c.offset))) == [7, 8, 9]


async def test_a_smaller_limit_reaches_streams_that_nothing_is_appended_to(
    database: Database,
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, retention=Retention(every_s=0))
    await say(engine, "thread:7", *range(5))
    assert await coordinator.trim() == 0
    keep = Retention(max_events_per_stream=2, every_s=0)
    assert await Trimmer(engine, coordinator.tables, keep).trim() == 3


# --- streams without events --------------------------------------------------------------------

SOON = Retention(max_age=timedelta(microseconds=1), every_s=0)


async def names(coordinator: Coordinator) -> list[str]:
    engine = coordinator._writer
    assert engine is not None
    async with engine.connect() as conn:
        return list(await conn.scalars(select(coordinator.tables.streams.c.name)))


async def until_empty(coordinator: Coordinator) -> None:
    """Trim until the clock has gone on, so that what was committed is older than nothing."""
    while await names(coordinator):
        await coordinator.trim()


async def test_g3_a_stream_that_was_idle_for_long_goes_and_its_positions_are_not_used_again(
    database: Database,
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, retention=SOON, poll_interval_s=0.05)
    async with coordinator, asyncio.timeout(PATIENCE_S):
        await say(engine, "thread:7", 1, 2)
        told: asyncio.Queue[Reset] = asyncio.Queue()
        stays = coordinator.subscribe("thread:7", on_reset=told.put)
        await stays.start()
        old = stays.position
        following = asyncio.create_task(anext(stays))
        await until_empty(coordinator)
        assert (await told.get()).position.offset == 0
        await say(engine, "thread:7", 3)
        event = await following
        assert (event.data, event.offset) == ({"n": 3}, 1)
        assert old is not None
        assert event.epoch != old.epoch
        back = coordinator.subscribe("thread:7", after=old)
        await back.start()
        assert back.recovered is False
        assert told.empty()


async def test_a_stream_is_kept_until_a_running_relay_has_seen_that_it_was_trimmed(
    database: Database,
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, retention=SOON)
    tables = coordinator.tables
    async with engine.begin() as conn:
        await conn.execute(insert(tables.relays).values(name="sockets", owner="somebody"))
    await say(engine, "thread:7", 1)
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(3):
            await coordinator.trim()
            assert await names(coordinator) == ["thread:7"]
        async with engine.begin() as conn:
            [stream] = await conn.scalars(select(tables.streams.c.id))
            row = {"relay": "sockets", "stream_id": stream, "delivered": 1}
            await conn.execute(insert(tables.deliveries).values(**row))
        await until_empty(coordinator)
        async with engine.connect() as conn:
            assert (await conn.execute(select(tables.deliveries))).all() == []


async def test_g4_offsets_are_contiguous_in_each_epoch_while_streams_come_and_go(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, retention=SOON)
    seen: dict[str, list[int]] = defaultdict(list)

    def keep(written: Written) -> None:
        for event in written.events:
            seen[event.epoch].append(event.offset)

    monkeypatch.setattr(coordinator._handover, "committed", keep)

    async def write(who: int) -> None:
        for n in range(8):
            await say(engine, f"thread:{(who + n) % 3}", n, n)
            for _ in range(2):
                await coordinator.trim()

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        for who in range(3):
            group.create_task(write(who))
    assert sum(map(len, seen.values())) == 3 * 8 * 2
    assert len(seen) > 3, "streams came and went"
    for offsets in seen.values():
        assert sorted(offsets) == list(range(1, len(offsets) + 1))
