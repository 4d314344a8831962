"""A team's chat: a table, sockets of its own, and one function by which every event is sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import String, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from websockets.asyncio.client import connect

from commitcast import CommittedEvent, Event, emit
from serving import served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.websockets import WebSocket

    from commitcast import Coordinator

PATIENCE_S = 60.0


class Base(DeclarativeBase):
    """The chat's tables."""


class Message(Base):
    """What a user said."""

    __tablename__ = "messages"

    id: Mapped[int] = mapped_column(primary_key=True)
    thread: Mapped[str] = mapped_column(String(100))
    author: Mapped[str] = mapped_column(String(100))


async def create_tables(engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        await conn.run_sync(Base.metadata.create_all)


async def saved(engine: AsyncEngine) -> dict[str, set[int]]:
    """The ids of what is in the table, by thread."""
    found: dict[str, set[int]] = defaultdict(set)
    async with AsyncSession(engine) as session:
        for thread, number in await session.execute(select(Message.thread, Message.id)):
            found[thread].add(number)
    return found


class Hub:
    """The sockets of this process, by stream; what a frame says of its way is for the tests."""

    def __init__(self) -> None:
        self.sockets: dict[str, set[WebSocket]] = defaultdict(set)

    async def send(self, stream: str, event: Any) -> None:
        """The app's own sending, as it was before Commitcast."""
        await self._write(stream, event, "own")

    async def deliver(self, event: CommittedEvent) -> None:
        """For ``Coordinator(engine, deliver=…)``: the same sockets."""
        await self._write(event.stream, event, "commitcast")

    async def _write(self, stream: str, event: Any, way: str) -> None:
        frame = json.dumps({"type": event.type, "data": event.data, "way": way})
        for socket in list(self.sockets[stream]):
            await socket.send_text(frame)


@dataclass
class Reader:
    """One user's socket: what came, in order."""

    user: str
    thread: str
    socket: Any
    frames: list[dict[str, Any]] = field(default_factory=list)

    async def until_end(self) -> None:
        async for text in self.socket:
            frame = json.loads(text)
            if frame["type"] == "end":
                return
            self.frames.append(frame)

    @property
    def seen(self) -> list[tuple[str, int]]:
        return [(frame["type"], frame["data"]["id"]) for frame in self.frames]


@dataclass
class Chat:
    """The chat on a real server in this process, and its readers."""

    coordinator: Coordinator
    hub: Hub
    sessions: async_sessionmaker[AsyncSession]
    port: int
    readers: list[Reader] = field(default_factory=list)

    async def join(self, user: str, thread: str, stack: contextlib.AsyncExitStack) -> Reader:
        """Connect a user; what they send on their socket is posted, one after the other."""
        url = f"ws://127.0.0.1:{self.port}/{thread}/{user}"
        socket = await stack.enter_async_context(connect(url, compression=None, max_queue=None))
        assert json.loads(await socket.recv())["type"] == "joined"
        reader = Reader(user, thread, socket)
        self.readers.append(reader)
        return reader

    async def end(self) -> None:
        """What every reader gets last; all that was committed before comes before it."""
        for thread in {reader.thread for reader in self.readers}:
            async with self.sessions() as session:
                emit(session, thread, Event("end", {"id": 0}))
                await session.commit()
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
            for reader in self.readers:
                group.create_task(reader.until_end())


@contextlib.asynccontextmanager
async def chatting(
    coordinator: Coordinator,
    hub: Hub,
    engine: AsyncEngine,
    post: Callable[[AsyncSession, str, str], Awaitable[None]],
) -> AsyncIterator[Chat]:
    """Serve until the block is left. `post` does one message, given session, thread and user."""
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    async def serve(socket: WebSocket) -> None:
        thread, user = socket.path_params["thread"], socket.path_params["user"]
        await socket.accept()
        hub.sockets[thread].add(socket)
        await socket.send_text(json.dumps({"type": "joined"}))
        try:
            async for _ in socket.iter_text():
                async with sessions() as session:
                    await post(session, thread, user)
        finally:
            hub.sockets[thread].discard(socket)

    app = Starlette(
        routes=[WebSocketRoute("/{thread}/{user}", serve)], lifespan=coordinator.lifespan
    )
    async with served(app, patience_s=PATIENCE_S, ws="websockets-sansio") as server:
        yield Chat(coordinator, hub, sessions, server.port)
