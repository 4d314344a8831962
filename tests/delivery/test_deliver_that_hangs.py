"""A `deliver=` that does not return for one stream holds up that stream alone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from commitcast.score import LayerPair

from .live import PATIENCE_S, say
from .test_relay import SocketLayer

if TYPE_CHECKING:
    from commitcast import CommittedEvent
    from conftest import Database

pytestmark = pytest.mark.anyio


class Hangs(SocketLayer):
    """Does not return for `dead`, as often as asked; heeds its cancellation unless told."""

    def __init__(self, *, dead: str = "thread:dead", times: int = 1, heeds: bool = True) -> None:
        super().__init__()
        self.dead, self.times, self.heeds = dead, times, heeds
        self.calls = 0
        self.let_go = asyncio.Event()

    async def deliver(self, event: CommittedEvent) -> None:
        if event.stream.startswith(self.dead) and self.calls < self.times:
            self.calls += 1
            while not self.let_go.is_set():
                try:
                    await self.let_go.wait()
                except asyncio.CancelledError:
                    if self.heeds:
                        raise
        self.send(event)


@pytest.mark.parametrize("heeds", [True, False])
async def test_g3_a_call_that_never_returns_holds_up_its_own_stream_alone(
    database: Database, heeds: bool
) -> None:
    engine, layer = database.engine(), Hangs(heeds=heeds)
    async with database.coordinator(engine, deliver=layer.deliver, poll_interval_s=0.05):
        await say(engine, "thread:dead", 1, 2)
        async with asyncio.timeout(PATIENCE_S):
            while not layer.calls:  # noqa: ASYNC110 - nobody signals it
                await asyncio.sleep(0.01)
        for n in range(3):
            await say(engine, "thread:7", n)
        await layer.until(lambda: layer.of("thread:7") == [0, 1, 2])
        assert layer.of("thread:dead") == []
        layer.let_go.set()
        await layer.until(lambda: layer.of("thread:dead") == [1, 2])


async def test_g4_past_its_deadline_a_call_is_cancelled_and_tried_again_in_order(
    database: Database,
) -> None:
    engine, layer = database.engine(), Hangs(times=2)
    coordinator = database.coordinator(
        engine, deliver=layer.deliver, poll_interval_s=0.05, deliver_limit_s=0.1
    )
    async with coordinator:
        await say(engine, "thread:dead", 1, 2, 3)
        await layer.until(lambda: layer.of("thread:dead") == [1, 2, 3])
        assert layer.calls == 2
        assert coordinator.health.totals()[LayerPair.DATABASE_SOCKET].counts.broken == 2
        assert coordinator.counts()["deliver_overdue"] == 0
        assert coordinator.readiness()["deliver"] is True


async def test_g3_more_streams_that_hang_than_there_are_places_hold_up_no_other(
    database: Database,
) -> None:
    engine, layer = database.engine(), Hangs(times=20)
    async with database.coordinator(engine, deliver=layer.deliver, poll_interval_s=0.05):
        for n in range(20):
            await say(engine, f"thread:dead-{n}", n)
        await say(engine, "thread:7", 1)
        await layer.until(lambda: layer.of("thread:7") == [1])
        layer.let_go.set()
        await layer.until(lambda: len(layer.taken) == 21)


async def test_g3_where_no_call_returns_the_node_is_not_ready_and_another_takes_over(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commitcast.relay._BUSY_AT_ONCE", 2)
    monkeypatch.setattr("commitcast.relay._GRACE_S", 0.1)
    monkeypatch.setattr("commitcast.relay._STOP_WITHIN_S", 0.1)
    options = {"poll_interval_s": 0.05, "relay_lease_s": 1.0, "deliver_limit_s": 0.1}
    first, hung = database.engine(), Hangs(times=2, heeds=False)
    second, well = database.engine(), SocketLayer()
    sick = database.coordinator(first, deliver=hung.deliver, **options)
    async with sick:
        await say(first, "thread:dead-1", 1)
        await say(first, "thread:dead-2", 2)
        async with asyncio.timeout(PATIENCE_S):
            while sick.readiness()["deliver"]:  # noqa: ASYNC110 - nobody signals it
                await asyncio.sleep(0.01)
        async with database.coordinator(second, deliver=well.send, **options):
            await well.until(lambda: len(well.taken) == 2)
        hung.let_go.set()
