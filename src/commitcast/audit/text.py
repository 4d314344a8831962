"""A report as text to read and as JSON."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from commitcast.audit.report import AuditReport, BreachKind, Finding
from commitcast.score import LayerPair

if TYPE_CHECKING:
    from collections.abc import Iterator

WHAT_TO_DO: Final = {
    BreachKind.SENT_BEFORE_COMMIT: "Send after the commit, or emit() into the transaction so that "
    "the event leaves with it.",
    BreachKind.SENT_FOR_ROLLED_BACK_WORK: "Users were shown what was never saved. Send after the "
    "commit, or emit() into the transaction.",
    BreachKind.ROLLBACK_NOT_TOLD: "Tell who waits for it that it failed, or let the error reach "
    "the response; coordinator.operation() tells by itself.",
    BreachKind.SENT_TO_ANOTHER_USER: "Check who may read before sending, or send to a stream that "
    "authorize= guards.",
    BreachKind.STATE_APART: "Change the run's row and tell of it with one commit.",
}
"""One sentence for each kind of breach."""

NOTHING_SENT: Final = (
    "No send was seen, so nothing was judged. Was there traffic, over WebSockets or server-sent "
    "events? Other ways of sending need Shadow.sends (docs/shadow.md)."
)


def rounded(score: float) -> float:
    """To one decimal, and never up to 100: that is for what has no breach."""
    return score if score == 100 else min(round(score, 1), 99.9)  # noqa: PLR2004 - a score's top


def to_text(report: AuditReport) -> str:
    """The report for a terminal, without a newline at its end."""
    if not report.sends:
        return NOTHING_SENT
    return "\n".join(_lines(report))


def _lines(report: AuditReport) -> Iterator[str]:
    overall = report.score.overall
    score = "?" if overall is None else f"{rounded(overall):g}"
    yield (
        f"Score {score} of 100: {_of(report.sends, 'send')}, "
        f"{_of(report.transactions, 'transaction')} with changes, "
        f"{report.rollbacks} of them rolled back"
    )
    yield ""
    for pair in LayerPair:
        counts = report.score.counts[pair]
        value = report.score.by_pair[pair]
        if value is not None:
            yield (
                f"  {pair:<21} {rounded(value):>5g}   {_of(counts.steps, 'step')}, "
                f"{counts.broken} broken, {counts.late} late"
            )
    if not report.findings:
        yield ""
        yield "Nothing was found: all that was sent was committed, and all that failed was told."
        if any(counts.late for counts in report.score.counts.values()):
            yield "Late is what took longer than its threshold (docs/health.md)."
        return
    yield ""
    yield "Breaches"
    for kind, count in breaches(report).items():
        yield f"  {kind:<26} {count:>5}"
    yield ""
    yield "Lines"
    for finding in report.findings:
        yield from _finding(finding)
    yield ""
    yield "What to do"
    for kind in breaches(report):
        yield f"  {kind}: {WHAT_TO_DO[kind]}"


def _finding(finding: Finding) -> Iterator[str]:
    parts = [
        f"{finding.site} in {finding.site.function}",
        finding.kind.value,
        f"{finding.count} times" if finding.count > 1 else "once",
        ", ".join(finding.event_types),
    ]
    if finding.worst_ms is not None:
        parts.append(f"up to {finding.worst_ms:.1f} ms")
    yield f"  {'  '.join(part for part in parts if part)}"
    if finding.through:
        yield f"      through {', '.join(map(str, finding.through))}"


def breaches(report: AuditReport) -> dict[BreachKind, int]:
    """How many of each kind, most frequent first."""
    found: Counter[BreachKind] = Counter()
    for finding in report.findings:
        found[finding.kind] += finding.count
    return dict(found.most_common())


def to_json(report: AuditReport) -> dict[str, Any]:
    """The report as JSON values; docs/audit.md describes them."""
    score = report.score
    return {
        "score": score.overall,
        "by_pair": {
            pair.value: {
                "score": score.by_pair[pair],
                "steps": counts.steps,
                "late": counts.late,
                "broken": counts.broken,
                "worst_ms": counts.worst_ms,
            }
            for pair, counts in score.counts.items()
        },
        "by_type": dict(score.by_type),
        "sends": report.sends,
        "transactions": report.transactions,
        "rollbacks": report.rollbacks,
        "breaches": {kind.value: count for kind, count in breaches(report).items()},
        "findings": [
            {
                "kind": finding.kind.value,
                "file": finding.site.file,
                "line": finding.site.line,
                "function": finding.site.function,
                "count": finding.count,
                "event_types": list(finding.event_types),
                "worst_ms": finding.worst_ms,
                "through": [str(site) for site in finding.through],
            }
            for finding in report.findings
        ],
    }


def _of(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
