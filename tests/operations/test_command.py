"""`commitcast operations`, as an operator types it."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

import pytest

from commitcast.attempt import Announcement
from commitcast.log import Log
from commitcast.outcome import Outcomes

if TYPE_CHECKING:
    from conftest import Database

pytestmark = pytest.mark.anyio


async def run(database: Database, *options: str) -> tuple[int, str, str]:
    url = database.url.render_as_string(hide_password=False)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "commitcast", "operations", "--database-url", url, *options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), err.decode()


async def test_operations_are_listed_by_state_with_their_errors(database: Database) -> None:
    coordinator = database.coordinator()
    async with coordinator:
        async with coordinator.operation("save", user="ann") as saved, saved.begin():
            pass
        with pytest.raises(ZeroDivisionError):
            async with coordinator.operation("divide", user="bob") as failed:
                _ = 1 / 0
        async with coordinator.operation("wait", user="cid") as waiting:
            status, shown, _ = await run(database)
            assert status == 0
            lines = sorted(line.split() for line in shown.splitlines())
            assert [(line[0], line[2], *line[3:]) for line in lines] == [
                ("open", f"{waiting.id}.1", "wait", "of", "cid"),
                ("rolled_back", f"{failed.id}.1", "divide", "of", "bob", "ZeroDivisionError"),
            ]
            status, shown, _ = await run(database, "--state", "committed", "--json")
            (line,) = map(json.loads, shown.splitlines())
            assert (line["state"], line["id"], line["name"]) == ("committed", saved.id, "save")
            assert line["announced_at"] <= line["decided_at"] < line["deadline"]


async def test_an_open_operation_of_a_node_that_is_gone_is_of_unknown_outcome(
    database: Database,
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine)  # not running: nobody reaps
    outcomes = Outcomes(Log(coordinator.tables, engine.sync_engine.dialect))
    left = Announcement("0" * 32, "wait", "gone", 1, 60.0, ("user:ann",), "ann")
    async with engine.begin() as conn:
        await conn.run_sync(outcomes.announce, [left])
    status, shown, _ = await run(database)
    assert (status, shown.split()[0], shown.split()[2]) == (0, "unknown", f"{left.id}.1")


async def test_a_database_without_the_tables_is_told_in_one_line(database: Database) -> None:
    status, _, told = await run(database, "--prefix", "other_")
    assert status == 2
    assert told.startswith("commitcast: ")
    assert told.count("\n") == 1
