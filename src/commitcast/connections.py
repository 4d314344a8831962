"""What SQLAlchemy tells us of connections, and what follows from it.

The engine's ``commit`` event fires for a real COMMIT only: not for RELEASE, and not for a session
joined to an outer transaction (G2). There the log is written, as the transaction's last statement.
Nothing here commits, rolls back or closes what the caller opened.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from commitcast.attachment import attachment_of, attachment_on
from commitcast.engines import refuse_several
from commitcast.log import Written
from commitcast.pending import (
    Buffer,
    Emit,
    buffer_of,
    buffer_on,
    check_transaction,
    last_buffer,
    level_option,
    moment,
    refuse_level,
    resolve_all,
    take_buffer,
)
from commitcast.savepoints import Savepoints

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection, Engine, ExceptionContext

    from commitcast.event import EncodedEvent
    from commitcast.telemetry import Span


def add(conn: Connection, made: Emit) -> None:
    """Add an emit to what the connection's transaction has pending."""
    check_transaction(conn)
    buffer = buffer_of(conn)
    buffer.refuse_writing()
    buffer.emits.append(made)
    if buffer.late:
        _refuse_several(buffer)
        _write(conn, buffer)


def _refuse_several(buffer: Buffer) -> None:
    for state in buffer.live_sessions():
        refuse_several(state)


def _savepoint(conn: Connection, _name: str | None) -> None:
    buffer = buffer_of(conn)
    if buffer.savepoints is None:
        buffer.savepoints = Savepoints()
    buffer.look(conn)
    buffer.savepoints.begins(moment())


def _release_savepoint(conn: Connection, _name: str, _context: None) -> None:
    buffer = buffer_on(conn)
    if buffer is not None:
        buffer.look(conn)


def _rollback_savepoint(conn: Connection, _name: str, _context: None) -> None:
    buffer = buffer_on(conn)
    if buffer is None:
        return
    if buffer.savepoints is None:
        buffer.savepoints = Savepoints()
    buffer.look(conn)
    buffer.savepoints.rolls_back(moment())


def _rollback(conn: Connection) -> None:
    buffer = buffer_on(conn)
    if buffer is None:
        return
    take_buffer(conn)
    buffer.look(conn)
    tell_rolled_back(conn, buffer.streams, buffer.bound)
    forget_written(conn, buffer)


def _commit(conn: Connection) -> None:
    if conn.get_transaction() is None:  # in AUTOCOMMIT
        return
    buffer = buffer_of(conn)
    try:
        _refuse_several(buffer)
        buffer.look(conn)
        if buffer.emits or buffer.bound:
            _write(conn, buffer)
    except BaseException as error:
        _end(conn, error)
        tell_rolled_back(conn, buffer.streams, buffer.bound)
        raise
    buffer.late = True


def _write(conn: Connection, buffer: Buffer) -> None:
    attachment = attachment_of(conn)
    log = attachment.log
    row_locks = bool(buffer.emits) and conn.dialect.name != "sqlite"
    refuse_level(level_option(conn), row_locks=row_locks)
    refuse_level(log.autocommit_level(conn), row_locks=False)
    resolve_all(buffer.emits, attachment.max_event_bytes)
    binding = None if buffer.bound is None else buffer.bound.binding
    decision = None if binding is None else binding.write(conn, log, buffer.streams)
    resolve_all(buffer.emits, attachment.max_event_bytes)  # what the function of a result emitted
    buffer.writing = True
    buffer.emits.sort(key=lambda e: e.order)
    encoded: Sequence[EncodedEvent] = [e.resolved(attachment.max_event_bytes) for e in buffer.emits]
    span: Span | None = None
    if attachment.tracing is not None:
        span = attachment.tracing.commit(encoded)
        encoded = [replace(e, trace_parent=span.parent_for(e.trace_parent)) for e in encoded]
    try:
        events = log.append(conn, encoded, decision) if encoded or decision else ()
        written = Written(buffer.root, events, binding, span)
        buffer.written.append(written)
        if events:
            attachment.observer.written(written)
    except BaseException as error:
        if span is not None:
            span.end(error)
        raise
    buffer.emits, buffer.bound, buffer.writing = [], None, False
    sessions = (state.root() for state in buffer.live_sessions())
    if span is not None and all(root is None or root.is_active for root in sessions):
        span.end()  # of a connection's own COMMIT nobody is told that it returned


def commit_beside(conn: Connection) -> None:
    """Of a connection without a coordinator, in a session that has others."""
    buffer = buffer_on(conn)
    if buffer is None:
        return
    try:
        _refuse_several(buffer)
    except BaseException as error:
        _end(conn, error)
        raise


def _failed(context: ExceptionContext) -> None:
    """Also of a COMMIT that failed or was cancelled, about which no session says a word."""
    conn = context.connection
    buffer = None if conn is None else buffer_on(conn)
    for written in () if buffer is None else buffer.written:
        if written.span is not None:
            written.span.end(context.original_exception)


def forget_written(conn: Connection, buffer: Buffer) -> None:
    """The transaction was rolled back after our statement ran, if its connection is sound."""
    for written in buffer.written:
        if written.span is not None:
            written.span.end("RolledBack")
        if not conn.invalidated:
            streams = tuple(dict.fromkeys(e.stream for e in written.events))
            tell_rolled_back(conn, streams, written.binding)
    buffer.written = []


def tell_rolled_back(
    bind: Engine | Connection | None, streams: tuple[str, ...], bound: object | None
) -> None:
    """Tell the observer of a plain transaction; an operation's end is told by its outcome."""
    attachment = None if bind is None else attachment_on(bind)
    if attachment is not None and streams and bound is None:
        attachment.observer.rolled_back(streams)


def _end(conn: Connection, reason: BaseException) -> None:
    """Roll back on the driver's connection what must not be committed.

    SQLAlchemy takes a transaction whose COMMIT was tried for over: the caller's ``rollback()``
    sends nothing, and what comes next on the connection would commit these rows as well. A
    connection whose work was cancelled is in no known state (asyncpg: a BEGIN that nobody counts,
    so that the next COMMIT is a RELEASE) and is closed, as SQLAlchemy does it.
    """
    if (buffer := last_buffer(conn)) is not None:
        buffer.written = []
    if conn.invalidated:
        return
    if not isinstance(reason, Exception):
        conn.invalidate(reason)
        return
    try:
        conn.connection.rollback()
    except Exception:  # noqa: BLE001 - the caller gets the error that led here
        conn.invalidate()


ENGINE_LISTENERS: Final = (
    ("commit", _commit),
    ("rollback", _rollback),
    ("handle_error", _failed),
    ("savepoint", _savepoint),
    ("release_savepoint", _release_savepoint),
    ("rollback_savepoint", _rollback_savepoint),
)
