"""G6: cancelled at every await, an operation has one outcome and its failure is told once.

A `CancelledError` proves nothing: it comes out of commits that happened and of ones that did not.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest
from sqlalchemy import select

from .application import App, Saved, checkpoint, save
from .steps import Cut, counted

pytestmark = pytest.mark.anyio

EACH = 170
"""Cancellations in each of twelve tests (four kinds of work, three drivers): 2,040 of them."""
_AT_ONCE = 5


async def begun(app: App) -> None:
    async with app.entered() as op, op.begin() as session:
        save(session, op)


async def begun_with_a_checkpoint(app: App) -> None:
    async with app.entered(stream="thread:8") as op, op.begin() as session:
        await checkpoint(session, op)
        save(session, op)
        await session.flush()


async def bound(app: App) -> None:
    async with app.entered() as op, app.session() as session:
        op.bind(session)
        save(session, op)
        await session.commit()


async def bound_in_a_transaction(app: App) -> None:
    async with app.entered() as op, app.session() as session, session.begin():
        op.bind(session)
        async with session.begin_nested():
            save(session, op)


async def cancel_at_each(app: App, work: Any) -> int:
    """Cancel the work at its first step, its second, … until it is done before; returns how many."""
    for at in itertools.count(-1):
        if not await Cut(at).run(work(app)):
            return at + 1
    raise AssertionError


async def cancel_at_any(app: App, work: Any, wanted: int, longest: int) -> None:
    """Cancel it `wanted` times at any step, some at a time, a part of them twice."""
    rng = random.Random(work.__name__)

    async def one_after_another() -> None:
        nonlocal wanted, longest
        while wanted > 0:
            cut = Cut(rng.randrange(longest), again=rng.choice([None, 0, 1, 2, 4, 8]))
            if await cut.run(work(app)):
                wanted -= 1
            else:  # those at the same time share the steps of their announcements
                longest = cut.at

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(one_after_another())


@pytest.mark.parametrize(
    "work",
    [begun, begun_with_a_checkpoint, bound, bound_in_a_transaction],
    ids=lambda w: w.__name__,
)
async def test_g6_a_cancellation_at_any_await_leaves_one_outcome_told_once(
    app: App, work: Any
) -> None:
    await work(app)  # what comes first opens connections
    with counted():
        steps = await cancel_at_each(app, work)
        await cancel_at_any(app, work, EACH - steps, steps)
    outcomes = await app.outcomes()
    assert set(outcomes) == {"committed", "rolled_back"}
    assert outcomes.count("rolled_back") > EACH // 34  # on a busy machine cancellations come late


async def test_g6_a_task_that_is_cancelled_before_it_begins_announces_nothing(app: App) -> None:
    with counted():
        assert await Cut(at=-1).run(begun(app))
    assert await app.outcomes() == []


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite"])
async def test_g6_a_cancelled_task_whose_traceback_is_kept_holds_no_writer(app: App) -> None:
    """Its cursor would keep SQLite's lock, though its connection is closed."""

    async def work() -> None:
        async with app.session() as session, session.begin():
            session.add(Saved(operation="none", attempt=0, last=False))
            await session.flush()
            for _ in range(10):
                await session.scalars(select(Saved))

    kept = []
    with counted():
        for at in itertools.count():
            cut = Cut(at)
            if not await cut.run(work()):
                break
            kept.append(cut.task)
            async with asyncio.timeout(10):  # of 30 s that SQLite would wait
                await begun(app)
    assert len(kept) > 20
    assert set(await app.outcomes()) == {"committed"}
