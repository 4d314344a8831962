"""Where the steps of this node are timed (see `commitcast.health`), and what is only counted.

Each end of a step is a reading of its own of the monitor's clock, at the place where it happens:
COMMIT returned, handed to the readers, frame written, notice sent. An event that was read from the
log has no time of COMMIT: it may come from another node, with which no clock is shared.

A monitor of a team's own may raise; no commit, frame or settling fails for that.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

from commitcast.score import LayerPair

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from commitcast.event import CommittedEvent
    from commitcast.health import CoordinationHealthMonitor

_logger = logging.getLogger("commitcast")
_TOO_EARLY: Final = "handed to the readers before its COMMIT had returned"
_NOT_ALLOWED: Final = "written to a reader whose access was withdrawn"


class Steps:
    """Made by a coordinator, for the parts of it in which something happens."""

    def __init__(self, health: CoordinationHealthMonitor) -> None:
        self.health = health
        self.clock: Callable[[], float] = health.clock
        self.events_committed = 0
        """Events whose COMMIT was seen to return on this node."""
        self.events_handed_over = 0
        """Those that went to this node's readers from memory."""
        self.frames_written = 0
        """Events written to clients, each client counted."""
        self._failed = False
        self._lock = threading.Lock()

    def committed(self, events: Sequence[CommittedEvent]) -> None:
        """COMMIT has just returned, in this thread."""
        with self._lock:  # several threads may commit
            self.events_committed += len(events)
        if not self.health.full:
            return
        try:
            now = self.clock()
            for event in events:
                event.committed_at = now
        except Exception as error:  # noqa: BLE001 - see `_raised`
            self._raised(error)

    def handed_over(self, events: Sequence[CommittedEvent]) -> None:
        """They are about to be handed to the readers, in the event loop."""
        self.events_handed_over += len(events)
        if not self.health.full:
            return
        try:
            now = self.clock()
            track = self.health.track_coordination_event
            for event in events if len(events) == 1 else {e.type: e for e in events}.values():
                at = event.committed_at
                if at is None:
                    track(event.type, LayerPair.TRANSACTION_BOUNDARY, None, detail=_TOO_EARLY)
                else:
                    ahead_ms = (at - now) * 1000.0
                    track(event.type, LayerPair.TRANSACTION_BOUNDARY, max(ahead_ms, 0.0))
        except Exception as error:  # noqa: BLE001 - see `_raised`
            self._raised(error)

    def frame_written(
        self, events: Sequence[CommittedEvent], *, since: float | None, allowed: bool | None
    ) -> None:
        """A write of `events` to one client returned.

        Args:
            events: at least one.
            since: when the reader had caught up; None if it has not yet.
            allowed: what authorisation last answered; None if it was never asked.
        """
        self.frames_written += len(events)
        if not self.health.full:
            return
        try:
            now = self.clock()
            track = self.health.track_coordination_event
            for event in events:
                at = event.committed_at
                if at is not None and since is not None and at >= since:
                    track(event.type, LayerPair.DATABASE_SOCKET, (now - at) * 1000.0)
            if allowed is None:
                return
            gap = 0.0 if allowed else None
            for kind in (events[0].type,) if len(events) == 1 else {e.type for e in events}:
                track(kind, LayerPair.ISOLATION, gap, detail="" if allowed else _NOT_ALLOWED)
        except Exception as error:  # noqa: BLE001 - see `_raised`
            self._raised(error)

    def delivered(self, event: CommittedEvent, committed_at: float) -> None:
        """A ``deliver`` callable returned."""
        if not self.health.full:
            return
        try:
            gap_ms = (self.clock() - committed_at) * 1000.0
            self.health.track_coordination_event(event.type, LayerPair.DATABASE_SOCKET, gap_ms)
        except Exception as error:  # noqa: BLE001 - see `_raised`
            self._raised(error)

    def notice_sent(self, event_type: str, known_at: float, detail: str) -> None:
        """A rollback notification was handed over, of a failure that was known at `known_at`."""
        try:
            gap_ms = (self.clock() - known_at) * 1000.0
            self.health.track_coordination_event(
                event_type, LayerPair.ROLLBACK_NOTIFICATION, gap_ms, detail=detail
            )
        except Exception as error:  # noqa: BLE001 - see `_raised`
            self._raised(error)

    def _raised(self, error: Exception) -> None:
        """Whatever a monitor of the team's own raises is logged once, and changes nothing."""
        if not self._failed:
            self._failed = True
            _logger.error(
                "commitcast: the health monitor raised %s; steps are missing (said once)",
                type(error).__name__, exc_info=error,
            )  # fmt: skip
