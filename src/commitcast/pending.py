"""What a transaction has pending: its emits, and the operation that it decides.

They belong to the connection's root transaction, in the order in which they were made. Each knows
in which of the session's transactions it was made, so that rolling back a savepoint, the session's
or the connection's, drops exactly what was made since.

What is kept of a connection is an attribute of the `Connection`. It may well reach it (an emit's
function the session), and a map with weak keys would then keep it for ever: a session that nobody
closes would never give its connection back.
"""

from __future__ import annotations

import itertools
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from sqlalchemy.engine import Connection, Engine, RootTransaction, TwoPhaseTransaction

from commitcast.attachment import attachment_on
from commitcast.errors import (
    AutocommitRefused,
    EmitRefused,
    InvalidEvent,
    IsolationRefused,
    NoTransaction,
    OperationError,
    TwoPhaseRefused,
)
from commitcast.event import EncodedEvent, check_size, resolve
from commitcast.in_commit import call

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session, SessionTransaction

    from commitcast.log import Binding, Written
    from commitcast.savepoints import Savepoints

STATE: Final = "commitcast"
"""Where ``Session.info`` has the `SessionState` of its latest root transaction."""
_ATTRIBUTE: Final = "commitcast"
"""Where a Connection has the `Buffer` of its latest transaction."""
_MOST_ROUNDS: Final = 100
"""How deep the functions of emits may emit further functions; as deep as SQLAlchemy's flushes."""
BINDING: Final = "commitcast.binding"
"""Where ``Session.info`` has the operation that the session is tied to."""
CAPTURE: Final = "commitcast.capture"
"""Where ``Session.info`` says that `commitcast.testing.capture` listens."""
_ABOVE_READ_COMMITTED: Final = {"REPEATABLE READ", "SERIALIZABLE", "SNAPSHOT"}


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
    sized: bool = True
    """Not where its coordinator, and so the limit, was not known when it was made."""

    def resolved(self, max_bytes: int) -> EncodedEvent:
        """The event; a function is called once."""
        if self.encoded is None:
            if self.make is None:  # pragma: no cover - one of the two is always given
                raise InvalidEvent("an emit without an event")
            make, purpose = self.make, f"given to emit for stream {self.stream!r}"
            self.encoded = resolve(
                self.stream, lambda: call(make, purpose), max_bytes=max_bytes, **self.labels
            )
        elif not self.sized:
            size_bytes = len(self.encoded.data_json.encode())
            check_size(self.encoded.type, self.stream, size_bytes, max_bytes)
            self.sized = True
        return self.encoded


def resolve_all(emits: list[Emit], max_bytes: int) -> None:
    """Resolve `emits`, also those that their functions add to the list meanwhile."""
    for _ in range(_MOST_ROUNDS):
        waiting = [e for e in emits if e.encoded is None]
        if not waiting:
            return
        for made in waiting:
            made.resolved(max_bytes)
    raise EmitRefused(
        f"functions given to emit emitted functions, {_MOST_ROUNDS} deep (the last for stream "
        f"{emits[-1].stream!r}); emit events there, not functions"
    )


class Buffer:
    """What one root transaction of a connection has pending; its emits as they were made."""

    __slots__ = (
        "bound",
        "emits",
        "late",
        "root",
        "savepoints",
        "sessions",
        "writing",
        "written",
    )

    def __init__(self, root: RootTransaction) -> None:
        self.root = weakref.ref(root)
        self.emits: list[Emit] = []
        self.savepoints: Savepoints | None = None
        self.bound: Bound | None = None
        self.sessions: list[weakref.ref[SessionState]] = []
        """Those on it whose other connections matter, or who say when COMMIT has returned."""
        self.writing = False
        """Whether our statement is about to run."""
        self.late = False
        """Whether it has, so that what a later ``commit`` listener emits needs another."""
        self.written: list[Written] = []

    def look(self, conn: Connection) -> None:
        """Drop what was made since a savepoint of the connection that was rolled back."""
        if self.savepoints is None:
            return
        undone = self.savepoints.look(conn.get_nested_transaction())
        if undone is None:
            return
        begun, ended = undone
        for made in self.emits:
            made.void |= begun <= made.since < ended
        self.emits[:] = [e for e in self.emits if not e.void]
        if self.bound is not None and begun <= self.bound.since < ended:
            self.bound = None

    def refuse_writing(self) -> None:
        """Raise where our own statement is what the caller hears of."""
        if self.writing:
            raise NoTransaction(
                "the transaction's events are being written, by the statement that this is about "
                "(in a listener of statements); emit before the commit"
            )

    def drop_scope(self, token: int) -> None:
        """Drop what was made in a transaction of a session."""
        self.emits[:] = [e for e in self.emits if token not in e.scope]
        if self.bound is not None and self.bound.token == token:
            self.bound = None

    def add(self, state: SessionState) -> None:
        """A session's transaction has begun on it."""
        if state not in self.live_sessions():
            self.sessions = [ref for ref in self.sessions if ref() is not None]
            self.sessions.append(weakref.ref(state))

    def live_sessions(self) -> list[SessionState]:
        """The sessions in `sessions` whose transaction is not over."""
        states = [ref() for ref in self.sessions]
        return [s for s in states if s is not None and not s.over and s.root() is not None]

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
        "__weakref__",
        "began",
        "begun_at",
        "captured",
        "committing",
        "connection",
        "joined",
        "nested",
        "others",
        "over",
        "rolled_back",
        "root",
        "token",
        "unbound",
    )

    def __init__(self, root: SessionTransaction) -> None:
        self.root = weakref.ref(root)
        self.token = self.began = moment()
        self.begun_at: int | None = None
        """When it began on the first connection."""
        self.nested: weakref.WeakKeyDictionary[SessionTransaction, int] | None = None
        self.unbound: list[Emit] = []
        self.captured: list[Emit] = []
        self.committing = False
        """Whether ``before_commit`` has come; where a listener raised there, no commit followed."""
        self.rolled_back = False
        """Whether it, or its savepoint, has been rolled back, and nobody called rollback() yet."""
        self.over = False
        """Whether it has been committed or rolled back as a whole."""
        self.connection: weakref.ref[Connection] | None = None
        self.joined: weakref.ref[RootTransaction] | None = None
        """The connection's transaction that it began in, which others may end where it joined it."""
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
            self._write_on(conn)
        elif conn not in self.connections():
            attached = carries(conn) and not carries(known)
            self.others.append(weakref.ref(known if attached else conn))
            if attached:
                self._write_on(conn)

    def _write_on(self, conn: Connection) -> None:
        root = conn.get_transaction()
        self.connection = weakref.ref(conn)
        self.joined = weakref.ref(root) if isinstance(root, RootTransaction) else None

    def has_ended_outside(self) -> bool:
        """Whether others have ended the connection's transaction that the session is joined to."""
        conn = self.live_connection()
        if conn is None or self.joined is None:
            return False
        return self.joined() is not conn.get_transaction()

    def connections(self) -> list[Connection]:
        """Those that the session's transaction has begun on."""
        found = [known() for known in (self.connection, *self.others) if known is not None]
        return [conn for conn in found if conn is not None]

    def live_connection(self) -> Connection | None:
        """The one that the session's events are written on, if it has begun."""
        return None if self.connection is None else self.connection()

    def attached_connection(self) -> Connection | None:
        """The same, if its engine has a coordinator."""
        conn = self.live_connection()
        return None if conn is None or attachment_on(conn) is None else conn


_order = itertools.count(1)


def moment() -> int:
    """A place in the order of this process's transactions and emits; later ones are larger."""
    return next(_order)


def check_transaction(conn: Connection) -> None:
    """Raise where the connection has no transaction that events could be part of."""
    if not conn.in_transaction():
        raise NoTransaction(
            "the connection has no transaction that the event could join; emit after begin() or "
            "after the first statement"
        )
    if isinstance(conn.get_transaction(), TwoPhaseTransaction):
        raise TwoPhaseRefused(
            "the connection is in a two-phase transaction, whose outcome may be decided elsewhere; "
            "emit in a transaction with a plain commit"
        )


def last_buffer(conn: Connection) -> Buffer | None:
    """What its latest transaction has pending or has written, also if that is over."""
    return cast("Buffer | None", vars(conn).get(_ATTRIBUTE))


def buffer_on(conn: Connection) -> Buffer | None:
    """What the connection's transaction has pending, if anything was."""
    buffer = last_buffer(conn)
    root = conn.get_transaction()
    return buffer if buffer is not None and root is not None and buffer.root() is root else None


def buffer_of(conn: Connection) -> Buffer:
    """What the connection's transaction has pending; raises `NoTransaction` where it has none."""
    root = conn.get_transaction()
    buffer = last_buffer(conn)
    if root is None:
        raise NoTransaction("the connection has no transaction; begin one before emit")
    if buffer is None or buffer.root() is not root:
        buffer = vars(conn)[_ATTRIBUTE] = Buffer(root)
    return buffer


def take_buffer(conn: Connection) -> Buffer | None:
    """Forget what its latest transaction had pending, and return it."""
    return cast("Buffer | None", vars(conn).pop(_ATTRIBUTE, None))


def state_of(session: Session) -> SessionState | None:
    """What is known of the session's transaction, if it is still the same."""
    state = session.info.get(STATE)
    root = session.get_transaction()
    if state is None or root is None or state.root() is not root:
        return None
    return cast("SessionState", state)


def tie(conn: Connection, binding: Binding, token: int | None, since: int) -> None:
    """Have the connection's root transaction decide an operation."""
    check_transaction(conn)
    buffer = buffer_of(conn)
    buffer.look(conn)
    if buffer.writing or buffer.late:
        raise NoTransaction("the transaction is being committed; bind before its commit")
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


def carries(conn: Connection) -> bool:
    """Whether events can be written in its transaction, as far as it is known before."""
    return attachment_on(conn) is not None and level_option(conn) != "AUTOCOMMIT"


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
