"""The support chat as a FastAPI app: `create_app`.

Which desk does a user's work is asked of `rollout` once for each request: the one as it was first
written (desk.py) or the one with Commitcast (coordinated.py). Both send through the same sockets.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

from fastapi import Depends, FastAPI, Header, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from starlette.websockets import WebSocketDisconnect

from commitcast import CommittedEvent, Coordinator, sqlite
from commitcast.flags import Mode, Rollout
from commitcast.health import CoordinationHealthMonitor

from .agent import Rejected
from .coordinated import CoordinatedDesk
from .desk import STAFF, Desk
from .hub import ConnectionManager
from .problems import Duplicate, TicketClosed, TicketUnknown
from .tables import Base, Message, Run, Ticket

DATABASE_VARIABLE: Final = "SUPPORT_CHAT_DATABASE_URL"
ENFORCE_VARIABLE: Final = "SUPPORT_CHAT_ENFORCE"
"""Percent of the users for whom Commitcast sends."""


class Subject(BaseModel):
    """What a ticket is about."""

    subject: str = Field(min_length=1, max_length=200)


class Text(BaseModel):
    """What somebody says or asks."""

    text: str = Field(min_length=1, max_length=4000)


class Stars(BaseModel):
    """How it went."""

    stars: int = Field(ge=1, le=5)


async def who(x_user: Annotated[str, Header()]) -> str:
    """Who asks. This is where a real app checks a session or a token."""
    return x_user


User = Annotated[str, Depends(who)]


def create_app(
    engine: AsyncEngine | None = None,
    *,
    rollout: Rollout | None = None,
    health: CoordinationHealthMonitor | None = None,
) -> FastAPI:
    """The app, on `engine` or on the database that the environment names.

    Commitcast's tables must be there: ``commitcast migrate``. `health` is the coordinator's.
    """
    engine = engine if engine is not None else engine_from_environment()
    if rollout is None:
        rollout = Rollout(enforce=float(os.environ.get(ENFORCE_VARIABLE, "0")))
    hub = ConnectionManager()

    async def deliver(event: CommittedEvent) -> None:
        user = event.stream.removeprefix("user:")
        await hub.send(user, {"type": event.type, **event.data})

    coordinator = Coordinator(engine, deliver=deliver, health=health)
    desk = Desk(async_sessionmaker(engine, expire_on_commit=False), hub)
    coordinated = CoordinatedDesk(coordinator)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with engine.begin() as conn:
            await conn.run_sync(Base.metadata.create_all)
        async with coordinator:
            yield
            await desk.drain()
            await coordinated.drain()
        coordinator.detach()

    async def desk_of(user: User) -> Desk | CoordinatedDesk:
        return coordinated if rollout.mode(user) is Mode.ENFORCE else desk

    app = FastAPI(lifespan=lifespan)
    app.state.engine, app.state.hub, app.state.coordinator = engine, hub, coordinator
    _add_problems(app)
    _add_work(app, desk_of)
    _add_reading(app, async_sessionmaker(engine), hub)
    return app


def engine_from_environment() -> AsyncEngine:
    """An engine on the database that the environment names; by default a SQLite file."""
    url = os.environ.get(DATABASE_VARIABLE, "sqlite+aiosqlite:///support-chat.db")
    engine = create_async_engine(url)
    if engine.dialect.name == "sqlite":
        sqlite.configure(engine)
    return engine


def _add_problems(app: FastAPI) -> None:
    answers: dict[type[Exception], tuple[int, str]] = {
        TicketUnknown: (404, "There is no such ticket."),
        TicketClosed: (409, "The ticket is closed."),
        Duplicate: (409, "You have a ticket with that subject."),
        Rejected: (422, "Please stay polite."),
    }
    for problem, (status, text) in answers.items():

        async def refuse(
            _request: Request, _error: Exception, status: int = status, text: str = text
        ) -> JSONResponse:
            return JSONResponse({"detail": text}, status)

        app.add_exception_handler(problem, refuse)


def _add_work(app: FastAPI, desk_of: Any) -> None:
    work = Annotated[Any, Depends(desk_of)]

    @app.post("/tickets", status_code=201)
    async def open_ticket(user: User, desk: work, body: Subject) -> dict[str, int]:
        return {"ticket": await desk.open(user, body.subject)}

    @app.put("/tickets/{ticket}/subject", status_code=204)
    async def rename(user: User, desk: work, ticket: int, body: Subject) -> None:
        await desk.rename(user, ticket, body.subject)

    @app.post("/tickets/{ticket}/messages", status_code=201)
    async def post(user: User, desk: work, ticket: int, body: Text) -> dict[str, int]:
        return {"message": await desk.post(user, ticket, body.text)}

    @app.post("/tickets/{ticket}/close", status_code=204)
    async def close(user: User, desk: work, ticket: int) -> None:
        await desk.close(user, ticket)

    @app.post("/tickets/{ticket}/rating")
    async def rate(user: User, desk: work, ticket: int, body: Stars) -> dict[str, bool]:
        return {"saved": await desk.rate(user, ticket, body.stars)}

    @app.post("/tickets/{ticket}/questions", status_code=202)
    async def ask(user: User, desk: work, ticket: int, body: Text) -> dict[str, int]:
        return {"run": await desk.ask(user, ticket, body.text)}


def _add_reading(app: FastAPI, sessions: async_sessionmaker[Any], hub: ConnectionManager) -> None:
    @app.get("/tickets/{ticket}/messages")
    async def messages(user: User, ticket: int) -> list[dict[str, Any]]:
        async with sessions() as session:
            found = await session.get(Ticket, ticket)
            if found is None or user not in {found.owner, STAFF}:
                raise HTTPException(404)
            rows = await session.scalars(
                select(Message).where(Message.ticket_id == ticket).order_by(Message.id)
            )
            return [{"author": row.author, "text": row.text} for row in rows]

    @app.get("/runs/{run}")
    async def run_of(run: int) -> dict[str, str]:
        async with sessions() as session:
            found = await session.get(Run, run)
            if found is None:
                raise HTTPException(404)
            return {"status": found.status}

    @app.websocket("/ws")
    async def socket(websocket: WebSocket, user: str) -> None:
        await hub.connect(user, websocket)
        try:
            while True:
                said = await websocket.receive_json()
                if said.get("type") == "ping":
                    await websocket.send_json({"type": "pong"})
                elif said.get("type") == "typing":
                    await hub.send(STAFF, {"type": "typing", "user": user})
        except WebSocketDisconnect:
            pass
        finally:
            hub.disconnect(user, websocket)
