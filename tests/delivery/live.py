"""A server on a real socket in this process, and a client that reads SSE from one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from starlette.applications import Starlette
from starlette.routing import Mount

from commitcast import Event, emit
from serving import served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import uvicorn

    from commitcast import Coordinator

PATIENCE_S = 20.0


def bearer(request: Any) -> str | None:
    """Authenticates everybody as whom they say they are."""
    user: str | None = request.bearer
    return user


def anybody(_user: str, _stream: str) -> bool:
    return True


async def until(holds: Callable[[], object]) -> None:
    """Wait for what nothing signals."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


async def say(engine: AsyncEngine, stream: str, *numbers: int, **options: Any) -> None:
    """Commit one event for each number, in one transaction."""
    async with AsyncSession(engine) as session:
        for n in numbers:
            emit(session, stream, Event("said", {"n": n}), **options)
        await session.commit()


@dataclass
class Message:
    """One SSE message."""

    event: str | None
    id: str | None
    data: str
    retry: str | None = None

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def n(self) -> int:
        number: int = self.json["data"]["n"]
        return number


@dataclass
class Client:
    """One GET on a raw socket; reads nothing unless asked."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int
    headers: dict[str, str]
    user: str | None = None
    last_id: str | None = None
    ended_cleanly: bool = False
    _lines: list[str] = field(default_factory=list)
    _rest: bytes = b""

    @classmethod
    async def get(
        cls,
        port: int,
        path: str,
        *,
        user: str | None = "ann",
        method: str = "GET",
        limit: int = 2**20,
        slow: bool = False,
        headers: dict[str, str] | None = None,
    ) -> Self:
        sock = socket.socket()
        if slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)  # noqa: FBT003 - the socket's own signature
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=4096 if slow else limit)
        lines = [f"{method} {path} HTTP/1.1", "Host: here", "Connection: close"]
        if user is not None:
            lines.append(f"Authorization: Bearer {user}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        async with asyncio.timeout(PATIENCE_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *rest = head.strip().split("\r\n")
        found = {n.lower(): v for n, v in (line.split(": ", 1) for line in rest)}
        return cls(reader, writer, int(first.split()[1]), found, user)

    async def body(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read()

    async def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        found: dict[str, Any] = json.loads(await self.body())
        assert found["status"] == self.status
        assert set(found) == {"type", "title", "status", "detail"}
        return found

    async def _line(self) -> str | None:
        while b"\n" not in self._rest:
            try:
                size = int(await self.reader.readuntil(b"\r\n"), 16)
            except (asyncio.IncompleteReadError, ConnectionResetError):
                return None
            chunk = await self.reader.readexactly(size + 2)
            if size == 0:
                self.ended_cleanly = True
                return None
            self._rest += chunk[:-2]
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode()

    async def message(self) -> Message | None:
        """The next message; None at the end of the stream. Comments are skipped."""
        found: dict[str, str] = {}
        async with asyncio.timeout(PATIENCE_S):
            while (line := await self._line()) is not None:
                if line and not line.startswith(":"):
                    name, value = line.split(": ", 1)
                    found[name] = value
                elif not line and "data" in found:
                    break
                elif not line:
                    found = {}
            else:
                return None
        self.last_id = found.get("id", self.last_id)
        return Message(found.get("event"), found.get("id"), found["data"], found.get("retry"))

    async def comment(self) -> str:
        async with asyncio.timeout(PATIENCE_S):
            while (line := await self._line()) is not None:
                if line.startswith(":"):
                    return line
        raise AssertionError("the stream ended")

    async def named(self, name: str) -> Any:
        """The data of the next message, which must have this name."""
        message = await self.message()
        assert message is not None, f"the stream ended before {name}"
        assert message.event == f"commitcast.{name}", message
        return message.json

    async def numbers(self, count: int) -> list[int]:
        """What was said in the next `count` events, none of them about the connection."""
        found: list[Any] = []
        for _ in range(count):
            message = await self.message()
            assert message is not None, f"the stream ended after {found[-3:]}"
            assert message.event is None, message
            found.append(message.n)
        return found

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@dataclass
class Site:
    """A team's app with the realtime app mounted, and its clients."""

    port: int
    coordinator: Coordinator
    server: uvicorn.Server
    clients: list[Client] = field(default_factory=list)

    async def get(self, path: str, **options: Any) -> Client:
        client = await Client.get(self.port, path, **options)
        self.clients.append(client)
        return client

    async def listen(self, stream: str, cursor: str | None = None, **options: Any) -> Client:
        """A client that has been told where it is: `client.place`."""
        path = f"/realtime/sse?stream={stream}" + (f"&cursor={cursor}" if cursor else "")
        client = await self.get(path, **options)
        assert client.status == 200, await client.body()
        return client


@contextlib.asynccontextmanager
async def serving(
    coordinator: Coordinator,
    *,
    authenticate: Callable[..., Any] | None = bearer,
    authorize: Callable[..., Any] | None = anybody,
    allowed_origins: tuple[str, ...] = (),
    operators: Callable[..., Any] | None = None,
    app: Callable[..., Any] | None = None,
    **server_options: Any,
) -> AsyncIterator[Site]:
    """Run the coordinator and a server until the block is left; nothing may be left behind."""
    realtime = coordinator.asgi(
        authenticate=authenticate,
        authorize=authorize,
        allowed_origins=allowed_origins,
        operators=operators,
    )
    if app is None:
        app = Starlette(routes=[Mount("/realtime", realtime)], lifespan=coordinator.lifespan)
    async with served(app, **server_options) as server:
        site = Site(server.port, coordinator, server)
        delivery = coordinator._delivery
        assert delivery is not None
        try:
            yield site
        finally:
            for client in site.clients:
                await client.close()
            coordinator.begin_drain()
    assert not delivery._feeds, "a subscription outlived its client"
    assert delivery._memory.bytes == 0
    assert not coordinator.connections, "a client has a place that nobody holds"
