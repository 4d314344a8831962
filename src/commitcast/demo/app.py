"""The demo's web app: how it is put together."""

from __future__ import annotations

from contextlib import asynccontextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from commitcast import Coordinator
from commitcast.demo import auth
from commitcast.demo.agent import LOCAL, build_agent, choose_model
from commitcast.demo.answers import Answers
from commitcast.demo.api import Api
from commitcast.demo.connections import Connections
from commitcast.demo.database import Database
from commitcast.demo.faults import Faults
from commitcast.demo.headers import SafeHeaders
from commitcast.demo.hosts import KnownHosts, host_name
from commitcast.demo.operations import OwnOperations
from commitcast.demo.posting import Posting
from commitcast.demo.problem import Problem, on_database_error, on_http_error, on_problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from pydantic_ai.models import Model
    from sqlalchemy import URL
    from starlette.requests import Request

_LEASE_S: Final = 2.0
"""Short, so that who kills the worker soon hears what was rolled back."""


async def _page(_request: Request) -> Response:
    return FileResponse(str(files(__package__) / "static" / "index.html"))


def create_app(
    database_url: str | URL,
    *,
    model: str | Model = LOCAL,
    step_delay_ms: int = 300,
    supervised: bool = False,
    hosts: Iterable[str] = (),
) -> Starlette:
    """The demo on a database; tables are created when it starts.

    Args:
        database_url: sqlite+aiosqlite:///file or postgresql+asyncpg://…
        model: "local" (offline), the name of any pydantic-ai model, or such a model.
        step_delay_ms: milliseconds the agent rests after each step, so that people can follow.
        supervised: whether a killed process is started again (`supervisor.py`), so that people
            may kill it.
        hosts: the names and addresses that it answers for, besides those of loopback.

    Raises ValueError for a database URL or a host that cannot be used, and what pydantic-ai raises for a
    model that cannot.
    """
    answers_for = [host_name(host) for host in hosts]
    agent = build_agent(choose_model(model) if isinstance(model, str) else model)
    database = Database(database_url)
    coordinator = Coordinator(database.engine, lease_s=_LEASE_S)
    gate = auth.Gate(database)
    connections = Connections()
    faults = Faults(connections, supervised=supervised)
    answers = Answers(coordinator, database, faults, agent, step_delay_ms / 1_000)
    posting = Posting(coordinator, answers, faults)
    api = Api(
        database, gate, posting, OwnOperations(coordinator, database), faults, connections
    )  # fmt: skip
    realtime = coordinator.asgi(
        authenticate=connections.noting(gate.authenticate),
        authorize=gate.may_read,
        operators=gate.is_operator,
    )

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
            Mount("/realtime", connections.serving(realtime)),
            Mount("/static", StaticFiles(directory=str(files(__package__) / "static"))),
        ],
        exception_handlers={
            Problem: on_problem,
            HTTPException: on_http_error,
            SQLAlchemyError: on_database_error,
            OSError: on_database_error,
        },
    )
    app.add_middleware(KnownHosts, hosts=answers_for)
    app.add_middleware(SafeHeaders)
    return app
