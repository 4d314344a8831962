"""What an audit found: how often, of which kind, and on which lines of the app."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from commitcast.score import HealthScore


class BreachKind(StrEnum):
    """What a send, or the lack of one, did wrong."""

    SENT_BEFORE_COMMIT = "sent_before_commit"
    """It left while the transaction that made it was open; COMMIT came later."""
    SENT_FOR_ROLLED_BACK_WORK = "sent_for_rolled_back_work"
    """It left while the transaction that made it was open, and that was rolled back."""
    ROLLBACK_NOT_TOLD = "rollback_not_told"
    """Changes were rolled back and nobody was told."""
    SENT_TO_ANOTHER_USER = "sent_to_another_user"
    """Who received it may not see it."""
    STATE_APART = "state_apart"
    """It told a state of a run that the run's committed row did not have."""


@dataclass(frozen=True, slots=True)
class CallSite:
    """A line of the app."""

    file: str
    """Its path, relative to the working directory where that is above it."""
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Finding:
    """All breaches of one kind at one line."""

    kind: BreachKind
    site: CallSite
    through: tuple[CallSite, ...] = ()
    """Lines of the app between `site` and the send itself, outermost first; of the last breach."""
    event_types: tuple[str, ...] = ()
    count: int = 1
    worst_ms: float | None = None
    """How far ahead of its commit, or how late; None if it was never in step."""


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What `Shadow.report` returns."""

    score: HealthScore
    sends: int
    """Sends that were judged."""
    transactions: int
    """Transactions with changes that were seen to end."""
    rollbacks: int
    """Those of them that were rolled back."""
    findings: tuple[Finding, ...]
    """Most frequent first."""
