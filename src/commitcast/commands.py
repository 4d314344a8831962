"""The commands of ``commitcast``; each imports what it needs when it is called."""

from __future__ import annotations

import asyncio
import importlib
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from commitcast.encoding import to_json
from commitcast.errors import CommitcastError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from commitcast.attempt import Attempt
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
    user: Annotated[str | None, typer.Option(help="Erase what there is of this user.")] = None,
    user_stream: Annotated[
        str | None,
        typer.Option(help="The user's own stream, where the coordinator is given user_stream=."),
    ] = None,
    schema: Schema = None,
    prefix: Prefix = None,
) -> None:
    """Remove a stream, or a person's data."""
    named = {} if user_stream is None else {"user_stream": lambda _user: user_stream}
    gone = _with_coordinator(
        database_url, schema, prefix, lambda c: c.erase(stream=stream, user=user), **named
    )
    typer.echo(f"Erased {gone}.")


@app.command()
def trim(database_url: DatabaseUrl, schema: Schema = None, prefix: Prefix = None) -> None:
    """Apply the default retention (7 days, 100,000 events a stream) now."""
    gone = _with_coordinator(database_url, schema, prefix, lambda c: c.trim())
    typer.echo(f"Trimmed {gone} events.")


class State(StrEnum):
    """What `operations` lists."""

    OPEN = "open"
    UNKNOWN = "unknown"
    ROLLED_BACK = "rolled_back"
    COMMITTED = "committed"


@app.command()
def operations(
    database_url: DatabaseUrl,
    state: Annotated[
        list[State] | None,
        typer.Option(help="Only these; may be repeated. Default: open, unknown and rolled_back."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Newest of each state.")] = 50,
    json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    schema: Schema = None,
    prefix: Prefix = None,
) -> None:
    """List announced operations that are open, of unknown outcome, or rolled back.

    Unknown: without an outcome although its node is dead or its deadline has passed; the reaper of
    a running node settles it.
    """

    async def find(coordinator: Coordinator) -> list[tuple[State, Attempt]]:
        wanted = state or [State.OPEN, State.UNKNOWN, State.ROLLED_BACK]
        return [
            (s, a)
            for s in wanted
            for a in await coordinator.operations(s, everyone=True, limit=limit)
        ]

    for one, attempt in _with_coordinator(database_url, schema, prefix, find):
        typer.echo(_json_line(one, attempt) if json else _line(one, attempt))


def _line(state: State, attempt: Attempt) -> str:
    named = f"{attempt.name} of {attempt.actor}" if attempt.actor else attempt.name
    more = f"  {attempt.error}" if attempt.error else ""
    return (
        f"{state:<12} {_when(attempt.announced_at)}  {attempt.id}.{attempt.attempt}  {named}{more}"
    )


def _json_line(state: State, attempt: Attempt) -> str:
    shown = {
        "state": state, "id": attempt.id, "attempt": attempt.attempt, "name": attempt.name,
        "actor": attempt.actor, "node": attempt.node, "error": attempt.error,
        "announced_at": _when(attempt.announced_at), "deadline": _when(attempt.deadline),
        "decided_at": None if attempt.decided_at is None else _when(attempt.decided_at),
    }  # fmt: skip
    return to_json(shown, "an operation").decode()


def _when(moment: object) -> str:
    """A time as both databases keep it: SQLite as text, PostgreSQL in any time zone."""
    if not isinstance(moment, datetime):
        return str(moment)
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _with_coordinator(
    url: str,
    schema: str | None,
    prefix: str | None,
    work: Callable[[Coordinator], Awaitable[Any]],
    **options: Any,
) -> Any:
    from sqlalchemy.ext.asyncio import create_async_engine

    from commitcast import sqlite
    from commitcast.coordinator import Coordinator

    async def run() -> Any:
        engine = create_async_engine(url)
        if engine.dialect.name == "sqlite":
            sqlite.configure(engine)
        coordinator = Coordinator(engine, schema=schema, prefix=prefix, **options)
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
        (app, "audit", "commitcast.audit.command", "audit"),
        (chaos, "kill", "commitcast.chaos.command", "chaos"),
        (chaos, "stop", "commitcast.chaos.command", "chaos"),
    ):
        if asked in {None, "chaos" if target is chaos else name}:
            function = _optional(module, name, extra)
            if function is not None:
                target.command(name)(function)


_add_optional()
