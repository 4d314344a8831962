"""The health of one node as JSON may hold it: what ``/realtime/health`` answers.

No user's id and no stream's name is in it; event types, operation names and call sites are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from commitcast.score import WEIGHTS, LayerPair

if TYPE_CHECKING:
    from collections.abc import Mapping

    from commitcast.health import CoordinationHealthMonitor
    from commitcast.invariants import Invariants


def report(
    health: CoordinationHealthMonitor,
    proven: Invariants | None,
    readiness: Mapping[str, bool],
    counts: Mapping[str, int],
) -> dict[str, Any]:
    """What a node says of itself. Scores are 0 to 100, or None where nothing was recorded."""
    score = health.get_health_score(health.window_minutes)
    now = health.clock()
    return {
        "level": health.level.value,
        "window_minutes": score.time_window_minutes,
        "overall": score.overall,
        "by_pair": {
            pair.value: {
                "score": score.by_pair[pair],
                "weight": WEIGHTS[pair],
                "steps": score.counts[pair].steps,
                "late": score.counts[pair].late,
                "broken": score.counts[pair].broken,
                "worst_ms": score.counts[pair].worst_ms,
                "threshold_ms": health.thresholds_ms[pair],
            }
            for pair in LayerPair
        },
        "by_type": {_valid(name): value for name, value in score.by_type.items()},
        "alerts": sorted("overall" if pair is None else pair.value for pair in health.alerting),
        "breaches": [
            {
                "age_s": round(now - breach.at, 3),
                "event_type": _valid(breach.event_type),
                "layers": breach.layers.value,
                "gap_ms": breach.gap_ms,
                "broken": breach.broken,
                "detail": _valid(breach.detail),
            }
            for breach in reversed(health.recent_breaches())
        ],
        "invariants": None if proven is None else proven.as_dict(),
        "node": dict(readiness),
        "counts": dict(counts),
    }


def _valid(text: str) -> str:
    """Without what JSON in UTF-8 cannot hold, as a file's name may have it."""
    return text.encode(errors="replace").decode()
