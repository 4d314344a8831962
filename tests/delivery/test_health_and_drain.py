"""Readiness says what is, an outage ends no subscription, and a stop closes clients gently."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from commitcast.errors import SubscriptionClosed

from .live import PATIENCE_S, Client, anybody, bearer, say, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sqlalchemy import URL

    from commitcast.log import Page
    from conftest import Database

pytestmark = pytest.mark.anyio


class Wire:
    """Between an engine and PostgreSQL; it can be cut and mended."""

    def __init__(self, url: URL, folder: Path) -> None:
        self._path = f"{url.query['host']}/.s.PGSQL.5432"
        self._own = f"{folder}/.s.PGSQL.5432"
        self.url = url.update_query_dict({"host": str(folder)})
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()

    async def mend(self) -> None:
        self._server = await asyncio.start_unix_server(self._connected, self._own)

    def reroute(self, url: URL) -> None:
        self._path = f"{url.query['host']}/.s.PGSQL.5432"

    def cut(self) -> None:
        if self._server is not None:
            self._server.close()
        for end in self._ends:
            end.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self._path)
        self._ends |= {writer, far_writer}
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        self._ends -= {writer, far_writer}


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.CancelledError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def cuttable(database: Database) -> AsyncIterator[tuple[Wire, AsyncEngine]]:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory(prefix="wire") as folder:
        wire = Wire(database.url, Path(folder))
        await wire.mend()
        engine = create_async_engine(wire.url)
        try:
            yield wire, engine
        finally:
            await engine.dispose()
            wire.cut()


async def status(port: int, path: str, **options: Any) -> int:
    client = await Client.get(port, path, user=None, **options)
    await client.close()
    return client.status


async def becomes(port: int, path: str, wanted: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await status(port, path) != wanted:
            pass


async def test_g3_an_outage_of_the_database_is_told_by_readyz_and_ends_no_subscription(
    database: Database,
) -> None:
    if database.kind == "sqlite":
        pytest.skip("a file does not go away")
    near = database.engine()
    database.coordinator(near)
    async with cuttable(database) as (wire, engine):
        coordinator = database.coordinator(engine, drain_s=0, poll_interval_s=0.1)
        async with serving(coordinator) as site:
            client = await site.listen("thread:7")
            await client.named("subscribed")
            await say(near, "thread:7", 1)
            assert await client.numbers(1) == [1]
            assert await status(site.port, "/realtime/readyz") == 200
            wire.cut()
            await say(near, "thread:7", 2, 3)
            await becomes(site.port, "/realtime/readyz", 503)
            assert await status(site.port, "/realtime/livez") == 200
            # who connects now waits, and who leaves meanwhile holds no place
            waits = await site.listen("thread:7", headers={"Last-Event-ID": client.last_id or ""})
            leaves = await site.listen("thread:8")
            delivery = coordinator._delivery
            assert delivery is not None
            async with asyncio.timeout(PATIENCE_S):
                while not (its := [s for s in delivery.subscriptions() if s.stream == "thread:8"]):  # noqa: ASYNC110 - nothing signals it
                    await asyncio.sleep(0)
                await leaves.close()
                await its[0].wait_closed()
            await wire.mend()
            assert await client.numbers(2) == [2, 3]
            assert (await waits.named("subscribed"))["recovered"] is True
            assert await waits.numbers(2) == [2, 3]
            await becomes(site.port, "/realtime/readyz", 200)


async def test_g3_errors_that_a_driver_raises_by_itself_do_not_end_polling(
    database: Database,
) -> None:
    """asyncpg's errors on connect are not SQLAlchemy's."""
    engine, other = database.engine(), database.engine()
    database.coordinator(other)
    coordinator = database.coordinator(engine, drain_s=0, poll_interval_s=0.05)
    honest, failed = coordinator.log.heads, asyncio.Event()

    async def heads(*args: Any) -> Any:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("the database system is starting up")
        return await honest(*args)

    async with serving(coordinator) as site:
        client = await site.listen("thread:7")
        await client.named("subscribed")
        coordinator.log.heads = heads  # type: ignore[method-assign, assignment]
        await failed.wait()
        await say(other, "thread:7", 1)
        assert await client.numbers(1) == [1]


async def test_g10_a_drain_closes_clients_cleanly_and_sends_new_ones_away(
    database: Database,
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, drain_s=0.3)
    async with serving(coordinator) as site:
        clients = [await site.listen("thread:7") for _ in range(5)]
        for client in clients:
            await client.named("subscribed")
        await say(engine, "thread:7", 1)
        for client in clients:
            assert await client.numbers(1) == [1]
        assert await status(site.port, "/realtime/readyz") == 200
        coordinator.begin_drain()
        assert await status(site.port, "/realtime/readyz") == 503
        assert await status(site.port, "/realtime/livez") == 200
        away = await site.get("/realtime/sse?stream=thread:7")
        assert (away.status, "retry-after" in away.headers) == (503, True)
        browser = await site.get(
            "/realtime/sse?stream=thread:7", headers={"Accept": "text/event-stream"}
        )
        assert browser.status == 200
        assert b"retry:" in await browser.body()
        for client in clients:
            assert await client.message() is None
            assert client.ended_cleanly


async def test_g10_a_client_that_connects_while_a_drain_begins_is_closed_as_well(
    database: Database,
) -> None:
    coordinator = database.coordinator(drain_s=0)
    async with serving(coordinator) as site:
        delivery = coordinator._delivery
        assert delivery is not None
        reading, honest = asyncio.Event(), delivery.read

        async def read(*args: Any, **options: Any) -> Page:
            reading.set()
            await asyncio.Event().wait()
            return await honest(*args, **options)

        delivery.read = read  # type: ignore[method-assign]
        client = await site.listen("thread:7")
        await reading.wait()
        coordinator.begin_drain()
        assert await client.message() is None
        assert client.ended_cleanly


async def test_g10_a_reader_that_was_let_in_before_a_drain_is_not_entered_after_it(
    database: Database,
) -> None:
    """Nobody would close it: the drain has seen to those that were there."""
    coordinator = database.coordinator(drain_s=0)
    async with coordinator:
        reader = coordinator.subscribe("thread:7")
        coordinator.begin_drain()
        drain = coordinator._drain
        assert drain is not None
        await drain
        with pytest.raises(SubscriptionClosed, match="drains"):
            await reader.start()
        assert not coordinator.accepting


PROGRAM = """
import asyncio, sys, uvicorn
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.routing import Mount
from commitcast import Coordinator

coordinator = Coordinator(
    create_async_engine(sys.argv[1]), drain_s=0.2, drain_on_signals=sys.argv[2] == "drain"
)
realtime = coordinator.asgi(authenticate=lambda _: "ann", authorize=lambda user, stream: True)
app = Starlette(routes=[Mount("/realtime", realtime)], lifespan=coordinator.lifespan)

class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)

Server(uvicorn.Config(app, port=0, log_level="critical")).run()
"""


@pytest.mark.parametrize("drain", ["drain", "no drain"])
async def test_g10_sigterm_ends_a_server_with_open_clients_because_it_drains(
    database: Database, drain: str
) -> None:
    url = database.url.render_as_string(hide_password=False)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, url, drain, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            port = int(await process.stdout.readline())
        client = await Client.get(port, "/realtime/sse?stream=thread:7")
        await client.named("subscribed")
        process.send_signal(signal.SIGTERM)
        if drain == "drain":
            assert await client.message() is None
            assert client.ended_cleanly
            async with asyncio.timeout(PATIENCE_S):
                await process.wait()
        else:  # uvicorn waits for the response for ever
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.5):
                    await process.wait()
        await client.close()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


async def test_fastapi_with_the_coordinators_lifespan_serves_a_mounted_app(
    database: Database,
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, drain_s=0)
    app = FastAPI(lifespan=coordinator.lifespan)
    app.mount("/realtime", coordinator.asgi(authenticate=bearer, authorize=anybody))
    async with serving(coordinator, app=app) as site:
        client = await site.listen("thread:7")
        await client.named("subscribed")
        await say(engine, "thread:7", 1)
        assert await client.numbers(1) == [1]


async def test_a_mounted_app_whose_coordinator_was_not_entered_is_not_ready(
    database: Database,
) -> None:
    """A mounted app's lifespan never runs (DESIGN, section 9): it is said, not hung on."""
    entered = database.coordinator(drain_s=0)
    forgotten = database.coordinator()
    app = FastAPI(lifespan=entered.lifespan)
    app.mount("/realtime", forgotten.asgi(authenticate=bearer, authorize=anybody))
    async with serving(entered, app=app) as site:
        assert await status(site.port, "/realtime/readyz") == 503
        assert (await site.get("/realtime/sse?stream=thread:7")).status == 503
