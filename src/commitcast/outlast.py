"""`outlast`: wait for what must not be interrupted, though the one who waits is cancelled.

`end`: its opposite, for what must end.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_GRACE_S: Final = 3.0
_AGAIN_S: Final = 0.5


async def outlast(task: asyncio.Future[Any], limit_s: float) -> asyncio.CancelledError | None:
    """Wait until `task` is done; returns the first cancellation that came meanwhile.

    Raise that when you are ready. After `limit_s` seconds the task is cancelled, and waited for a
    few seconds more; whether it is done then is for the caller to look at.
    """
    interrupted = await _wait(task, limit_s)
    if not task.done():
        task.cancel()
        interrupted = interrupted or await _wait(task, _GRACE_S)
    return interrupted


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel `tasks` until they have ended; what they raise is not looked at.

    A driver may turn a cancellation into an error of its own (psycopg, of a statement that was cut),
    which a loop that goes on after errors takes for one more.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        ended, left = await asyncio.wait(left, timeout=_AGAIN_S)
        for task in ended:
            if not task.cancelled():
                task.exception()


async def _wait(task: asyncio.Future[Any], limit_s: float) -> asyncio.CancelledError | None:
    loop = asyncio.get_running_loop()
    until = loop.time() + limit_s
    interrupted: asyncio.CancelledError | None = None
    while not task.done() and (left := until - loop.time()) > 0:
        try:
            await asyncio.wait({task}, timeout=left)
        except asyncio.CancelledError as error:
            interrupted = interrupted or error
    return interrupted
