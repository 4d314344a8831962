"""Waits of a campaign, each with a limit: what is broken must not hang the one who looks."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

_LOOK_EVERY_S: Final = 0.2


async def within(limit_s: float, wait: Awaitable[Any]) -> bool:
    """Whether `wait` ended within `limit_s` seconds."""
    try:
        await asyncio.wait_for(wait, limit_s)
    except TimeoutError:
        return False
    return True


async def either(*events: asyncio.Event) -> None:
    """Wait until one of the events is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def all_unless(
    ended: asyncio.Event, waits: Iterable[Callable[[], Awaitable[None]]], limit_s: float
) -> None:
    """Wait for all `waits`, but no longer than `limit_s`, nor for a server that has ended."""
    done = asyncio.Event()

    async def all_of_them() -> None:
        await asyncio.gather(*(wait() for wait in waits))
        done.set()

    waiting = asyncio.create_task(all_of_them())
    await within(limit_s, either(done, ended))
    waiting.cancel()


async def until(limit_s: float, look: Callable[[], Awaitable[bool]]) -> bool:
    """Whether `look` said yes within `limit_s` seconds; for what gives no signal."""
    end = time.monotonic() + limit_s
    while not await look():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(_LOOK_EVERY_S)
    return True
