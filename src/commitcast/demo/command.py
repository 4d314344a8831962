"""`commitcast demo`: check what was asked for, then serve."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import webbrowser
from typing import Annotated, NoReturn

import typer

_DEFAULT_URL = "sqlite+aiosqlite:///commitcast-demo.db"
_GRACEFUL_SHUTDOWN_S = 5


def _stop(message: str) -> NoReturn:
    print(f"commitcast demo: {message}", file=sys.stderr)  # noqa: T201
    raise typer.Exit(2)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        _stop(f"cannot listen on {host}:{port}: {why}; choose another --host or --port")
    return listener


async def _prepare(database_url: str) -> None:
    """Connect once and create the tables, so that a bad database is told in one line."""
    from commitcast import Coordinator
    from commitcast.demo.database import Database

    database = Database(database_url)
    coordinator = Coordinator(database.engine)
    try:
        await coordinator.migrate()
        await database.create_tables()
    finally:
        coordinator.detach()
        await database.engine.dispose()


def demo(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    database_url: Annotated[
        str, typer.Option(help="SQLite or PostgreSQL; tables are created.")
    ] = _DEFAULT_URL,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
    model: Annotated[
        str, typer.Option(help="'local' (offline), or any pydantic-ai model such as 'openai:…'.")
    ] = "local",
    step_delay_ms: Annotated[
        int, typer.Option(min=0, max=60_000, help="Pause after each step of the agent.")
    ] = 300,
) -> None:
    """Serve a chat with an agent, in the browser, over a database of your choice."""
    try:
        import uvicorn

        from commitcast.demo.app import create_app
    except ImportError as error:
        _stop(f"{error.name} is missing; install the demo with: pip install 'commitcast[demo]'")
    try:
        app = create_app(database_url, model=model, step_delay_ms=step_delay_ms)
    except Exception as error:  # noqa: BLE001  (pydantic-ai and its providers raise many kinds)
        _stop(_first_line(error))
    listener = _bind(host, port)
    try:
        asyncio.run(_prepare(database_url))
    except Exception as error:  # noqa: BLE001  (drivers raise many kinds; any means: no database)
        listener.close()
        _stop(f"cannot use the database: {_first_line(error)}; check --database-url")
    shown_host = f"[{host}]" if ":" in host else host
    address = f"http://{shown_host}:{listener.getsockname()[1]}/"
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACEFUL_SHUTDOWN_S,
        lifespan="on",
    )
    asyncio.run(_serve(uvicorn.Server(config), listener, address, open_browser=not no_browser))


async def _serve(
    server: object, listener: socket.socket, address: str, *, open_browser: bool
) -> None:
    import uvicorn

    if not isinstance(server, uvicorn.Server):
        raise TypeError(server)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    # uvicorn offers no signal for this
    while not server.started and not serving.done():  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    if server.started:
        print(f"Commitcast demo: {address}  (Ctrl+C stops it)", flush=True)  # noqa: T201
        if open_browser:
            with contextlib.suppress(Exception):
                await asyncio.to_thread(webbrowser.open, address)
    await serving


def _first_line(error: BaseException) -> str:
    """The first line of what a driver says, without SQL and without its class path."""
    original = getattr(error, "orig", None) or error
    text = str(original).strip().splitlines()
    return text[0] if text else type(original).__name__
