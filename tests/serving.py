"""An ASGI app on a real loopback socket, in this process."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import uvicorn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Server(uvicorn.Server):
    """Says when it is up; signals are pytest's."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield

    @property
    def port(self) -> int:
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def served(app: Any, *, patience_s: float = 20.0, **options: Any) -> AsyncIterator[Server]:
    """Serve `app`, its lifespan too, on a free port until the block is left."""
    server = Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on", **options))
    running = asyncio.create_task(server.serve())
    async with asyncio.timeout(patience_s):
        await server.up.wait()
    try:
        yield server
    finally:
        server.should_exit = True
        async with asyncio.timeout(patience_s):
            await running
