"""A server on a real socket in this process, and clients that read SSE from it with httpx."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.applications import Starlette
from starlette.routing import Mount

from commitcast import Event, emit
from serving import served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from commitcast import Coordinator

PATIENCE_S = 20.0


@dataclass
class Clock:
    """A monitor's clock that moves when a test says so."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


async def say(engine: AsyncEngine, stream: str, *kinds: str) -> None:
    """Commit one event of each type, in one transaction."""
    async with AsyncSession(engine) as session:
        for kind in kinds:
            emit(session, stream, Event(kind))
        await session.commit()


async def until(condition: Callable[[], object]) -> None:
    """Wait for what nobody signals."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.005)


class Client:
    """One SSE response, read message by message."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()

    async def next(self) -> str:
        """The type of the next event, or the name of a message about the connection."""
        name = None
        async with asyncio.timeout(PATIENCE_S):
            async for line in self._lines:
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    kind: str = json.loads(line.removeprefix("data: ")).get("type", name)
                    return kind if name is None else name
        raise AssertionError("the stream ended")

    async def until(self, kind: str) -> list[str]:
        """The types of the events up to the first of `kind`."""
        seen = [await self.next()]
        while seen[-1] != kind:
            seen.append(await self.next())
        return seen


@dataclass
class Site:
    """A running server."""

    url: str
    stack: contextlib.AsyncExitStack
    http: httpx.AsyncClient

    async def listen(self, stream: str, user: str = "ann", **params: str) -> Client:
        """A client that has been told where it is."""
        response = await self.stack.enter_async_context(
            self.http.stream(
                "GET", f"{self.url}/realtime/sse", params={"stream": stream, **params},
                headers={"Authorization": f"Bearer {user}"},
            )
        )  # fmt: skip
        assert response.status_code == 200
        client = Client(response)
        assert await client.next() == "commitcast.subscribed"
        return client


@contextlib.asynccontextmanager
async def serving(
    coordinator: Coordinator, authorize: Callable[[str, str], bool] = lambda _user, _stream: True
) -> AsyncIterator[Site]:
    """Run the coordinator and a server until the block is left."""
    realtime = coordinator.asgi(authenticate=lambda request: request.bearer, authorize=authorize)
    app = Starlette(routes=[Mount("/realtime", realtime)], lifespan=coordinator.lifespan)
    async with (
        served(app) as server,
        httpx.AsyncClient(timeout=PATIENCE_S) as http,
        contextlib.AsyncExitStack() as stack,
    ):
        yield Site(f"http://127.0.0.1:{server.port}", stack, http)
        coordinator.begin_drain()
