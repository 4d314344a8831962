"""G10, G7: what a reader makes the node read and ask is in proportion to what it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession

from commitcast import Event, Position, emit
from commitcast.subscription import Reset

from .live import say, serving, until
from .test_bounded import shout

if TYPE_CHECKING:
    from commitcast import Coordinator
    from commitcast.log import Log, Page
    from conftest import Database

pytestmark = pytest.mark.anyio


class Pages:
    """Every page that a coordinator's log gives from now on."""

    def __init__(self, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: list[Page] = []
        read = log.page

        async def page(*arguments: Any, **options: Any) -> Page:
            found = await read(*arguments, **options)
            self.found.append(found)
            return found

        monkeypatch.setattr(log, "page", page)

    @property
    def bytes(self) -> int:
        return sum(len(e.data_json.encode()) for page in self.found for e in page.events)


async def test_g10_a_short_visit_reads_about_what_it_hands_out(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = database.coordinator(engine := database.engine())
    for _ in range(10):
        await shout(engine, "thread:7", *range(10))
    pages = Pages(coordinator.log, monkeypatch)
    async with coordinator:
        epoch = (await _epoch(coordinator)).epoch
        for after in (Position(epoch, 0), "earliest", Position(epoch, 50), Position(epoch, 99)):
            pages.found.clear()
            async with coordinator.subscribe("thread:7", after=after) as visit:
                batch = await visit.next_batch()
                assert isinstance(batch, list)
                assert batch
                handed_out = sum(len(event.data_json) for event in batch)
            assert 0 < pages.bytes <= handed_out <= coordinator.settings.chunk_bytes


@pytest.mark.parametrize("text", ["x", "\N{SNOWMAN}"])
@pytest.mark.parametrize("sizes", [[1], [900, 1], [1, 900, 1], [300] * 7, [2000] * 3, [100] * 40])
async def test_g4_g10_pages_that_end_by_bytes_leave_out_and_repeat_nothing(
    database: Database, sizes: list[int], text: str
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, page_events=8)
    async with AsyncSession(engine) as session:
        for size in sizes:
            emit(session, "thread:7", Event("said", {"text": text * size}))
        await session.commit()
    log = coordinator.log
    seen: list[int] = []
    async with engine.connect() as conn:
        while len(seen) < len(sizes):
            page = await log.page(conn, "thread:7", len(seen), 8, max_bytes=1000)
            bytes_ = [len(event.data_json.encode()) for event in page.events]
            assert 1 <= len(bytes_) <= 8
            assert sum(bytes_) <= 1000 or len(bytes_) == 1
            seen += [event.offset for event in page.events]
            if len(bytes_) < 8 and len(seen) < len(sizes):  # it is as full as it can be
                following = await log.page(conn, "thread:7", len(seen), 1)
                assert sum(bytes_) + len(following.events[0].data_json.encode()) > 1000
    assert seen == list(range(1, len(sizes) + 1))


async def test_g3_a_hole_in_the_log_is_told_and_not_waited_for(database: Database) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine)
    await say(engine, "thread:7", *range(1, 6))
    async with engine.begin() as conn:  # by hand, past the head and tail of the stream
        events = coordinator.tables.events
        await conn.execute(delete(events).where(events.c.offset == 3))
    async with coordinator, coordinator.subscribe("thread:7", after="earliest") as reader:
        batch = await reader.next_batch()
        assert isinstance(batch, list)
        assert [event.offset for event in batch] == [1, 2]
        assert isinstance(await reader.next_batch(), Reset)


async def test_g7_a_replay_asks_once_a_page(database: Database) -> None:
    engine = database.engine()
    asked = 0

    def authorize(_user: str, _stream: str) -> bool:
        nonlocal asked
        asked += 1
        return True

    coordinator = database.coordinator(engine, drain_s=0)
    await say(engine, "thread:7", *range(1000))
    async with serving(coordinator, authorize=authorize) as site:
        client = await site.listen("thread:7", cursor="earliest")
        await client.named("subscribed")
        assert await client.numbers(1000) == list(range(1000))
        assert asked == 1 + 1000 / coordinator.settings.page_events
        epoch, _ = (client.last_id or "").split(":")
        asked = 0
        back = await site.listen("thread:7", headers={"Last-Event-ID": f"{epoch}:990"})
        await back.named("subscribed")
        assert await back.numbers(10) == list(range(990, 1000))
        assert asked == 1 + 1


async def test_g7_access_that_is_withdrawn_while_the_first_page_is_read_hands_out_nothing(
    database: Database,
) -> None:
    engine = database.engine()
    answers = iter([True, False])
    coordinator = database.coordinator(engine, drain_s=0)
    await say(engine, "thread:7", 1, 2, 3)
    async with serving(coordinator, authorize=lambda *_: next(answers)) as site:
        client = await site.listen("thread:7", cursor="earliest")
        await client.named("subscribed")
        assert await client.named("closed") == {"reason": "forbidden"}
        assert await client.message() is None
        await until(lambda: not coordinator.connections)


async def _epoch(coordinator: Coordinator) -> Position:
    async with coordinator.subscribe("thread:7") as reader:
        assert reader.position is not None
        return reader.position
