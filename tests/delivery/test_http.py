"""The HTTP surface: what is refused, and how (RFC 9457)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from .live import say, serving

if TYPE_CHECKING:
    from conftest import Database

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/sse", 400),
        ("GET", "/sse?stream=", 400),
        ("GET", "/sse?stream=a%20b", 400),
        ("GET", "/sse?stream=a%0d%0aid:1", 400),
        ("GET", "/sse?stream=" + "a" * 1031, 400),
        ("GET", "/sse?stream=a&stream=b", 400),
        ("GET", "/sse?stream=a&cursor=", 400),
        ("GET", "/sse?stream=a&cursor=7", 400),
        ("GET", "/sse?stream=a&cursor=e:-1", 400),
        ("GET", "/sse?stream=a&cursor=e:1&cursor=e:2", 400),
        ("GET", f"/sse?stream=a&cursor=e:{2**63}", 400),
        ("GET", "/sse?" + "&".join("stream=a" for _ in range(60)), 400),
        ("GET", "/else", 404),
        ("GET", "/", 404),
        ("POST", "/sse?stream=a", 405),
        ("DELETE", "/readyz", 405),
    ],
)
async def test_what_cannot_be_served_is_a_problem_with_a_reason(
    database: Database, method: str, path: str, status: int
) -> None:
    async with serving(database.coordinator(drain_s=0)) as site:
        client = await site.get(f"/realtime{path}", method=method)
        assert client.status == status
        found = await client.problem()
        assert found["detail"]
        assert "Traceback" not in found["detail"]
        if status == 405:
            assert client.headers["allow"] == "GET"


async def test_head_says_what_get_would_and_opens_nothing(database: Database) -> None:
    coordinator = database.coordinator(drain_s=0)
    async with serving(coordinator) as site:
        client = await site.get("/realtime/sse?stream=a", method="HEAD")
        assert client.status == 200
        assert client.headers["content-type"].startswith("text/event-stream")
        assert (await site.get("/realtime/readyz", method="HEAD")).status == 200
        assert (await site.get("/realtime/sse?stream=a", method="HEAD", user=None)).status == 401


async def test_a_websocket_is_refused(database: Database) -> None:
    async with serving(database.coordinator(drain_s=0)) as site:
        client = await site.get(
            "/realtime/sse?stream=a",
            headers={
                "Upgrade": "websocket",
                "Connection": "Upgrade",
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
                "Sec-WebSocket-Version": "13",
            },
        )
        assert client.status in {403, 404}


async def test_the_stream_is_not_to_be_cached_or_buffered_and_says_when_to_come_back(
    database: Database,
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, drain_s=0, retry_ms=700, keep_alive_s=0.05)
    async with serving(coordinator) as site:
        url = f"http://127.0.0.1:{site.port}/realtime/sse?stream=thread:7"
        async with (
            httpx.AsyncClient(headers={"Authorization": "Bearer ann"}, timeout=20) as http,
            http.stream("GET", url) as response,
        ):
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert "no-cache" in response.headers["cache-control"]
            assert response.headers["x-accel-buffering"] == "no"
            lines = response.aiter_lines()
            retry = await anext(lines)
            assert 700 <= int(retry.removeprefix("retry: ")) <= 2100
            while await anext(lines) != ": keep-alive":
                pass
            await say(engine, "thread:7", 1)
            while not (line := await anext(lines)).startswith("id:"):
                pass
            epoch, offset = line.removeprefix("id: ").split(":")
            assert (len(epoch), offset) == (16, "1")
            assert (await anext(lines)).startswith('data: {"type":"said",')
