"""The programs that are compared: one ASGI app each, over the same table and the same pool.

The client sends ``op`` and waits for the event; it sends ``commits`` to learn when, in
nanoseconds of the machine's monotonic clock, each commit of this socket returned.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import orjson
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from commitcast import Event, emit
from commitcast.bench.database import Message, bench_coordinator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

PROGRAMS: Final = ("plain", "control", "coordinated", "operation")
HEALTH_PROGRAMS: Final = ("plain", "health_off", "health_control", "health_full")
"""``coordinated`` at two levels of health; the others are compared with ``health_off``."""
_LEVELS: Final = {"health_off": "off", "health_control": "off", "health_full": "full"}

_TYPE = "order.updated"
_DATA: Final[dict[str, Any]] = {"id": 12345, "status": "shipped", "note": "x" * 220}


def application(program: str, engine: AsyncEngine) -> Starlette:
    """The app of one of the programs, serving ``/ws?user=NUMBER``."""
    if program in {"plain", "control"}:
        return _plain(engine)
    level = _LEVELS.get(program)
    return _coordinated(engine, announced=program == "operation", health=level)


def _plain(engine: AsyncEngine) -> Starlette:
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        user = int(websocket.query_params["user"])

        async def operation() -> int:
            async with sessions() as session:
                session.add(Message(user_id=user, body="hello"))
                await session.commit()
            committed_ns = time.monotonic_ns()
            await websocket.send_text(orjson.dumps({"type": _TYPE, "data": _DATA}).decode())
            return committed_ns

        await _answer(websocket, operation)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    return Starlette(routes=[WebSocketRoute("/ws", endpoint)], lifespan=lifespan)


def _coordinated(engine: AsyncEngine, *, announced: bool, health: str | None) -> Starlette:
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    coordinator = bench_coordinator(engine, health)

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        user = int(websocket.query_params["user"])
        stream = f"user:{user}"

        async def emitted() -> int:
            async with sessions() as session:
                session.add(Message(user_id=user, body="hello"))
                emit(session, stream, Event(_TYPE, _DATA))
                await session.commit()
            return time.monotonic_ns()

        async def operation() -> int:
            async with coordinator.operation("update", user=str(user), stream=stream) as op:
                async with op.begin() as session:
                    session.add(Message(user_id=user, body="hello"))
                    op.emit(Event(_TYPE, _DATA))
                return time.monotonic_ns()

        async with coordinator.subscribe(stream) as subscription:

            async def deliver() -> None:
                async for event in subscription:
                    await websocket.send_text(event.frame)
                    subscription.frame_written(event)

            delivering = asyncio.create_task(deliver())
            try:
                await _answer(websocket, operation if announced else emitted)
            finally:
                delivering.cancel()
                await asyncio.gather(delivering, return_exceptions=True)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with coordinator:
            yield
        await engine.dispose()

    return Starlette(routes=[WebSocketRoute("/ws", endpoint)], lifespan=lifespan)


async def _answer(websocket: WebSocket, operation: Callable[[], Awaitable[int]]) -> None:
    commits: list[int] = []
    try:
        while True:
            if await websocket.receive_text() == "commits":
                await websocket.send_text(orjson.dumps(commits).decode())
                commits.clear()
            else:
                commits.append(await operation())
    except WebSocketDisconnect:
        return
