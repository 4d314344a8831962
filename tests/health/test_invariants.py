"""What must hold is proven from the database: each proof is seen to fail on prepared data."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, insert, update

from commitcast import CommittedEvent, CoordinationHealthMonitor, HealthAlert, LayerPair
from commitcast.delivery import Delivery
from commitcast.invariants import Prover
from commitcast.notification import NOTIFICATION_TYPE, RollbackNotification
from commitcast.reaper import Reaper

from .site import PATIENCE_S, Clock, say, until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from commitcast import Coordinator
    from conftest import Database

pytestmark = pytest.mark.anyio

QUIET: Any = {"drain_s": 0, "invariants_every_s": 0}
SOCKET, NOTICE = LayerPair.DATABASE_SOCKET, LayerPair.ROLLBACK_NOTIFICATION


def recorded(coordinator: Coordinator, name: str) -> tuple[int, int]:
    """Steps of one invariant, and how many of them are broken."""
    coordinator.health.totals()  # counts what was recorded
    counts = [
        c
        for slot in coordinator.health._slots
        for (kind, _), c in slot.counts.items()
        if kind == f"invariant.{name}"
    ]
    return sum(c.steps for c in counts), sum(c.broken for c in counts)


def ago(database: Database, seconds: float) -> Any:
    """A time as the tables hold it."""
    moment = datetime.now(UTC) - timedelta(seconds=seconds)
    if database.kind == "postgresql":
        return moment
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def run(database: Database, statement: Any) -> None:
    async with database.engine().begin() as conn:
        await conn.execute(statement)


async def fail(coordinator: Coordinator) -> None:
    with pytest.raises(KeyError):
        async with coordinator.operation("save", user="ann", stream="thread:7"):
            raise KeyError


async def test_what_holds_is_one_good_step_of_each_pair(database: Database) -> None:
    engine, taken = database.engine(), asyncio.Event()
    coordinator = database.coordinator(engine, deliver=lambda _event: taken.set(), **QUIET)
    async with coordinator, coordinator.subscribe("thread:7") as subscription:
        await coordinator.check_invariants()
        for name in ("undelivered", "heads", "overdue", "notices"):
            assert recorded(coordinator, name) == (1, 0), name
        await say(engine, "thread:7", "said")
        await anext(subscription)
        await taken.wait()
        await fail(coordinator)
        await until(lambda: not coordinator.counts()["operations_open"])

        async with asyncio.timeout(PATIENCE_S):
            proven = await coordinator.check_invariants()
            while proven.oldest_undelivered_s:  # deliver returned; that is not confirmed yet
                proven = await coordinator.check_invariants()
        assert coordinator.invariants is proven
        assert proven.as_dict() == {
            "checked_at": proven.checked_at.isoformat(timespec="milliseconds"),
            "oldest_undelivered_s": 0,
            "streams_behind": 0,
            "operations_overdue": 0,
            "notices_unsent": 0,
            "error": None,
        }
        for name in ("undelivered", "heads", "overdue", "notices"):
            assert recorded(coordinator, name)[1] == 0, name


async def test_what_holds_does_not_dilute_what_happened(database: Database) -> None:
    clock = Clock()
    health = CoordinationHealthMonitor(clock=clock, window_minutes=2)
    coordinator = database.coordinator(health=health, **QUIET)
    async with coordinator:
        health.track_coordination_event("transaction_rolled_back", NOTICE, 9_000.0)
        for _ in range(3):
            await coordinator.check_invariants()
        assert health.get_health_score().by_pair[NOTICE] == 0
        assert NOTICE in health.alerting
        clock.now += 120
        await coordinator.check_invariants()  # the window is over, and all is well
        assert health.get_health_score().by_pair[NOTICE] == 100
        assert not health.alerting
        assert recorded(coordinator, "overdue") == (1, 0)


async def test_an_event_that_deliver_was_not_given_for_long_is_broken(database: Database) -> None:
    def away(_event: CommittedEvent) -> None:
        raise ConnectionError

    engine = database.engine()
    coordinator = database.coordinator(engine, deliver=away, invariants_stale_s=30, **QUIET)
    events = coordinator.tables.events
    async with coordinator:
        await say(engine, "thread:7", "said", "said")
        proven = await coordinator.check_invariants()
        assert proven.oldest_undelivered_s is not None
        assert 0 <= proven.oldest_undelivered_s < 30
        assert recorded(coordinator, "undelivered") == (1, 0)
        await run(database, update(events).values(created_at=ago(database, 90)))
        proven = await coordinator.check_invariants()
        assert proven.oldest_undelivered_s == pytest.approx(90, abs=25)
        assert recorded(coordinator, "undelivered") == (2, 1)
        assert "relay default" in coordinator.health.recent_breaches()[-1].detail


async def test_a_relay_whose_node_died_is_seen_by_every_node_and_one_that_left_is_not(
    database: Database,
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, **QUIET)
    tables = coordinator.tables
    await run(database, insert(tables.relays).values(name="old", owner=None))
    await say(engine, "thread:7", "said")
    await run(database, update(tables.events).values(created_at=ago(database, 90)))
    async with coordinator:
        assert (await coordinator.check_invariants()).oldest_undelivered_s is None
        assert recorded(coordinator, "undelivered") == (0, 0)
        await run(database, update(tables.relays).values(owner="dead"))
        await coordinator.check_invariants()
        assert recorded(coordinator, "undelivered") == (1, 1)


async def test_a_stream_that_this_node_does_not_follow_is_broken_after_two_polls(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    health = CoordinationHealthMonitor(clock=clock)
    coordinator = database.coordinator(health=health, poll_interval_s=1, **QUIET)
    other = database.engine()
    database.coordinator(other, **QUIET)

    async def blind(_self: Delivery) -> None: ...

    await say(other, "thread:7", "said")
    async with coordinator, coordinator.subscribe("thread:7"):
        delivery = coordinator._delivery
        assert delivery is not None
        with monkeypatch.context() as blinded:
            blinded.setattr(Delivery, "poll", blind)
            await say(other, "thread:7", "said")
            assert (await coordinator.check_invariants()).streams_behind == 0  # may be on its way
            clock.now += 1
            assert (await coordinator.check_invariants()).streams_behind == 0  # no poll was due
            clock.now += 1
            assert (await coordinator.check_invariants()).streams_behind == 1
            assert recorded(coordinator, "heads") == (3, 1)
            await say(other, "thread:7", "said")
            delivery._feeds["thread:7"].edge += 1  # slow, but not stuck
            assert (await coordinator.check_invariants()).streams_behind == 0
            delivery._feeds["thread:7"].edge -= 1
        await delivery.poll()
        await until(lambda: delivery.places()["thread:7"][1] == 3)
        assert (await coordinator.check_invariants()).streams_behind == 0


async def test_g6_an_operation_that_is_open_long_after_its_deadline_is_broken(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asleep(_self: Reaper) -> int:
        return 0

    monkeypatch.setattr(Reaper, "look", asleep)
    coordinator = database.coordinator(**QUIET)
    operations = coordinator.tables.operations
    async with coordinator:
        async with coordinator.operation("save", user="ann"):
            assert (await coordinator.check_invariants()).operations_overdue == 0
            await run(database, update(operations).values(deadline=ago(database, 5)))
            assert (await coordinator.check_invariants()).operations_overdue == 0  # in the lease
            await run(database, update(operations).values(deadline=ago(database, 15)))
            assert (await coordinator.check_invariants()).operations_overdue == 1
            assert recorded(coordinator, "overdue") == (3, 1)
        async with coordinator.operation("save", user="ann") as op, op.begin():
            pass
        await run(database, update(operations).values(deadline=ago(database, 15)))
        assert (await coordinator.check_invariants()).operations_overdue == 0  # it has an outcome


async def test_g6_a_rollback_whose_notice_is_not_in_the_log_is_broken(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, **QUIET)
    events, operations = coordinator.tables.events, coordinator.tables.operations
    await say(engine, "thread:7", "said")
    await run(database, update(events).values(created_at=ago(database, 90)))
    async with coordinator:
        await fail(coordinator)
        assert (await coordinator.check_invariants()).notices_unsent == 0

        def nothing(*_args: object) -> Sequence[Any]:
            return []

        with monkeypatch.context() as silent:
            silent.setattr(RollbackNotification, "encoded", nothing)
            await fail(coordinator)
        assert (await coordinator.check_invariants()).notices_unsent == 1
        assert recorded(coordinator, "notices") == (1, 1)
        assert "operation save" in coordinator.health.recent_breaches()[-1].detail
        # Where the log no longer reaches back to the failure nothing is claimed.
        await run(database, delete(events).where(events.c.type == "said"))
        assert (await coordinator.check_invariants()).notices_unsent == 0
        await run(database, delete(events).where(events.c.type == NOTIFICATION_TYPE))
        assert (await coordinator.check_invariants()).notices_unsent == 0
        await run(database, delete(operations))
        assert (await coordinator.check_invariants()).notices_unsent == 0


async def test_a_database_that_cannot_be_asked_is_named_and_proves_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = database.coordinator(**QUIET)
    async with coordinator:

        async def away(*_args: object) -> Any:
            raise OSError("password is swordfish")

        monkeypatch.setattr(coordinator._prover, "_overdue", away)
        proven = await coordinator.check_invariants()
        assert proven.error == "OSError"
        assert proven.notices_unsent is None
        assert coordinator.health.get_health_score().overall is None
        assert "swordfish" not in str(coordinator.health_report())


async def test_invariants_and_alerts_run_by_themselves_without_any_traffic(
    database: Database,
) -> None:
    health = CoordinationHealthMonitor(level="basic")
    alerted, sent = asyncio.Event(), list[HealthAlert]()

    def take(alert: HealthAlert) -> None:
        sent.append(alert)
        alerted.set()

    health.on_alert(take)
    coordinator = database.coordinator(
        health=health, drain_s=0, invariants_every_s=0.02, health_check_every_s=0.02
    )
    async with coordinator:
        await until(lambda: coordinator.invariants is not None)
        assert not sent
        health.track_coordination_event("said", SOCKET, None)
        async with asyncio.timeout(PATIENCE_S):
            await alerted.wait()
    assert {alert.layers for alert in sent} >= {SOCKET}


async def test_a_monitor_that_raises_once_is_asked_again(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(CoordinationHealthMonitor):
        checks = 0

        def check(self) -> list[HealthAlert]:
            self.checks += 1
            raise RuntimeError

    health = Broken()
    coordinator = database.coordinator(
        health=health, drain_s=0, invariants_every_s=0.02, health_check_every_s=60
    )
    with caplog.at_level("CRITICAL", logger="commitcast"):
        async with coordinator:
            await until(lambda: health.checks > 1)


@pytest.mark.parametrize("level", ["off", "basic", "full"])
async def test_at_level_off_the_database_is_not_asked(
    database: Database, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    asked: list[float] = []

    async def run(_self: Prover, every_s: float) -> None:
        asked.append(every_s)

    monkeypatch.setattr(Prover, "run", run)
    coordinator = database.coordinator(health=level, drain_s=0)
    async with coordinator:
        await asyncio.sleep(0)
    assert asked == ([] if level == "off" else [15.0])
