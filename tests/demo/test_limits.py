"""What one client can take of the demo's server is bounded, and a refusal leaves no traceback."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from commitcast.demo import problem
from commitcast.demo.worker import MAX_CONNECTIONS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

POST = (
    "POST /api/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    "Content-Length: 1000\r\n\r\n"
)


@contextlib.asynccontextmanager
async def _connected(
    demo: Any,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", int(demo.address.rpartition(":")[2])
    )
    try:
        async with asyncio.timeout(30):
            yield reader, writer
    finally:
        writer.close()


async def _status(reader: asyncio.StreamReader) -> int:
    return int((await reader.readline()).split()[1])


async def test_a_header_without_end_is_ended(demo: Any) -> None:
    async with _connected(demo) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof() and sent < 4_000_000:
                writer.write(b"a" * 4096)
                sent += 4096
                await writer.drain()
                await asyncio.sleep(0)
        assert sent < 4_000_000
        with contextlib.suppress(ConnectionError):
            assert b"400" in await reader.read() or reader.at_eof()


async def test_a_body_that_is_slow_or_cut_off_is_refused(
    demo: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(problem, "MAX_BODY_SECONDS", 0.2)
    async with _connected(demo) as (reader, writer):
        writer.write(POST.encode() + b'{"na')
        assert await _status(reader) == 408
    async with _connected(demo) as (reader, writer):
        writer.write(POST.encode() + b'{"na')
        writer.write_eof()
        await reader.read()
    assert (await demo.anyone().http.get("/")).status_code == 200
    assert not [record for record in caplog.records if record.exc_info]


async def test_there_are_no_websockets(demo: Any) -> None:
    async with _connected(demo) as (reader, writer):
        writer.write(
            b"GET /realtime/sse HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert await _status(reader) == 401


async def test_more_clients_than_there_are_places_for_get_503_until_some_leave(demo: Any) -> None:
    async with contextlib.AsyncExitStack() as idle:
        for _ in range(MAX_CONNECTIONS):
            await idle.enter_async_context(_connected(demo))
        assert (await demo.anyone().http.get("/")).status_code == 503
    async with asyncio.timeout(30):
        while (await demo.anyone().http.get("/")).status_code == 503:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
