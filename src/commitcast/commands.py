"""The commands of ``commitcast``; each imports what it needs when it is called."""

from __future__ import annotations

import asyncio
import importlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from commitcast.errors import CommitcastError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from commitcast.coordinator import Coordinator

app = typer.Typer(
    name="commitcast",
    help="What your users see is what your database committed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
chaos = typer.Typer(help="Break it on purpose and check what came of it.", no_args_is_help=True)
app.add_typer(chaos, name="chaos")

DatabaseUrl = Annotated[
    str,
    typer.Option(
        "--database-url",
        envvar="COMMITCAST_DATABASE_URL",
        help="SQLAlchemy URL with an async driver, as postgresql+asyncpg://… or "
        "sqlite+aiosqlite:///file.db",
    ),
]
Schema = Annotated[str | None, typer.Option(help="Schema of the tables on PostgreSQL.")]
Prefix = Annotated[str | None, typer.Option(help="Prefix of the tables' names.")]


@app.command()
def migrate(database_url: DatabaseUrl, schema: Schema = None, prefix: Prefix = None) -> None:
    """Create Commitcast's tables, or bring them up to date."""
    _with_coordinator(database_url, schema, prefix, lambda c: c.migrate())
    typer.echo("Commitcast's tables are up to date.")


@app.command()
def restored(database_url: DatabaseUrl, schema: Schema = None, prefix: Prefix = None) -> None:
    """Say that the database was restored from a copy, so that no old position is honoured."""
    _with_coordinator(database_url, schema, prefix, lambda c: c.mark_restored())
    typer.echo("Every stream has a new epoch; clients will be told to reload.")


@app.command()
def erase(
    database_url: DatabaseUrl,
    stream: Annotated[str | None, typer.Option(help="Delete this stream.")] = None,
    user: Annotated[str | None, typer.Option(help="Empty this user's events.")] = None,
    schema: Schema = None,
    prefix: Prefix = None,
) -> None:
    """Remove a stream, or a person's data."""
    gone = _with_coordinator(
        database_url, schema, prefix, lambda c: c.erase(stream=stream, user=user)
    )
    typer.echo(f"Erased {gone}.")


@app.command()
def trim(database_url: DatabaseUrl, schema: Schema = None, prefix: Prefix = None) -> None:
    """Apply the default retention (7 days, 100,000 events a stream) now."""
    gone = _with_coordinator(database_url, schema, prefix, lambda c: c.trim())
    typer.echo(f"Trimmed {gone} events.")


def _with_coordinator(
    url: str,
    schema: str | None,
    prefix: str | None,
    work: Callable[[Coordinator], Awaitable[Any]],
) -> Any:
    from sqlalchemy.ext.asyncio import create_async_engine

    from commitcast import sqlite
    from commitcast.coordinator import Coordinator

    async def run() -> Any:
        engine = create_async_engine(url)
        if engine.dialect.name == "sqlite":
            sqlite.configure(engine)
        coordinator = Coordinator(engine, schema=schema, prefix=prefix)
        try:
            return await work(coordinator)
        finally:
            coordinator.detach()
            await engine.dispose()

    try:
        return asyncio.run(run())
    except (ArgumentError, ImportError) as error:
        _fail(f"--database-url cannot be used: {error}")
    except (CommitcastError, ValueError) as error:
        _fail(str(error))
    except (SQLAlchemyError, OSError) as error:
        _fail(f"the database cannot be used: {getattr(error, 'orig', None) or error}")


def _fail(message: str) -> None:
    typer.echo(f"commitcast: {' '.join(message.split())}", err=True)
    sys.exit(2)


def _optional(module: str, name: str, extra: str) -> Callable[..., Any] | None:
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        reason = str(error)

        def missing() -> None:
            _fail(f"{reason}; install it with: pip install 'commitcast[{extra}]'")

        missing.__doc__ = f"Needs the extra commitcast[{extra}]."
        return missing
    return function


def _add_optional() -> None:
    """Add the commands whose options live beside their code."""
    asked = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    for target, name, module, extra in (
        (app, "demo", "commitcast.demo.command", "demo"),
        (app, "bench", "commitcast.bench.command", "bench"),
        (chaos, "kill", "commitcast.chaos.command", "chaos"),
        (chaos, "stop", "commitcast.chaos.command", "chaos"),
    ):
        if asked in {None, "chaos" if target is chaos else name}:
            function = _optional(module, name, extra)
            if function is not None:
                target.command(name)(function)


_add_optional()
