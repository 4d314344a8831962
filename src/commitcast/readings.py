"""Readings: what is measured of one coordinator, once, for Prometheus and OpenTelemetry alike.

Everything is read from memory: asking costs the database nothing. What only grows begins with the
coordinator; a node is a process, so several workers are several targets. No label is a user's id,
a stream's name, an event's type or anything else that grows with traffic.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from commitcast.health import BUCKETS_MS, HealthLevel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from commitcast.coordinator import Coordinator
    from commitcast.invariants import Invariants


_BOUNDS_S: Final = (*(str(bound_ms / 1000) for bound_ms in BUCKETS_MS), "+Inf")


class Kind(StrEnum):
    """How a reading behaves over time."""

    COUNTER = "counter"
    """It only grows."""
    GAUGE = "gauge"
    DISTRIBUTION = "distribution"
    """How often values fell between bounds; it only grows."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A value, and the values of its reading's labels."""

    value: float
    """Of a distribution: the sum of all values."""
    labels: tuple[str, ...] = ()
    buckets: tuple[tuple[str, int], ...] = ()
    """Of a distribution: upper bounds, the last of them ``+Inf``, and how many were at most that."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One thing that is measured."""

    name: str
    """In Prometheus' words, without the prefix ``commitcast_`` and a counter's ``_total``."""
    kind: Kind
    help: str
    read: Callable[[Coordinator], Iterator[Sample]]
    """What there is now; nothing where it is not known."""
    labels: tuple[str, ...] = ()
    unit: str = ""
    """``seconds`` or nothing; the name ends with it."""


def _count(name: str) -> Callable[[Coordinator], Iterator[Sample]]:
    def read(coordinator: Coordinator) -> Iterator[Sample]:
        yield Sample(coordinator.counts()[name])

    return read


def _rollbacks(coordinator: Coordinator) -> Iterator[Sample]:
    yield Sample(coordinator.rollbacks)


def _dispatched(coordinator: Coordinator) -> Iterator[Sample]:
    for mode, count in coordinator.dispatched().items():
        yield Sample(count, (mode.value,))


def _steps(coordinator: Coordinator) -> Iterator[Sample]:
    for pair, total in coordinator.health.totals().items():
        yield Sample(total.counts.steps, (pair.value,))


def _breaches(coordinator: Coordinator) -> Iterator[Sample]:
    for pair, total in coordinator.health.totals().items():
        yield Sample(total.counts.late, (pair.value, "late"))
        yield Sample(total.counts.broken, (pair.value, "broken"))


def _gaps(coordinator: Coordinator) -> Iterator[Sample]:
    for pair, total in coordinator.health.totals().items():
        reached = 0
        buckets = []
        for bound_s, count in zip(_BOUNDS_S, total.buckets, strict=True):
            reached += count
            buckets.append((bound_s, reached))
        yield Sample(total.sum_ms / 1000, (pair.value,), tuple(buckets))


def _scores(coordinator: Coordinator) -> Iterator[Sample]:
    health = coordinator.health
    score = health.get_health_score(health.window_minutes)
    if score.overall is not None:
        yield Sample(score.overall, ("overall",))
    for pair, value in score.by_pair.items():
        if value is not None:
            yield Sample(value, (pair.value,))


def _alerts(coordinator: Coordinator) -> Iterator[Sample]:
    yield Sample(len(coordinator.health.alerting))


def _proven(
    value: Callable[[Invariants], float | None],
) -> Callable[[Coordinator], Iterator[Sample]]:
    """From what the database last said; nothing where it was not asked or gave no answer."""

    def read(coordinator: Coordinator) -> Iterator[Sample]:
        proven = coordinator.invariants
        found = None if proven is None else value(proven)
        if found is not None:
            yield Sample(found)

    return read


def _known(coordinator: Coordinator) -> Iterator[Sample]:
    proven = coordinator.invariants
    asked = (
        coordinator.settings.invariants_every_s > 0
        and coordinator.health.level is not HealthLevel.OFF
    )
    if proven is not None or asked:
        yield Sample(int(proven is not None and proven.error is None))


def _age_s(proven: Invariants) -> float:
    return max(0.0, (datetime.now(UTC) - proven.checked_at).total_seconds())


_PER_PAIR: Final = ("layers",)

READINGS: Final = (
    Reading(
        "events_committed", Kind.COUNTER,
        "Events whose COMMIT was seen to return on this node.", _count("events_committed"),
    ),
    Reading(
        "frames_written", Kind.COUNTER,
        "Events written to clients; each client counts.", _count("frames_written"),
    ),
    Reading(
        "rollbacks", Kind.COUNTER,
        "Transactions without an operation that had emitted and were rolled back.", _rollbacks,
    ),
    Reading("subscriptions", Kind.GAUGE, "Readers of this node.", _count("subscriptions")),
    Reading("connections", Kind.GAUGE, "Clients connected to this node.", _count("connections")),
    Reading(
        "connections_stalled", Kind.GAUGE,
        "Those of them that stopped reading, whose sockets the server still has.",
        _count("connections_stalled"),
    ),
    Reading(
        "operations_open", Kind.GAUGE,
        "Operations of this node that have no outcome yet.", _count("operations_open"),
    ),
    Reading(
        "events_dispatched", Kind.COUNTER,
        "Events given to dispatchers, by the mode of their user; absent without a dispatcher.",
        _dispatched, ("mode",),
    ),
    Reading(
        "coordination_steps", Kind.COUNTER,
        "What two layers had to do together.", _steps, _PER_PAIR,
    ),
    Reading(
        "coordination_breaches", Kind.COUNTER,
        "Steps that were late, or broken: never done, or in the wrong order.",
        _breaches, ("layers", "kind"),
    ),
    Reading(
        "coordination_gap_seconds", Kind.DISTRIBUTION,
        "How far the second layer was behind the first.", _gaps, _PER_PAIR, "seconds",
    ),
    Reading(
        "health_score", Kind.GAUGE,
        "0 to 100 over the monitor's window; absent where there were no steps.",
        _scores, _PER_PAIR,
    ),
    Reading("alerts_active", Kind.GAUGE, "Scores that are below the limit.", _alerts),
    Reading(
        "oldest_undelivered_seconds", Kind.GAUGE,
        "Age of the oldest event that a deliver callable has not been given.",
        _proven(lambda proven: proven.oldest_undelivered_s), unit="seconds",
    ),
    Reading(
        "operations_overdue", Kind.GAUGE,
        "Open operations past their deadline by more than the lease.",
        _proven(lambda proven: proven.operations_overdue),
    ),
    Reading(
        "notices_unsent", Kind.GAUGE,
        "Rolled back operations whose notice is not in the log.",
        _proven(lambda proven: proven.notices_unsent),
    ),
    Reading(
        "streams_behind", Kind.GAUGE,
        "Streams read on this node that make no progress towards their head.",
        _proven(lambda proven: proven.streams_behind),
    ),
    Reading(
        "invariants_known", Kind.GAUGE,
        "1 if the database answered when it was last asked whether what must hold does, else 0.",
        _known,
    ),
    Reading(
        "invariants_age_seconds", Kind.GAUGE,
        "Since the database was last asked whether what must hold does.",
        _proven(_age_s), unit="seconds",
    ),
)  # fmt: skip
"""All of them; docs/observability.md has the list for users."""
