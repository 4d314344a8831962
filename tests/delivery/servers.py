"""The ASGI servers that people run, each in this process, and nginx before one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
from typing import TYPE_CHECKING, Any

import pytest
from granian.constants import Interfaces
from granian.server.embed import Server as Granian
from hypercorn.asyncio import serve
from hypercorn.config import Config

from serving import served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

PATIENCE_S = 20.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def _listening(port: int, running: asyncio.Future[Any]) -> None:
    """Wait until someone accepts on `port`."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if running.done():
                raise AssertionError(f"it ended: {running.exception()!r}")
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def _uvicorn(app: Any, root_path: str, http: str) -> AsyncIterator[int]:
    options: Any = {"root_path": root_path, "http": http, "log_config": None}
    async with served(app, **options) as server:
        yield server.port


def uvicorn_h11(app: Any, root_path: str = "") -> Any:
    return _uvicorn(app, root_path, "h11")


def uvicorn_httptools(app: Any, root_path: str = "") -> Any:
    return _uvicorn(app, root_path, "httptools")


@contextlib.asynccontextmanager
async def hypercorn(app: Any, root_path: str = "") -> AsyncIterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        config = Config()
        config.bind = [f"fd://{sock.detach()}"]
        config.root_path = root_path
        config.errorlog = logging.getLogger("hypercorn.test")
        config.graceful_timeout = 1
        stop = asyncio.Event()
        port = _port_of(config.bind[0])
        running = asyncio.create_task(serve(app, config, shutdown_trigger=stop.wait))
        try:
            await _listening(port, running)
            yield port
        finally:
            stop.set()
            await running


def _port_of(bind: str) -> int:
    with socket.fromfd(int(bind.removeprefix("fd://")), socket.AF_INET, socket.SOCK_STREAM) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def granian(app: Any, root_path: str = "") -> AsyncIterator[int]:
    port = free_port()
    server: Any = Granian(
        app, "127.0.0.1", port, interface=Interfaces.ASGI, log_enabled=False,
        url_path_prefix=root_path or None,
    )  # fmt: skip
    running = asyncio.create_task(server.serve())
    try:
        await _listening(port, running)
        yield port
    finally:
        server.stop()
        await running


SERVERS: dict[str, Callable[..., Any]] = {
    "uvicorn with h11": uvicorn_h11,
    "uvicorn with httptools": uvicorn_httptools,
    "hypercorn": hypercorn,
    "granian": granian,
}


NGINX = """
daemon off; pid {folder}/pid; error_log stderr; worker_processes 1;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{
        listen 127.0.0.1:{port};
        location /stripped/ {{ proxy_pass http://127.0.0.1:{upstream}/; proxy_http_version 1.1; }}
        location / {{ proxy_pass http://127.0.0.1:{upstream}; }}
    }}
}}
"""


@contextlib.asynccontextmanager
async def nginx(upstream: int, folder: Path) -> AsyncIterator[int]:
    """nginx with its defaults before `upstream`; it strips the prefix ``/stripped``."""
    path = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if path is None:
        pytest.skip("nginx is not installed (Debian: apt-get install nginx-light)")
    port = free_port()
    conf = folder / "nginx.conf"
    conf.write_text(NGINX.format(folder=folder, port=port, upstream=upstream))
    process = await asyncio.create_subprocess_exec(
        path, "-p", folder, "-c", conf, "-e", folder / "errors"
    )
    running = asyncio.ensure_future(process.wait())
    try:
        await _listening(port, running)
        yield port
    finally:
        if process.returncode is None:
            process.terminate()
        await running
