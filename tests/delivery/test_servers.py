"""Each server, mount and proxy that people have: the app is found there, and ends well."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from commitcast import Coordinator, Event, emit

from .live import Client, anybody, bearer, say
from .servers import SERVERS, nginx

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from conftest import Database

pytestmark = pytest.mark.anyio


async def page(_request: Any) -> PlainTextResponse:
    return PlainTextResponse("a page")


def mounted(realtime: Any, **options: Any) -> Any:
    return Starlette(
        routes=[
            Route("/own/livez", page),
            Mount("/realtime", realtime),
            Route("/{tenant}/deeper/own/livez", page),
            Mount("/{tenant}/deeper/realtime", realtime),
        ],
        **options,
    )


def in_fastapi(root_path: str, realtime: Any) -> Any:
    app = FastAPI()
    app.root_path = root_path  # what FastAPI(root_path=…) does
    app.add_route("/own/livez", page)
    app.mount("/realtime", realtime)
    return app


SHAPES: dict[str, Any] = {
    "mounted": (mounted, ""),
    "mounted, and the server told of a prefix": (mounted, "/api"),
    "mounted, and the server told of a prefix with a slash": (mounted, "/api/"),
    "FastAPI told of a prefix": (lambda app: in_fastapi("/api", app), ""),
    "both told of a prefix": (lambda app: in_fastapi("/api", app), "/api"),
}
PLACES = ["/own", "/api/own", "/acme/deeper/own", "/api/acme/deeper/own", "//own"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("server", SERVERS)
async def test_where_the_applications_own_routes_are_reached_ours_are_reached(
    server: str, shape: str
) -> None:
    coordinator = Coordinator(create_async_engine("sqlite+aiosqlite:///never-opened.db"))
    coordinator.detach()
    build, root_path = SHAPES[shape]
    reached = []
    async with (
        SERVERS[server](build(coordinator.asgi()), root_path) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        for place in PLACES:
            own = await http.get(f"{place}/livez")
            ours = await http.get(f"{place.replace('own', 'realtime')}/livez")
            assert own.status_code == ours.status_code, (place, own.text, ours.text)
            reached.append(ours.status_code == 200)
    assert any(reached)


@pytest.mark.parametrize("server", SERVERS)
async def test_g3_a_stream_goes_through_nginx_and_each_server_at_once_and_resumes(
    database: Database, server: str, tmp_path: Path
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, drain_s=0, drain_on_signals=False)
    realtime = coordinator.asgi(authenticate=bearer, authorize=anybody)
    numbers = itertools.count(1)
    async with coordinator, SERVERS[server](mounted(realtime), "/stripped") as upstream:
        async with nginx(upstream, tmp_path) as port:
            last_id = ""
            for _ in range(2):
                headers = {"Last-Event-ID": last_id} if last_id else {}
                client = await Client.get(
                    port, "/stripped/realtime/sse?stream=thread:7", headers=headers
                )
                assert client.status == 200, await client.body()
                assert (await client.named("subscribed"))["recovered"] is bool(last_id)
                for n in itertools.islice(numbers, 3):
                    await say(engine, "thread:7", n)
                    assert await client.numbers(1) == [n]
                last_id = client.last_id or ""
                await client.close()
        coordinator.begin_drain()


@pytest.mark.parametrize("server", SERVERS)
async def test_g10_a_client_that_does_not_read_leaves_no_error_in_the_servers_log(
    database: Database, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(
        engine, drain_s=0, write_deadline_s=0.1, drain_on_signals=False
    )
    realtime = coordinator.asgi(authenticate=bearer, authorize=anybody)
    async with coordinator, SERVERS[server](mounted(realtime)) as port:
        delivery = coordinator._delivery
        assert delivery is not None
        client = await Client.get(port, "/realtime/sse?stream=thread:7", slow=True)
        await client.named("subscribed")
        (reader,) = delivery.subscriptions()
        while reader._closed is None:
            await _say_much(engine)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await reader.wait_closed()
        await client.close()
        coordinator.begin_drain()
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not errors


async def _say_much(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        for _ in range(20):
            emit(session, "thread:7", Event("said", {"text": "x" * 60_000}))
        await session.commit()
