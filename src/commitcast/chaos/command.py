"""`commitcast chaos kill` and `stop`: what one types to see the guarantees hold, or not."""

import asyncio
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from commitcast.chaos.campaign import Campaign
from commitcast.chaos.database import Database, temporary
from commitcast.chaos.report import Report
from commitcast.chaos.stops import StopCampaign
from commitcast.chaos.trial import Trial

_EVERY = 10


_DATABASE = Annotated[
    Database, typer.Option(help="A new database of this kind, in a temporary directory.")
]
_DATABASE_URL = Annotated[
    str | None,
    typer.Option(
        help="Use this database instead (SQLAlchemy URL of an async driver). Commitcast's "
        "tables are created there; the campaign's own tables, streams and operations are "
        "removed at the end."
    ),
]
_SEED = Annotated[
    int | None, typer.Option(help="Repeats the instants and the work, not the machine's timing.")
]
_DELIVER = Annotated[
    bool, typer.Option(help="Also check a deliver= callable: at least once, in order.")
]
_JSON = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


def kill(
    kills: Annotated[int, typer.Option(min=1, help="How often the server is killed.")] = 200,
    database: _DATABASE = Database.SQLITE,
    database_url: _DATABASE_URL = None,
    seed: _SEED = None,
    deliver: _DELIVER = True,
    as_json: _JSON = False,
) -> None:
    """Kill a loaded server with kill -9, again and again, and check that no guarantee broke.

    Exit status 1 if one did, or if the server failed in a way of its own.
    """

    def campaign(url: str, directory: Path, chosen: int) -> Trial:
        return Campaign(
            url, directory, kills=kills, seed=chosen, deliver=deliver,
            progress=lambda report: _progress(report.kills, kills, report),
        )  # fmt: skip

    _report(campaign, database, database_url, seed, as_json=as_json)


def stop(
    stops: Annotated[int, typer.Option(min=1, help="How often a server is stopped.")] = 100,
    database: _DATABASE = Database.POSTGRESQL,
    database_url: _DATABASE_URL = None,
    seed: _SEED = None,
    deliver: _DELIVER = True,
    as_json: _JSON = False,
) -> None:
    """Stop one of two loaded servers (SIGSTOP), past its lease or not, and let it go on.

    Checks what `kill` checks, with the same exit status.
    """

    def campaign(url: str, directory: Path, chosen: int) -> Trial:
        return StopCampaign(
            url, directory, stops=stops, seed=chosen, deliver=deliver,
            progress=lambda report: _progress(report.stops, stops, report),
        )  # fmt: skip

    _report(campaign, database, database_url, seed, as_json=as_json)


def _report(
    campaign: Callable[[str, Path, int], Trial],
    database: Database,
    url: str | None,
    seed: int | None,
    *,
    as_json: bool,
) -> None:
    chosen = random.SystemRandom().getrandbits(31) if seed is None else seed
    report = asyncio.run(_run(campaign, database, url, chosen))
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        typer.echo(report.as_text())
    if not report.passed:
        raise typer.Exit(1)


async def _run(
    campaign: Callable[[str, Path, int], Trial], database: Database, url: str | None, seed: int
) -> Report:
    with tempfile.TemporaryDirectory(prefix="commitcast-chaos-") as directory:
        if url is not None:
            return await campaign(url, Path(directory), seed).run()
        async with temporary(database) as own:
            return await campaign(own, Path(directory), seed).run()


def _progress(done: int, of: int, report: Report) -> None:
    if done % _EVERY == 0:
        typer.echo(f"{done} of {of}, {report.commits} commits", err=True)
