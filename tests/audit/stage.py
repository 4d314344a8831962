"""What the tests of the judge play on: tables, an app on a real socket, and its clients."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
from typing import TYPE_CHECKING, Any

import httpx
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from websockets.asyncio.client import connect

from serving import served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from websockets.asyncio.client import ClientConnection

    from commitcast.audit.report import BreachKind
    from commitcast.audit.shadow import Shadow
    from conftest import Database

PATIENCE_S = 20.0


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "app_notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(unique=True)


class Run(Base):
    __tablename__ = "app_runs"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]


class ConnectionManager:
    """As in FastAPI's documentation."""

    def __init__(self) -> None:
        self.active_connections: list[WebSocket] = []

    async def connect(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self.active_connections.append(websocket)

    def disconnect(self, websocket: WebSocket) -> None:
        self.active_connections.remove(websocket)

    async def broadcast(self, message: dict[str, Any]) -> None:
        for connection in self.active_connections:
            await connection.send_json(message)


class Stage:
    """An app with one socket at /ws/{user}, on which everybody reads, and a database."""

    def __init__(self, database: Database, engine: AsyncEngine) -> None:
        self.database = database
        self.engine = engine
        self.sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(
            engine, expire_on_commit=False
        )
        self.hub = ConnectionManager()
        self.app = FastAPI()
        self.app.add_api_websocket_route("/ws/{user}", self._socket)
        self.port = 0
        self._sync: list[Any] = []

    def sync_sessions(self) -> sessionmaker[Session]:
        driver = "sqlite+pysqlite" if self.database.kind == "sqlite" else "postgresql+psycopg"
        engine = create_engine(self.database.url.set(drivername=driver))
        self._sync.append(engine)
        return sessionmaker(engine, expire_on_commit=False)

    async def _socket(self, websocket: WebSocket, user: str) -> None:
        del user
        await self.hub.connect(websocket)
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await websocket.receive_text()
        self.hub.disconnect(websocket)

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[httpx.AsyncClient]:
        """On a real socket; yields a client of it."""
        async with (
            served(self.app, ws="websockets-sansio", patience_s=PATIENCE_S) as server,
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{server.port}", timeout=PATIENCE_S
            ) as client,
        ):
            self.port = server.port
            yield client

    @contextlib.asynccontextmanager
    async def reader(self, user: str = "ann", path: str = "/ws/") -> AsyncIterator[Reader]:
        async with connect(f"ws://127.0.0.1:{self.port}{path}{user}") as connection:
            yield Reader(connection)

    async def close(self) -> None:
        for engine in self._sync:
            engine.dispose()


class Reader:
    """A client's end of a WebSocket."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def next(self) -> Any:
        return json.loads(await self.text())

    async def text(self) -> str:
        return str(await asyncio.wait_for(self._connection.recv(), PATIENCE_S))

    async def say(self, text: str) -> None:
        await self._connection.send(text)


def line(marker: str) -> int:
    """The line of the calling test's file that ends with ``# here: marker``."""
    frame = inspect.stack()[1].frame
    lines, first = inspect.getsourcelines(inspect.getmodule(frame) or frame.f_code)
    found = [
        n for n, text in enumerate(lines, max(first, 1)) if text.endswith(f"# here: {marker}\n")
    ]
    assert len(found) == 1, f"{marker} is on {found}"
    return found[0]


def found(shadow: Shadow) -> dict[tuple[BreachKind, int], int]:
    """Counts of breaches, by kind and line."""
    shadow.finish()
    return {(f.kind, f.site.line): f.count for f in shadow.report().findings}
