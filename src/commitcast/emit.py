"""`emit`: events that belong to a transaction and leave with its commit, or not at all.

Invariants:

- Emits belong to the connection's root transaction. They are written by one statement in the
  engine's ``commit`` event, which fires for a real COMMIT only: not for RELEASE, and not for a
  session joined to an outer transaction (G2).
- Each emit knows when it was made and in which of the session's transactions, so that rolling
  back a savepoint, the session's or the connection's, drops exactly the emits made since.
- SQL that Commitcast cannot see as a savepoint or a commit (``ROLLBACK TO`` sent as text) is not
  followed.
- Nothing here commits, rolls back or closes what the caller opened.
"""

from __future__ import annotations

import itertools
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from sqlalchemy import event as sa_event
from sqlalchemy import exc as sa_exc
from sqlalchemy.engine import Connection, Engine, RootTransaction, TwoPhaseTransaction
from sqlalchemy.orm import Session, SessionTransaction

from commitcast.errors import (
    AutocommitRefused,
    InvalidEvent,
    IsolationRefused,
    LateAnnouncement,
    NotAttached,
    NoTransaction,
    OperationError,
    SeveralEngines,
    TwoPhaseRefused,
)
from commitcast.event import (
    DEFAULT_MAX_EVENT_BYTES,
    EncodedEvent,
    check_label,
    check_stream,
    encode,
    resolve,
)
from commitcast.log import Binding, Log, Written

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import scoped_session

    EmitTarget = (
        Session
        | AsyncSession
        | scoped_session[Any]
        | async_scoped_session[Any]
        | Connection
        | AsyncConnection
    )

_KEY: Final = "commitcast"
_CAPTURE: Final = "commitcast.capture"
_BINDING: Final = "commitcast.binding"
_ABOVE_READ_COMMITTED: Final = {"REPEATABLE READ", "SERIALIZABLE", "SNAPSHOT"}


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


@dataclass(slots=True)
class _Emit:
    order: int
    since: int
    scope: tuple[int, ...]
    stream: str
    encoded: EncodedEvent | None
    make: Callable[[], object] | None
    labels: dict[str, str | None]
    void: bool = False

    def resolved(self, max_bytes: int) -> EncodedEvent:
        if self.encoded is None:
            if self.make is None:  # pragma: no cover - one of the two is always given
                raise InvalidEvent("an emit without an event")
            self.encoded = resolve(self.stream, self.make, max_bytes=max_bytes, **self.labels)
        return self.encoded


@dataclass(slots=True)
class _Buffer:
    """The emits of one root transaction, in the order in which they were made."""

    emits: list[_Emit] = field(default_factory=list)
    savepoints: dict[str, int] = field(default_factory=dict)
    bound: _Bound | None = None

    def drop_since(self, order: int) -> None:
        for made in self.emits:
            made.void |= made.since >= order
        self.emits = [e for e in self.emits if not e.void]
        if self.bound is not None and self.bound.since >= order:
            self.bound = None

    def drop_scope(self, token: int) -> None:
        self.emits = [e for e in self.emits if token not in e.scope]
        if self.bound is not None and self.bound.token == token:
            self.bound = None

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(e.stream for e in self.emits))


@dataclass(frozen=True, slots=True)
class _Bound:
    """The operation that a root transaction decides."""

    binding: Binding
    since: int
    """When its session's transaction began here: rolling back a savepoint around all of that
    undoes the tie, rolling back one inside it does not, since the rest may yet commit."""
    token: int | None
    """Of the session whose transaction it is: its rollback undoes the tie."""


class _SessionState:
    """What is known of one root transaction of a session, kept in ``session.info``."""

    __slots__ = (
        "began",
        "captured",
        "committing",
        "connection",
        "nested",
        "others",
        "root",
        "token",
        "unbound",
    )

    def __init__(self, root: SessionTransaction) -> None:
        self.root = weakref.ref(root)
        self.token = self.began = next(_order)
        self.nested: weakref.WeakKeyDictionary[SessionTransaction, int] | None = None
        self.unbound: list[_Emit] = []
        self.captured: list[_Emit] = []
        self.committing = False
        self.connection: weakref.ref[Connection] | None = None
        self.others: list[weakref.ref[Connection]] = []

    def scope(self, session: Session) -> tuple[int, ...]:
        """Tokens of the transactions that this emit would be rolled back with."""
        inner = session.get_nested_transaction()
        if inner is None:
            return (self.token,)
        if self.nested is None:
            self.nested = weakref.WeakKeyDictionary()
        tokens = [self.token]
        current: SessionTransaction | None = inner
        while current is not None:
            if current.nested:
                tokens.append(self.nested.setdefault(current, next(_order)))
            current = current.parent
        return tuple(tokens)

    def add(self, conn: Connection) -> None:
        """The transaction has begun on a connection."""
        known = self.live_connection()
        if known is None:
            self.connection = weakref.ref(conn)
        elif known is not conn:
            attached = conn.dialect in _attachments and known.dialect not in _attachments
            ours = conn if attached else known
            self.connection = weakref.ref(ours)
            self.others.append(weakref.ref(known if ours is conn else conn))

    def connections(self) -> list[Connection]:
        """Those that the session's transaction has begun on."""
        found = [known() for known in (self.connection, *self.others) if known is not None]
        return [conn for conn in found if conn is not None]

    def live_connection(self) -> Connection | None:
        return None if self.connection is None else self.connection()


_order = itertools.count(1)
_attachments: weakref.WeakKeyDictionary[Any, Attachment] = weakref.WeakKeyDictionary()
_buffers: weakref.WeakKeyDictionary[RootTransaction, _Buffer] = weakref.WeakKeyDictionary()
_savepoints: weakref.WeakKeyDictionary[Connection, int] = weakref.WeakKeyDictionary()
_written: weakref.WeakKeyDictionary[Connection, Written] = weakref.WeakKeyDictionary()


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
        trace_parent: a W3C ``traceparent``, kept in the log, never on the wire.

    Raises:
        InvalidEvent: the stream's name, the type or the data cannot be accepted.
        NotAttached: no `Coordinator` is attached to the engine.
        NoTransaction: `target` is a connection without an open transaction.
        AutocommitRefused, IsolationRefused, TwoPhaseRefused: no single commit would carry it.

    What only the commit can know (the function's result, several engines, the isolation level set
    elsewhere) is raised by the commit, which then does not happen; after ``rollback()`` the
    session is usable.
    """
    check_stream(stream)
    labels = {
        "actor": check_label("actor", actor),
        "operation": check_label("operation", operation),
        "trace_parent": check_label("trace_parent", trace_parent, longest=55),
    }
    place = _sync(target)
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
    place = _sync(target)
    if isinstance(place, Connection):
        _attachment(place)
        if not place.in_transaction():
            raise NoTransaction(
                "the connection has no transaction that the operation could be tied to; bind after "
                "begin() or after the first statement"
            )
        _tie(place, binding, None, 0)
        return
    _refuse_twophase(place)
    if place.info.get(_BINDING, binding) is not binding:
        raise OperationError(
            None, "the session is bound to another operation; use a session of its own"
        )
    state = _state_of(place)
    conn = None if state is None else state.live_connection()
    if state is not None and conn is not None:
        _attachment(conn)
        if state.token < after:
            raise LateAnnouncement(
                None,
                "the session's transaction began before the operation was announced, so that a "
                "crash in between would have been told to nobody; enter the operation first, or "
                "commit or roll back the session before",
            )
        _tie(conn, binding, state.token, state.began)
    place.info[_BINDING] = binding


def unbind(target: EmitTarget, binding: Binding) -> None:
    """Untie an operation from a session; one in a transaction that is open is not committed by it."""
    place = _sync(target)
    if isinstance(place, Session) and place.info.get(_BINDING) is binding:
        del place.info[_BINDING]


def moment() -> int:
    """A place in the order of this process's transactions and emits; later ones are larger."""
    return next(_order)


def _tie(conn: Connection, binding: Binding, token: int | None, since: int) -> None:
    buffer = _buffer(_root(conn))
    if buffer.bound is not None and buffer.bound.binding is not binding:
        raise OperationError(
            None, "the transaction is bound to another operation; use a transaction of its own"
        )
    buffer.bound = _Bound(binding, since, token)


def attach(engine: Engine, attachment: Attachment) -> None:
    """Tie an engine's commits to a log; raises ValueError if another log has it already.

    Engines made from it by ``execution_options()``, before or after, are served too.
    """
    if type(engine) is not Engine:
        raise ValueError(
            f"{engine!r} was made by execution_options(); give the engine it was made from, whose "
            "coordinator serves both"
        )
    existing = _attachments.get(engine.dialect)
    if existing is not None:
        raise ValueError(
            f"{engine!r} has a coordinator already; use that one, or close it first "
            "(coordinator.detach())"
        )
    _attachments[engine.dialect] = attachment
    listen_to_sessions()
    for name, listener in _ENGINE_LISTENERS:
        if not sa_event.contains(engine, name, listener):
            sa_event.listen(engine, name, listener)


def detach(engine: Engine) -> None:
    """Undo `attach`; emits on the engine, and commits of earlier ones, fail from now on."""
    _attachments.pop(engine.dialect, None)


def listen_to_sessions() -> None:
    """Follow every Session's transactions; done once per process, by the first `attach`."""
    for name, listener in _SESSION_LISTENERS:
        if not sa_event.contains(Session, name, listener):
            sa_event.listen(Session, name, listener)


def set_capture(session: Session, active: bool) -> None:
    """For `commitcast.testing.capture`: keep what the session emits, coordinator or not."""
    listen_to_sessions()
    if active:
        session.info[_CAPTURE] = True
    else:
        session.info.pop(_CAPTURE, None)


def take_captured(session: Session) -> list[EncodedEvent]:
    """For `commitcast.testing.capture`: what a commit of the session has made ready to leave."""
    state = _state_of(session)
    if state is None or session.in_nested_transaction():
        return []
    emits, state.captured = state.captured, []
    return [e.resolved(DEFAULT_MAX_EVENT_BYTES) for e in emits if not e.void]


def _sync(target: object) -> Session | Connection:
    for attribute in ("sync_session", "sync_connection"):
        inner = getattr(target, attribute, None)
        if inner is not None:
            target = inner
            break
    if isinstance(target, (Session, Connection)):
        return target
    registry = getattr(target, "registry", None)
    if callable(registry):
        return _sync(registry())
    raise TypeError(
        f"emit takes a SQLAlchemy session or connection, not {type(target).__name__}; inside a "
        "framework, give the session of the request"
    )


def _emit_in_session(
    session: Session, stream: str, event: object, labels: dict[str, str | None]
) -> None:
    _refuse_twophase(session)
    state = _state_of(session)
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
    capturing = _CAPTURE in session.info
    attachment = None if capturing and bind.dialect not in _attachments else _attachment(bind)
    made = _make(attachment, bind, stream, event, labels)
    if state is None:
        if not session.in_transaction():
            session.begin()
        state = _begin_state(session)
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
        _buffer(_root(conn)).emits.append(made)


def _emit_on_connection(
    conn: Connection, stream: str, event: object, labels: dict[str, str | None]
) -> None:
    made = _make(_attachment(conn), conn, stream, event, labels)
    if not conn.in_transaction():
        raise NoTransaction(
            "the connection has no transaction that the event could join; emit after begin() or "
            "after the first statement"
        )
    _buffer(_root(conn)).emits.append(made)


def _make(
    attachment: Attachment | None,
    bind: Engine | Connection,
    stream: str,
    event: object,
    labels: dict[str, str | None],
) -> _Emit:
    _refuse_level(_level_option(bind), row_locks=bind.dialect.name != "sqlite")
    if (
        attachment is not None
        and isinstance(bind, Connection)
        and bind.in_transaction()
        and not bind.invalidated
    ):
        _refuse_level(attachment.log.autocommit_level(bind), row_locks=False)
    order = next(_order)
    if callable(event) and not isinstance(event, type):
        return _Emit(order, order, (), stream, None, cast("Any", event), labels)
    max_bytes = DEFAULT_MAX_EVENT_BYTES if attachment is None else attachment.max_event_bytes
    encoded = encode(stream, event, max_bytes=max_bytes, **labels)
    return _Emit(order, order, (), stream, encoded, None, labels)


def _refuse_twophase(session: Session) -> None:
    if session.twophase:
        raise TwoPhaseRefused(
            "the session uses two-phase commit, whose outcome nobody here would see; use a session "
            "with twophase=False"
        )


def _level_option(bind: Engine | Connection) -> str:
    level = bind.get_execution_options().get("isolation_level", "")
    return str(level).replace("_", " ").upper()


def _refuse_level(level: str, *, row_locks: bool) -> None:
    if level == "AUTOCOMMIT":
        raise AutocommitRefused(
            "the connection is in AUTOCOMMIT mode, where rows are saved before their event could "
            "be; emit in a transaction (another isolation_level)"
        )
    if row_locks and level in _ABOVE_READ_COMMITTED:
        raise IsolationRefused(
            f"the transaction runs at {level}, where the shared head of a stream makes most "
            "concurrent writers abort; emit at READ COMMITTED"
        )


def _attachment(bind: Engine | Connection) -> Attachment:
    attachment = _attachments.get(bind.dialect)
    if attachment is None:
        raise NotAttached(
            f"no coordinator is attached to {bind.engine.url!r}, so the event would reach nobody; "
            "make one with Coordinator(engine) (in tests: commitcast.testing.capture)"
        )
    return attachment


def _root(conn: Connection) -> RootTransaction:
    root = conn.get_transaction()
    if not isinstance(root, RootTransaction):
        raise NoTransaction("the connection has no transaction; begin one before emit")
    if isinstance(root, TwoPhaseTransaction):
        raise TwoPhaseRefused(
            "the connection is in a two-phase transaction, whose outcome may be decided elsewhere; "
            "emit in a transaction with a plain commit"
        )
    return root


def _has_emits(conn: Connection) -> bool:
    root = conn.get_transaction()
    buffer = _buffers.get(root) if isinstance(root, RootTransaction) else None
    return buffer is not None and bool(buffer.emits)


def _buffer(root: RootTransaction) -> _Buffer:
    buffer = _buffers.get(root)
    if buffer is None:
        buffer = _buffers[root] = _Buffer()
    return buffer


def _state_of(session: Session) -> _SessionState | None:
    state = session.info.get(_KEY)
    root = session.get_transaction()
    if state is None or root is None or state.root() is not root:
        return None
    return cast("_SessionState", state)


def _begin_state(session: Session) -> _SessionState:
    root = session.get_transaction()
    if root is None:  # pragma: no cover - the caller has begun one
        raise NoTransaction("the session has no transaction; begin one before emit")
    state = session.info[_KEY] = _SessionState(root)
    return state


# --- what SQLAlchemy tells us of sessions --------------------------------------------------


def _after_begin(session: Session, transaction: SessionTransaction, conn: Connection) -> None:
    state = _state_of(session)
    if state is None:
        state = _begin_state(session)
    attached = conn.dialect in _attachments
    state.add(conn)
    if not attached:
        return
    if not transaction.nested:
        state.began = next(_order)  # after the savepoint by which it may have joined another's
        if (binding := session.info.get(_BINDING)) is not None:
            _tie(conn, binding, state.token, state.began)
    if state.unbound:
        buffer = _buffer(_root(conn))
        for made in state.unbound:
            made.since = next(_order)  # a savepoint of the session may have been opened for this
        buffer.emits.extend(state.unbound)
        state.unbound = []
    if transaction.nested and state.nested is not None and transaction in state.nested:
        # The session opens the savepoint at its first SQL, after what was emitted inside it.
        token = state.nested[transaction]
        for made in _buffer(_root(conn)).emits:
            if token in made.scope:
                made.since = next(_order)


def _before_commit(session: Session) -> None:
    state = _state_of(session)
    if state is None:
        state = _begin_state(session)
    if not session.in_nested_transaction():
        state.committing = True
    # Also for a savepoint: `with session.begin()` commits what was left open inside it.
    if state.unbound or (_BINDING in session.info and state.live_connection() is None):
        session.connection()  # so that there is a transaction to write in; no more than that
    if state.others and any(map(_has_emits, state.connections())):
        raise SeveralEngines(
            "the session's transaction spans more than one engine or connection, so part of it "
            "may commit and part not; emit in a session of one engine"
        )


def _after_commit(session: Session) -> None:
    state = _state_of(session)
    conn = None if state is None else state.live_connection()
    if conn is None:
        return
    written = _written.get(conn)
    # RELEASE, and the commit of a session joined to an outer transaction, come here too; only a
    # transaction that ran our statement and has ended without an error is committed.
    if written is not None and written.has_committed(conn):
        del _written[conn]
        if written.binding is not None:
            written.binding.committed()
        attachment = _attachments.get(conn.dialect)
        if attachment is not None and written.events:
            attachment.observer.committed(written)


def _after_soft_rollback(session: Session, previous: SessionTransaction) -> None:
    state = session.info.get(_KEY)
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
        _tell_rolled_back(session.get_bind(), streams, session.info.get(_BINDING))
    state.unbound = [e for e in state.unbound if token not in e.scope]
    state.captured = [e for e in state.captured if token not in e.scope]
    for conn in state.connections():
        if ended is root:
            _forget_written(conn)
        transaction = conn.get_transaction()
        buffer = _buffers.get(transaction) if isinstance(transaction, RootTransaction) else None
        if buffer is not None:
            buffer.drop_scope(token)


# --- what SQLAlchemy tells us of connections -----------------------------------------------


def _savepoint(conn: Connection, name: str | None) -> None:
    # SQLAlchemy names the savepoint after this event, counting through the connection's life.
    if name is None:
        number = _savepoints[conn] = _savepoints.get(conn, 0) + 1
        name = f"sa_savepoint_{number}"
    root = conn.get_transaction()
    if isinstance(root, RootTransaction):
        _buffer(root).savepoints[name] = next(_order)


def _rollback_savepoint(conn: Connection, name: str, _context: None) -> None:
    root = conn.get_transaction()
    buffer = _buffers.get(root) if isinstance(root, RootTransaction) else None
    if buffer is not None and name in buffer.savepoints:
        buffer.drop_since(buffer.savepoints[name])


def _rollback(conn: Connection) -> None:
    root = conn.get_transaction()
    buffer = _buffers.pop(root, None) if isinstance(root, RootTransaction) else None
    if buffer is not None:
        _tell_rolled_back(conn, buffer.streams, buffer.bound)
    _forget_written(conn)


def _commit(conn: Connection) -> None:
    root = conn.get_transaction()
    buffer = _buffers.pop(root, None) if isinstance(root, RootTransaction) else None
    if buffer is None or root is None or not (buffer.emits or buffer.bound):
        return
    try:
        attachment = _attachment(conn)
        log = attachment.log
        row_locks = bool(buffer.emits) and conn.dialect.name != "sqlite"
        _refuse_level(_level_option(conn), row_locks=row_locks)
        _refuse_level(log.autocommit_level(conn), row_locks=False)
        buffer.emits.sort(key=lambda e: e.order)
        encoded = [e.resolved(attachment.max_event_bytes) for e in buffer.emits]
        binding = None if buffer.bound is None else buffer.bound.binding
        if binding is not None:  # before the heads: one order of locks everywhere
            binding.write(conn, log, buffer.streams)
        events = log.append(conn, encoded) if encoded else ()
        written = _written[conn] = Written(weakref.ref(root), events, binding)
        if events:
            attachment.observer.written(written)
    except BaseException as error:
        _end(conn, error)
        _tell_rolled_back(conn, buffer.streams, buffer.bound)
        raise


def _forget_written(conn: Connection) -> None:
    """The transaction was rolled back after our statement ran, if its connection is sound."""
    written = _written.pop(conn, None)
    if written is not None and not conn.invalidated:
        streams = tuple(dict.fromkeys(e.stream for e in written.events))
        _tell_rolled_back(conn, streams, written.binding)


def _tell_rolled_back(
    bind: Engine | Connection, streams: tuple[str, ...], bound: object | None
) -> None:
    """Tell the observer of a plain transaction; an operation's end is told by its outcome."""
    attachment = _attachments.get(bind.dialect)
    if attachment is not None and streams and bound is None:
        attachment.observer.rolled_back(streams)


def _end(conn: Connection, reason: BaseException) -> None:
    """Roll back on the driver's connection what must not be committed.

    SQLAlchemy takes a transaction whose COMMIT was tried for over: the caller's ``rollback()``
    sends nothing, and what comes next on the connection would commit these rows as well. A
    connection whose work was cancelled is in no known state (asyncpg: a BEGIN that nobody counts,
    so that the next COMMIT is a RELEASE) and is closed, as SQLAlchemy does it.
    """
    _written.pop(conn, None)
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
    ("savepoint", _savepoint),
    ("rollback_savepoint", _rollback_savepoint),
)
_SESSION_LISTENERS: Final = (
    ("after_begin", _after_begin),
    ("before_commit", _before_commit),
    ("after_commit", _after_commit),
    ("after_soft_rollback", _after_soft_rollback),
)
