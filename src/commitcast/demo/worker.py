"""The demo's server: checks what was asked for, then serves on a socket that is given to it.

`python -m commitcast.demo.worker` is started by `supervisor.py`, which says on standard input
what to do and closes it when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import threading
import time
import webbrowser
from typing import TYPE_CHECKING, Any, Final, NoReturn

from commitcast.demo.supervisor import WorkerOptions

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

_GRACEFUL_SHUTDOWN_S: Final = 5
_KEEP_ALIVE_S: Final = 5
_MAX_HEADER_BYTES: Final = 32 * 1024
MAX_CONNECTIONS: Final = 500
"""Well below the 1,024 descriptors that a process has by default; who comes later gets 503."""
_STDIN: Final = 0
_THREADS_END_WITHIN_S: Final = 2.0


def stop(message: str) -> NoReturn:
    """End with one line that says what cannot work."""
    print(f"commitcast demo: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


def run(options: WorkerOptions, listener: socket.socket, *, supervised: bool) -> None:
    """Serve until SIGINT or SIGTERM. `supervised`: somebody starts this process again."""
    try:
        import uvicorn

        from commitcast.demo.app import create_app
    except ImportError as error:
        stop(f"{error.name} is missing; install the demo with: pip install 'commitcast[demo]'")
    try:
        app = create_app(
            options.database_url, model=options.model, step_delay_ms=options.step_delay_ms,
            supervised=supervised, hosts=options.hosts,
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001  (pydantic-ai and its providers raise many kinds)
        stop(_first_line(error))
    try:
        if not options.again:
            asyncio.run(_prepare(options.database_url))
    except Exception as error:  # noqa: BLE001  (drivers raise many kinds; any means: no database)
        stop(f"cannot use the database: {_first_line(error)}; check --database-url")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(uvicorn.Server(server_config(app)), listener, options))


def server_config(app: ASGIApp, **options: Any) -> uvicorn.Config:
    """A server with limits. Uvicorn has none for how long a header takes: put a proxy before it."""
    import uvicorn

    settings: dict[str, Any] = {
        "log_level": "warning",
        "access_log": False,
        "timeout_graceful_shutdown": _GRACEFUL_SHUTDOWN_S,
        "lifespan": "on",
        "http": "h11",  # of uvicorn's parsers the one that bounds the size of headers
        "h11_max_incomplete_event_size": _MAX_HEADER_BYTES,
        "ws": "none",
        "limit_concurrency": MAX_CONNECTIONS,
        "timeout_keep_alive": _KEEP_ALIVE_S,
        "server_header": False,
    }
    return uvicorn.Config(app, **(settings | options))


async def _prepare(database_url: str) -> None:
    """Connect once and create the tables, so that a bad database is told in one line."""
    from commitcast import Coordinator
    from commitcast.demo.database import Database

    before = set(threading.enumerate())
    database = Database(database_url)
    coordinator = Coordinator(database.engine)
    try:
        await coordinator.migrate()
        await database.create_tables()
    finally:
        coordinator.detach()
        await database.engine.dispose()
        if database.engine.dialect.name == "sqlite":
            await _ended(before)


async def _ended(before: set[threading.Thread]) -> None:
    """Wait for the driver's threads: one that could not connect still speaks to this loop.

    It would complain on standard error of a loop that is closed.
    """
    until = time.monotonic() + _THREADS_END_WITHIN_S
    while set(threading.enumerate()) - before and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.01)  # a thread gives this loop no signal of its end


async def _serve(server: uvicorn.Server, listener: socket.socket, options: WorkerOptions) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    # uvicorn offers no signal for this
    while not server.started and not serving.done():  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    if server.started:
        again = " again" if options.again else ""
        print(f"Commitcast demo{again}: {options.address}  (Ctrl+C stops it)", flush=True)  # noqa: T201
        if options.open_browser:
            with contextlib.suppress(Exception):
                await asyncio.to_thread(webbrowser.open, options.address)
    await serving


def _first_line(error: BaseException) -> str:
    """The first line of what a driver says, without SQL and without its class path."""
    original = getattr(error, "orig", None) or error
    text = str(original).strip().splitlines()
    return text[0] if text else type(original).__name__


def _read_line() -> bytes:
    """One line of standard input and not a byte more."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(_STDIN, 1)
        if not byte:
            break
        line += byte
    return line


def _end_with_parent() -> None:
    while os.read(_STDIN, 1):
        pass
    os._exit(1)


def main() -> None:
    """Do what the parent says."""
    given: dict[str, Any] = json.loads(_read_line())
    options = WorkerOptions(**given)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    run(options, socket.socket(fileno=options.listener), supervised=True)


if __name__ == "__main__":
    main()
