"""The nginx settings that docs/deployment.md gives, in a real nginx before a real server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .live import Site, say, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import Database

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
]

PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"
PATIENCE_S = 20.0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
    return port


def _settings(upstream: int, port: int, folder: Path) -> str:
    """The page's block as it stands; only ports are other ones."""
    block = re.search(r"^```nginx\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert block is not None
    http = block[1]
    for given, used in (
        ("127.0.0.1:8000", f"127.0.0.1:{upstream}"),
        ("listen 80;", f"listen 127.0.0.1:{port};"),
    ):
        assert http.count(given) == 1
        http = http.replace(given, used)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    return (
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr crit;\n"
        f"events {{ worker_connections 64; }}\nhttp {{ access_log off;\n{places}{http}}}\n"
    )


@contextlib.asynccontextmanager
async def _before(node: Site, folder: Path) -> AsyncIterator[Site]:
    """A running nginx before the server: the same site, asked through it."""
    assert NGINX is not None
    port = _free_port()
    (folder / "nginx.conf").write_text(_settings(node.port, port, folder))
    running = await asyncio.create_subprocess_exec(
        NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr",
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                assert running.returncode is None, (await running.communicate())[1].decode()
                with contextlib.suppress(ConnectionRefusedError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.01)  # it has no signal for this
        yield replace(node, port=port)
    finally:
        if running.returncode is None:
            running.terminate()
        _, said = await asyncio.wait_for(running.communicate(), PATIENCE_S)
    assert not said, said.decode()


async def test_events_pass_the_documented_nginx_at_once_and_positions_with_them(
    database: Database, tmp_path: Path
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, drain_s=0, keep_alive_s=0.2)
    async with serving(coordinator) as node, _before(node, tmp_path) as site:
        client = await site.get("/realtime/sse?stream=a")
        assert client.status == 200
        assert client.headers["content-type"].startswith("text/event-stream")
        assert not (await client.named("subscribed"))["recovered"]
        for number in (1, 2, 3):  # one at a time: none is held back until the next
            await say(engine, "a", number)
            assert await client.numbers(1) == [number]
        assert await client.comment() == ": keep-alive"
        await client.close()
        await say(engine, "a", 4)
        again = await site.get(
            "/realtime/sse?stream=a", headers={"Last-Event-ID": client.last_id or ""}
        )
        assert (await again.named("subscribed"))["recovered"]
        assert await again.numbers(1) == [4]


async def test_the_documented_nginx_keeps_origins_and_operators_apart(
    database: Database, tmp_path: Path
) -> None:
    async with (
        serving(database.coordinator(drain_s=0)) as node,
        _before(node, tmp_path) as site,
    ):
        path = "/realtime/sse?stream=a"
        own = await site.get(path, headers={"Origin": "http://here"})
        assert own.status == 200
        other = await site.get(path, headers={"Origin": "http://evil.example"})
        assert other.status == 403
        for operators in ("health", "metrics"):
            assert (await site.get(f"/realtime/{operators}")).status == 403
        assert (await site.get("/realtime/livez")).status == 200
        long = await site.get(path, headers={"X": "a" * 70_000})
        assert long.status in {400, 414, 431}


async def test_a_client_that_leaves_the_documented_nginx_is_gone_from_the_node(
    database: Database, tmp_path: Path
) -> None:
    coordinator = database.coordinator(drain_s=0)
    async with serving(coordinator) as node, _before(node, tmp_path) as site:
        client = await site.get("/realtime/sse?stream=a")
        await client.named("subscribed")
        delivery = coordinator._delivery
        assert delivery is not None
        assert delivery._feeds
        await client.close()
        async with asyncio.timeout(PATIENCE_S):
            while delivery._feeds:  # noqa: ASYNC110 - the node tells nobody of a reader that left
                await asyncio.sleep(0.01)
