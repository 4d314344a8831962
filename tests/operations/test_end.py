"""`end`: a node stops, whatever a driver makes of a cancellation."""

from __future__ import annotations

import asyncio

import pytest

from commitcast.outlast import end

pytestmark = pytest.mark.anyio


async def test_a_loop_whose_cancellation_became_an_error_of_the_driver_ends_all_the_same() -> None:
    swallowed = 0
    asleep = asyncio.Event()

    async def loop() -> None:
        nonlocal swallowed
        while True:
            try:
                asleep.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if swallowed == 2:
                    raise
                swallowed += 1

    task = asyncio.create_task(loop())
    await asleep.wait()
    async with asyncio.timeout(10):
        await end([task])
    assert task.cancelled()
    assert swallowed == 2


async def test_what_has_ended_by_itself_is_no_matter() -> None:
    async def broken() -> None:
        raise RuntimeError("broken")

    task = asyncio.create_task(broken())
    await asyncio.wait({task})
    await end([task])
    await end([])
