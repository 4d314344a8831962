"""Coordination health: records steps between layers, and says how many kept their thresholds.

What a step is and how the score is made of them stands in `commitcast.score`. The window is a ring of
one-minute slots, the running minute among them, so memory does not grow with what is recorded;
recording takes the same time however much was recorded before.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from commitcast.score import (
    DEFAULT_THRESHOLDS_MS,
    STRICT,
    Counts,
    HealthScore,
    LayerPair,
    weighted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping

_logger = logging.getLogger("commitcast")

MAX_EVENT_TYPES: Final = 64
"""Most event types told apart in one minute; what comes after them is counted as `OTHER`."""
OTHER: Final = "(other)"
BUCKETS_MS: Final = (1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 5_000.0)
"""Upper bounds of the histogram of gaps; the last bucket is what is over all of them."""
_RECENT: Final = 100
_AT_ONCE: Final = 256
"""Steps that are counted together."""
_LONGEST_DETAIL: Final = 300


class HealthLevel(StrEnum):
    """How much is recorded."""

    OFF = "off"
    """Nothing."""
    BASIC = "basic"
    """What is rare: notices, alerts, what the database proves on a timer. No step is timed."""
    FULL = "full"
    """Every step, as well."""


@dataclass(frozen=True, slots=True)
class Breach:
    """One step that was late or broken."""

    at: float
    """Seconds of the monitor's clock."""
    event_type: str
    layers: LayerPair
    gap_ms: float | None
    """None: it never happened."""
    broken: bool
    detail: str = ""


@dataclass(slots=True)
class Total:
    """All steps of one pair since the monitor was made: what only grows, for metrics."""

    counts: Counts = field(default_factory=Counts)
    sum_ms: float = 0.0
    timed: int = 0
    """Steps that happened in order, so that they have a gap."""
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_MS) + 1))
    """How many gaps fell between one of `BUCKETS_MS` and the next; not cumulative."""


@dataclass(frozen=True, slots=True)
class HealthAlert:
    """A score went below `alert_below`, or came back over `recovered_above`."""

    layers: LayerPair | None
    """None: the overall score."""
    score: float
    recovered: bool
    time_window_minutes: int


class CoordinationHealthMonitor:
    """Records steps and says how many kept their thresholds. Safe to use from several threads."""

    def __init__(
        self,
        *,
        level: HealthLevel | str = HealthLevel.FULL,
        thresholds_ms: Mapping[LayerPair | str, float] | None = None,
        window_minutes: int = 60,
        alert_below: float = 80.0,
        recovered_above: float = 90.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with nothing recorded.

        Args:
            level: how much is recorded (`HealthLevel`).
            thresholds_ms: those that differ from `DEFAULT_THRESHOLDS_MS`.
            window_minutes: how long steps are kept, and the window of alerts; 1 to 1,440.
            alert_below: a score below this calls the functions of `on_alert`; 0 to 100.
            recovered_above: from this on it is over; not below `alert_below`.
            clock: seconds, never going back.

        Raises ValueError for a value out of its range.
        """
        try:
            chosen = HealthLevel(level)
            given = {LayerPair(k): float(v) for k, v in (thresholds_ms or {}).items()}
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{error}; levels are {', '.join(HealthLevel)}, thresholds are given in ms for "
                f"{', '.join(LayerPair)}"
            ) from None
        if not all(isfinite(v) and v >= 0 for v in given.values()):
            raise ValueError(f"thresholds_ms must be 0 or more, not {given}")
        if not 1 <= window_minutes <= 24 * 60:
            raise ValueError(f"window_minutes must be 1 to 1440, not {window_minutes}")
        if not 0 <= alert_below <= recovered_above <= 100:  # noqa: PLR2004 - a score's range
            raise ValueError("alert_below and recovered_above must be 0 to 100, in that order")
        self.level: Final = chosen
        self.full: Final = chosen is HealthLevel.FULL
        """Whether every step is to be timed."""
        self.clock: Final = clock
        self.thresholds_ms: Mapping[LayerPair, float] = MappingProxyType(
            {**DEFAULT_THRESHOLDS_MS, **given}
        )
        self.window_minutes = window_minutes
        self.alert_below = alert_below
        self.recovered_above = recovered_above
        self._lock = threading.Lock()
        self._pending: deque[tuple[float, str, LayerPair, float | None, str]] = deque()
        self._slots: list[_Slot] = [_Slot() for _ in range(window_minutes)]
        self._totals = {pair: Total() for pair in LayerPair}
        self._recent: deque[Breach] = deque(maxlen=_RECENT)
        self._alerted: set[LayerPair | None] = set()
        self._callbacks: list[Callable[[HealthAlert], object]] = []

    # --- recording ------------------------------------------------------------------------

    def track_coordination_event(
        self,
        event_type: str,
        layers: LayerPair | str,
        gap_ms: float | None = 0.0,
        *,
        detail: str = "",
    ) -> None:
        """Record one step.

        Args:
            event_type: what it was about, such as ``message.created``; never a user's id.
            layers: the pair of layers.
            gap_ms: how long the second layer was behind the first, measured in each of the two
                where it happened; below 0 if it came first, None if it never came. For a strict
                pair: 0 if in step, otherwise by how much it was not.
            detail: what an operator is to see of a breach, such as a call site; never a user's
                data.

        Raises ValueError for a pair that there is not, and for a gap that is not finite; TypeError for
        an event type that is no string.
        """
        if self.level is HealthLevel.OFF:
            return
        if type(event_type) is not str:  # a member of an enum is hashed by its name, not its value
            if not isinstance(event_type, str):
                raise TypeError(f"event_type must be a string, not {type(event_type).__name__}")
            event_type = str.__str__(event_type)
        pair = layers if isinstance(layers, LayerPair) else LayerPair(layers)
        if gap_ms is not None and not isfinite(gap_ms):
            raise ValueError(
                f"gap_ms must be a finite number of ms, not {gap_ms}; None is for what never came"
            )
        pending = self._pending
        pending.append((self.clock(), event_type, pair, gap_ms, detail))
        if len(pending) >= _AT_ONCE:
            with self._lock:
                self._count_pending()

    def _count_pending(self) -> None:
        """Count what was recorded since; all at once, so that recording is short where it is done."""
        pending = self._pending
        while pending:
            at, event_type, pair, gap_ms, detail = pending.popleft()
            late = broken = 0
            if gap_ms is None or gap_ms < 0:
                broken = 1
            elif gap_ms > self.thresholds_ms[pair]:
                broken = int(pair in STRICT)
                late = 1 - broken
            self._count(int(at // 60), event_type, pair, late, broken, gap_ms)
            if late or broken:
                self._recent.append(
                    Breach(at, event_type, pair, gap_ms, bool(broken), detail[:_LONGEST_DETAIL])
                )

    def _count(
        self, minute: int, event_type: str, pair: LayerPair, late: int, broken: int,
        gap_ms: float | None,
    ) -> None:  # fmt: skip
        slot = self._slots[minute % self.window_minutes]
        if slot.minute < minute:
            slot.begin(minute)
        # A thread may have been held up between the clock and here, for as long as the window.
        counts = slot.counts.get((event_type, pair)) if slot.minute == minute else Counts()
        if counts is None:
            counts = slot.make(event_type, pair)
        slot.pairs = None
        total = self._totals[pair]
        whole = total.counts
        counts.steps += 1
        whole.steps += 1
        if late or broken:
            counts.late += late
            counts.broken += broken
            whole.late += late
            whole.broken += broken
        if gap_ms is not None and gap_ms >= 0:
            total.sum_ms += gap_ms
            total.timed += 1
            total.buckets[bisect_left(BUCKETS_MS, gap_ms)] += 1
            if gap_ms > counts.worst_ms:
                counts.worst_ms = gap_ms
                whole.worst_ms = max(whole.worst_ms, gap_ms)

    # --- asking ---------------------------------------------------------------------------

    def get_health_score(self, time_window_minutes: int = 60) -> HealthScore:
        """The scores of the last minutes; the running minute is one of them.

        Raises ValueError for a window below 1; one over `window_minutes` has all that is kept.
        """
        if time_window_minutes < 1:
            raise ValueError(f"time_window_minutes must be 1 or more, not {time_window_minutes}")
        window = min(time_window_minutes, self.window_minutes)
        by_type: dict[str, dict[LayerPair, Counts]] = {}
        with self._lock:
            self._count_pending()
            minute = int(self.clock() // 60)
            by_pair = self._by_pair(minute, window)
            for slot in self._slots:
                if slot.minute <= minute - window:
                    continue
                for (event_type, pair), counts in slot.counts.items():
                    by_type.setdefault(event_type, {}).setdefault(pair, Counts()).add(counts)
        return HealthScore(
            overall=weighted(by_pair),
            by_pair={pair: by_pair[pair].score if pair in by_pair else None for pair in LayerPair},
            by_type={
                name: score
                for name, pairs in sorted(by_type.items())
                if (score := weighted(pairs)) is not None
            },
            counts={pair: by_pair.get(pair, Counts()) for pair in LayerPair},
            time_window_minutes=window,
        )

    def _by_pair(self, minute: int, window: int) -> dict[LayerPair, Counts]:
        found: dict[LayerPair, Counts] = {}
        for slot in self._slots:
            if slot.minute > minute - window:
                for pair, counts in slot.by_pair(finished=slot.minute < minute).items():
                    found.setdefault(pair, Counts()).add(counts)
        return found

    def has_steps(self, layers: LayerPair, *, besides: Container[str] = ()) -> bool:
        """Whether the window has any of a pair, of event types other than those."""
        with self._lock:
            self._count_pending()
            oldest = int(self.clock() // 60) - self.window_minutes + 1
            return any(
                pair is layers and event_type not in besides
                for slot in self._slots
                if slot.minute >= oldest
                for event_type, pair in slot.counts
            )

    def totals(self) -> Mapping[LayerPair, Total]:
        """All steps since the monitor was made, a copy."""
        with self._lock:
            self._count_pending()
            return {
                pair: Total(
                    Counts(c.steps, c.late, c.broken, c.worst_ms), t.sum_ms, t.timed,
                    list(t.buckets),
                )
                for pair, t in self._totals.items()
                for c in (t.counts,)
            }  # fmt: skip

    def recent_breaches(self) -> list[Breach]:
        """The last hundred, oldest first."""
        with self._lock:
            self._count_pending()
            return list(self._recent)

    # --- alerts ---------------------------------------------------------------------------

    def on_alert(self, callback: Callable[[HealthAlert], object]) -> None:
        """Have `callback` called by `check` with each `HealthAlert`; it must not block.

        Once when a score (overall, or of a pair) goes below `alert_below`, and once when it is
        `recovered_above` or more again. In between it is quiet, also without any steps.

        Raises TypeError for an async function, which nobody would await.
        """
        if inspect.iscoroutinefunction(callback):
            raise TypeError(
                f"{callback!r} is async, but alerts are sent by a plain call; give a function that "
                "begins a task, or puts the alert in a queue"
            )
        self._callbacks.append(callback)

    @property
    def alerting(self) -> frozenset[LayerPair | None]:
        """Whose score is below; None stands for the overall score."""
        return frozenset(self._alerted)

    def check(self) -> list[HealthAlert]:
        """Compare the scores of the window with the limits; returns the alerts that were sent."""
        sent: list[HealthAlert] = []
        with self._lock:  # two that check at once send an alert once
            self._count_pending()
            by_pair = self._by_pair(int(self.clock() // 60), self.window_minutes)
            scores: Iterable[tuple[LayerPair | None, float | None]] = (
                (None, weighted(by_pair)),
                *((pair, by_pair[pair].score) for pair in LayerPair if pair in by_pair),
            )
            for layers, value in scores:
                if value is None:
                    continue
                below = layers in self._alerted
                if not below and value < self.alert_below:
                    self._alerted.add(layers)
                elif below and value >= self.recovered_above:
                    self._alerted.discard(layers)
                else:
                    continue
                sent.append(HealthAlert(layers, value, below, self.window_minutes))
        for alert in sent:
            self._send(alert)
        return sent

    def _send(self, alert: HealthAlert) -> None:
        for callback in self._callbacks:
            try:
                callback(alert)
            except Exception:
                _logger.exception("commitcast: %r, called with an alert, raised", callback)


class _Slot:
    """The steps of one minute."""

    __slots__ = ("counts", "minute", "pairs", "types")

    def __init__(self) -> None:
        self.begin(-1)

    def begin(self, minute: int) -> None:
        self.minute = minute
        self.counts: dict[tuple[str, LayerPair], Counts] = {}
        self.types: set[str] = set()
        self.pairs: dict[LayerPair, Counts] | None = None

    def by_pair(self, *, finished: bool) -> dict[LayerPair, Counts]:
        """All types together; added up once when nothing more comes, since alerts ask often."""
        if self.pairs is not None:
            return self.pairs
        found: dict[LayerPair, Counts] = {}
        for (_, pair), counts in self.counts.items():
            found.setdefault(pair, Counts()).add(counts)
        if finished:
            self.pairs = found
        return found

    def make(self, event_type: str, pair: LayerPair) -> Counts:
        if event_type not in self.types:
            if len(self.types) >= MAX_EVENT_TYPES:
                return self.counts.setdefault((OTHER, pair), Counts())
            self.types.add(event_type)
        return self.counts.setdefault((event_type, pair), Counts())
