"""G6 and G7: one key is one operation of one user's, however often and wherever it is announced."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from commitcast import AlreadyCommitted, IdempotencyConflict, InProgress, OperationLost

from .application import App, Boom, running, save

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import Database

    from .judge import Judge

pytestmark = pytest.mark.anyio


@pytest.fixture
async def other(app: App, database: Database, driver: str, judge: Judge) -> AsyncIterator[App]:
    """A second node of the application."""
    async with running(database.engine(driver), judge, database.coordinator) as found:
        yield found


async def saved(app: App, result: Any = None, **options: Any) -> str:
    async with app.entered(**options) as op, op.begin() as session:
        save(session, op)
        op.result = result
    return op.id


async def test_g6_a_key_that_committed_brings_its_result_back_and_announces_nothing(
    app: App,
) -> None:
    of = await saved(app, {"id": 3}, id="k", request={"text": "hi"})
    for _ in range(2):
        with pytest.raises(AlreadyCommitted) as caught:
            await saved(app, id="k", request={"text": "hi"})
        assert (caught.value.operation_id, caught.value.result) == (of, {"id": 3})
    assert await app.outcomes() == ["committed"]


async def test_g6_a_key_that_rolled_back_is_a_new_attempt_each_told_once(app: App) -> None:
    for _ in range(2):
        with pytest.raises(Boom):
            async with app.entered(id="k"):
                raise Boom
    await saved(app, id="k")
    assert await app.outcomes() == ["rolled_back", "rolled_back", "committed"]
    attempts = {data["attempt"] for _, data in app.judge.notifications()}
    assert attempts == {1, 2}


async def test_g6_a_key_that_is_open_is_in_progress(app: App) -> None:
    async with app.entered(id="k") as op, op.begin() as session:
        if not app.postgresql:
            await session.rollback()  # SQLite's writer, of which the retry has need
        with pytest.raises(InProgress):
            await asyncio.create_task(saved(app, id="k"))
        save(session, op)
    assert await app.outcomes() == ["committed"]


async def test_g6_a_key_with_another_request_is_refused_whatever_its_outcome(app: App) -> None:
    with pytest.raises(Boom):
        async with app.entered(id="k", request=1):
            raise Boom
    with pytest.raises(IdempotencyConflict):
        await saved(app, id="k", request=2)
    await saved(app, id="k", request=1)
    for request in (2, None):
        with pytest.raises(IdempotencyConflict):
            await saved(app, id="k", request=request)
    assert await app.outcomes() == ["rolled_back", "committed"]


async def test_g7_a_key_belongs_to_its_user_and_to_its_name(app: App) -> None:
    ids = [
        await saved(app, user=user, name=name, id="k", request=n)
        for n, (user, name) in enumerate(
            [("ann", "save"), ("bob", "save"), ("ann", "send"), ("ann:save", "k")]
        )
    ]
    assert len(set(ids)) == 4
    assert await app.outcomes() == ["committed"] * 4


async def test_g7_an_operation_of_another_users_is_not_found(app: App) -> None:
    of = await saved(app, {"secret": 1}, user="ann")
    coordinator = app.coordinator
    found = await coordinator.find_operation(operation_id=of, user="ann")
    assert found is not None
    assert found.outcome == "committed"
    assert await coordinator.find_operation(operation_id=of, user="bob") is None
    assert await coordinator.find_operation(operation_id="0" * 32, user="ann") is None
    assert await coordinator.find_operation(operation_id=of, everyone=True) == found
    assert await app.outcomes() == ["committed"]


async def test_g6_of_two_nodes_that_announce_one_key_at_once_one_wins(app: App, other: App) -> None:
    won = 0
    for nth in range(20):
        both = await asyncio.gather(
            saved(app, id=f"k{nth}"), saved(other, id=f"k{nth}"), return_exceptions=True
        )
        won += sum(isinstance(one, str) for one in both)
        lost = [one for one in both if not isinstance(one, str)]
        assert all(isinstance(one, (InProgress, AlreadyCommitted)) for one in lost), both
    assert won == 20
    assert await app.outcomes() == ["committed"] * 20


async def test_g6_one_key_announced_many_times_at_once_on_one_node_is_one_operation(
    app: App,
) -> None:
    ended = await asyncio.gather(*(saved(app, id="k") for _ in range(12)), return_exceptions=True)
    assert sum(isinstance(one, str) for one in ended) == 1
    assert all(isinstance(o, (str, InProgress, AlreadyCommitted)) for o in ended), ended
    assert await app.outcomes() == ["committed"]


class Stuck(Exception):
    """The first attempt's commit came too late."""


async def test_g6_a_retry_settles_a_stuck_first_attempt_whose_late_commit_is_lost(
    app: App, other: App
) -> None:
    """The first attempt's task is held up past its deadline, in a commit of the caller's."""
    announced, go_on = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with app.operation(id="k", deadline_s=0.3) as op:
            app.follow(op)
            announced.set()
            session = app.session()
            op.bind(session)
            save(session, op)
            try:
                # the deadline cannot reach who does not listen
                while not go_on.is_set():
                    with contextlib.suppress(asyncio.CancelledError):
                        await go_on.wait()
                with pytest.raises(OperationLost):
                    await session.commit()
            finally:
                await session.close()

    stuck = asyncio.create_task(first())
    await announced.wait()
    with pytest.raises(InProgress):
        await saved(other, id="k")
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(InProgress):
                await saved(other, id="k")
                break
    go_on.set()
    await asyncio.gather(stuck, return_exceptions=True)
    assert await app.outcomes() == ["rolled_back", "committed"]
    assert {data["attempt"] for _, data in app.judge.notifications()} == {1}
    assert app.judge.errors()[0] in {"Abandoned", "DeadlinePassed"}
