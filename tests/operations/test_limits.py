"""One user has a share of a node's operations; who has none writes nothing (G10)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, cast

import pytest
from sqlalchemy import func, select

from commitcast import AlreadyCommitted, Settings, TooManyOperations
from commitcast.live import Live

from .application import App, running, save

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from commitcast.operation import Operation
    from conftest import Database

    from .judge import Judge

pytestmark = pytest.mark.anyio


@pytest.fixture
async def app(database: Database, driver: str, judge: Judge) -> AsyncIterator[App]:
    async with running(
        database.engine(driver), judge, database.coordinator, max_operations_per_user=3
    ) as found:
        yield found


async def announced(app: App) -> int:
    async with app.engine.connect() as conn:
        return (
            await conn.scalar(select(func.count()).select_from(app.coordinator.tables.operations))
            or 0
        )


async def test_g10_one_user_opens_so_many_operations_and_others_are_not_in_the_way(
    app: App,
) -> None:
    async with AsyncExitStack() as opened:
        for _ in range(3):
            await opened.enter_async_context(app.entered())
        refused = app.operation()
        for _ in range(3):
            with pytest.raises(TooManyOperations, match="max_operations_per_user") as caught:
                await refused.__aenter__()
            assert caught.value.retry_after_s > 0
            assert caught.value.operation_id == refused.id
        assert await announced(app) == 3
        assert app.coordinator.counts()["operations_open"] == 3
        for other in ({"user": "bob"}, {"user": None}):
            async with app.entered(**other):
                pass
    async with refused:  # there is room again, and nothing of it was lost
        pass
    assert await app.outcomes() == ["rolled_back"] * 6


async def test_g10_every_way_to_leave_gives_the_place_back(app: App) -> None:
    async def cancelled() -> None:
        async with app.entered():
            await asyncio.Event().wait()

    for _ in range(4):
        async with app.entered() as op, op.begin() as session:
            save(session, op)
        with pytest.raises(ZeroDivisionError):
            async with app.entered():
                _ = 1 / 0
        task = asyncio.create_task(cancelled())
        await asyncio.sleep(0)
        task.cancel()  # while it is announced
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(20):
            while app.coordinator.counts()["operations_open"]:  # noqa: ASYNC110 - without a signal
                await asyncio.sleep(0.01)
    async with app.entered(id="k") as op, op.begin() as session:
        save(session, op)
    for _ in range(4):
        with pytest.raises(AlreadyCommitted):
            await app.operation(id="k").__aenter__()
    assert app.coordinator.counts()["operations_open"] == 0
    async with app.entered():
        pass
    await app.outcomes()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """What a set of operations asks of one."""

    def __init__(self, actor: str | None) -> None:
        self.actor, self.id = actor, "0" * 32


def begin(live: Live, actor: str | None) -> None:
    one = cast("Operation", Fake(actor))
    live.add(one)
    live.discard(one)


@pytest.mark.parametrize("driver", [None])
async def test_g10_one_user_begins_so_many_in_a_minute(driver: Any) -> None:
    clock = Clock()
    live = Live(100, 60, clock)
    for _ in range(60):
        begin(live, "ann")
    with pytest.raises(TooManyOperations, match="max_operations_per_user_per_minute") as caught:
        begin(live, "ann")
    begin(live, "bob")
    for _ in range(200):
        begin(live, None)
    clock.now += caught.value.retry_after_s
    begin(live, "ann")
    with pytest.raises(TooManyOperations):
        begin(live, "ann")
    clock.now += 60
    for _ in range(60):
        begin(live, "ann")
    assert len(live) == 0


@pytest.mark.parametrize("driver", [None])
async def test_g10_what_is_kept_of_users_is_bounded_by_who_came_in_the_last_minute(
    driver: Any,
) -> None:
    clock = Clock()
    live = Live(100, 60, clock)
    for nth in range(10_000):
        clock.now += 0.1
        begin(live, f"user {nth}")
    assert len(live._pace) <= 2 * 601  # of those before nothing, once it is looked at
    assert len(live._open) == 0


@pytest.mark.parametrize("driver", [None])
@pytest.mark.parametrize("name", ["max_operations_per_user", "max_operations_per_user_per_minute"])
async def test_limits_that_allow_nothing_are_refused(driver: Any, name: str) -> None:
    values: Any = {name: 0}
    with pytest.raises(ValueError, match=name):
        Settings(**values)
