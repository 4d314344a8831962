"""Serves an app under a Shadow, until its traffic is over."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import uvicorn

from commitcast.audit.target import WrongUse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; raises `WrongUse` where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise WrongUse(
            f"cannot listen on {host}:{port}: {why}; choose another --host or --port"
        ) from None


async def serve(
    app: Any,
    listener: socket.socket,
    *,
    seconds: float | None = None,
    drive: Callable[[str], Any] | None = None,
    ready: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serve until `drive` has returned, `seconds` are over, or a signal asks to stop.

    `drive`, sync or async, and `ready` are given the app's URL. What `drive` raises is raised once
    the server has stopped. Raises `WrongUse` if the app does not start.
    """
    server = _Server(uvicorn.Config(app, log_level="warning"))
    serving = asyncio.create_task(server.serve([listener]))
    up = asyncio.create_task(server.up.wait())
    try:
        await asyncio.wait({serving, up}, return_when=asyncio.FIRST_COMPLETED)
        if not server.started:
            await serving
            raise WrongUse("the app did not start; why is said above")
        url = _url(listener)
        ready(url)
        await _until_over(serving, url, seconds, drive)
    finally:
        up.cancel()
        server.should_exit = True
        await serving


async def _until_over(
    serving: asyncio.Task[None],
    url: str,
    seconds: float | None,
    drive: Callable[[str], Any] | None,
) -> None:
    waiting: set[asyncio.Task[Any]] = {serving}
    driving = None if drive is None else asyncio.create_task(_driven(drive, url))
    if driving is not None:
        waiting.add(driving)
    await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    if driving is None:
        return
    if not driving.done():
        driving.cancel()
        await asyncio.wait({driving})
    if not driving.cancelled():
        driving.result()


async def _driven(drive: Callable[[str], Any], url: str) -> None:
    if inspect.iscoroutinefunction(drive):
        await drive(url)
        return
    # A sync client would block the server, which runs in this thread.
    result = await asyncio.to_thread(drive, url)
    if inspect.isawaitable(result):
        await result


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound here
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Says when it is up, and leaves nothing to a signal but its own end."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:  # newer versions; in a task it would end the whole process
            self.should_exit = True
            return
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal again afterwards; there is a report to print yet.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
