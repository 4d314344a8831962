"""The demo's app behind a real server, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn
from sqlalchemy import select

from commitcast.demo.app import create_app
from commitcast.demo.worker import server_config
from commitcast.schema import Naming, Tables

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


PATIENCE_S = 90


@dataclass
class Stream:
    """An open SSE stream."""

    lines: AsyncIterator[str]

    async def next(self) -> tuple[str, dict[str, Any]]:
        """The name (empty for committed events) and data of the next message."""
        name = ""
        async for line in self.lines:
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                return name, json.loads(line.removeprefix("data: "))
        raise EOFError

    async def until(
        self, kind: str, found: list[dict[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """All events up to one of that type, with it; added to `found` as they come."""
        found = [] if found is None else found
        async with asyncio.timeout(PATIENCE_S):
            while True:
                name, frame = await self.next()
                assert name == "", f"the position was lost: {name} {frame}"
                found.append(frame)
                if frame["type"] == kind:
                    return found


class Client:
    """Someone who speaks HTTP to the demo."""

    def __init__(self, address: str) -> None:
        self.http = httpx.AsyncClient(base_url=address, timeout=PATIENCE_S)
        self.user_id = ""

    async def login(self, name: str) -> Client:
        answer = await self.http.post("/api/login", json={"name": name})
        assert answer.status_code == 200
        self.user_id = answer.json()["user_id"]
        self.http.headers["Authorization"] = f"Bearer {answer.json()['token']}"
        return self

    async def make_thread(self, title: str, *members: str) -> str:
        answer = await self.http.post(
            "/api/threads", json={"title": title, "members": list(members)}
        )
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def post(self, thread: str, text: str, key: str | None = None) -> httpx.Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        path = f"/api/threads/{thread}/messages"
        return await self.http.post(path, json={"text": text}, headers=headers)

    async def ask(self, thread: str, text: str) -> dict[str, str]:
        answer = await self.post(thread, text)
        assert answer.status_code == 202, answer.text
        accepted: dict[str, str] = answer.json()
        return accepted

    async def arm(self, fault: str, **options: str) -> None:
        answer = await self.http.post("/api/break", json={"fault": fault, **options})
        assert (answer.status_code, answer.json()) == (200, {"armed": fault}), answer.text

    async def operation(self, operation: str) -> dict[str, Any]:
        answer = await self.http.get(f"/api/operations/{operation}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def operations(self) -> list[dict[str, Any]]:
        return list((await self.http.get("/api/operations")).json())

    async def settled(self, operation: str, outcome: str) -> dict[str, Any]:
        """The operation, once it has that outcome."""
        async with asyncio.timeout(PATIENCE_S):
            while (found := await self.operation(operation))["outcome"] != outcome:
                assert found["outcome"] == "open", found
                await asyncio.sleep(0.05)
        return found

    async def messages(self, thread: str) -> list[dict[str, Any]]:
        return list((await self.http.get(f"/api/threads/{thread}/messages")).json())

    async def runs(self, thread: str) -> list[dict[str, Any]]:
        return list((await self.http.get(f"/api/threads/{thread}/runs")).json())

    async def hears(self, name: str, kind: str) -> list[dict[str, Any]]:
        """All events of a stream up to one of that type, resumed whenever the server goes."""
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(2 * PATIENCE_S):
            while True:
                cursor = f"{found[-1]['epoch']}:{found[-1]['offset']}" if found else "earliest"
                with contextlib.suppress(httpx.TransportError, EOFError):
                    async with self.stream(name, cursor=cursor) as stream:
                        return await stream.until(kind, found)

    @asynccontextmanager
    async def stream(self, name: str, **parameters: str) -> AsyncIterator[Stream]:
        """An open stream, subscribed."""
        query = {"stream": name, **parameters}
        async with self.http.stream("GET", "/realtime/sse", params=query) as answer:
            assert answer.status_code == 200
            stream = Stream(answer.aiter_lines())
            assert (await stream.next())[0] == "commitcast.subscribed"
            yield stream


class Demo:
    """A served app; `client()` gives a new person."""

    def __init__(self, url: Any) -> None:
        self.url = url
        self._clients: list[Client] = []
        self.address = ""

    @asynccontextmanager
    async def served(self, **options: Any) -> AsyncIterator[Demo]:
        app = create_app(self.url, **{"step_delay_ms": 0, **options})
        server = uvicorn.Server(server_config(app, timeout_graceful_shutdown=1))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no signal
                await asyncio.sleep(0.01)
            try:
                async with self.at(self.address):
                    yield self
            finally:
                server.should_exit = True
                await serving

    @asynccontextmanager
    async def at(self, address: str) -> AsyncIterator[Demo]:
        """A demo that somebody else serves."""
        self.address = address
        try:
            yield self
        finally:
            for client in self._clients:
                await client.http.aclose()
            self._clients.clear()

    def anyone(self) -> Client:
        client = Client(self.address)
        self._clients.append(client)
        return client

    async def person(self, name: str) -> Client:
        return await self.anyone().login(name)


class Told:
    """What the log holds of failures."""

    def __init__(self, database: Any) -> None:
        self._engine = database.engine()
        self._tables = Tables(Naming.of(database.kind))

    async def rollbacks(self, operation: str) -> list[str]:
        """The streams that were told of a rollback of `operation`, once for each time."""
        events, streams = self._tables.events, self._tables.streams
        query = (
            select(streams.c.name)
            .join(events, events.c.stream_id == streams.c.id)
            .where(events.c.operation == operation, events.c.type == "transaction_rolled_back")
        )
        async with self._engine.connect() as connection:
            return sorted(await connection.scalars(query))


@pytest.fixture
def told(database: Any) -> Told:
    return Told(database)


@pytest.fixture
def stopped_demo(database: Any) -> Demo:
    return Demo(database.url)


@pytest.fixture
async def demo(stopped_demo: Demo) -> AsyncIterator[Demo]:
    async with stopped_demo.served():
        yield stopped_demo
