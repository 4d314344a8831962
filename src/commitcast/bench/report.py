"""The result: one row for each program and concurrency, as a table or as JSON."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from commitcast.bench.client import Measured

_COLUMNS = (
    "program", "at once", "ops/s", "p50 ms", "added", "p99 ms", "ratio", "commit→client p50", "p99",
)  # fmt: skip
BASELINES: Final = {"health_full": "health_off", "health_control": "health_off"}
"""What a program's ratio is to, where it is not ``plain``."""
_FORMAT = "{:<14} {:>7} {:>8} {:>8} {:>8} {:>8} {:>6} {:>18} {:>8}"


@dataclass(frozen=True, slots=True)
class Figures:
    """What is published of one program at one concurrency.

    `ops_per_s` is the median of the rounds; `p50_ms` and `p99_ms` are over all operations, from
    request to event as the client sees it, `p50_added_ms` what that is more than ``plain``'s; `ratio` is the median, over the rounds, of this
    program's operations per second to those of ``plain`` (``health_…``: of ``health_off``) in the
    same round.
    """

    program: str
    concurrency: int
    ops_per_s: float
    p50_ms: float
    p50_added_ms: float
    p99_ms: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Row:
    """Figures, and how long after `commit()` returned the client had the event.

    That can be less than nothing: the event may leave before the committing task goes on.
    """

    figures: Figures
    delivery_p50_ms: float
    delivery_p99_ms: float


def rows(concurrency: int, rounds: Sequence[dict[str, Measured]]) -> list[Row]:
    """Sum up the rounds of one concurrency; each holds a turn of every program."""
    return [_row(program, concurrency, rounds) for program in rounds[0]]


def _row(program: str, concurrency: int, rounds: Sequence[dict[str, Measured]]) -> Row:
    operations = sorted(ns for one in rounds for ns in one[program].operation_ns)
    deliveries = sorted(ns for one in rounds for ns in one[program].delivery_ns)
    plain = sorted(ns for one in rounds for ns in one["plain"].operation_ns)
    baseline = BASELINES.get(program, "plain")
    ratios = [one[program].ops_per_s / one[baseline].ops_per_s for one in rounds]
    figures = Figures(
        program=program,
        concurrency=concurrency,
        ops_per_s=round(statistics.median(one[program].ops_per_s for one in rounds), 1),
        p50_ms=_milliseconds(operations, 0.50),
        p50_added_ms=round(_milliseconds(operations, 0.50) - _milliseconds(plain, 0.50), 3),
        p99_ms=_milliseconds(operations, 0.99),
        ratio=round(statistics.median(ratios), 3),
    )
    return Row(figures, _milliseconds(deliveries, 0.50), _milliseconds(deliveries, 0.99))


def _milliseconds(sorted_ns: Sequence[int], quantile: float) -> float:
    if not sorted_ns:
        return float("nan")
    return round(sorted_ns[min(int(len(sorted_ns) * quantile), len(sorted_ns) - 1)] / 1e6, 3)


def as_json(found: Sequence[Row]) -> str:
    """``{"rows": [{"program", "concurrency", "ops_per_s", "p50_ms", "p50_added_ms", "p99_ms", "ratio"}, …]}``."""
    return orjson.dumps({"rows": [asdict(row.figures) for row in found]}).decode()


def header() -> str:
    """The table's first line."""
    return _FORMAT.format(*_COLUMNS)


def line(row: Row) -> str:
    """One line of the table."""
    f = row.figures
    return _FORMAT.format(
        f.program,
        f.concurrency,
        f"{f.ops_per_s:.0f}",
        f"{f.p50_ms:.2f}",
        f"{f.p50_added_ms:+.2f}",
        f"{f.p99_ms:.2f}",
        f"{f.ratio:.2f}",
        f"{row.delivery_p50_ms:.2f}",
        f"{row.delivery_p99_ms:.2f}",
    )
