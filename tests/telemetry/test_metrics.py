"""What Prometheus and OpenTelemetry read is what happened, under names that they expect."""

from __future__ import annotations

import gc
import math
import re
import sys
import threading
import weakref
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from commitcast import (
    CoordinationHealthMonitor,
    Coordinator,
    Event,
    HealthLevel,
    LayerPair,
    Rollout,
    emit,
)
from commitcast.invariants import Invariants
from commitcast.metrics import CoordinatorCollector, Exposition
from commitcast.readings import READINGS
from commitcast.tracing import OpenTelemetry

from .live import listening, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import Database

pytestmark = pytest.mark.anyio
GAPS_MS = (0.2, 1.0, 1.1, 99.0, 100.0, 101.0, 9_000.0)
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
async def coordinator(anyio_backend: str) -> AsyncIterator[Coordinator]:
    """One that is not entered."""
    engine = create_async_engine("sqlite+aiosqlite://")
    made = Coordinator(engine, health=CoordinationHealthMonitor())
    yield made
    made.detach()
    await engine.dispose()


def parsed(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(coordinator: Coordinator) -> Samples:
    return parsed(Exposition(coordinator).text("")[0].decode())


def assert_named_by_the_rules(text: str) -> None:
    """Https://prometheus.io/docs/practices/naming: what promtool checks, and the units."""
    for family in text_string_to_metric_families(text):
        name = family.name
        assert re.fullmatch(r"commitcast(_[a-z]+)+", name)
        assert family.documentation.endswith(".")
        assert not re.search(r"_(total|count|sum|bucket|ms|milliseconds|minutes)$", name)
        assert family.type in {"counter", "gauge", "histogram"}
        assert family.type not in name
        if family.type == "counter":
            assert {s.name for s in family.samples} <= {f"{name}_total"}
        if family.type == "histogram" or "age" in name or "oldest" in name:
            assert name.endswith("_seconds")
        for sample in family.samples:
            assert set(sample.labels) <= {"layers", "kind", "le", "mode"}
            assert set(sample.labels.get("layers", "overall").split()) <= {*LayerPair, "overall"}


async def test_a_scrape_has_what_happened_and_nobodys_name(database: Database) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, drain_s=0, invariants_every_s=0)
    async with (
        serving(coordinator, operators=lambda _request: True) as client,
        listening(client, "thread:secret") as one,
        listening(client, "thread:secret") as two,
    ):
        async with AsyncSession(engine) as session:
            emit(session, "thread:secret", Event("hushed", {"n": 1}), actor="ann")
            await session.commit()
            emit(session, "thread:secret", Event("hushed", {"n": 2}))
            await session.rollback()
        assert [(await anext(frames))["data"] for frames in (one, two)] == [{"n": 1}, {"n": 1}]
        async with coordinator.operation("whispered", user="ann"):
            before = parsed((await client.get("/metrics")).text)
        assert ("commitcast_operations_overdue", ()) not in before
        await coordinator.check_invariants()
        response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert response.headers["cache-control"] == "no-store"
    assert not re.search("ann|secret|hushed|whispered", response.text)
    assert_named_by_the_rules(response.text)
    found = parsed(response.text)
    assert before["commitcast_operations_open", ()] == 1
    assert found["commitcast_events_committed_total", ()] == 2  # the notice is an event as well
    assert found["commitcast_frames_written_total", ()] == 2
    assert found["commitcast_rollbacks_total", ()] == 1
    assert found["commitcast_connections", ()] == found["commitcast_subscriptions", ()] == 2
    assert found["commitcast_operations_open", ()] == 0
    assert found["commitcast_operations_overdue", ()] == 0
    assert found["commitcast_notices_unsent", ()] == found["commitcast_streams_behind", ()] == 0
    assert 0 <= found["commitcast_invariants_age_seconds", ()] < 60
    assert found["commitcast_invariants_known", ()] == 1
    assert ("commitcast_oldest_undelivered_seconds", ()) not in found  # there is no relay
    assert found["commitcast_coordination_gap_seconds_count", layers("rollback_notification")] > 0


def layers(pair: str, **more: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"layers": pair, **more}.items()))


async def test_gaps_are_a_cumulative_histogram_in_seconds(coordinator: Coordinator) -> None:
    for gap_ms in (*GAPS_MS, None, -5.0):
        coordinator.health.track_coordination_event("x", LayerPair.DATABASE_SOCKET, gap_ms)
    found = scraped(coordinator)
    name = "commitcast_coordination_gap_seconds"
    buckets = {
        float(dict(labels)["le"]): value
        for (sample, labels), value in found.items()
        if sample == f"{name}_bucket" and dict(labels)["layers"] == "database_socket"
    }
    assert buckets == {
        bound: sum(gap_ms / 1000 <= bound for gap_ms in GAPS_MS)
        for bound in (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 5, math.inf)
    }
    socket = layers("database_socket")
    assert found[f"{name}_count", socket] == len(GAPS_MS)
    assert found[f"{name}_sum", socket] == pytest.approx(sum(GAPS_MS) / 1000)
    assert found["commitcast_coordination_steps_total", socket] == len(GAPS_MS) + 2
    breaches = "commitcast_coordination_breaches_total"
    assert found[breaches, layers("database_socket", kind="late")] == 2
    assert found[breaches, layers("database_socket", kind="broken")] == 2


async def test_scores_are_absent_without_steps_and_alerts_are_counted(
    coordinator: Coordinator,
) -> None:
    assert not [name for name, _ in scraped(coordinator) if name == "commitcast_health_score"]
    health = coordinator.health
    health.track_coordination_event("x", LayerPair.DATABASE_SOCKET, 1.0)
    health.track_coordination_event("x", LayerPair.ISOLATION, None)
    health.check()
    found = scraped(coordinator)
    scores = {k: v for k, v in found.items() if k[0] == "commitcast_health_score"}
    assert scores == {
        ("commitcast_health_score", layers("database_socket")): 100,
        ("commitcast_health_score", layers("isolation")): 0,
        ("commitcast_health_score", layers("overall")): 25,
    }
    assert found["commitcast_alerts_active", ()] == 2


async def test_events_are_counted_by_the_mode_that_decided_their_way(database: Database) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine)
    assert not [name for name, _ in scraped(coordinator) if "dispatched" in name]
    rollout = Rollout(enforce=0, shadow=100)
    here = coordinator.dispatcher(lambda _stream, _event: None, modes=rollout)
    there = coordinator.dispatcher(lambda _stream, _event: None, modes=rollout)
    for dispatch in (here, there, here):
        async with AsyncSession(engine) as session, session.begin():
            await dispatch(session, "thread:7", Event("said"), user="ann")
        rollout.set(enforce=100, shadow=0)
    found = scraped(coordinator)
    name = "commitcast_events_dispatched_total"
    modes = {dict(labels)["mode"]: value for (of, labels), value in found.items() if of == name}
    assert modes == {"off": 0, "shadow": 1, "enforce": 2}


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=1.0.0", "text/plain"])
async def test_a_scraper_gets_the_format_that_it_asks_for(
    coordinator: Coordinator, accept: str
) -> None:
    coordinator.health.track_coordination_event("x", LayerPair.DATABASE_SOCKET, 1.0)
    body, content_type = Exposition(coordinator).text(accept)
    assert content_type.startswith(accept.partition(";")[0])
    assert body.endswith(b"# EOF\n") is ("openmetrics" in accept)
    if "openmetrics" in accept:  # this parser is a strict one
        families: Any = openmetrics
        names = {family.name for family in families(body.decode())}
        assert names == {f"commitcast_{reading.name}" for reading in READINGS}


async def test_a_database_that_cannot_be_asked_leaves_values_out_and_says_so(
    coordinator: Coordinator,
) -> None:
    assert scraped(coordinator)["commitcast_invariants_known", ()] == 0
    coordinator._proven = Invariants(datetime.now(UTC), error="OperationalError")
    found = scraped(coordinator)
    assert found["commitcast_invariants_known", ()] == 0
    assert ("commitcast_notices_unsent", ()) not in found
    coordinator._proven = Invariants(datetime.now(UTC), 31.5, 2, 3, 4)
    found = scraped(coordinator)
    names = ("oldest_undelivered_seconds", "streams_behind", "operations_overdue", "notices_unsent")
    assert [found[f"commitcast_{name}", ()] for name in names] == [31.5, 2, 3, 4]
    assert found["commitcast_invariants_known", ()] == 1


@pytest.mark.parametrize("level", HealthLevel)
async def test_what_nobody_is_to_ask_is_not_missing(anyio_backend: str, level: HealthLevel) -> None:
    coordinator = Coordinator(create_async_engine("sqlite+aiosqlite://"), health=level)
    coordinator.detach()
    is_missing = ("commitcast_invariants_known", ()) in scraped(coordinator)
    assert is_missing == (level is not HealthLevel.OFF)


async def test_the_documents_names_are_those_that_are_scraped(coordinator: Coordinator) -> None:
    text = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
    written = set(re.findall(r"commitcast_[a-z_]+", text)) - {"commitcast_"}
    families = text_string_to_metric_families(Exposition(coordinator).text("")[0].decode())
    names = {f"{f.name}_total" if f.type == "counter" else f.name for f in families}
    assert written - {"commitcast_coordination_gap_seconds_bucket"} == names


async def test_the_collector_goes_into_a_registry_that_a_team_has(
    coordinator: Coordinator,
) -> None:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(CoordinatorCollector(coordinator))
    assert registry.get_sample_value("commitcast_subscriptions") == 0
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(CoordinatorCollector(coordinator))


def observed(reader: InMemoryMetricReader) -> dict[tuple[str, Any], tuple[float, str]]:
    data = reader.get_metrics_data()
    return {} if data is None else {
        (metric.name, tuple(sorted((point.attributes or {}).items()))): (
            getattr(point, "value"),  # noqa: B009 - histograms, of which there is none, have no value
            metric.unit or "",
        )
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }  # fmt: skip


async def test_opentelemetry_observes_what_prometheus_scrapes(database: Database) -> None:
    reader = InMemoryMetricReader()
    telemetry = OpenTelemetry(meter_provider=MeterProvider([reader], shutdown_on_exit=False))
    engine = database.engine()
    coordinator = database.coordinator(engine, tracing=telemetry, invariants_every_s=0)
    async with coordinator:
        async with AsyncSession(engine) as session:
            emit(session, "thread:7", Event("said"))
            await session.commit()
        for gap_ms in (*GAPS_MS, None):
            coordinator.health.track_coordination_event("x", LayerPair.DATABASE_SOCKET, gap_ms)
        await coordinator.check_invariants()
        expected = scraped(coordinator)
        found = observed(reader)
    _, unit = found.pop(("commitcast.invariants_age", ()))
    assert unit == "s"
    assert found["commitcast.events_committed", ()][0] == 1
    del expected["commitcast_invariants_age_seconds", ()]
    # As an OpenTelemetry collector makes Prometheus' names of them.
    renamed = {
        (_prometheus(name, unit), labels): value for (name, labels), (value, unit) in found.items()
    }
    assert renamed == {
        (name.removesuffix("_total"), labels): value for (name, labels), value in expected.items()
    }


def _prometheus(name: str, unit: str) -> str:
    name = name.replace(".", "_")
    if "coordination_gap" in name:
        return name.replace("coordination_gap", "coordination_gap_seconds")
    return f"{name}_seconds" if unit == "s" else name


async def test_an_opentelemetry_has_the_instruments_of_one_coordinator_and_does_not_keep_it(
    coordinator: Coordinator,
) -> None:
    reader = InMemoryMetricReader()
    telemetry = OpenTelemetry(meter_provider=MeterProvider([reader], shutdown_on_exit=False))
    telemetry.watch(coordinator)
    engine = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(ValueError, match="give each one of its own"):
        Coordinator(engine, tracing=telemetry)
    Coordinator(engine).detach()  # the one that was refused has let go of the engine
    assert observed(reader)

    own = OpenTelemetry(meter_provider=MeterProvider([reader_2 := InMemoryMetricReader()]))
    short = Coordinator(engine, tracing=own)
    short.detach()
    gone = weakref.ref(short)
    assert observed(reader_2)
    del short
    gc.collect()
    assert gone() is None
    assert not observed(reader_2)
    await engine.dispose()


@pytest.mark.parametrize("kept", [False, True], ids=["gone", "kept"])
async def test_a_coordinator_that_is_made_again_is_observed_and_two_at_once_are_refused(
    anyio_backend: str, kept: bool
) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    engine = create_async_engine("sqlite+aiosqlite://")
    first = Coordinator(engine, tracing=OpenTelemetry(meter_provider=provider))
    other = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(ValueError, match="detach that one first"):
        Coordinator(other, tracing=OpenTelemetry(meter_provider=provider))
    first.detach()
    keep = [first] if kept else []
    del first
    again = Coordinator(engine, tracing=OpenTelemetry(meter_provider=provider))
    again._handover.rolled_back(("thread:7",))
    assert observed(reader)["commitcast.rollbacks", ()] == (1, "")
    again.detach()
    assert len(keep) == kept
    await engine.dispose()


async def test_an_exporters_thread_reads_while_readers_come_and_go(database: Database) -> None:
    coordinator = database.coordinator(drain_s=0, poll_interval_s=60)
    failures, stop = list[BaseException](), threading.Event()

    def export() -> None:
        try:
            while not stop.is_set():
                coordinator.counts()
        except BaseException as error:  # noqa: BLE001 - whatever it is
            failures.append(error)

    before = sys.getswitchinterval()
    async with coordinator:
        delivery = coordinator._delivery
        assert delivery is not None
        kept = [coordinator.subscribe(f"thread:{n}") for n in range(200)]
        for subscription in kept:
            delivery.register(subscription)
        thread = threading.Thread(target=export)
        sys.setswitchinterval(1e-6)
        try:
            thread.start()
            for n in range(2_000):
                delivery.register(coordinator.subscribe(f"thread:{n % 400}"))  # and dropped
                one = coordinator.subscribe(f"thread:{n % 400 + 200}")
                delivery.register(one)
                one.close()
        finally:
            sys.setswitchinterval(before)
            stop.set()
            thread.join()
        assert coordinator.counts()["subscriptions"] == len(kept)
    assert failures == []


@pytest.mark.parametrize(
    "accept", ["text/plain; version=x", "application/openmetrics-text; version=x"]
)
async def test_an_accept_that_cannot_be_read_gets_the_default_format(
    coordinator: Coordinator, accept: str
) -> None:
    text, content_type = Exposition(coordinator).text(accept)
    assert content_type == Exposition(coordinator).text("")[1]
    assert b"commitcast_subscriptions" in text
