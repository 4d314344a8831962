"""The monitor: scores, windows, alerts and bounds, against a computation of their own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commitcast import CoordinationHealthMonitor, HealthAlert, HealthLevel, LayerPair
from commitcast.health import MAX_EVENT_TYPES, OTHER
from commitcast.health_report import report

if TYPE_CHECKING:
    from commitcast.score import HealthScore

STRICT = {"transaction_boundary", "isolation"}
WEIGHTS = {
    "database_socket": 1, "agent_state": 1, "cache": 1,
    "transaction_boundary": 3, "rollback_notification": 3, "isolation": 3,
}  # fmt: skip
THRESHOLDS = {
    "database_socket": 100.0, "agent_state": 50.0, "transaction_boundary": 0.0,
    "cache": 25.0, "rollback_notification": 200.0, "isolation": 0.0,
}  # fmt: skip


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Step:
    """One step as it was recorded, and when."""

    minute: int
    type: str
    pair: str
    gap: float | None


@dataclass
class Record:
    """All that was recorded, and what its scores are, computed from nothing else."""

    thresholds: dict[str, float]
    steps: list[Step] = field(default_factory=list)

    def _badness(self, step: Step) -> int:
        if step.gap is None or step.gap < 0:
            return 10
        if step.gap <= self.thresholds[step.pair]:
            return 0
        return 10 if step.pair in STRICT else 1

    def score(self, steps: list[Step]) -> float | None:
        above = below = 0.0
        for pair, weight in WEIGHTS.items():
            own = [self._badness(s) for s in steps if s.pair == pair]
            if own:
                above += weight * max(0.0, 1 - sum(own) / len(own)) * 100
                below += weight
        return above / below if below else None

    def since(self, minute: int) -> list[Step]:
        return [s for s in self.steps if s.minute >= minute]


TYPES = st.sampled_from(["message.created", "order.paid", "run.ended"])
GAPS = st.one_of(
    st.none(),
    st.sampled_from([-1.0, 0.0, 0.1, 25.0, 25.1, 50.0, 100.0, 100.1, 200.0, 200.1]),
    st.floats(min_value=-10, max_value=1e6, allow_nan=False),
)
STEPS = st.tuples(
    st.floats(min_value=0, max_value=400, allow_nan=False),  # seconds since the step before
    TYPES,
    st.sampled_from(sorted(WEIGHTS)),
    GAPS,
    st.sampled_from([1, 1, 3, 30]),  # how many of them
)


def everything(score: HealthScore) -> dict[str, float | None]:
    return {
        "overall": score.overall,
        **{pair.value: score.by_pair[pair] for pair in LayerPair},
        **{f"type {name}": value for name, value in score.by_type.items()},
    }


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(STEPS, max_size=40),
    kept=st.integers(1, 30),
    asked=st.integers(1, 40),
    thresholds=st.dictionaries(st.sampled_from(sorted(WEIGHTS)), st.floats(0, 500)),
)
def test_scores_are_those_of_an_independent_computation_from_the_raw_record(
    steps: list[tuple[float, str, str, float | None, int]],
    kept: int,
    asked: int,
    thresholds: dict[LayerPair | str, float],
) -> None:
    clock = Clock()
    monitor = CoordinationHealthMonitor(window_minutes=kept, thresholds_ms=thresholds, clock=clock)
    record = Record({**THRESHOLDS, **{str(k): v for k, v in thresholds.items()}})
    for seconds, kind, pair, gap, times in steps:
        clock.now += seconds
        for _ in range(times):
            monitor.track_coordination_event(kind, pair, gap)
            record.steps.append(Step(int(clock.now // 60), kind, pair, gap))
        score = monitor.get_health_score(asked)
        left = record.since(int(clock.now // 60) - min(asked, kept) + 1)
        expected: dict[str, float | None] = {"overall": record.score(left)}
        for layers in LayerPair:
            expected[layers.value] = record.score([s for s in left if s.pair == layers.value])
        for name in {s.type for s in left}:
            expected[f"type {name}"] = record.score([s for s in left if s.type == name])
        found = everything(score)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == (None if value is None else pytest.approx(value)), name
    whole = monitor.totals()
    for layers in LayerPair:
        own = [s for s in record.steps if s.pair == layers.value]
        counts = whole[layers].counts
        assert counts.steps == len(own)
        assert counts.late + 10 * counts.broken == sum(record._badness(s) for s in own)
        assert sum(whole[layers].buckets) == whole[layers].timed


@settings(max_examples=150, deadline=None)
@given(
    before=st.lists(st.tuples(TYPES, st.sampled_from(sorted(WEIGHTS)), GAPS), max_size=40),
    kind=TYPES,
    pair=st.sampled_from(sorted(WEIGHTS)),
    gap=GAPS,
)
def test_a_score_falls_when_and_only_when_a_threshold_or_a_guarantee_is_broken(
    before: list[tuple[str, str, float | None]], kind: str, pair: str, gap: float | None
) -> None:
    monitor = CoordinationHealthMonitor(clock=Clock())
    for step in before:
        monitor.track_coordination_event(*step)
    was = everything(monitor.get_health_score())
    monitor.track_coordination_event(kind, pair, gap)
    now = everything(monitor.get_health_score())
    kept = gap is not None and 0 <= gap <= THRESHOLDS[pair]
    slack = 1e-9  # of sums of floats
    for name, value in was.items():
        if value is None:
            continue
        after = now[name]
        assert after is not None
        if kept:
            assert after >= value - slack, name
        elif name == pair:
            assert after < value or value == 0, name
        else:
            assert after <= value + slack, name
    if not kept and was[pair] != 0 and was["overall"]:
        assert now["overall"] is not None
        assert now["overall"] < was["overall"]


def test_an_event_before_its_commit_is_the_worst_breach_and_no_good_gap() -> None:
    monitor = CoordinationHealthMonitor()
    for _ in range(10):
        monitor.track_coordination_event("said", "database_socket", 1.0)
    monitor.track_coordination_event("said", "database_socket", -1.0)
    (breach,) = monitor.recent_breaches()
    assert breach.broken
    assert monitor.get_health_score().by_pair[LayerPair.DATABASE_SOCKET] == pytest.approx(
        100 * (1 - 10 / 11)
    )


@pytest.mark.parametrize("gap", [float("nan"), float("inf"), float("-inf")])
def test_a_gap_that_is_no_finite_number_is_refused_and_counts_nowhere(gap: float) -> None:
    monitor = CoordinationHealthMonitor()
    with pytest.raises(ValueError, match="finite number of ms"):
        monitor.track_coordination_event("said", "cache", gap)
    assert monitor.get_health_score().overall is None
    assert monitor.totals()[LayerPair.CACHE].timed == 0


def test_what_cannot_be_is_refused_by_name() -> None:
    monitor = CoordinationHealthMonitor()
    with pytest.raises(ValueError, match="sockets"):
        monitor.track_coordination_event("said", "sockets", 1.0)
    with pytest.raises(ValueError, match="time_window_minutes"):
        monitor.get_health_score(0)
    with pytest.raises(ValueError, match="levels are off, basic, full"):
        CoordinationHealthMonitor(level="loud")
    with pytest.raises(ValueError, match="thresholds_ms must be 0 or more"):
        CoordinationHealthMonitor(thresholds_ms={"cache": -1})
    with pytest.raises(ValueError, match="window_minutes"):
        CoordinationHealthMonitor(window_minutes=0)
    with pytest.raises(ValueError, match="in that order"):
        CoordinationHealthMonitor(alert_below=90, recovered_above=80)


def test_at_level_off_nothing_is_recorded() -> None:
    monitor = CoordinationHealthMonitor(level=HealthLevel.OFF)
    monitor.track_coordination_event("said", "cache", None)
    assert monitor.get_health_score().overall is None
    assert monitor.recent_breaches() == []


def test_steps_leave_the_window_with_their_minute() -> None:
    clock = Clock(60.0 * 100 + 59)
    monitor = CoordinationHealthMonitor(window_minutes=3, clock=clock)
    monitor.track_coordination_event("said", "cache", None)
    clock.now += 1  # the next minute
    monitor.track_coordination_event("said", "cache", 1.0)
    assert monitor.get_health_score(1).by_pair[LayerPair.CACHE] == 100
    assert monitor.get_health_score(2).by_pair[LayerPair.CACHE] == 0
    clock.now += 120
    assert (
        monitor.get_health_score(60).counts[LayerPair.CACHE].steps == 1
    )  # minute 103: 100 is gone
    clock.now += 61
    assert monitor.get_health_score(60).overall is None
    assert monitor.totals()[LayerPair.CACHE].counts.steps == 2


def test_types_past_the_most_of_one_minute_are_counted_together() -> None:
    clock = Clock()
    monitor = CoordinationHealthMonitor(clock=clock)
    for n in range(MAX_EVENT_TYPES + 36):
        monitor.track_coordination_event(f"type.{n}", "cache", 1.0)
    score = monitor.get_health_score()
    assert len(score.by_type) == MAX_EVENT_TYPES + 1
    assert score.by_type[OTHER] == 100
    assert score.counts[LayerPair.CACHE].steps == MAX_EVENT_TYPES + 36


def test_an_alert_is_sent_once_below_and_once_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, sent = Clock(), list[HealthAlert]()

    def broken(_alert: HealthAlert) -> None:
        raise RuntimeError("the pager is away")

    monitor = CoordinationHealthMonitor(clock=clock)
    monitor.on_alert(broken)
    monitor.on_alert(sent.append)

    def record(good: int, late: int) -> list[tuple[str | None, bool]]:
        for _ in range(good):
            monitor.track_coordination_event("said", "cache", 1.0)
        for _ in range(late):
            monitor.track_coordination_event("said", "cache", 99.0)
        sent.clear()
        assert monitor.check() == sent
        return [(a.layers, a.recovered) for a in sent]

    assert record(80, 20) == []  # 80 is not below 80
    assert record(0, 1) == [(None, False), ("cache", False)]
    assert monitor.alerting == {None, LayerPair.CACHE}
    assert record(0, 5) == []  # it was told already
    assert record(100, 0) == []  # 87.4: over 80 is not over it
    assert record(54, 0) == [(None, True), ("cache", True)]  # 90
    assert monitor.alerting == set()
    assert record(0, 40) == [(None, False), ("cache", False)]
    clock.now += 3600
    assert record(0, 0) == []  # no steps, no score: that is no recovery
    assert "the pager is away" in caplog.text


_TEN_MILLION = """
import resource
from commitcast import CoordinationHealthMonitor, LayerPair

now = 0.0
monitor = CoordinationHealthMonitor(clock=lambda: now)
pairs, types = list(LayerPair), [f"type.{n}" for n in range(100)]
for n in range(10_000_001):
    now += 0.003  # eight hours
    monitor.track_coordination_event(
        types[n % 100], pairs[n % 6], float(n % 300), detail="somewhere.py:1"
    )
    if n in (1_500_000, 10_000_000):  # the window has been full for a quarter of an hour
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, monitor.get_health_score().overall)
"""


def test_ten_million_steps_leave_memory_flat() -> None:
    # in a process of its own, whose peak is the monitor's
    done = subprocess.run(
        [sys.executable, "-c", _TEN_MILLION], check=True, capture_output=True, text=True
    )
    before, after = (int(line.split()[0]) for line in done.stdout.splitlines())
    assert 10_000 < before <= after < before + 512, done.stdout  # KiB


def test_an_async_callback_that_nobody_would_await_is_refused() -> None:
    async def page(alert: HealthAlert) -> None: ...

    with pytest.raises(TypeError, match="begins a task"):
        CoordinationHealthMonitor().on_alert(page)


class Kind(StrEnum):
    SAID = "said"


class OldKind(str, Enum):  # noqa: UP042 - many have these
    SAID = "said"


def test_a_type_given_as_an_enums_member_is_the_type_and_goes_into_json() -> None:
    monitor = CoordinationHealthMonitor()
    for kind in ("said", Kind.SAID, OldKind.SAID):
        monitor.track_coordination_event(
            kind, LayerPair.DATABASE_SOCKET, None, detail="\udcff.py:1"
        )
    found = orjson.loads(orjson.dumps(report(monitor, None, {}, {})))
    assert found["by_type"] == {"said": 0}
    assert [b["event_type"] for b in found["breaches"]] == ["said"] * 3
    assert found["breaches"][0]["detail"] == "?.py:1"
    with pytest.raises(TypeError, match="must be a string"):
        monitor.track_coordination_event(None, LayerPair.DATABASE_SOCKET)  # type: ignore[arg-type]
