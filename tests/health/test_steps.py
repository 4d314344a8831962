"""Steps are timed where they happen: over real sockets and both databases, each once."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from commitcast import CommittedEvent, CoordinationHealthMonitor, Event, LayerPair, emit
from commitcast.delivery import Delivery
from commitcast.outcome import Outcomes
from commitcast.subscription import Subscription

from .site import Clock, say, serving, until

if TYPE_CHECKING:
    from commitcast import Coordinator
    from conftest import Database

pytestmark = pytest.mark.anyio

BOUNDARY, SOCKET = LayerPair.TRANSACTION_BOUNDARY, LayerPair.DATABASE_SOCKET
NOTICE, ISOLATION = LayerPair.ROLLBACK_NOTIFICATION, LayerPair.ISOLATION
QUIET: Any = {"drain_s": 0, "invariants_every_s": 0}


def steps(coordinator: Coordinator) -> dict[str, Counter[LayerPair]]:
    """How many steps of each pair each event type has."""
    coordinator.health.totals()  # counts what was recorded
    found: dict[str, Counter[LayerPair]] = {}
    for slot in coordinator.health._slots:
        for (kind, pair), counts in slot.counts.items():
            found.setdefault(kind, Counter())[pair] += counts.steps
    return found


def broken(coordinator: Coordinator, pair: LayerPair) -> int:
    return coordinator.health.totals()[pair].counts.broken


def late(coordinator: Coordinator, pair: LayerPair) -> int:
    return coordinator.health.totals()[pair].counts.late


async def test_a_commit_is_one_boundary_step_and_one_frame_step_for_each_client(
    database: Database,
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, **QUIET)
    async with serving(coordinator) as site:
        clients = [await site.listen("thread:7"), await site.listen("thread:7", user="bob")]
        await say(engine, "thread:7", "said")
        await say(engine, "thread:7", "paid", "paid")
        for client in clients:
            assert await client.until("paid") == ["said", "paid"]
        await say(engine, "thread:7", "marker")
        for client in clients:
            await client.until("marker")  # it was written after the steps of the others were taken
        found = steps(coordinator)
        assert found["said"] == {BOUNDARY: 1, SOCKET: 2, ISOLATION: 2}
        assert found["paid"][BOUNDARY] == 1
        assert found["paid"][SOCKET] == 4  # two events and two clients
        assert 2 <= found["paid"][ISOLATION] <= 4  # one for each write
        totals = coordinator.health.totals()
        assert {p: t.counts.broken for p, t in totals.items() if t.counts.broken} == {}
        await until(lambda: coordinator.counts()["frames_written"] == 8)
        counts = coordinator.counts()
        assert counts["events_committed"] == counts["events_handed_over"] == 4
        assert counts["subscriptions"] == 2


async def test_a_replay_is_no_frame_step_but_may_be_a_breach_of_isolation(
    database: Database,
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, **QUIET)
    async with serving(coordinator) as site:
        first = await site.listen("thread:7")  # keeps the events in this node's memory
        await say(engine, "thread:7", "said", "said", "told")
        await first.until("told")
        again = await site.listen("thread:7", cursor="earliest")
        assert await again.until("told") == ["said", "said", "told"]
        await say(engine, "thread:7", "marker")
        await first.until("marker")
        await again.until("marker")
        await until(lambda: steps(coordinator)["marker"][SOCKET] == 2)
        assert steps(coordinator)["told"][SOCKET] == 1
        assert steps(coordinator)["said"][SOCKET] == 2
        assert steps(coordinator)["told"][ISOLATION] == 2


async def test_what_another_node_committed_is_not_timed_since_no_clock_is_shared(
    database: Database,
) -> None:
    here = database.coordinator(poll_interval_s=0.02, **QUIET)
    engine = database.engine()
    database.coordinator(engine, **QUIET)
    async with here, here.subscribe("thread:7") as subscription:
        await say(engine, "thread:7", "said")
        event = await anext(subscription)
        subscription.frame_written(event)
        assert event.committed_at is None
        assert steps(here) == {}


async def test_a_commit_in_a_thread_is_timed_in_that_thread(database: Database) -> None:
    coordinator = database.coordinator(**QUIET)
    driver = "sqlite" if database.kind == "sqlite" else "postgresql+psycopg"
    engine = create_engine(database.url.set(drivername=driver))
    coordinator.attach(engine)

    def commit() -> None:
        with Session(engine) as session:
            emit(session, "thread:7", Event("said"))
            session.commit()

    async with coordinator, coordinator.subscribe("thread:7") as subscription:
        await asyncio.to_thread(commit)
        event = await anext(subscription)
        subscription.frame_written(event)
        assert event.committed_at is not None
        assert steps(coordinator) == {"said": {BOUNDARY: 1, SOCKET: 1}}  # nobody asked for access
    engine.dispose()


async def test_a_frame_is_late_by_the_clock_of_its_write(database: Database) -> None:
    clock, engine = Clock(), database.engine()
    health = CoordinationHealthMonitor(clock=clock)
    coordinator = database.coordinator(engine, health=health, **QUIET)
    async with coordinator, coordinator.subscribe("thread:7") as subscription:
        for seconds in (0.1, 0.2):
            await say(engine, "thread:7", "said")
            event = await anext(subscription)
            clock.now += seconds
            subscription.frame_written(event)
        counts = health.totals()[SOCKET].counts
        assert (counts.steps, counts.late, counts.broken) == (2, 1, 0)
        assert counts.worst_ms == pytest.approx(200)


async def test_g1_events_handed_over_before_their_commit_are_broken(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Delivery, "written", Delivery._publish)
    engine = database.engine()
    coordinator = database.coordinator(engine, **QUIET)
    async with coordinator:
        await say(engine, "thread:7", "said")
        assert broken(coordinator, BOUNDARY) == 1
        (breach,) = coordinator.health.recent_breaches()
        assert breach.event_type == "said"
        assert "before its COMMIT" in breach.detail


async def test_g3_a_monitor_that_raises_fails_no_commit_no_frame_and_no_notice(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(CoordinationHealthMonitor):
        def track_coordination_event(self, *_args: Any, **_named: Any) -> None:
            raise RuntimeError("the statistics server is away")

    engine = database.engine()
    coordinator = database.coordinator(engine, health=Broken(), **QUIET)
    async with serving(coordinator) as site:
        client = await site.listen("thread:7")
        with caplog.at_level("CRITICAL", logger="commitcast"):
            await say(engine, "thread:7", "said")
            with pytest.raises(KeyError):
                async with coordinator.operation("save", user="ann", stream="thread:7"):
                    raise KeyError
            await client.until("transaction_rolled_back")
    assert coordinator.counts()["events_handed_over"] >= 2


async def test_g7_a_write_to_a_reader_whose_access_was_withdrawn_is_broken(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look_away(self: Subscription) -> None:
        if self._authorize is not None:
            self.allowed = await self._authorize()

    monkeypatch.setattr(Subscription, "_check_access", look_away)
    asked = Counter[str]()

    def authorize(user: str, _stream: str) -> bool:
        asked[user] += 1
        return user != "bob" or asked[user] <= 1  # withdrawn while he subscribes

    engine = database.engine()
    coordinator = database.coordinator(engine, **QUIET)
    async with serving(coordinator, authorize) as site:
        await say(engine, "thread:7", "past")
        for user, expected in (("ann", 0), ("bob", 1)):
            client = await site.listen("thread:7", cursor="earliest", user=user)
            await client.until("past")
            await until(lambda: steps(coordinator)["past"][ISOLATION] == len(asked))
            assert broken(coordinator, ISOLATION) == expected
        assert "access was withdrawn" in coordinator.health.recent_breaches()[0].detail


async def test_deliver_is_one_step_when_it_returned_however_often_it_failed(
    database: Database,
) -> None:
    clock, engine, done = Clock(), database.engine(), asyncio.Event()
    taken: list[str] = []

    def deliver(event: CommittedEvent) -> None:
        clock.now += 0.06
        if event.type == "poison" and not taken.count("poison"):
            taken.append("poison")
            raise ConnectionError("not now")
        if event.type == "marker":
            done.set()

    health = CoordinationHealthMonitor(clock=clock)
    coordinator = database.coordinator(
        engine, deliver=deliver, health=health, poll_interval_s=0.02, **QUIET
    )
    async with coordinator:
        await say(engine, "thread:7", "said")
        await until(lambda: steps(coordinator)["said"][SOCKET] == 1)
        assert late(coordinator, SOCKET) == 0
        await say(engine, "thread:7", "poison", "marker")
        await done.wait()
        await until(lambda: steps(coordinator)["marker"][SOCKET] == 1)
        found = steps(coordinator)
        assert (found["said"][SOCKET], found["poison"][SOCKET]) == (1, 1)
        assert late(coordinator, SOCKET) == 2  # after 120 and 180 ms
        relay = coordinator._delivery.on_committed.__self__  # type: ignore[union-attr]
        assert relay._committed_at == {}


async def test_g6_a_rolled_back_operation_is_one_notification_step_and_a_committed_one_none(
    database: Database,
) -> None:
    coordinator = database.coordinator(**QUIET)
    async with coordinator:
        operation = coordinator.operation("save", user="ann", stream="thread:7")
        async with operation as op, op.begin():
            op.emit(Event("saved"))
        assert NOTICE not in steps(coordinator)["saved"]
        assert coordinator.health.totals()[NOTICE].counts.steps == 0
        with pytest.raises(KeyError):
            async with coordinator.operation("save", user="ann", stream="thread:7"):
                raise KeyError
        counts = coordinator.health.totals()[NOTICE].counts
        assert (counts.steps, counts.broken) == (1, 0)
        assert steps(coordinator)["transaction_rolled_back"] == {NOTICE: 1, BOUNDARY: 1}


@pytest.mark.parametrize("away", [False, True])
async def test_g6_a_notice_that_had_to_wait_is_late_by_the_real_time(
    database: Database, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    clock, settle, calls = Clock(), Outcomes.settle, 0

    def slow(self: Outcomes, *args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        clock.now += 0.4
        if away and calls == 1:
            raise OSError("the database is away")
        return settle(self, *args, **named)

    monkeypatch.setattr(Outcomes, "settle", slow)
    health = CoordinationHealthMonitor(level="basic", clock=clock)
    coordinator = database.coordinator(health=health, **QUIET)
    async with coordinator:
        with pytest.raises(KeyError):
            async with coordinator.operation("save", user="ann"):
                raise KeyError
    counts = health.totals()[NOTICE].counts
    assert (counts.steps, counts.late, counts.broken) == (1, 1, 0)
    assert counts.worst_ms == pytest.approx(800 if away else 400)
    assert health.recent_breaches()[0].detail == "operation save"


@pytest.mark.parametrize("level", ["off", "basic"])
async def test_below_full_no_clock_is_read_for_a_commit_and_no_step_is_recorded(
    database: Database, level: str
) -> None:
    class Broken(Clock):
        armed = False

        def __call__(self) -> float:
            assert not self.armed, "a clock was read on the hot path"
            return self.now

    clock, engine = Broken(), database.engine()
    health = CoordinationHealthMonitor(level=level, clock=clock)
    coordinator = database.coordinator(engine, health=health, **QUIET)
    async with serving(coordinator) as site:
        client = await site.listen("thread:7")
        await say(engine, "thread:7", "said")  # the reader has caught up
        await client.until("said")
        clock.armed = True
        await say(engine, "thread:7", "paid", "marker")
        await client.until("marker")
        clock.armed = False
        with pytest.raises(KeyError):
            async with coordinator.operation("save", user="ann"):
                raise KeyError
        totals = health.totals()
        assert sum(t.counts.steps for t in totals.values()) == (1 if level == "basic" else 0)
        assert coordinator.counts()["events_committed"] == 4  # counted, since that is cheap


async def test_the_report_is_json_without_users_or_streams(database: Database) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, **QUIET)
    async with serving(coordinator) as site:
        client = await site.listen("thread:7")
        await say(engine, "thread:7", "said")
        await client.until("said")
        with pytest.raises(KeyError):
            async with coordinator.operation("save", user="ann", stream="thread:7"):
                raise KeyError
        coordinator.health.track_coordination_event("said", "database_socket", None, detail="a:1")
        await coordinator.check_invariants()
        report = coordinator.health_report()
    text = json.dumps(report, allow_nan=False)
    assert "ann" not in text
    assert "thread" not in text
    assert report["level"] == "full"
    assert report["by_pair"]["database_socket"]["threshold_ms"] == 100
    assert report["by_pair"]["cache"]["score"] is None
    assert report["breaches"][0]["detail"] == "a:1"
    assert report["node"] == dict.fromkeys(("running", "accepting", "database", "places"), True)
    assert report["invariants"]["error"] is None
    assert report["alerts"] == ["database_socket"]
