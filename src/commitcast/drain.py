"""Drain: clients are closed gently before the node stops, and come back elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from commitcast.delivery import Delivery

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


async def close_gently(delivery: Delivery, seconds: float) -> None:
    """Let no reader in any more and close those there are, in random order, over `seconds`."""
    delivery.draining = True
    subscriptions = delivery.subscriptions()
    random.shuffle(subscriptions)
    for left in range(len(subscriptions), 0, -1):
        subscriptions[left - 1].close("the node drains")
        await asyncio.sleep(seconds / len(subscriptions))
    for late in delivery.subscriptions():
        late.close("the node drains")


@contextlib.contextmanager
def on_signals(begin: Callable[[], None]) -> Iterator[None]:
    """Call `begin` in the event loop on SIGTERM and SIGINT, then the handler that was there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def handle(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, the coordinator was not left
            loop.call_soon_threadsafe(begin)
        previous = before[signal.Signals(number)]
        if callable(previous):
            previous(number, frame)

    # Only a handler that was set by whoever runs the loop is followed; the default one of SIGTERM
    # ends the process at once, and there is nothing to add to that.
    ours = [n for n, h in before.items() if callable(h) and h is not signal.default_int_handler]
    for number in ours:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in ours:
            if signal.getsignal(number) is handle:
                signal.signal(number, before[number])
