"""What a campaign did and found, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from commitcast.chaos.violation import Violation

_SHOWN: Final = 50


@dataclass
class Report:
    """What a campaign did and found; it passed when `violations` and `errors` are empty."""

    database: str
    seed: int
    kills: int = 0
    kills_around_commit: int = 0
    kills_while_starting: int = 0
    stops: int = 0
    stops_around_commit: int = 0
    stops_past_lease: int = 0
    taken_for_dead: int = 0
    commits: int = 0
    rollbacks: int = 0
    operations: int = 0
    retries: int = 0
    committed: int = 0
    rolled_back: int = 0
    settled_by_others: int = 0
    answered_again: int = 0
    notifications: int = 0
    events: int = 0
    readers: int = 0
    reconnects: int = 0
    received: int = 0
    received_across_a_kill: int = 0
    delivered: int = 0
    seconds: float = 0.0
    violations: list[Violation] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all guarantees held and nothing failed that should not."""
        return not self.violations and not self.errors

    def as_json(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return asdict(self) | {"passed": self.passed}

    def as_text(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.database}, seed {self.seed}, {self.seconds} s",
            *self._shots(),
            f"  {self.commits} commits acknowledged, {self.rollbacks} transactions rolled back",
            f"  {self.operations} operations announced, {self.retries} as new attempts at a key",
            f"  {self.committed} committed",
            f"  {self.rolled_back} rolled back, {self.settled_by_others} of them by another node",
            f"  {self.notifications} notifications, {self.answered_again} keys answered again",
            f"  {self.events} events in the log, {self.delivered} handed to deliver",
            f"  {self.readers} readers, {self.reconnects} reconnects",
            f"  {self.received} events received, {self.received_across_a_kill} across a kill",
            f"  {len(self.violations)} violations, {len(self.errors)} errors",
        ]
        lines += [f"  {violation}" for violation in self.violations[:_SHOWN]]
        lines += [f"  error: {error}" for error in self.errors]
        lines.append("passed" if self.passed else "FAILED")
        return "\n".join(lines)

    def _shots(self) -> list[str]:
        if self.stops:
            return [
                f"  {self.stops} stops",
                f"  {self.stops_around_commit} of them around a commit",
                f"  {self.stops_past_lease} of them longer than the lease",
                f"  {self.taken_for_dead} times a stopped node was taken for dead",
            ]
        return [
            f"  {self.kills} kills",
            f"  {self.kills_around_commit} of them around a commit",
            f"  {self.kills_while_starting} of them while the server was starting",
        ]
