"""What SQLAlchemy tells us of sessions, and what follows from it.

Nothing here commits, rolls back or closes what the caller opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import event as sa_event

from commitcast.attachment import attachment_on
from commitcast.connections import commit_beside, forget_written, tell_rolled_back
from commitcast.engines import bring_connection, chooses_engine, default_bind, nowhere
from commitcast.event import DEFAULT_MAX_EVENT_BYTES
from commitcast.pending import (
    BINDING,
    CAPTURE,
    STATE,
    SessionState,
    buffer_of,
    buffer_on,
    carries,
    last_buffer,
    moment,
    resolve_all,
    state_of,
    take_buffer,
    tie,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import Session, SessionTransaction

    from commitcast.log import Written


def _after_transaction_create(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info[STATE] = SessionState(transaction)


def _after_begin(session: Session, transaction: SessionTransaction, conn: Connection) -> None:
    state = state_of(session)
    if state is None:  # older than we are; emit refuses it
        return
    attachment = attachment_on(conn)
    state.add(conn)
    if not transaction.nested:
        if buffer_on(conn) is None:
            take_buffer(conn)  # of a transaction before
        state.began = moment()  # after the savepoint by which it may have joined another's
        state.begun_at = state.begun_at or state.began
        if state.others or (attachment is not None and attachment.tracing is not None):
            _follow(state)
    if attachment is None or (chooses_engine(session) and not carries(conn)):
        return
    if not transaction.nested and (binding := session.info.get(BINDING)) is not None:
        tie(conn, binding, state.token, state.began)
    if state.unbound:
        _give_to(conn, state)
    if transaction.nested:
        _join_savepoint(conn, state, transaction)


def _join_savepoint(conn: Connection, state: SessionState, nested: SessionTransaction) -> None:
    """The session opens the savepoint at its first SQL, after what was emitted inside it."""
    token = None if state.nested is None else state.nested.get(nested)
    for made in buffer_of(conn).emits if token is not None else ():
        if token in made.scope:
            made.since = moment()


def _follow(state: SessionState) -> None:
    """Have the first COMMIT on one of the session's connections look at all of them."""
    for conn in state.connections():
        if conn.get_transaction() is None:
            continue
        buffer_of(conn).add(state)
        if attachment_on(conn) is None and not sa_event.contains(
            conn.engine, "commit", commit_beside
        ):
            sa_event.listen(conn.engine, "commit", commit_beside)


def _give_to(conn: Connection, state: SessionState) -> None:
    """What was emitted before there was a connection now belongs to its transaction."""
    for made in state.unbound:
        made.since = moment()  # a savepoint of the session may have been opened for this
    buffer_of(conn).emits.extend(state.unbound)
    state.unbound = []


def _before_commit(session: Session) -> None:
    state = state_of(session)
    if state is None:
        return
    if not session.in_nested_transaction():
        state.committing = True
    # Also for a savepoint: `with session.begin()` commits what was left open inside it.
    if state.unbound or (BINDING in session.info and state.attached_connection() is None):
        bring_connection(session, state)  # so that there is a transaction to write in; no more


def _after_commit(session: Session) -> None:
    state = state_of(session)
    if state is None:
        return
    if not session.in_nested_transaction():
        if state.captured:
            resolve_all(state.captured, DEFAULT_MAX_EVENT_BYTES)
        state.over = True
        if state.unbound and CAPTURE not in session.info:
            raise nowhere(state)
    # RELEASE, and the commit of a session joined to an outer transaction, come here too; only a
    # transaction that ran our statement and has ended without an error is committed.
    for conn in state.connections():
        buffer = last_buffer(conn)
        if buffer is None or not all(w.has_committed(conn) for w in buffer.written):
            continue
        ended, buffer.written = buffer.written, []
        for written in ended:
            _committed(conn, written)


def _committed(conn: Connection, written: Written) -> None:
    if written.span is not None:
        written.span.end()
    if written.binding is not None:
        written.binding.committed()
    attachment = attachment_on(conn)
    if attachment is not None and written.events:
        attachment.observer.committed(written)


def _after_rollback(session: Session) -> None:
    state = state_of(session)
    if state is not None:
        state.rolled_back = True


def _after_soft_rollback(session: Session, previous: SessionTransaction) -> None:
    state: SessionState | None = session.info.get(STATE)
    if state is None:
        return
    root = state.root()
    ended = previous  # a flush that failed rolls back the savepoint or transaction around it
    while not ended.nested and ended.parent is not None:
        ended = ended.parent
    nested = None if state.nested is None else state.nested.get(ended)
    token = state.token if ended is root else nested
    if ended is previous:  # else SQLAlchemy waits for rollback()
        state.rolled_back = False
        state.over |= ended is root
    if token is None:
        return
    if ended is root and state.unbound:
        streams = tuple(dict.fromkeys(e.stream for e in state.unbound))
        tell_rolled_back(default_bind(session), streams, session.info.get(BINDING))
    state.unbound = [e for e in state.unbound if token not in e.scope]
    state.captured = [e for e in state.captured if token not in e.scope]
    for conn in state.connections():
        buffer = last_buffer(conn)
        if buffer is None:
            continue
        if ended is root:
            forget_written(conn, buffer)
        buffer.drop_scope(token)


SESSION_LISTENERS: Final = (
    ("after_transaction_create", _after_transaction_create),
    ("after_begin", _after_begin),
    ("before_commit", _before_commit),
    ("after_commit", _after_commit),
    ("after_rollback", _after_rollback),
    ("after_soft_rollback", _after_soft_rollback),
)
