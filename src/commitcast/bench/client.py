"""The client: as many sockets as asked for, each with one operation under way at a time."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import orjson
import picows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_WARM_UP_OPERATIONS: Final = 5
_ANSWER_WITHIN_S: Final = 30.0


@dataclass
class Measured:
    """What one turn of one program gave; times in nanoseconds."""

    ops_per_s: float = 0.0
    operation_ns: list[int] = field(default_factory=list)
    """From the request to the event, as the client sees it."""
    delivery_ns: list[int] = field(default_factory=list)
    """From the return of `commit()` in the server to the event in the client."""


class _Socket(picows.WSListener):
    """One WebSocket that is asked one thing at a time."""

    def __init__(self) -> None:
        self._transport: picows.WSTransport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self._transport = transport

    def on_ws_frame(self, _transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        now_ns = time.monotonic_ns()
        if self._answer is not None and not self._answer.done():
            if frame.msg_type == picows.WSMsgType.TEXT:
                self._answer.set_result((now_ns, frame.get_payload_as_bytes()))
            elif frame.msg_type == picows.WSMsgType.CLOSE:
                self._answer.set_exception(ConnectionError("the server closed the socket"))

    def on_ws_disconnected(self, _transport: picows.WSTransport) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the server's socket is gone"))

    async def ask(self, text: bytes) -> tuple[int, bytes]:
        """Send `text`; when the answer came (monotonic, nanoseconds) and what it was."""
        if self._transport is None:
            raise ConnectionError("not connected")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.send(picows.WSMsgType.TEXT, text)
        return await self._answer


@asynccontextmanager
async def _connected(port: int, user: int) -> AsyncIterator[_Socket]:
    socket = _Socket()
    url = f"ws://127.0.0.1:{port}/ws?user={user}"
    transport, _ = await picows.ws_connect(lambda: socket, url)
    try:
        yield socket
    finally:
        transport.send_close(picows.WSCloseCode.OK)
        transport.disconnect()
        await transport.wait_disconnected()


async def measure(port: int, concurrency: int, seconds: float) -> Measured:
    """Drive the server on `port` for `seconds`, over sockets opened and warmed up before."""
    result = Measured()
    async with AsyncExitStack() as stack:
        sockets = [
            await stack.enter_async_context(_connected(port, user + 1))
            for user in range(concurrency)
        ]
        await asyncio.gather(*(_warm_up(socket) for socket in sockets))
        started = time.monotonic()
        deadline = started + seconds
        async with asyncio.timeout(seconds + _ANSWER_WITHIN_S):
            received = await asyncio.gather(*(_drive(s, deadline, result) for s in sockets))
        elapsed = time.monotonic() - started
        result.ops_per_s = len(result.operation_ns) / elapsed
        for socket, arrivals in zip(sockets, received, strict=True):
            commits: list[int] = orjson.loads((await socket.ask(b"commits"))[1])
            result.delivery_ns += [a - c for a, c in zip(arrivals, commits, strict=True)]
    return result


async def _warm_up(socket: _Socket) -> None:
    for _ in range(_WARM_UP_OPERATIONS):
        await socket.ask(b"op")
    await socket.ask(b"commits")


async def _drive(socket: _Socket, deadline: float, result: Measured) -> list[int]:
    arrivals: list[int] = []
    while time.monotonic() < deadline:
        sent_ns = time.monotonic_ns()
        received_ns, _ = await socket.ask(b"op")
        result.operation_ns.append(received_ns - sent_ns)
        arrivals.append(received_ns)
    return arrivals
