"""What a transaction has pending: its emits, and the operation that it decides.

They belong to the connection's root transaction, in the order in which they were made. Each knows
in which of the session's transactions it was made, so that rolling back a savepoint, the session's
or the connection's, drops exactly what was made since.
"""

from __future__ import annotations

import itertools
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from sqlalchemy.engine import Connection, Engine, RootTransaction, TwoPhaseTransaction

from commitcast.errors import (
    AutocommitRefused,
    InvalidEvent,
    IsolationRefused,
    NotAttached,
    NoTransaction,
    OperationError,
    TwoPhaseRefused,
)
from commitcast.event import DEFAULT_MAX_EVENT_BYTES, EncodedEvent, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session, SessionTransaction

    from commitcast.log import Binding, Log, Written
    from commitcast.telemetry import Tracing

STATE: Final = "commitcast"
"""Where ``Session.info`` has the `SessionState` of its latest root transaction."""
BINDING: Final = "commitcast.binding"
"""Where ``Session.info`` has the operation that the session is tied to."""
CAPTURE: Final = "commitcast.capture"
"""Where ``Session.info`` says that `commitcast.testing.capture` listens."""
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
    tracing: Tracing | None = None


@dataclass(slots=True)
class Emit:
    """One emit: encoded when it was made, or a function to be resolved at the commit."""

    order: int
    since: int
    scope: tuple[int, ...]
    stream: str
    encoded: EncodedEvent | None
    make: Callable[[], object] | None
    labels: dict[str, str | None]
    void: bool = False

    def resolved(self, max_bytes: int) -> EncodedEvent:
        """The event; a function is called once."""
        if self.encoded is None:
            if self.make is None:  # pragma: no cover - one of the two is always given
                raise InvalidEvent("an emit without an event")
            self.encoded = resolve(self.stream, self.make, max_bytes=max_bytes, **self.labels)
        return self.encoded


@dataclass(slots=True)
class Buffer:
    """The emits of one root transaction, in the order in which they were made."""

    emits: list[Emit] = field(default_factory=list)
    savepoints: dict[str, int] = field(default_factory=dict)
    bound: Bound | None = None
    by_session: bool = False
    """Whether a session is about to commit it, which will say when COMMIT has returned."""

    def drop_since(self, order: int) -> None:
        """Drop what was made since a savepoint of the connection."""
        for made in self.emits:
            made.void |= made.since >= order
        self.emits = [e for e in self.emits if not e.void]
        if self.bound is not None and self.bound.since >= order:
            self.bound = None

    def drop_scope(self, token: int) -> None:
        """Drop what was made in a transaction of a session."""
        self.emits = [e for e in self.emits if token not in e.scope]
        if self.bound is not None and self.bound.token == token:
            self.bound = None

    @property
    def streams(self) -> tuple[str, ...]:
        """Those that events are for, each once."""
        return tuple(dict.fromkeys(e.stream for e in self.emits))


@dataclass(frozen=True, slots=True)
class Bound:
    """The operation that a root transaction decides."""

    binding: Binding
    since: int
    """When its session's transaction began here: rolling back a savepoint around all of that
    undoes the tie, rolling back one inside it does not, since the rest may yet commit."""
    token: int | None
    """Of the session whose transaction it is: its rollback undoes the tie."""


class SessionState:
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
        "traced",
        "unbound",
    )

    def __init__(self, root: SessionTransaction) -> None:
        self.root = weakref.ref(root)
        self.token = self.began = moment()
        self.nested: weakref.WeakKeyDictionary[SessionTransaction, int] | None = None
        self.unbound: list[Emit] = []
        self.captured: list[Emit] = []
        self.committing = False
        self.traced = False
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
                tokens.append(self.nested.setdefault(current, moment()))
            current = current.parent
        return tuple(tokens)

    def add(self, conn: Connection) -> None:
        """The transaction has begun on a connection."""
        known = self.live_connection()
        if known is None:
            self.connection = weakref.ref(conn)
        elif known is not conn:
            attached = conn.dialect in attachments and known.dialect not in attachments
            ours = conn if attached else known
            self.connection = weakref.ref(ours)
            self.others.append(weakref.ref(known if ours is conn else conn))

    def connections(self) -> list[Connection]:
        """Those that the session's transaction has begun on."""
        found = [known() for known in (self.connection, *self.others) if known is not None]
        return [conn for conn in found if conn is not None]

    def live_connection(self) -> Connection | None:
        """The one that the session's events are written on, if it has begun."""
        return None if self.connection is None else self.connection()


_order = itertools.count(1)
attachments: weakref.WeakKeyDictionary[Any, Attachment] = weakref.WeakKeyDictionary()
buffers: weakref.WeakKeyDictionary[RootTransaction, Buffer] = weakref.WeakKeyDictionary()
savepoints: weakref.WeakKeyDictionary[Connection, int] = weakref.WeakKeyDictionary()
written_on: weakref.WeakKeyDictionary[Connection, Written] = weakref.WeakKeyDictionary()


def moment() -> int:
    """A place in the order of this process's transactions and emits; later ones are larger."""
    return next(_order)


def root_of(conn: Connection) -> RootTransaction:
    """Its root transaction; raises where there is none that events could be part of."""
    root = conn.get_transaction()
    if not isinstance(root, RootTransaction):
        raise NoTransaction("the connection has no transaction; begin one before emit")
    if isinstance(root, TwoPhaseTransaction):
        raise TwoPhaseRefused(
            "the connection is in a two-phase transaction, whose outcome may be decided elsewhere; "
            "emit in a transaction with a plain commit"
        )
    return root


def has_emits(conn: Connection) -> bool:
    """Whether its transaction has events pending."""
    root = conn.get_transaction()
    buffer = buffers.get(root) if isinstance(root, RootTransaction) else None
    return buffer is not None and bool(buffer.emits)


def buffer_of(root: RootTransaction) -> Buffer:
    """What a root transaction has pending."""
    buffer = buffers.get(root)
    if buffer is None:
        buffer = buffers[root] = Buffer()
    return buffer


def state_of(session: Session) -> SessionState | None:
    """What is known of the session's transaction, if it is still the same."""
    state = session.info.get(STATE)
    root = session.get_transaction()
    if state is None or root is None or state.root() is not root:
        return None
    return cast("SessionState", state)


def begin_state(session: Session) -> SessionState:
    """Begin to know of the session's transaction."""
    root = session.get_transaction()
    if root is None:  # pragma: no cover - the caller has begun one
        raise NoTransaction("the session has no transaction; begin one before emit")
    state = session.info[STATE] = SessionState(root)
    return state


def tie(conn: Connection, binding: Binding, token: int | None, since: int) -> None:
    """Have the connection's root transaction decide an operation."""
    buffer = buffer_of(root_of(conn))
    if buffer.bound is not None and buffer.bound.binding is not binding:
        raise OperationError(
            None, "the transaction is bound to another operation; use a transaction of its own"
        )
    buffer.bound = Bound(binding, since, token)


def refuse_twophase(session: Session) -> None:
    """Raise for a session whose commit is not one."""
    if session.twophase:
        raise TwoPhaseRefused(
            "the session uses two-phase commit, whose outcome nobody here would see; use a session "
            "with twophase=False"
        )


def level_option(bind: Engine | Connection) -> str:
    """The isolation level that was asked for through SQLAlchemy; empty if none was."""
    level = bind.get_execution_options().get("isolation_level", "")
    return str(level).replace("_", " ").upper()


def refuse_level(level: str, *, row_locks: bool) -> None:
    """Raise for a level at which an event could not keep its guarantees."""
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


def attachment_of(bind: Engine | Connection) -> Attachment:
    """What is tied to its engine; raises `NotAttached`."""
    attachment = attachments.get(bind.dialect)
    if attachment is None:
        raise NotAttached(
            f"no coordinator is attached to {bind.engine.url!r}, so the event would reach nobody; "
            "make one with Coordinator(engine) (in tests: commitcast.testing.capture)"
        )
    return attachment
