"""The score: what a step between two layers is, and one number made of many.

A *step* is one thing that two layers had to do together: a COMMIT and the frame that tells of it, a
failure and its notice. It has a **gap**, in milliseconds of this node's monotonic clock, and a
threshold. Of the steps of one pair of layers:

- **late**: the gap is over the threshold;
- **broken**: it never happened (gap None), or in the wrong order (a gap below 0), or the pair is strict
  and the gap is over its threshold.

The score, from 0 to 100 (`pair_score`, `weighted`)::

    score(pair)    = 100 * max(0, 1 - (late + 10 * broken) / steps)
    score(overall) = sum(weight * score(pair)) / sum(weight)     over the pairs that have steps

Transaction boundary, isolation and rollback notification weigh 3, the others 1, however many steps
they have: a thousand prompt frames do not outweigh a failure that nobody was told of. The score of
an event type is that formula over its own steps. Without steps there is no score (None).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_BROKEN_COUNTS: Final = 10


class LayerPair(StrEnum):
    """Two layers that have to move together."""

    __hash__ = str.__hash__  # Enum's own is a Python function, called three times for each step

    DATABASE_SOCKET = "database_socket"
    """COMMIT returned → frame written (or acknowledged, where a protocol has that)."""
    AGENT_STATE = "agent_state"
    """What is told of a run → what its row says."""
    TRANSACTION_BOUNDARY = "transaction_boundary"
    """How far an event was ahead of its COMMIT: 0 if it left after it. Strict."""
    CACHE = "cache"
    """COMMIT returned → cache in step."""
    ROLLBACK_NOTIFICATION = "rollback_notification"
    """Work failed → its notice was sent."""
    ISOLATION = "isolation"
    """0 if who received an event was allowed to, None if not. Strict."""


STRICT: Final = frozenset({LayerPair.TRANSACTION_BOUNDARY, LayerPair.ISOLATION})
"""Pairs in which over the threshold is not late but broken."""

DEFAULT_THRESHOLDS_MS: Final[Mapping[LayerPair, float]] = MappingProxyType(
    {
        LayerPair.DATABASE_SOCKET: 100.0,
        LayerPair.AGENT_STATE: 50.0,
        LayerPair.TRANSACTION_BOUNDARY: 0.0,
        LayerPair.CACHE: 25.0,
        LayerPair.ROLLBACK_NOTIFICATION: 200.0,
        LayerPair.ISOLATION: 0.0,
    }
)
WEIGHTS: Final[Mapping[LayerPair, int]] = MappingProxyType(
    {
        LayerPair.DATABASE_SOCKET: 1,
        LayerPair.AGENT_STATE: 1,
        LayerPair.TRANSACTION_BOUNDARY: 3,
        LayerPair.CACHE: 1,
        LayerPair.ROLLBACK_NOTIFICATION: 3,
        LayerPair.ISOLATION: 3,
    }
)


@dataclass(slots=True)
class Counts:
    """Steps of one pair of layers."""

    steps: int = 0
    late: int = 0
    broken: int = 0
    worst_ms: float = 0.0
    """The largest gap of those that happened."""

    @property
    def score(self) -> float | None:
        """See the module's docstring; None without steps."""
        return pair_score(self.steps, self.late, self.broken)

    def add(self, other: Counts) -> None:
        """Count another's steps as well."""
        self.steps += other.steps
        self.late += other.late
        self.broken += other.broken
        self.worst_ms = max(self.worst_ms, other.worst_ms)


@dataclass(frozen=True, slots=True)
class HealthScore:
    """What `CoordinationHealthMonitor.get_health_score` returns."""

    overall: float | None
    by_pair: Mapping[LayerPair, float | None]
    by_type: Mapping[str, float]
    counts: Mapping[LayerPair, Counts]
    time_window_minutes: int


def pair_score(steps: int, late: int, broken: int) -> float | None:
    """The score of one pair of layers: ``100 * max(0, 1 - (late + 10 * broken) / steps)``."""
    if not steps:
        return None
    return 100.0 * max(0.0, 1.0 - (late + _BROKEN_COUNTS * broken) / steps)


def weighted(pairs: Mapping[LayerPair, Counts]) -> float | None:
    """The mean of the pairs that have steps, by `WEIGHTS`."""
    scores = [
        (WEIGHTS[pair], s) for pair, counts in pairs.items() if (s := counts.score) is not None
    ]
    if not scores:
        return None
    return sum(weight * score for weight, score in scores) / sum(weight for weight, _ in scores)
