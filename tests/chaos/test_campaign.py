"""Short campaigns on each database; `commitcast chaos kill` and `stop` are the long ones."""

import sys
from pathlib import Path

import pytest

from commitcast.chaos.campaign import Campaign
from commitcast.chaos.database import Database, temporary
from commitcast.chaos.stops import StopCampaign

KILLS = 10
STOPS = 5


@pytest.mark.anyio
@pytest.mark.parametrize("database", list(Database))
async def test_g1_to_g6_hold_through_kill_9(database: Database, tmp_path: Path) -> None:
    async with temporary(database) as url:
        report = await Campaign(url, tmp_path, kills=KILLS, seed=11).run()
    assert report.errors == []
    assert report.violations == []
    assert KILLS <= report.kills <= 4 * KILLS
    assert report.received_across_a_kill > 0
    assert report.reconnects >= report.kills
    assert report.rollbacks > 0
    assert report.operations == report.committed + report.rolled_back


@pytest.mark.anyio
@pytest.mark.parametrize("database", list(Database))
async def test_g1_to_g6_hold_when_a_node_is_stopped_and_goes_on(
    database: Database, tmp_path: Path
) -> None:
    async with temporary(database) as url:
        report = await StopCampaign(url, tmp_path, stops=STOPS, seed=11).run()
    assert report.errors == []
    assert report.violations == []
    assert report.stops == STOPS
    assert report.stops_past_lease > 0
    assert report.operations == report.committed + report.rolled_back
    if database is Database.SQLITE:
        assert report.taken_for_dead == 0


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
        ("tell_nobody", 3, "G6"),
        ("tell_twice", 3, "G6"),
        ("tell_after_the_outcome", 25, "G6"),
        ("insert_no_outcome", 3, "G6"),
        ("declare_nobody_dead", 5, "G6"),
        ("try_again_whatever_came_of_it", 20, "G6"),
    ],
)
async def test_campaign_finds_what_is_broken_on_purpose(
    database: Database, sabotage: str, kills: int, breach: str, tmp_path: Path
) -> None:
    program = (sys.executable, str(Path(__file__).with_name("saboteur.py")), sabotage)
    async with temporary(database) as url:
        report = await Campaign(url, tmp_path, kills=kills, seed=11, program=program).run()
    assert breach in {violation.guarantee for violation in report.violations}


@pytest.mark.anyio
@pytest.mark.campaign
async def test_campaign_of_stops_finds_a_commit_that_came_too_late(tmp_path: Path) -> None:
    program = (sys.executable, str(Path(__file__).with_name("saboteur.py")), "commit_too_late")
    async with temporary(Database.POSTGRESQL) as url:
        report = await StopCampaign(url, tmp_path, stops=15, seed=11, program=program).run()
    breaches = {violation.breach for violation in report.violations}
    assert "work without the outcome committed" in breaches
