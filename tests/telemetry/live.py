"""The coordinator's app on a real socket, and clients that read its SSE."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import httpx
from starlette.applications import Starlette
from starlette.routing import Mount

from serving import served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from commitcast import Coordinator

PATIENCE_S = 20.0


@contextlib.asynccontextmanager
async def serving(coordinator: Coordinator, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app, until the block is left; everybody may read everything."""
    realtime = coordinator.asgi(
        authenticate=lambda request: request.bearer,
        authorize=lambda _user, _stream: True,
        **options,
    )
    app = Starlette(routes=[Mount("/realtime", realtime)], lifespan=coordinator.lifespan)
    async with (
        served(app) as server,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{server.port}/realtime",
            headers={"Authorization": "Bearer ann"},
            timeout=PATIENCE_S,
        ) as client,
    ):
        try:
            yield client
        finally:
            coordinator.begin_drain()


@contextlib.asynccontextmanager
async def listening(
    client: httpx.AsyncClient, stream: str, cursor: str = ""
) -> AsyncIterator[AsyncIterator[Any]]:
    """The events of a stream, as decoded frames; entered when the reader is where it begins."""
    query = {"stream": stream, **({"cursor": cursor} if cursor else {})}
    async with client.stream("GET", "/sse", params=query) as response:
        assert response.status_code == 200
        frames = _frames(response)
        assert "recovered" in await anext(frames)
        yield frames


async def _frames(response: httpx.Response) -> AsyncIterator[Any]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))
