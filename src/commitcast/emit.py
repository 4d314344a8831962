"""`emit`: events that belong to a transaction and leave with its commit, or not at all.

Here they are taken and refused; `commitcast.pending` keeps them, `commitcast.hooks` writes them when the
transaction commits. SQL that Commitcast cannot see as a savepoint or a commit (``ROLLBACK TO``
sent as text) is not followed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import exc as sa_exc
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from commitcast.errors import (
    LateAnnouncement,
    NoTransaction,
    OperationError,
    SeveralEngines,
)
from commitcast.event import DEFAULT_MAX_EVENT_BYTES, check_id, check_label, check_stream, encode
from commitcast.pending import (
    BINDING,
    CAPTURE,
    Attachment,
    Emit,
    attachment_of,
    attachments,
    begin_state,
    buffer_of,
    level_option,
    moment,
    refuse_level,
    refuse_twophase,
    root_of,
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

    Nothing to await and no I/O: it may be called anywhere inside the transaction.

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
        NoTransaction: `target` is a connection without an open transaction.
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
        NotAttached, NoTransaction, TwoPhaseRefused: as `emit`.
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
    state = state_of(place)
    conn = None if state is None else state.live_connection()
    if state is not None and conn is not None:
        attachment_of(conn)
        if state.token < after:
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


def _emit_in_session(
    session: Session, stream: str, event: object, labels: dict[str, str | None]
) -> None:
    refuse_twophase(session)
    state = state_of(session)
    conn = None if state is None else state.live_connection()
    bind: Engine | Connection
    if conn is None:
        try:
            bind = session.get_bind()
        except sa_exc.UnboundExecutionError as error:
            raise SeveralEngines(
                "the session has no single engine (binds=…) and no connection yet; run its first "
                "statement before emit, or emit on the connection"
            ) from error
    else:
        bind = conn
    capturing = CAPTURE in session.info
    attachment = None if capturing and bind.dialect not in attachments else attachment_of(bind)
    made = _make(attachment, bind, stream, event, labels)
    if state is None:
        if not session.in_transaction():
            session.begin()
        state = begin_state(session)
    made.scope = state.scope(session)
    if capturing:
        state.captured.append(made)
    if attachment is None:
        return
    if conn is None:
        state.unbound.append(made)
        if state.committing:  # a listener of before_commit that comes after ours
            session.connection()
    else:
        buffer_of(root_of(conn)).emits.append(made)


def _emit_on_connection(
    conn: Connection, stream: str, event: object, labels: dict[str, str | None]
) -> None:
    made = _make(attachment_of(conn), conn, stream, event, labels)
    if not conn.in_transaction():
        raise NoTransaction(
            "the connection has no transaction that the event could join; emit after begin() or "
            "after the first statement"
        )
    buffer_of(root_of(conn)).emits.append(made)


def _make(
    attachment: Attachment | None,
    bind: Engine | Connection,
    stream: str,
    event: object,
    labels: dict[str, str | None],
) -> Emit:
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
    encoded = encode(stream, event, max_bytes=max_bytes, **labels)
    return Emit(order, order, (), stream, encoded, None, labels)
