"""Beginning to follow an engine's transactions, and the sessions of the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import event as sa_event
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from commitcast.attachment import attach_to, attachment_on
from commitcast.connections import ENGINE_LISTENERS
from commitcast.event import DEFAULT_MAX_EVENT_BYTES
from commitcast.pending import CAPTURE, buffer_on, state_of
from commitcast.sessions import SESSION_LISTENERS

if TYPE_CHECKING:
    from commitcast.attachment import Attachment
    from commitcast.event import EncodedEvent


def attach(engine: Engine, attachment: Attachment) -> None:
    """Tie an engine's commits to a log; raises ValueError if another log has it already.

    Engines made from it by ``execution_options()``, before or after, are served too.
    """
    if type(engine) is not Engine:
        raise ValueError(
            f"{engine!r} was made by execution_options(); give the engine it was made from, whose "
            "coordinator serves both"
        )
    if attachment_on(engine) is not None:
        raise ValueError(
            f"{engine!r} has a coordinator already; use that one, or close it first "
            "(coordinator.detach())"
        )
    attach_to(engine, attachment)
    listen_to_sessions()
    for name, listener in ENGINE_LISTENERS:
        if not sa_event.contains(engine, name, listener):
            sa_event.listen(engine, name, listener)


def detach(engine: Engine) -> None:
    """Undo `attach`; emits on the engine, and commits of earlier ones, fail from now on."""
    attach_to(engine, None)


def listen_to_sessions() -> None:
    """Follow every Session's transactions; done once per process, by the first `attach`."""
    for name, listener in SESSION_LISTENERS:
        if not sa_event.contains(Session, name, listener):
            sa_event.listen(Session, name, listener)


def set_capture(session: Session, active: bool) -> None:
    """For `commitcast.testing.capture`: keep what the session emits, coordinator or not."""
    listen_to_sessions()
    if active:
        session.info[CAPTURE] = True
    else:
        session.info.pop(CAPTURE, None)


def take_captured(session: Session) -> list[EncodedEvent]:
    """For `commitcast.testing.capture`: what a commit of the session has made ready to leave."""
    state = state_of(session)
    if state is None or session.in_nested_transaction():
        return []
    for conn in state.connections():
        if (buffer := buffer_on(conn)) is not None:
            buffer.look(conn)
    emits, state.captured = state.captured, []
    return [e.resolved(DEFAULT_MAX_EVENT_BYTES) for e in emits if not e.void]
