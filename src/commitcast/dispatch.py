"""Dispatch: an app's own sending and Commitcast's side by side, and who decides between them.

Every event goes exactly one way: by the app's own function at once, or by `commitcast.emit` with
the commit. Which one is asked once for each root transaction and user, and remembered as long as
that transaction is there; so a rollout that moves at any moment neither loses nor doubles an event,
nor does it split what one transaction says.
"""

from __future__ import annotations

import inspect
import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from commitcast.attachment import attachment_of
from commitcast.emit import emit, place_of, where_in
from commitcast.errors import CommitcastError, NoTransaction
from commitcast.event import DEFAULT_MAX_EVENT_BYTES, check_id, check_stream, encode
from commitcast.flags import Mode, as_mode
from commitcast.pending import (
    check_transaction,
    level_option,
    refuse_level,
    state_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sqlalchemy.engine import RootTransaction
    from sqlalchemy.orm import SessionTransaction

    from commitcast.emit import EmitTarget
    from commitcast.flags import Modes

    _Decided = dict[str | None, Mode]

_logger = logging.getLogger("commitcast")


class Dispatcher:
    """Sends events the way that their user's mode says; made by `Coordinator.dispatcher`.

    Make one for each way of sending, at start: what it has decided is its own.
    """

    def __init__(self, send: Callable[[str, Any], Any], modes: Modes) -> None:
        """Dispatch between `send`, the app's own way, and Commitcast, as `modes` say."""
        self._send = send
        self._modes = modes
        self._decided: weakref.WeakKeyDictionary[SessionTransaction | RootTransaction, _Decided]
        self._decided = weakref.WeakKeyDictionary()
        self._counting = threading.Lock()
        self._counts = dict.fromkeys(Mode, 0)
        self._refusals: dict[str, int] = {}

    async def __call__(
        self, target: EmitTarget, stream: str, event: object, *, user: str | None = None
    ) -> None:
        """Send `event` to the readers of `stream`, once, in the mode of `user`.

        Off and shadow: `send` is called with the stream and the event, here and now, and awaited if
        it is async; what it raises is raised. Enforce: ``emit(target, stream, event, actor=user)``.

        Args:
            target: the session or connection whose transaction the event belongs to; call this
                inside of it, before the commit.
            stream: as `commitcast.emit`.
            event: as `commitcast.emit`. A function is called at once where `send` is, so that the
                ids it reads must be there (flush before); in enforce, it is called at the commit.
            user: whose doing it is: whose mode counts, and in enforce the event's actor.

        Raises:
            NoTransaction: enforce, and no transaction is open that the event could leave with.
            EmitRefused, InvalidEvent: enforce, as `commitcast.emit`.
            ValueError: what `modes` returned is not a mode.
        """
        place = place_of(target)
        mode = self._begin(place, user)
        if mode is Mode.ENFORCE:
            emit(place, stream, event, actor=user)
            return
        made = _made(event)
        sent = self._send(stream, made)
        if inspect.isawaitable(sent):
            await sent
        if mode is Mode.SHADOW:
            self._try_out(place, stream, made, user)

    def sync(
        self,
        target: EmitTarget,
        stream: str,
        event: object,
        *,
        user: str | None = None,
    ) -> None:
        """The same for code that cannot await, such as a worker thread; `send` must be sync.

        Raises as calling the dispatcher does, and TypeError where `send` is async: before
        it is called if that can be seen, and in enforce as well.
        """
        if inspect.iscoroutinefunction(self._send):
            raise TypeError(_ASYNC_SEND)
        place = place_of(target)
        mode = self._begin(place, user)
        if mode is Mode.ENFORCE:
            emit(place, stream, event, actor=user)
            return
        made = _made(event)
        sent = self._send(stream, made)
        if inspect.isawaitable(sent):
            if inspect.iscoroutine(sent):
                sent.close()
            raise TypeError(_ASYNC_SEND)
        if mode is Mode.SHADOW:
            self._try_out(place, stream, made, user)

    def mode(self, target: EmitTarget, user: str | None = None) -> Mode:
        """How events of `user` in the transaction of `target` go; asked and remembered if new.

        Without an open transaction it is the mode of this moment, and nothing is remembered.
        """
        return self._decide(place_of(target), user)

    @property
    def counts(self) -> Mapping[Mode, int]:
        """How many events were given to each way, whether or not it raised; a copy."""
        with self._counting:
            return dict(self._counts)

    @property
    def refusals(self) -> Mapping[str, int]:
        """How many events in shadow mode enforce would have refused, by the error's name; a copy.

        ``NoTransaction`` is an event that was dispatched after the commit, or before the session
        began: move it into the transaction. Nothing here was raised.
        """
        with self._counting:
            return dict(self._refusals)

    def _begin(self, place: Session | Connection, user: str | None) -> Mode:
        mode = self._decide(place, user)
        with self._counting:
            self._counts[mode] += 1
        if mode is Mode.ENFORCE:
            _refuse_outside(place)
        return mode

    def _decide(self, place: Session | Connection, user: str | None) -> Mode:
        decided = self._of_transaction(place)
        found = decided.get(user)
        if found is None:
            found = decided[user] = as_mode("what modes.mode() returned", self._modes.mode(user))
        return found

    def _of_transaction(self, place: Session | Connection) -> _Decided:
        """What is decided in its transaction: the same for a session and the connection it is on."""
        root = place.get_transaction()
        if root is None:
            return {}
        decided = self._decided.get(root)
        conn_root = None
        if isinstance(place, Session):
            state = state_of(place)
            conn = None if state is None else state.live_connection()
            conn_root = None if conn is None else conn.get_transaction()
        if decided is None and conn_root is not None:
            decided = self._decided.get(conn_root)
        if decided is None:
            decided = {}
        self._decided.setdefault(root, decided)
        if conn_root is not None:
            self._decided.setdefault(conn_root, decided)
        return decided

    def _try_out(
        self, place: Session | Connection, stream: str, event: object, user: str | None
    ) -> None:
        """Count what enforce would refuse; the app's own sending has been done and is not touched."""
        try:
            _refuse_outside(place)
            _refuse_unfit(place, stream, event, user)
        except Exception as error:  # noqa: BLE001 - also what an event's own encoding raises
            kind = type(error).__name__ if isinstance(error, CommitcastError) else "other"
            with self._counting:
                first = kind not in self._refusals
                self._refusals[kind] = self._refusals.get(kind, 0) + 1
            if first:
                hint = f": {error}" if isinstance(error, NoTransaction) else ""
                _logger.warning(
                    "commitcast: in enforce mode an event (%s) would be refused with %s%s (said "
                    "once; Dispatcher.refusals counts)",
                    type(event).__name__, kind, hint,
                )  # fmt: skip


def total(dispatchers: Iterable[Dispatcher]) -> dict[Mode, int]:
    """How many events several gave to each way together; empty without any."""
    found: dict[Mode, int] = {}
    for dispatcher in dispatchers:
        for mode, count in dispatcher.counts.items():
            found[mode] = found.get(mode, 0) + count
    return found


_ASYNC_SEND = (
    "the app's own sending is async, so that it cannot be called here; use `await dispatch(…)`, or "
    "make a dispatcher of a sync function"
)


def _made(event: object) -> object:
    """The event itself; a function is called."""
    return event() if callable(event) and not isinstance(event, type) else event


def _refuse_outside(place: Session | Connection) -> None:
    """Raise where no transaction is open that the event could leave with.

    `emit` would begin one; but who dispatches after the commit, as the old way may, never commits
    again, and the event would be lost.
    """
    if not place.in_transaction():
        raise NoTransaction(
            "no transaction is open, so that no commit would send the event; dispatch inside of "
            "the transaction, before its commit (or session.begin() before)"
        )


def _refuse_unfit(
    place: Session | Connection, stream: str, event: object, user: str | None
) -> None:
    """Raise what `emit` would raise, and do nothing else."""
    check_stream(stream)
    actor = None if user is None else check_id("actor", user)
    bind: Any = place
    attachment: Any
    if isinstance(place, Session):
        attachment, bind, *_ = where_in(place)
    else:
        attachment = attachment_of(place)
    if bind is not None:
        if isinstance(bind, Connection):
            check_transaction(bind)
        refuse_level(level_option(bind), row_locks=bind.dialect.name != "sqlite")
    max_bytes = DEFAULT_MAX_EVENT_BYTES if attachment is None else attachment.max_event_bytes
    encode(stream, event, max_bytes=max_bytes, actor=actor)
