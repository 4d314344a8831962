"""`emit`: events that belong to a transaction and leave with its commit, or not at all.

Here they are taken and refused; `commitcast.pending` keeps them, and `commitcast.connections` writes
them when the transaction commits. SQL that Commitcast cannot see as a savepoint or a commit
(``ROLLBACK TO`` sent as text) is not followed.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from commitcast.attachment import Attachment, attachment_of, attachment_on
from commitcast.connections import add
from commitcast.engines import chooses_engine, default_bind
from commitcast.errors import (
    LateAnnouncement,
    NoTransaction,
    OperationError,
    TransactionNotSeen,
)
from commitcast.event import DEFAULT_MAX_EVENT_BYTES, check_id, check_label, check_stream, encode
from commitcast.pending import (
    BINDING,
    CAPTURE,
    STATE,
    Emit,
    SessionState,
    carries,
    level_option,
    moment,
    refuse_level,
    refuse_twophase,
    state_of,
    tie,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import scoped_session

    from commitcast.log import Binding

    EmitTarget = (
        Session
        | AsyncSession
        | scoped_session[Any]
        | async_scoped_session[Any]
        | Connection
        | AsyncConnection
    )


def emit(
    target: EmitTarget,
    stream: str,
    event: object,
    *,
    actor: str | None = None,
    operation: str | None = None,
    trace_parent: str | None = None,
) -> None:
    """Send `event` to the readers of `stream` when, and only if, `target`'s transaction commits.

    Nothing to await and no I/O: it may be called anywhere inside the transaction. (In an engine's
    ``commit`` listener that comes after Commitcast's, it writes the event there and then.)

    Args:
        target: an AsyncSession, Session or scoped session, or a Core connection in a transaction.
        stream: the audience, such as ``thread:7``.
        event: an `Event`; a pydantic model or dataclass with a ``type``; or a function without
            arguments that returns one of these, called at commit when the ids of new rows are
            known (it must not run SQL: a session that commits takes none).
        actor: the user whose doing it is, kept in the log and sent on the wire.
        operation: an id of the caller's that goes along, likewise.
        trace_parent: a W3C ``traceparent``, kept in the log, never on the wire; where the
            coordinator has `tracing`, default is the current span's.

    Raises:
        InvalidEvent: the stream's name, the type or the data cannot be accepted.
        NotAttached: no `Coordinator` is attached to the engine.
        NoTransaction: `target` has no open transaction that could still take it: a connection
            without one, a session with ``autobegin=False``, one that has been rolled back and not
            been told so, one whose commit is over (``after_commit``).
        TransactionNotSeen: the session's transaction is older than the coordinator.
        AutocommitRefused, IsolationRefused, TwoPhaseRefused: no single commit would carry it.

    What only the commit can know (the function's result, several engines, the isolation level set
    elsewhere) is raised by the commit, which then does not happen; after ``rollback()`` the
    session is usable.
    """
    stream = check_stream(stream)
    labels = {
        "actor": None if actor is None else check_id("actor", actor),
        "operation": check_label("operation", operation),
        "trace_parent": check_label("trace_parent", trace_parent, longest=55),
    }
    place = place_of(target)
    if isinstance(place, Session):
        _emit_in_session(place, stream, event, labels)
    else:
        _emit_on_connection(place, stream, event, labels)


def bind(target: EmitTarget, binding: Binding, *, after: int = 0) -> None:
    """Tie an operation to the transactions of `target`, a session or a connection in one.

    A session stays tied through rollbacks, until `unbind`; a connection for this transaction.

    Raises:
        NotAttached, NoTransaction, TransactionNotSeen, TwoPhaseRefused: as `emit`.
        LateAnnouncement: the transaction began before `after`, a value of `moment`.
        OperationError: another operation is tied to it.
    """
    place = place_of(target)
    if isinstance(place, Connection):
        attachment_of(place)
        if not place.in_transaction():
            raise NoTransaction(
                "the connection has no transaction that the operation could be tied to; bind after "
                "begin() or after the first statement"
            )
        tie(place, binding, None, 0)
        return
    refuse_twophase(place)
    if place.info.get(BINDING, binding) is not binding:
        raise OperationError(
            None, "the session is bound to another operation; use a session of its own"
        )
    conn = where_in(place).conn
    state = state_of(place)
    if state is not None and conn is not None:
        if state.begun_at is not None and state.begun_at < after:
            raise LateAnnouncement(
                None,
                "the session's transaction began before the operation was announced, so that a "
                "crash in between would have been told to nobody; enter the operation first, or "
                "commit or roll back the session before",
            )
        tie(conn, binding, state.token, state.began)
    place.info[BINDING] = binding


def unbind(target: EmitTarget, binding: Binding) -> None:
    """Untie an operation from a session; one in a transaction that is open is not committed by it."""
    place = place_of(target)
    if isinstance(place, Session) and place.info.get(BINDING) is binding:
        del place.info[BINDING]


def place_of(target: object) -> Session | Connection:
    """The session or connection that `target` is or stands for; raises TypeError for others."""
    for attribute in ("sync_session", "sync_connection"):
        inner = getattr(target, attribute, None)
        if inner is not None:
            target = inner
            break
    if isinstance(target, (Session, Connection)):
        return target
    registry = getattr(target, "registry", None)
    if callable(registry):
        return place_of(registry())
    raise TypeError(
        f"emit takes a SQLAlchemy session or connection, not {type(target).__name__}; inside a "
        "framework, give the session of the request"
    )


class _Where(NamedTuple):
    """Where an event of a session goes."""

    attachment: Attachment | None
    bind: Engine | Connection | None
    """Of the attachment."""
    conn: Connection | None
    """The bind, if the session's transaction has begun on it."""
    waits: bool
    """Whether what the session writes is yet to decide about its engine."""


def where_in(session: Session) -> _Where:
    """Where an event of the session goes; raises what `emit` raises of a session."""
    refuse_twophase(session)
    capturing = CAPTURE in session.info
    chooses = chooses_engine(session)
    state = state_of(session)
    conn = None if state is None else state.attached_connection()
    if conn is not None and (carries(conn) or not chooses):
        found = _Where(attachment_of(conn), conn, conn, waits=False)
    else:
        bind = default_bind(session)
        waits = chooses or bind is None
        attachment = None if bind is None else attachment_on(bind)
        if bind is not None and not waits and not capturing:
            attachment = attachment_of(bind)
        found = _Where(attachment, None if attachment is None or waits else bind, None, waits)
    _state_of(session, attached=found.attachment is not None or not capturing)
    return found


def _state_of(session: Session, *, attached: bool) -> SessionState | None:
    """What is known of its transaction, None if it has none; raises where that takes nothing."""
    state = state_of(session)
    if state is None:
        if session.in_transaction() and attached:
            raise TransactionNotSeen(
                "the session's transaction began before the process had a coordinator (or "
                "capture), so that it is not known what is in it; commit or roll back before "
                "emit, or make the coordinator first"
            )
        return None
    if state.over:
        raise NoTransaction(
            "the session's transaction has ended (this is after_commit or after_rollback), so that "
            "no commit would send the event; emit before the commit, or in another session"
        )
    if state.rolled_back and not session.is_active:
        raise NoTransaction(
            "the session's transaction has been rolled back, as after a failed flush, so that no "
            "commit would send the event; call session.rollback() (of a savepoint: its own "
            "rollback()), then emit"
        )
    if state.has_ended_outside():
        raise NoTransaction(
            "the transaction that the session is joined to has been ended on its connection, behind "
            "the session's back, so that it is not known what the session's commit or rollback does; "
            "call session.rollback() before more work"
        )
    return state


def _emit_in_session(
    session: Session, stream: str, event: object, labels: dict[str, str | None]
) -> None:
    where = where_in(session)
    made = _make(where.attachment, where.bind, stream, event, labels, sized=not where.waits)
    if not session.in_transaction():
        if not session.autobegin:
            raise NoTransaction(
                "the session has autobegin=False and no transaction that the event could join; "
                "emit after session.begin()"
            )
        session.begin()
    state = state_of(session)
    if state is None:  # captured, in a transaction that is older than capture
        root = session.get_transaction()
        if root is None:  # pragma: no cover - it has begun
            raise NoTransaction("the session has no transaction; begin one before emit")
        state = session.info[STATE] = SessionState(root)
    made.scope = state.scope(session)
    if where.conn is not None:
        add(where.conn, made)
    elif where.attachment is not None or where.waits:
        state.unbound.append(made)
        if state.committing and not where.waits and _is_under_way(state):
            session.connection()  # of a listener of before_commit that comes after ours
    if CAPTURE in session.info:
        state.captured.append(made)


def _is_under_way(state: SessionState) -> bool:
    """Whether the commit that has begun is still running: below us, in a method of the transaction.

    SQLAlchemy does not say so if a listener of before_commit raised, after which none is.
    """
    root = state.root()
    frame = sys._getframe(1) if root is not None else None  # noqa: SLF001 - Python's own, documented
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",) and frame.f_locals.get("self") is root:
            return True
        frame = frame.f_back
    return False


def _emit_on_connection(
    conn: Connection, stream: str, event: object, labels: dict[str, str | None]
) -> None:
    add(conn, _make(attachment_of(conn), conn, stream, event, labels))


def _make(
    attachment: Attachment | None,
    bind: Engine | Connection | None,
    stream: str,
    event: object,
    labels: dict[str, str | None],
    *,
    sized: bool = True,
) -> Emit:
    if bind is not None:
        refuse_level(level_option(bind), row_locks=bind.dialect.name != "sqlite")
    if (
        attachment is not None
        and isinstance(bind, Connection)
        and bind.in_transaction()
        and not bind.invalidated
    ):
        refuse_level(attachment.log.autocommit_level(bind), row_locks=False)
    if attachment is not None and attachment.tracing is not None:
        labels["trace_parent"] = labels["trace_parent"] or attachment.tracing.current()
    order = moment()
    if callable(event) and not isinstance(event, type):
        return Emit(order, order, (), stream, None, cast("Any", event), labels)
    max_bytes = DEFAULT_MAX_EVENT_BYTES if attachment is None else attachment.max_event_bytes
    encoded = encode(stream, event, max_bytes=max_bytes if sized else sys.maxsize, **labels)
    return Emit(order, order, (), stream, encoded, None, labels, sized=sized)
