"""A short campaign on each database; `commitcast chaos kill` is the long one."""

import sys
from pathlib import Path

import pytest

from commitcast.chaos.campaign import Campaign
from commitcast.chaos.database import Database, temporary

KILLS = 10


@pytest.mark.anyio
@pytest.mark.parametrize("database", list(Database))
async def test_g1_to_g5_hold_through_kill_9(database: Database, tmp_path: Path) -> None:
    async with temporary(database) as url:
        report = await Campaign(url, tmp_path, kills=KILLS, seed=11).run()
    assert report.errors == []
    assert report.violations == []
    assert KILLS <= report.kills <= 4 * KILLS
    assert report.received_across_a_kill > 0
    assert report.reconnects >= report.kills
    assert report.rollbacks > 0


@pytest.mark.anyio
@pytest.mark.campaign
@pytest.mark.parametrize("database", list(Database))
@pytest.mark.parametrize(
    ("sabotage", "kills", "breach"),
    [
        ("send_before_commit", 5, "G1"),
        ("keep_what_was_rolled_back", 3, "G2"),
        ("skip_the_replay", 3, "G3"),
        ("hear_no_commit", 3, "G3"),
        ("replay_one_too_many", 3, "G5"),
        ("emit_after_the_commit", 25, "G3"),
    ],
)
async def test_campaign_finds_what_is_broken_on_purpose(
    database: Database, sabotage: str, kills: int, breach: str, tmp_path: Path
) -> None:
    program = (sys.executable, str(Path(__file__).with_name("saboteur.py")), sabotage)
    async with temporary(database) as url:
        report = await Campaign(url, tmp_path, kills=kills, seed=11, program=program).run()
    assert breach in {violation.guarantee for violation in report.violations}
