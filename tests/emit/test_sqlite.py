"""`commitcast.sqlite.configure`: writers in turn, readers beside them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from commitcast import sqlite
from commitcast.errors import CommitcastError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from .places import Place


@pytest.fixture
async def engine(
    anyio_backend: str, place_of: Callable[[str], Place]
) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(
        place_of("sqlite").url,
        poolclass=AsyncAdaptedQueuePool,  # SQLAlchemy 2.0.0 has another one
        pool_size=16,
    )
    sqlite.configure(engine)
    yield engine
    await engine.dispose()


@pytest.mark.anyio
async def test_writers_take_turns_in_the_order_in_which_they_asked(engine: AsyncEngine) -> None:
    connections = [await engine.connect() for _ in range(10)]
    order: list[int] = []

    async def write(number: int) -> None:
        async with connections[number].begin():
            order.append(number)
            await asyncio.sleep(0.003)  # long enough for SQLite's own waiting to mix them up

    async with asyncio.timeout(20):
        await asyncio.gather(*(write(number) for number in range(10)))
    assert order == list(range(10))
    for conn in connections:
        await conn.close()


@pytest.mark.anyio
async def test_a_writer_that_is_cancelled_in_the_queue_holds_nobody_up(
    engine: AsyncEngine,
) -> None:
    first = await engine.connect()
    await first.begin()

    async def write() -> str:
        async with AsyncSession(engine) as session:
            await session.execute(text("SELECT 1"))
            await session.commit()
            return "done"

    waiting = [asyncio.create_task(write()) for _ in range(3)]
    await asyncio.sleep(0.02)
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    await first.close()
    async with asyncio.timeout(5):
        assert await asyncio.gather(*waiting[1:]) == ["done", "done"]


@pytest.mark.anyio
async def test_a_reader_does_not_wait_for_the_writer(engine: AsyncEngine) -> None:
    reader = engine.execution_options(commitcast_read_only=True)
    async with engine.begin(), asyncio.timeout(5), reader.connect() as conn:
        assert (await conn.execute(text("SELECT 1"))).scalar() == 1
        assert (await conn.execute(text("PRAGMA synchronous"))).scalar() == 2
        assert (await conn.execute(text("PRAGMA journal_mode"))).scalar() == "wal"


def test_other_databases_are_refused() -> None:
    with pytest.raises(CommitcastError, match="postgresql"):
        sqlite.configure(create_async_engine("postgresql+asyncpg://"))
