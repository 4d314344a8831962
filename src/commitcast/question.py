"""A question to the team's callables: it has a limit of time, and ends when the client leaves.

No answer is never a yes. A callable that is not async runs in the event loop and must not block:
no limit can end it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_T = TypeVar("_T")


class NoAnswer(Exception):
    """The limit has passed, or the callable ended its own task."""


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


async def answer_to(
    question: Coroutine[Any, Any, _T],
    *,
    limit_s: float,
    gone: asyncio.Future[Any],
    hold: Callable[[asyncio.Future[Any]], object] | None = None,
) -> _T:
    """Ask, and wait `limit_s` seconds at most, or until `gone` is done.

    The question is cancelled then, but not waited for: a callable may take its time to end, or
    not end at all. `hold` is given the task, to count it until it has.

    Raises `NoAnswer`, `ClientLeft`, and what the callable raised.
    """
    asking = asyncio.ensure_future(question)
    asking.add_done_callback(_look_at)
    if hold is not None:
        hold(asking)
    try:
        await asyncio.wait({asking, gone}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if asking.done() and not asking.cancelled():
            return asking.result()
        if gone.done():
            raise ClientLeft
        raise NoAnswer(f"no answer within {limit_s} s")
    finally:
        asking.cancel()


def _look_at(asking: asyncio.Future[Any]) -> None:
    """What a question raises that nobody waits for is no news for asyncio's log."""
    if not asking.cancelled():
        asking.exception()
