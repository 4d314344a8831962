from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import inspect
from sqlalchemy.ext.asyncio import create_async_engine

from commitcast.bench.client import Measured
from commitcast.bench.programs import HEALTH_PROGRAMS, PROGRAMS
from commitcast.bench.report import as_json, header, line, rows

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import URL

MS = 1_000_000


def measured(ops_per_s: float, *latencies_ms: int) -> Measured:
    return Measured(ops_per_s, [ms * MS for ms in latencies_ms], [MS for _ in latencies_ms])


def test_a_ratio_is_the_median_of_what_each_round_gave() -> None:
    turns = [
        {"plain": measured(100, 1), "coordinated": measured(90, 1)},
        {"plain": measured(1000, 1), "coordinated": measured(800, 1)},
        {"plain": measured(10, 1), "coordinated": measured(10, 1)},
    ]
    plain, coordinated = rows(16, turns)
    assert (plain.figures.ratio, coordinated.figures.ratio) == (1.0, 0.9)
    assert (plain.figures.ops_per_s, coordinated.figures.ops_per_s) == (100, 90)


def test_the_ratio_of_full_health_is_to_none_in_the_same_round() -> None:
    turns = [
        {
            "plain": measured(200, 1),
            "health_off": measured(off, 1),
            "health_full": measured(full, 1),
        }
        for off, full in ((100, 98), (10, 9.8), (50, 25))
    ]
    ratios = [row.figures.ratio for row in rows(16, turns)]
    assert ratios == [1.0, 0.25, 0.98]


def test_percentiles_are_over_the_operations_of_all_rounds() -> None:
    turns = [{"plain": measured(1, *range(1, 51))}, {"plain": measured(1, *range(51, 101))}]
    (row,) = rows(1, turns)
    assert (row.figures.p50_ms, row.figures.p99_ms) == (51.0, 100.0)


def test_the_table_and_the_json_show_the_same_rows() -> None:
    (row,) = rows(16, [{"plain": measured(1234.56, 2, 3)}])
    assert json.loads(as_json([row])) == {
        "rows": [
            {
                "program": "plain",
                "concurrency": 16,
                "ops_per_s": 1234.6,
                "p50_ms": 3.0,
                "p50_added_ms": 0.0,
                "p99_ms": 3.0,
                "ratio": 1.0,
            }
        ]
    }
    assert len(line(row)) == len(header())


@pytest.mark.parametrize(
    ("kind", "options", "programs"),
    [
        ("sqlite", [], PROGRAMS),
        ("postgresql", [], PROGRAMS),
        ("sqlite", ["--health"], HEALTH_PROGRAMS),
    ],
)
@pytest.mark.anyio
async def test_the_command_measures_each_program_and_leaves_nothing_behind(
    kind: str,
    options: list[str],
    programs: tuple[str, ...],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    url: URL | str = f"sqlite+aiosqlite:///{tmp_path}/bench.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgresql_url").render_as_string(hide_password=False)
    done = subprocess.run(  # noqa: ASYNC221 - nothing else runs meanwhile
        [
            sys.executable, "-m", "commitcast", "bench", "--json", "--database-url", str(url),
            "--concurrency", "1,3", "--seconds", "0.2", "--rounds", "1", *options,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["rows"]
    assert [(row["program"], row["concurrency"]) for row in found] == [
        (program, concurrency) for concurrency in (1, 3) for program in programs
    ]
    assert all(row["ops_per_s"] > 0 and 0 < row["p50_ms"] <= row["p99_ms"] for row in found)
    engine = create_async_engine(url)
    async with engine.connect() as conn:
        left = await conn.run_sync(
            lambda c: [*inspect(c).get_table_names(), *inspect(c).get_schema_names()]
        )
    await engine.dispose()
    assert [name for name in left if name.startswith("commitcast_bench")] == []


def test_a_concurrency_that_is_no_number_is_refused_with_a_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "commitcast", "bench", "--concurrency", "many"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "is not a list of numbers" in done.stderr
