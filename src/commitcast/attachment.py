"""What a coordinator ties to an engine, so that its transactions write events.

It is an attribute of the engine's `Dialect`, which engines made by ``execution_options()`` share,
and so lives as long as they do; a map with weak keys would keep them for ever, since a coordinator
reaches its engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, cast

from commitcast.errors import NotAttached
from commitcast.event import DEFAULT_MAX_EVENT_BYTES

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

    from commitcast.log import Log, Written
    from commitcast.telemetry import Tracing

_ATTRIBUTE: Final = "commitcast"


class WriteObserver(Protocol):
    """Who is told of writes to the log; called in the thread that commits, must not block."""

    def written(self, written: Written) -> None:
        """The statement ran; its COMMIT is about to be sent, and may yet fail."""

    def committed(self, written: Written) -> None:
        """COMMIT returned."""

    def rolled_back(self, streams: tuple[str, ...]) -> None:
        """A transaction that had emitted to `streams` was rolled back; nobody is told by itself."""


@dataclass(frozen=True)
class Attachment:
    """What a coordinator ties to an engine."""

    log: Log
    observer: WriteObserver
    max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES
    tracing: Tracing | None = None


def attachment_on(bind: Engine | Connection) -> Attachment | None:
    """What is tied to its engine, if anything is."""
    return cast("Attachment | None", vars(bind.dialect).get(_ATTRIBUTE))


def attach_to(engine: Engine, attachment: Attachment | None) -> None:
    """Tie an engine, and those made from it, to a coordinator; None to untie it."""
    if attachment is None:
        vars(engine.dialect).pop(_ATTRIBUTE, None)
    else:
        vars(engine.dialect)[_ATTRIBUTE] = attachment


def attachment_of(bind: Engine | Connection) -> Attachment:
    """What is tied to its engine; raises `NotAttached`."""
    attachment = attachment_on(bind)
    if attachment is None:
        raise NotAttached(
            f"no coordinator is attached to {bind.engine.url!r}, so the event would reach nobody; "
            "make one with Coordinator(engine) (in tests: commitcast.testing.capture)"
        )
    return attachment
