"""The small parent of the demo's server: starts it again when it was killed.

The listening socket is the parent's and is handed on, so that the port stays, and who connects
while no worker runs waits instead of being refused. A worker ends with its parent, however that
ends, since its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket

_STOP_WITHIN_S: Final = 30.0
_MOST_DEATHS: Final = 5
_IN_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker is told on its standard input, as one line of JSON."""

    listener: int
    """The number of the listening socket."""
    address: str
    hosts: list[str]
    """The names and addresses that the server answers for, besides those of loopback."""
    database_url: str
    model: str
    step_delay_ms: int
    open_browser: bool
    again: bool = False
    """Whether another worker was there before."""


async def supervise(options: WorkerOptions, listener: socket.socket) -> int:
    """Run workers until one ends by itself, or SIGINT or SIGTERM comes; returns the exit status."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    stopping = asyncio.ensure_future(stop.wait())
    deaths: deque[float] = deque(maxlen=_MOST_DEATHS)
    try:
        while True:
            worker = await _start(options, listener)
            ended = asyncio.ensure_future(worker.wait())
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                listener.close()
                await _end(worker)
                return 0
            status = ended.result()
            if status != -signal.SIGKILL:
                return status if status >= 0 else 128 - status
            deaths.append(time.monotonic())
            if len(deaths) == _MOST_DEATHS and deaths[-1] - deaths[0] < _IN_S:
                _say(f"the server was killed {_MOST_DEATHS} times in {_IN_S:g} s; giving up")
                return 1
            _say("the server was killed; starting it again")
            options = replace(options, open_browser=False, again=True)
    finally:
        stopping.cancel()


async def _start(options: WorkerOptions, listener: socket.socket) -> asyncio.subprocess.Process:
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "commitcast.demo.worker",
        stdin=asyncio.subprocess.PIPE, pass_fds=[listener.fileno()],
    )  # fmt: skip
    if worker.stdin is not None:
        # not as arguments, which every user of the machine can read: the URL may have a password
        worker.stdin.write(json.dumps(asdict(options)).encode() + b"\n")
    return worker


async def _end(worker: asyncio.subprocess.Process) -> None:
    if worker.returncode is None:
        worker.terminate()
    try:
        async with asyncio.timeout(_STOP_WITHIN_S):
            await worker.wait()
    except TimeoutError:
        worker.kill()
        await worker.wait()


def _say(what: str) -> None:
    print(f"commitcast demo: {what}", file=sys.stderr, flush=True)  # noqa: T201
