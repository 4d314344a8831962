"""What looks like a breach and is none: state told in order, old commits, operations."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from commitcast.score import LayerPair

from .stage import Note, Run

if TYPE_CHECKING:
    from commitcast.audit import Shadow

    from .stage import Stage

pytestmark = pytest.mark.anyio


async def test_a_state_that_the_row_had_before_is_late_and_not_apart(
    stage: Stage, shadow: Shadow
) -> None:
    shadow.watch_state(Run, lambda message: (message["run"], message["status"]))
    async with stage.sessions.begin() as session:
        session.add(run := Run(status="running"))
    async with stage.sessions.begin() as session:
        (await session.get_one(Run, run.id)).status = "completed"

    @shadow.sends
    def tell(_message: dict[str, Any]) -> None: ...

    tell({"run": run.id, "status": "running"})
    tell({"run": run.id, "status": "completed"})
    shadow.finish()
    counts = shadow.report().score.counts[LayerPair.AGENT_STATE]
    assert (counts.steps, counts.broken, shadow.report().findings) == (2, 0, ())
    assert counts.worst_ms > 0


async def test_a_send_is_timed_from_the_commit_of_its_own_task_and_not_from_what_that_inherited(
    stage: Stage, shadow: Shadow
) -> None:
    @shadow.sends
    async def tell(_message: dict[str, Any]) -> None: ...

    async def heartbeat() -> None:
        await tell({"type": "heartbeat"})

    def timed() -> int:
        return shadow.report().score.counts[LayerPair.DATABASE_SOCKET].steps

    async with stage.sessions.begin() as session:
        session.add(Note(text="a"))
        await session.flush()
    await asyncio.create_task(heartbeat())
    assert timed() == 0
    await tell({"type": "note"})
    assert timed() == 1


async def test_the_rollback_of_an_announced_operation_is_told_by_commitcast(
    stage: Stage, shadow: Shadow
) -> None:
    async def work() -> None:
        with pytest.raises(ZeroDivisionError):
            async with (
                coordinator.operation("work", user="ann") as operation,
                operation.begin() as session,
            ):
                session.add(Note(text="a"))
                await session.flush()
                raise ZeroDivisionError

    async with stage.database.coordinator(stage.engine) as coordinator:
        await asyncio.create_task(work())
    shadow.finish()
    assert (shadow.report().rollbacks, shadow.report().findings) == (1, ())
