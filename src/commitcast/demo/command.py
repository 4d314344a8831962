"""`commitcast demo`: take the port, then have a worker serve on it."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from ipaddress import ip_address
from typing import Annotated, NoReturn

import typer

_DEFAULT_URL = "sqlite+aiosqlite:///commitcast-demo.db"
_BACKLOG = 1024


def _stop(message: str) -> NoReturn:
    print(f"commitcast demo: {message}", file=sys.stderr)  # noqa: T201
    raise typer.Exit(2)


def _warn(host: str, hosts: list[str]) -> None:
    named = ", ".join(hosts) or "those of this machine alone; name more with --allow-host"
    print(  # noqa: T201
        f"commitcast demo: warning: {host} can be reached from other machines. There are no "
        "passwords: whoever reaches it is who they say, and may kill the server. Nothing is "
        f"encrypted. Host names it answers for: {named}",
        file=sys.stderr,
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        _stop(f"cannot listen on {host}:{port}: {why}; choose another --host or --port")
    return listener


def demo(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Answer for this host name or address too; may be given again."),
    ] = None,
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
    from commitcast.demo.supervisor import WorkerOptions, supervise

    listener = _listen(host, port)
    bound = ip_address(listener.getsockname()[0])
    hosts = list(allow_host or ())
    if bound.is_unspecified:  # no name of its own: the browser of this machine finds it here
        shown_host = "127.0.0.1" if bound.version == 4 else "[::1]"  # noqa: PLR2004 - IPv4
    else:
        hosts.append(host)
        shown_host = f"[{host}]" if ":" in host else host
    if not bound.is_loopback:
        _warn(host, hosts)
    options = WorkerOptions(
        listener=listener.fileno(),
        address=f"http://{shown_host}:{listener.getsockname()[1]}/",
        hosts=hosts,
        database_url=database_url,
        model=model,
        step_delay_ms=step_delay_ms,
        open_browser=not no_browser,
    )
    if os.name == "posix":
        raise typer.Exit(asyncio.run(supervise(options, listener)))
    from commitcast.demo.worker import run  # where sockets cannot be handed on

    run(options, listener, supervised=False)
