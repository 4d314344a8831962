"""The coordinator's app on a real socket, and clients that read its SSE."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from commitcast import Coordinator

PATIENCE_S = 20.0


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.up.set()

    def install_signal_handlers(self) -> None:
        """They are pytest's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """They are pytest's."""
        yield


@contextlib.asynccontextmanager
async def serving(coordinator: Coordinator, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app, until the block is left; everybody may read everything."""
    realtime = coordinator.asgi(
        authenticate=lambda request: request.bearer,
        authorize=lambda _user, _stream: True,
        **options,
    )
    app = Starlette(routes=[Mount("/realtime", realtime)], lifespan=coordinator.lifespan)
    server = _Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    running = asyncio.create_task(server.serve())
    async with asyncio.timeout(PATIENCE_S):
        await server.up.wait()
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}/realtime",
        headers={"Authorization": "Bearer ann"},
        timeout=PATIENCE_S,
    ) as client:
        try:
            yield client
        finally:
            coordinator.begin_drain()
            server.should_exit = True
            async with asyncio.timeout(PATIENCE_S):
                await running


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
