"""The command: starts a server for each program and lets the client drive them in turns."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from commitcast.bench.client import Measured, measure
from commitcast.bench.database import POOL_SIZE, prepared, temporary_postgresql
from commitcast.bench.programs import HEALTH_PROGRAMS, PROGRAMS
from commitcast.bench.report import Row, as_json, header, line, rows
from commitcast.bench.server import URL_VARIABLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_STOP_WITHIN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure."""

    concurrency: tuple[int, ...]
    seconds: float
    rounds: int
    programs: tuple[str, ...] = PROGRAMS


def bench(
    database_url: Annotated[
        str | None,
        typer.Option(
            envvar="COMMITCAST_DATABASE_URL",
            help="SQLAlchemy URL; its tables are the benchmark's own and are dropped. "
            "Default: the wheel's PostgreSQL in a temporary directory, fsync on.",
        ),
    ] = None,
    concurrency: Annotated[
        str, typer.Option(help="Operations at once; several, separated by commas.")
    ] = "1,16,64",
    seconds: Annotated[float, typer.Option(min=0.05, help="Length of one turn.")] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each program.")] = 5,
    health: Annotated[
        bool,
        typer.Option(
            "--health",
            help="Measure what health costs instead: level full, its ratio to level off.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """Measure commit-with-event beside `commit(); send()`, in one run on this machine."""
    programs = HEALTH_PROGRAMS if health else PROGRAMS
    plan = Plan(_numbers(concurrency), seconds, rounds, programs)
    say: Callable[[str], None] = (lambda _: None) if json else typer.echo
    with ExitStack() as stack:
        url = database_url or stack.enter_context(temporary_postgresql())
        found = asyncio.run(run(url, plan, say))
    if json:
        typer.echo(as_json(found))


async def run(database_url: str, plan: Plan, say: Callable[[str], None]) -> list[Row]:
    """Measure as planned; `say` is given the table line by line, as it becomes known."""
    found: list[Row] = []
    async with AsyncExitStack() as stack:
        described = await stack.enter_async_context(prepared(database_url))
        ports = {
            program: await stack.enter_async_context(_server(program, database_url))
            for program in plan.programs
        }
        say(
            f"{described.version}, {described.durability}; Python {platform.python_version()}, "
            f"{os.cpu_count()} cores, pool {POOL_SIZE}, {plan.rounds} rounds of {plan.seconds:g} s"
        )
        say(header())
        for concurrency in plan.concurrency:
            turns: list[dict[str, Measured]] = []
            for number in range(plan.rounds):
                # Each round begins with another program, and every second cycle runs backwards,
                # so that a drift of the machine (writeback, heat) meets all of them alike.
                shift = number % len(plan.programs)
                order = plan.programs[shift:] + plan.programs[:shift]
                if number // len(plan.programs) % 2:
                    order = order[::-1]
                turn = {p: await measure(ports[p], concurrency, plan.seconds) for p in order}
                turns.append({program: turn[program] for program in plan.programs})
            for row in rows(concurrency, turns):
                found.append(row)
                say(line(row))
    return found


@asynccontextmanager
async def _server(program: str, database_url: str) -> AsyncIterator[int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "commitcast.bench.server",
        program,
        stdout=asyncio.subprocess.PIPE,
        # one seed for all: two processes of one program differ by some percent for that alone
        env={**os.environ, URL_VARIABLE: database_url, "PYTHONHASHSEED": "0"},
    )
    try:
        if process.stdout is None:
            raise RuntimeError("the server has no standard output")
        port = await process.stdout.readline()
        if not port:
            raise RuntimeError(f"the server of {program!r} did not start; its error is above")
        yield int(port)
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_WITHIN_S)
        except TimeoutError:
            process.kill()
            await process.wait()


def _numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 1,16,64")
    return found
