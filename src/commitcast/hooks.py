"""What SQLAlchemy tells us of sessions and connections, and what follows from it.

The engine's ``commit`` event fires for a real COMMIT only: not for RELEASE, and not for a session
joined to an outer transaction (G2). There the log is written, as the transaction's last statement.
Nothing here commits, rolls back or closes what the caller opened.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from sqlalchemy import event as sa_event
from sqlalchemy.engine import Connection, Engine, RootTransaction
from sqlalchemy.orm import Session, SessionTransaction

from commitcast.errors import SeveralEngines
from commitcast.event import DEFAULT_MAX_EVENT_BYTES
from commitcast.log import Written
from commitcast.pending import (
    BINDING,
    CAPTURE,
    STATE,
    Attachment,
    attachment_of,
    attachments,
    begin_state,
    buffer_of,
    buffers,
    has_emits,
    level_option,
    moment,
    refuse_level,
    root_of,
    savepoints,
    state_of,
    tie,
    written_on,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import ExceptionContext

    from commitcast.event import EncodedEvent
    from commitcast.pending import SessionState
    from commitcast.telemetry import Span


def attach(engine: Engine, attachment: Attachment) -> None:
    """Tie an engine's commits to a log; raises ValueError if another log has it already.

    Engines made from it by ``execution_options()``, before or after, are served too.
    """
    if type(engine) is not Engine:
        raise ValueError(
            f"{engine!r} was made by execution_options(); give the engine it was made from, whose "
            "coordinator serves both"
        )
    existing = attachments.get(engine.dialect)
    if existing is not None:
        raise ValueError(
            f"{engine!r} has a coordinator already; use that one, or close it first "
            "(coordinator.detach())"
        )
    attachments[engine.dialect] = attachment
    listen_to_sessions()
    for name, listener in _ENGINE_LISTENERS:
        if not sa_event.contains(engine, name, listener):
            sa_event.listen(engine, name, listener)


def detach(engine: Engine) -> None:
    """Undo `attach`; emits on the engine, and commits of earlier ones, fail from now on."""
    attachments.pop(engine.dialect, None)


def listen_to_sessions() -> None:
    """Follow every Session's transactions; done once per process, by the first `attach`."""
    for name, listener in _SESSION_LISTENERS:
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
    emits, state.captured = state.captured, []
    return [e.resolved(DEFAULT_MAX_EVENT_BYTES) for e in emits if not e.void]


# --- what SQLAlchemy tells us of sessions --------------------------------------------------


def _after_begin(session: Session, transaction: SessionTransaction, conn: Connection) -> None:
    state = state_of(session)
    if state is None:
        state = begin_state(session)
    attachment = attachments.get(conn.dialect)
    state.add(conn)
    if attachment is None:
        return
    if attachment.tracing is not None:
        state.traced = True
        _by_session(state, by_session=state.committing)
    if not transaction.nested:
        state.began = moment()  # after the savepoint by which it may have joined another's
        if (binding := session.info.get(BINDING)) is not None:
            tie(conn, binding, state.token, state.began)
    if state.unbound:
        _give_to(conn, state)
    if transaction.nested and state.nested is not None and transaction in state.nested:
        # The session opens the savepoint at its first SQL, after what was emitted inside it.
        token = state.nested[transaction]
        for made in buffer_of(root_of(conn)).emits:
            if token in made.scope:
                made.since = moment()


def _give_to(conn: Connection, state: SessionState) -> None:
    """What was emitted before there was a connection now belongs to its transaction."""
    for made in state.unbound:
        made.since = moment()  # a savepoint of the session may have been opened for this
    buffer_of(root_of(conn)).emits.extend(state.unbound)
    state.unbound = []


def _before_commit(session: Session) -> None:
    state = state_of(session)
    if state is None:
        state = begin_state(session)
    if not session.in_nested_transaction():
        state.committing = True
    # Also for a savepoint: `with session.begin()` commits what was left open inside it.
    if state.unbound or (BINDING in session.info and state.live_connection() is None):
        session.connection()  # so that there is a transaction to write in; no more than that
    if state.others and any(map(has_emits, state.connections())):
        raise SeveralEngines(
            "the session's transaction spans more than one engine or connection, so part of it "
            "may commit and part not; emit in a session of one engine"
        )
    if state.traced:
        _by_session(state, by_session=True)


def _after_commit(session: Session) -> None:
    state = state_of(session)
    conn = None if state is None else state.live_connection()
    if state is None or conn is None:
        return
    if state.traced:
        _by_session(state, by_session=False)
    written = written_on.get(conn)
    # RELEASE, and the commit of a session joined to an outer transaction, come here too; only a
    # transaction that ran our statement and has ended without an error is committed.
    if written is not None and written.has_committed(conn):
        del written_on[conn]
        if written.span is not None:
            written.span.end()
        if written.binding is not None:
            written.binding.committed()
        attachment = attachments.get(conn.dialect)
        if attachment is not None and written.events:
            attachment.observer.committed(written)


def _after_soft_rollback(session: Session, previous: SessionTransaction) -> None:
    state = session.info.get(STATE)
    if state is None:
        return
    root = state.root()
    ended = previous  # a flush that failed rolls back the savepoint or transaction around it
    while not ended.nested and ended.parent is not None:
        ended = ended.parent
    token = state.token if ended is root else (state.nested or {}).get(ended)
    if token is None:
        return
    if ended is root and state.unbound:
        streams = tuple(dict.fromkeys(e.stream for e in state.unbound))
        _tell_rolled_back(session.get_bind(), streams, session.info.get(BINDING))
    state.unbound = [e for e in state.unbound if token not in e.scope]
    state.captured = [e for e in state.captured if token not in e.scope]
    if state.traced:
        _by_session(state, by_session=False)
    for conn in state.connections():
        if ended is root:
            _forget_written(conn)
        transaction = conn.get_transaction()
        buffer = buffers.get(transaction) if isinstance(transaction, RootTransaction) else None
        if buffer is not None:
            buffer.drop_scope(token)


def _by_session(state: SessionState, *, by_session: bool) -> None:
    """Whether the session's commit is under way; it may be joined to a connection's transaction."""
    conn = state.live_connection()
    root = None if conn is None else conn.get_transaction()
    if isinstance(root, RootTransaction):
        buffer_of(root).by_session = by_session


# --- what SQLAlchemy tells us of connections -----------------------------------------------


def _savepoint(conn: Connection, name: str | None) -> None:
    # SQLAlchemy names the savepoint after this event, counting through the connection's life.
    if name is None:
        number = savepoints[conn] = savepoints.get(conn, 0) + 1
        name = f"sa_savepoint_{number}"
    root = conn.get_transaction()
    if isinstance(root, RootTransaction):
        buffer_of(root).savepoints[name] = moment()


def _rollback_savepoint(conn: Connection, name: str, _context: None) -> None:
    root = conn.get_transaction()
    buffer = buffers.get(root) if isinstance(root, RootTransaction) else None
    if buffer is not None and name in buffer.savepoints:
        buffer.drop_since(buffer.savepoints[name])


def _rollback(conn: Connection) -> None:
    root = conn.get_transaction()
    buffer = buffers.pop(root, None) if isinstance(root, RootTransaction) else None
    if buffer is not None:
        _tell_rolled_back(conn, buffer.streams, buffer.bound)
    _forget_written(conn)


def _commit(conn: Connection) -> None:
    root = conn.get_transaction()
    buffer = buffers.pop(root, None) if isinstance(root, RootTransaction) else None
    if buffer is None or root is None or not (buffer.emits or buffer.bound):
        return
    span: Span | None = None
    try:
        attachment = attachment_of(conn)
        log = attachment.log
        row_locks = bool(buffer.emits) and conn.dialect.name != "sqlite"
        refuse_level(level_option(conn), row_locks=row_locks)
        refuse_level(log.autocommit_level(conn), row_locks=False)
        buffer.emits.sort(key=lambda e: e.order)
        encoded = [e.resolved(attachment.max_event_bytes) for e in buffer.emits]
        if attachment.tracing is not None:
            span = attachment.tracing.commit(encoded)
            encoded = [replace(e, trace_parent=span.parent_for(e.trace_parent)) for e in encoded]
        binding = None if buffer.bound is None else buffer.bound.binding
        decision = None if binding is None else binding.write(conn, log, buffer.streams)
        events = log.append(conn, encoded, decision) if encoded or decision else ()
        written = written_on[conn] = Written(weakref.ref(root), events, binding, span)
        if events:
            attachment.observer.written(written)
        if span is not None and not buffer.by_session:
            span.end()  # of a connection's own COMMIT nobody is told that it returned
    except BaseException as error:
        if span is not None:
            span.end(error)
        _end(conn, error)
        _tell_rolled_back(conn, buffer.streams, buffer.bound)
        raise


def _failed(context: ExceptionContext) -> None:
    """Also of a COMMIT that failed or was cancelled, about which no session says a word."""
    conn = context.connection
    written = None if conn is None else written_on.get(conn)
    if conn is None or written is None or written.span is None:
        return
    if conn.get_transaction() is written.root():
        written.span.end(context.original_exception)


def _forget_written(conn: Connection) -> None:
    """The transaction was rolled back after our statement ran, if its connection is sound."""
    written = written_on.pop(conn, None)
    if written is not None and written.span is not None:
        written.span.end("RolledBack")
    if written is not None and not conn.invalidated:
        streams = tuple(dict.fromkeys(e.stream for e in written.events))
        _tell_rolled_back(conn, streams, written.binding)


def _tell_rolled_back(
    bind: Engine | Connection, streams: tuple[str, ...], bound: object | None
) -> None:
    """Tell the observer of a plain transaction; an operation's end is told by its outcome."""
    attachment = attachments.get(bind.dialect)
    if attachment is not None and streams and bound is None:
        attachment.observer.rolled_back(streams)


def _end(conn: Connection, reason: BaseException) -> None:
    """Roll back on the driver's connection what must not be committed.

    SQLAlchemy takes a transaction whose COMMIT was tried for over: the caller's ``rollback()``
    sends nothing, and what comes next on the connection would commit these rows as well. A
    connection whose work was cancelled is in no known state (asyncpg: a BEGIN that nobody counts,
    so that the next COMMIT is a RELEASE) and is closed, as SQLAlchemy does it.
    """
    written_on.pop(conn, None)
    if conn.invalidated:
        return
    if not isinstance(reason, Exception):
        conn.invalidate(reason)
        return
    try:
        conn.connection.rollback()
    except Exception:  # noqa: BLE001 - the caller gets the error that led here
        conn.invalidate()


_ENGINE_LISTENERS: Final = (
    ("commit", _commit),
    ("rollback", _rollback),
    ("handle_error", _failed),
    ("savepoint", _savepoint),
    ("rollback_savepoint", _rollback_savepoint),
)
_SESSION_LISTENERS: Final = (
    ("after_begin", _after_begin),
    ("before_commit", _before_commit),
    ("after_commit", _after_commit),
    ("after_soft_rollback", _after_soft_rollback),
)
