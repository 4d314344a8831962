"""The example: each fault that it has is found, and nothing else; with Commitcast there is none."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from commitcast.audit import Shadow
from commitcast.audit.serving import listen, serve
from commitcast.flags import Rollout
from commitcast.health import CoordinationHealthMonitor
from commitcast.score import LayerPair
from support_chat.app import create_app
from support_chat.drive import traffic
from support_chat.shadow import configure

if TYPE_CHECKING:
    from commitcast.audit import AuditReport
    from conftest import Database

pytestmark = pytest.mark.anyio

EXAMPLE = Path(__file__).parents[2] / "examples" / "support_chat"
PATIENT: dict[LayerPair | str, float] = {
    LayerPair.DATABASE_SOCKET: 60_000.0,
    LayerPair.AGENT_STATE: 60_000.0,
    LayerPair.ROLLBACK_NOTIFICATION: 60_000.0,
}


def marked() -> set[tuple[str, str]]:
    """What the comments in the example say: kind and place."""
    return {
        (kind, f"{path.name}:{number}")
        for path in EXAMPLE.glob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for said in re.findall(r"# fault: (.+)", line)
        for kind in said.split(", ")
    }


async def judged(
    database: Database, rollout: Rollout, *, enforced: bool
) -> tuple[AuditReport, dict[str, list[dict[str, Any]]]]:
    """The example's traffic under a Shadow whose monitor is the coordinator's as well."""
    monitor = CoordinationHealthMonitor(thresholds_ms=PATIENT)
    shadow = Shadow(monitor)
    configure(shadow)
    seen: dict[str, list[dict[str, Any]]] = {}

    async def drive(url: str) -> None:
        seen.update(await traffic(url, failures_are_told=enforced))

    with shadow:
        app = create_app(database.engine(), rollout=rollout, health=monitor)
        with listen("127.0.0.1", 0) as listener:
            async with asyncio.timeout(60):
                await serve(app, listener, drive=drive)
        shadow.finish()
    return shadow.report(), seen


async def test_as_first_written_every_fault_is_found_and_no_other_and_with_commitcast_none(
    database: Database,
) -> None:
    rollout = Rollout(enforce=0, shadow=100)

    report, seen = await judged(database, rollout, enforced=False)
    assert report.score.overall is not None
    assert report.score.overall < 70
    found = {(f.kind.value, f"{Path(f.site.file).name}:{f.site.line}") for f in report.findings}
    assert found == marked()
    assert any(message.get("text") == "You idiot" for message in seen["ann"])

    rollout.set(enforce=100)
    report, seen = await judged(database, rollout, enforced=True)
    assert report.findings == ()
    assert report.score.overall == 100
    assert report.sends > 50
    assert report.rollbacks > 0
    counts = report.score.counts
    assert counts[LayerPair.AGENT_STATE].steps > 0
    assert counts[LayerPair.ROLLBACK_NOTIFICATION].steps >= 2
    assert not any(message.get("text") == "You idiot" for message in seen["ann"])
