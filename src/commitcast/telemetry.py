"""What Commitcast tells operators as it happens: a record to observe, a span to trace.

Observers run in the event loop that the coordinator runs in, or in the thread that commits;
they must not block. What an observer raises is logged and changes nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from commitcast.coordinator import Coordinator
    from commitcast.event import CommittedEvent, EncodedEvent

_logger = logging.getLogger("commitcast")


class CoordinationEventType(StrEnum):
    """What can happen to work that is coordinated. Who receives which is in docs/guide.md.

    Observers (`Coordinator.observe`) get all of them. Users get `TRANSACTION_ROLLED_BACK` alone,
    as the type of the event that carries their `RollbackNotification`.
    """

    TRANSACTION_STARTED = "transaction_started"
    """`Operation.begin` or `Operation.bind` tied a transaction to an operation."""
    TRANSACTION_COMMITTED = "transaction_committed"
    """The operation's outcome is *committed*."""
    TRANSACTION_ROLLED_BACK = "transaction_rolled_back"
    """The operation's outcome is *rolled_back*; or a plain session that had emitted rolled back."""
    COORDINATION_FAILED = "coordination_failed"
    """An outcome could not be recorded yet, since the database could not be asked."""
    LAYER_SYNC_ERROR = "layer_sync_error"
    """A function that was to follow the outcome (`after_commit`, `on_rollback`) raised."""


@dataclass(frozen=True, slots=True)
class CoordinationEvent:
    """One thing that happened, for operators: nothing of it goes to a user."""

    type: CoordinationEventType
    operation_id: str | None = None
    attempt: int | None = None
    name: str | None = None
    actor: str | None = None
    transaction_id: str | None = None
    streams: tuple[str, ...] = ()
    error: str | None = None
    """Class, SQLSTATE and constraint; never statement parameters."""


class Observer(Protocol):
    """Takes what happened."""

    def __call__(self, event: CoordinationEvent, /) -> object:
        """Called once for each event, in the order in which they happened on this node."""


def notify(observers: Iterable[Observer], event: CoordinationEvent) -> None:
    """Tell every observer, whatever one of them raises."""
    for observer in observers:
        try:
            observer(event)
        except Exception:
            _logger.exception("commitcast: an observer raised on %s", event.type)


class Span(Protocol):
    """One piece of work in a trace. Its methods never raise."""

    def parent_for(self, trace_parent: str | None) -> str | None:
        """What to store with an event that was emitted under `trace_parent`.

        This span's own W3C ``traceparent``, unless the event belongs to another trace.
        """

    def enter(self) -> None:
        """Make it the current one of this task or thread."""

    def leave(self) -> None:
        """Undo `enter`."""

    def note(self, name: str, value: str | int) -> None:
        """Add an attribute."""

    def end(self, error: BaseException | str | None = None) -> None:
        """Over; of an exception only its class is kept. Later calls change nothing."""


class Tracing(Protocol):
    """Makes spans (`commitcast.tracing.OpenTelemetry`). Its methods neither raise nor block."""

    def current(self) -> str | None:
        """The W3C ``traceparent`` of the span that the caller is in, if it is in one."""

    def commit(self, events: Sequence[EncodedEvent]) -> Span:
        """The write of `events`, and its COMMIT, begins."""

    def deliver(self, event: CommittedEvent) -> Span:
        """An event is handed to who is to have it."""

    def operation(self, name: str, id: str) -> Span:  # noqa: A002 - the word of DESIGN §3
        """An operation is entered."""

    def watch(self, coordinator: Coordinator) -> None:
        """`coordinator` is made: its readings may be asked for from now on."""
