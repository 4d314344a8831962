"""Breaches, by kind and line of the app."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from commitcast.audit.callsite import site_of
from commitcast.audit.report import BreachKind, CallSite, Finding

if TYPE_CHECKING:
    from commitcast.audit.callsite import Chain

MOST_GROUPS: Final = 1_000
MORE: Final = CallSite("(more)", 0, "(more lines than are told apart)")
_MOST_TYPES: Final = 20


@dataclass(slots=True)
class _Group:
    through: tuple[CallSite, ...] = ()
    event_types: dict[str, None] = field(default_factory=dict)
    count: int = 0
    worst_ms: float | None = None


class Findings:
    """What was found; bounded."""

    def __init__(self) -> None:
        self._groups: dict[tuple[BreachKind, CallSite], _Group] = {}

    def add(
        self,
        kind: BreachKind,
        event_type: str,
        gap_ms: float | None,
        chain: Chain,
        cause: Chain = (),
        count: int = 1,
    ) -> str:
        """Count a breach; returns its line."""
        site, through = site_of(chain, cause)
        if (kind, site) not in self._groups and len(self._groups) >= MOST_GROUPS:
            site, through = MORE, ()
        group = self._groups.setdefault((kind, site), _Group())
        group.through = through
        group.count += count
        if len(group.event_types) < _MOST_TYPES:
            group.event_types[event_type] = None
        if gap_ms is not None:
            group.worst_ms = max(group.worst_ms or 0.0, abs(gap_ms))
        return f"{kind} at {site}"

    def all(self) -> tuple[Finding, ...]:
        """All of them, most frequent first."""
        found = [
            Finding(kind, site, g.through, tuple(sorted(g.event_types)), g.count, g.worst_ms)
            for (kind, site), g in self._groups.items()
        ]
        return tuple(sorted(found, key=lambda f: (-f.count, f.kind, str(f.site))))
