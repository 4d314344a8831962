"""`commitcast chaos kill`: what one types to see the guarantees hold, or not."""

import asyncio
import json
import random
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from commitcast.chaos.campaign import Campaign
from commitcast.chaos.database import Database, temporary
from commitcast.chaos.report import Report

_EVERY = 10


def kill(
    kills: Annotated[int, typer.Option(min=1, help="How often the server is killed.")] = 200,
    database: Annotated[
        Database, typer.Option(help="A new database of this kind, in a temporary directory.")
    ] = Database.SQLITE,
    database_url: Annotated[
        str | None,
        typer.Option(
            help="Use this database instead (SQLAlchemy URL of an async driver). Commitcast's "
            "tables are created there; the campaign's own table and streams are removed at the end."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Repeats the instants and the work, not the machine's timing."),
    ] = None,
    deliver: Annotated[
        bool, typer.Option(help="Also check a deliver= callable: at least once, in order.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Kill a loaded server with kill -9, again and again, and check that no guarantee broke.

    Exit status 1 if one did, or if the server failed in a way of its own.
    """
    chosen = random.SystemRandom().getrandbits(31) if seed is None else seed
    report = asyncio.run(_run(database, database_url, kills=kills, seed=chosen, deliver=deliver))
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        typer.echo(report.as_text())
    if not report.passed:
        raise typer.Exit(1)


async def _run(
    database: Database, url: str | None, *, kills: int, seed: int, deliver: bool
) -> Report:
    with tempfile.TemporaryDirectory(prefix="commitcast-chaos-") as directory:

        async def campaign(at: str) -> Report:
            return await Campaign(
                at, Path(directory), kills=kills, seed=seed, deliver=deliver, progress=progress
            ).run()

        def progress(report: Report) -> None:
            if report.kills % _EVERY == 0:
                typer.echo(f"{report.kills} of {kills} kills, {report.commits} commits", err=True)

        if url is not None:
            return await campaign(url)
        async with temporary(database) as own:
            return await campaign(own)
