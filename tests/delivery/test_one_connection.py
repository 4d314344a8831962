"""Where a pool gives one connection to several users, as for a database in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, func, select
from sqlalchemy import event as sa_event
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import AssertionPool, NullPool, StaticPool

from commitcast import Coordinator, Event, emit, sqlite
from commitcast.errors import NotRunning
from commitcast.turns import TransactionOpen

from .live import PATIENCE_S, say, serving
from .test_relay import SocketLayer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from commitcast import CommittedEvent

pytestmark = pytest.mark.anyio

metadata = MetaData()
rows = Table("rows", metadata, Column("id", Integer, primary_key=True))
PAUSE_S = 0.03
"""How long the application leaves a transaction open; delivery polls many times in it."""
BUSY: dict[str, Any] = {"poll_interval_s": 0.002, "invariants_every_s": 0.003, "drain_s": 0}

KINDS = {
    "in memory": ("sqlite+aiosqlite://", {}),
    "in memory by name": ("sqlite+aiosqlite:///:memory:", {}),
    "in memory, shared cache": (
        "sqlite+aiosqlite:///file:shared?mode=memory&cache=shared&uri=true",
        {"poolclass": StaticPool},
    ),
    "in a file": ("sqlite+aiosqlite:///{folder}/app.db", {"poolclass": StaticPool}),
}  # fmt: skip


@pytest.fixture(params=KINDS)
async def plain(
    anyio_backend: str, request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[AsyncEngine]:
    url, options = KINDS[request.param]
    engine = create_async_engine(url.format(folder=tmp_path), **options)
    async with engine.begin() as conn:
        await conn.run_sync(metadata.create_all)
    yield engine
    await engine.dispose()


@pytest.fixture(params=["plain", "configured"])
async def engine(plain: AsyncEngine, request: pytest.FixtureRequest) -> AsyncEngine:
    if request.param == "configured":
        sqlite.configure(plain)
        await plain.dispose()  # the first connection was set up before
        async with plain.begin() as conn:
            await conn.run_sync(metadata.create_all)
    return plain


@pytest.fixture
async def coordinator(engine: AsyncEngine) -> AsyncIterator[Coordinator]:
    made = Coordinator(engine, **BUSY)
    await made.migrate()
    yield made
    made.detach()


async def count(engine: AsyncEngine) -> int:
    async with engine.connect() as conn:
        return int((await conn.execute(select(func.count()).select_from(rows))).scalar_one())


async def save(engine: AsyncEngine, n: int, *, silent: bool = False) -> None:
    """One row and its event; the transaction stays open for a while."""
    async with AsyncSession(engine) as session:
        await session.execute(rows.insert().values(id=n))
        if not silent:
            emit(session, "thread:7", Event("said", {"n": n}))
        await asyncio.sleep(PAUSE_S)
        await session.commit()


async def numbers(subscription: Any, many: int) -> list[int]:
    async with asyncio.timeout(PATIENCE_S):
        return [(await anext(subscription)).data["n"] for _ in range(many)]


async def test_g3_rows_and_events_of_a_transaction_that_pauses_are_kept(
    engine: AsyncEngine, coordinator: Coordinator
) -> None:
    async with coordinator, coordinator.subscribe("thread:7", after="earliest") as live:
        for n in range(4):
            await save(engine, n)
        await save(engine, 4, silent=True)
        assert await numbers(live, 4) == [0, 1, 2, 3]
        async with coordinator.subscribe("thread:7", after="earliest") as late:
            assert await numbers(late, 4) == [0, 1, 2, 3]
        assert await count(engine) == 5


async def test_g1_a_reader_of_the_log_never_sees_what_is_rolled_back(
    engine: AsyncEngine, coordinator: Coordinator
) -> None:
    got: list[int] = []

    async def read() -> None:
        async with coordinator.subscribe("thread:7", after="earliest") as subscription:
            got.extend([(await anext(subscription)).data["n"]])

    async with coordinator:
        reading = asyncio.create_task(read())
        async with engine.connect() as conn:
            await conn.execute(rows.insert().values(id=1))
            async with AsyncSession(conn, join_transaction_mode="create_savepoint") as session:
                emit(session, "thread:7", Event("said", {"n": 1}))
                await session.commit()
            await asyncio.sleep(PAUSE_S)
            await conn.rollback()
        await say(engine, "thread:7", 2)
        async with asyncio.timeout(PATIENCE_S):
            await reading
        assert got == [2]
        assert await count(engine) == 0


async def test_g3_what_writes_for_commitcast_waits_for_the_applications_transaction(
    engine: AsyncEngine, coordinator: Coordinator
) -> None:
    coordinator.detach()
    layer = SocketLayer()
    coordinator = Coordinator(engine, deliver=layer.send, **BUSY, relay_lease_s=0.05)
    async with coordinator:
        await say(engine, "thread:8", 1)
        async with AsyncSession(engine) as session:
            await session.execute(rows.insert().values(id=1))
            work = [
                asyncio.create_task(each)
                for each in (
                    coordinator.trim(),
                    coordinator.erase(stream="thread:8"),
                    coordinator.erase(user="ann"),
                    coordinator.mark_restored(),
                    coordinator.migrate(),
                    coordinator.check_invariants(),
                )
            ]
            await asyncio.sleep(PAUSE_S)
            assert not any(task.done() for task in work)
            await session.rollback()
            await session.execute(rows.insert().values(id=2))
            await session.commit()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*work)
        await say(engine, "thread:9", 3)
        await layer.until(lambda: layer.of("thread:9"))
        assert await count(engine) == 1
    coordinator.detach()


async def test_a_wait_for_the_own_transaction_is_an_error_not_a_hang(
    engine: AsyncEngine, coordinator: Coordinator
) -> None:
    async with AsyncSession(engine) as session:
        await session.execute(rows.insert().values(id=1))
        with pytest.raises(TransactionOpen, match="this task has a transaction open"):
            await coordinator.__aenter__()
        await session.commit()
    async with coordinator, AsyncSession(engine) as session:
        await session.execute(rows.insert().values(id=2))
        with pytest.raises(TransactionOpen, match="SQLite database in a file"):
            await coordinator.subscribe("thread:7").start()
        await session.commit()
    assert await count(engine) == 2


async def test_a_transaction_older_than_the_coordinator_is_taken_in(plain: AsyncEngine) -> None:
    first = Coordinator(plain)
    await first.migrate()
    first.detach()
    async with AsyncSession(plain) as session:
        await session.execute(rows.insert().values(id=1))
        coordinator = Coordinator(plain, **BUSY)
        entering = asyncio.create_task(coordinator.__aenter__())
        await asyncio.sleep(PAUSE_S)
        assert not entering.done()
        await session.execute(rows.insert().values(id=2))
        await session.commit()
    async with asyncio.timeout(PATIENCE_S):
        await entering
    assert await count(plain) == 2
    await coordinator.__aexit__(None, None, None)
    coordinator.detach()


async def test_g3_the_database_outlives_stops_and_readers_that_are_cancelled(
    engine: AsyncEngine, coordinator: Coordinator
) -> None:
    await say(engine, "thread:7", *range(20))
    await save(engine, 1)

    async def read() -> list[CommittedEvent]:
        return [event async for event in coordinator.subscribe("thread:7", after="earliest")]

    for steps in range(12):
        async with coordinator:
            readers = [asyncio.create_task(read()) for _ in range(3)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for reader in readers:
                reader.cancel()
            await asyncio.wait(readers)
            for _ in range(steps * 2):
                await asyncio.sleep(0)
    assert await count(engine) == 1


@pytest.mark.parametrize(
    "work",
    [
        lambda coordinator: coordinator.erase(stream="thread:7"),
        lambda coordinator: coordinator.erase(user="ann"),
        lambda coordinator: coordinator.trim(),
        lambda coordinator: coordinator.mark_restored(),
        lambda coordinator: coordinator.migrate(),
    ],
    ids=["erase stream", "erase user", "trim", "mark_restored", "migrate"],
)
async def test_g3_the_database_outlives_work_that_is_cancelled_in_any_of_its_statements(
    coordinator: Coordinator, engine: AsyncEngine, work: Callable[[Coordinator], Any]
) -> None:
    await save(engine, 1)
    cancelled = statements = 0
    working: asyncio.Task[Any] | None = None

    def cancel(*_: object) -> None:
        nonlocal statements
        statements += 1
        if statements == cancelled and working is not None:
            working.cancel()

    sa_event.listen(engine.sync_engine, "before_cursor_execute", cancel)
    while statements >= cancelled:  # until it has fewer
        cancelled, statements = cancelled + 1, 0
        working = asyncio.create_task(work(coordinator))
        await asyncio.wait({working})
        assert working.cancelled() == (statements >= cancelled)
    sa_event.remove(engine.sync_engine, "before_cursor_execute", cancel)
    assert cancelled > 1
    assert await count(engine) == 1


async def test_nothing_of_ours_goes_on_when_the_coordinator_has_been_left(
    engine: AsyncEngine, coordinator: Coordinator
) -> None:
    async with coordinator:
        readers = [
            asyncio.create_task(coordinator.subscribe("thread:7", after="earliest").start())
            for _ in range(3)
        ]
        await asyncio.sleep(0)
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)
    assert coordinator._turns is not None
    assert not coordinator._turns._tasks


async def test_sse_reads_from_a_database_in_memory(
    engine: AsyncEngine, coordinator: Coordinator
) -> None:
    async with serving(coordinator) as site:
        await say(engine, "thread:7", 1)
        client = await site.listen("thread:7", "earliest")
        await client.named("subscribed")
        await save(engine, 2)
        assert await client.numbers(2) == [1, 2]
    assert await count(engine) == 1


async def test_operations_are_refused_with_what_to_do(
    engine: AsyncEngine, coordinator: Coordinator
) -> None:
    async with coordinator:
        with pytest.raises(NotRunning, match="more than one connection"):
            coordinator.operation("answer", user="ann")


@pytest.mark.parametrize(
    ("engine", "reader"),
    [
        (create_async_engine("sqlite+aiosqlite://", poolclass=AssertionPool), None),
        (create_async_engine("sqlite+aiosqlite:///a.db", poolclass=AssertionPool), None),
        (create_async_engine("postgresql+asyncpg://", poolclass=AssertionPool), None),
        (create_async_engine("sqlite+aiosqlite://", poolclass=NullPool), None),
        (create_async_engine("sqlite+aiosqlite:///file::memory:?cache=shared&uri=true"), None),
        (create_engine("sqlite://"), create_async_engine("sqlite+aiosqlite://")),
        (
            create_async_engine("sqlite+aiosqlite:///a.db"),
            create_async_engine("sqlite+aiosqlite://"),
        ),
    ],
)
async def test_pools_that_can_neither_share_nor_be_read_beside_are_refused_when_it_is_made(
    engine: Any, reader: Any
) -> None:
    with pytest.raises(ValueError, match=r"in a file|a file in a temporary folder"):
        Coordinator(engine, reader=reader)
    made = create_async_engine("sqlite+aiosqlite:///b.db")
    coordinator = Coordinator(made)
    if reader is not None:
        with pytest.raises(ValueError, match="a file in a temporary folder"):
            coordinator.attach(reader)
    coordinator.detach()
