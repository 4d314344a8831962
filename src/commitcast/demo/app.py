"""The demo's web app: how it is put together, and its HTTP surface."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BaseModel, Field, StringConstraints
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from commitcast import Coordinator
from commitcast.demo import auth, chat
from commitcast.demo.agent import LOCAL, build_agent, choose_model
from commitcast.demo.answers import Answers
from commitcast.demo.database import Database
from commitcast.demo.headers import SafeHeaders
from commitcast.demo.problem import (
    Problem,
    on_database_error,
    on_http_error,
    on_problem,
    read_body,
)
from commitcast.demo.wording import EXAMPLES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pydantic_ai.models import Model
    from sqlalchemy import URL
    from starlette.requests import Request

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_ID = re.compile(r"[0-9a-f-]{36}")


def _printable(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("control characters are not allowed")
    return text


def _not_the_agent(name: str) -> str:
    if auth.fold_name(name) == chat.AGENT:
        raise ValueError("that name belongs to the agent; choose another")
    return name


_Text = StringConstraints(strip_whitespace=True, min_length=1)
Name = Annotated[
    str, _Text, StringConstraints(max_length=40), AfterValidator(_printable), AfterValidator(_not_the_agent)
]  # fmt: skip


class LoginBody(BaseModel):
    """POST /api/login."""

    name: Name


class ThreadBody(BaseModel):
    """POST /api/threads; members are names or user ids, the creator is one anyway."""

    title: Annotated[str, _Text, StringConstraints(max_length=120), AfterValidator(_printable)]
    members: Annotated[list[Name], Field(max_length=chat.MAX_MEMBERS)] = []


class MessageBody(BaseModel):
    """POST /api/threads/{id}/messages."""

    text: Annotated[str, _Text, StringConstraints(max_length=4000), AfterValidator(_printable)]


class _Api:
    """The endpoints."""

    def __init__(self, database: Database, gate: auth.Gate, answers: Answers) -> None:
        self._database, self._gate, self._answers = database, gate, answers

    async def login(self, request: Request) -> Response:
        body = await read_body(request, LoginBody)
        async with self._database.writing() as session:
            await auth.forget_expired(session)
            user = await auth.user_named(session, body.name)
            await session.flush()
            token = auth.issue(session, user.id, auth.BEARER)
            stream_token = auth.issue(session, user.id, auth.STREAM)
        response = JSONResponse({"user_id": user.id, "name": user.name, "token": token})
        auth.set_cookies(response, request, user.id, stream_token)
        return response

    async def session(self, request: Request) -> Response:
        user_id = await self._gate.user_of(request)
        async with self._database.writing() as session:
            await auth.forget_expired(session)
            stream_token = auth.issue(session, user_id, auth.STREAM)
        response = JSONResponse({"user_id": user_id})
        auth.set_cookies(response, request, user_id, stream_token)
        return response

    async def create_thread(self, request: Request) -> Response:
        user_id = await self._gate.user_of(request)
        body = await read_body(request, ThreadBody)
        async with self._database.writing() as session:
            thread_id = await chat.create_thread(session, user_id, body.title, body.members)
        return JSONResponse({"id": thread_id}, 201)

    async def threads(self, request: Request) -> Response:
        user_id = await self._gate.user_of(request)
        async with self._database.reading() as session:
            return JSONResponse(await chat.threads_of(session, user_id))

    async def post_message(self, request: Request) -> Response:
        user_id = await self._gate.user_of(request)
        thread_id = _thread_id(request)
        body = await read_body(request, MessageBody)
        async with self._database.writing() as session:
            run = await chat.post_message(session, user_id, thread_id, body.text)
        self._answers.begin(run)
        accepted = {
            "operation_id": run.operation_id, "run_id": run.id, "message_id": run.message_id,
        }  # fmt: skip
        return JSONResponse(accepted, 202)

    async def messages(self, request: Request) -> Response:
        user_id = await self._gate.user_of(request)
        thread_id = _thread_id(request)
        async with self._database.reading() as session:
            await chat.require_member(session, thread_id, user_id)
            return JSONResponse(await chat.messages_of(session, thread_id))

    async def runs(self, request: Request) -> Response:
        user_id = await self._gate.user_of(request)
        thread_id = _thread_id(request)
        async with self._database.reading() as session:
            await chat.require_member(session, thread_id, user_id)
            return JSONResponse(await chat.runs_of(session, thread_id))

    def routes(self) -> list[Route]:
        return [
            Route("/login", self.login, methods=["POST"]),
            Route("/session", self.session, methods=["POST"]),
            Route("/threads", self.threads, methods=["GET"]),
            Route("/threads", self.create_thread, methods=["POST"]),
            Route("/threads/{thread}/messages", self.messages, methods=["GET"]),
            Route("/threads/{thread}/messages", self.post_message, methods=["POST"]),
            Route("/threads/{thread}/runs", self.runs, methods=["GET"]),
            Route("/examples", _examples, methods=["GET"]),
        ]


def _thread_id(request: Request) -> str:
    thread_id = str(request.path_params["thread"])
    if not _ID.fullmatch(thread_id):
        raise Problem(404, "No such thread", "You have no thread of this id; see GET /api/threads.")
    return thread_id


async def _examples(_request: Request) -> Response:
    return JSONResponse(list(EXAMPLES))


async def _page(_request: Request) -> Response:
    return FileResponse(str(files(__package__) / "static" / "index.html"))


def create_app(
    database_url: str | URL, *, model: str | Model = LOCAL, step_delay_ms: int = 300
) -> Starlette:
    """The demo on a database; tables are created when it starts.

    Args:
        database_url: sqlite+aiosqlite:///file or postgresql+asyncpg://…
        model: "local" (offline), the name of any pydantic-ai model, or such a model.
        step_delay_ms: milliseconds the agent rests after each step, so that people can follow.

    Raises ValueError for a database URL that cannot be used, and what pydantic-ai raises for a
    model that cannot.
    """
    agent = build_agent(choose_model(model) if isinstance(model, str) else model)
    database = Database(database_url)
    coordinator = Coordinator(database.engine)
    gate = auth.Gate(database)
    answers = Answers(database, agent, step_delay_ms / 1_000)
    api = _Api(database, gate, answers)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        try:
            await coordinator.migrate()
            await database.create_tables()
            async with coordinator, answers.working():
                yield
        finally:
            await database.engine.dispose()

    app = Starlette(
        lifespan=lifespan,
        routes=[
            Route("/", _page),
            Mount("/api", routes=api.routes()),
            Mount(
                "/realtime",
                coordinator.asgi(authenticate=gate.authenticate, authorize=gate.may_read),
            ),
            Mount("/static", StaticFiles(directory=str(files(__package__) / "static"))),
        ],
        exception_handlers={
            Problem: on_problem,
            HTTPException: on_http_error,
            SQLAlchemyError: on_database_error,
        },
    )
    app.add_middleware(SafeHeaders)
    return app
