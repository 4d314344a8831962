"""Changes that a session has not sent to its database yet, and commits of joined sessions.

A message that tells of them is as early as one that is sent after the flush.
"""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event as sa_event
from sqlalchemy.orm import Session

from commitcast.audit import callsite
from commitcast.audit.channel import current_task
from commitcast.audit.work import Holding, Outcome, Work

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import SessionTransaction

    from commitcast.audit.channel import Origin
    from commitcast.audit.judge import Judge

_MOST_SEEN: Final = 8


@dataclass(slots=True, eq=False)
class _Seen:
    """A session that was used in a context."""

    session: weakref.ref[Session]
    task: weakref.ref[asyncio.Task[Any]] | None
    """Where; None: in a thread, which waits for what it has others send."""
    cycle: int | None = None
    """The transaction in which something was added, which tasks begun after that tell of too."""


seen: ContextVar[tuple[_Seen, ...]] = ContextVar("commitcast_sessions", default=())


@dataclass(slots=True)
class Note:
    """What is known of one session."""

    session: weakref.ref[Session]
    cycle: int = 0
    conns: list[weakref.ref[Connection]] = field(default_factory=list)
    holding: Holding = field(default_factory=Holding)
    added: callsite.Chain = ()
    flushed: bool = False
    """Something reached the database in this transaction, so that its rollback is a work's."""


def unflushed(session: Session) -> bool:
    """Whether a session has changes that its next flush will send."""
    try:
        return bool(
            session.new
            or session.deleted
            or any(session.is_modified(found) for found in session.dirty)
        )
    except RuntimeError:  # another thread is using it
        return False


class Sessions:
    """Follows the process's sessions."""

    def __init__(self, judge: Judge, *, joined_commits: bool) -> None:
        self._judge = judge
        self._joined_commits = joined_commits
        self._notes: weakref.WeakKeyDictionary[Session, Note] = weakref.WeakKeyDictionary()
        listeners: tuple[tuple[str, Callable[..., Any]], ...] = (
            ("after_begin", self._after_begin),
            ("after_attach", self._after_attach),
            ("after_flush", self._after_flush),
            ("after_commit", self._after_commit),
            ("after_rollback", self._after_rollback),
            ("after_transaction_end", self._after_transaction_end),
        )
        self._listeners = [(name, judge.guarded(listener)) for name, listener in listeners]

    def listen(self) -> None:
        """Begin to follow."""
        for name, listener in self._listeners:
            sa_event.listen(Session, name, listener)

    def stop(self) -> None:
        """Follow no more."""
        for name, listener in self._listeners:
            sa_event.remove(Session, name, listener)

    def carried(self, called: Origin | None) -> tuple[list[Note], list[Work]]:
        """Of the sessions that had changes to flush where a send was called.

        Those that still have them, and the works that these have become.
        """
        notes: list[Note] = []
        works: list[Work] = []
        for note, cycle in () if called is None else called.notes:
            session = note.session()
            if session is None or note.cycle != cycle:
                continue
            if unflushed(session):
                notes.append(note)
            else:
                works += self._works(note)
        return notes, works

    def whose(self) -> tuple[asyncio.Task[Any] | None, callsite.Chain]:
        """The task whose session is being closed by a task of SQLAlchemy's, and where it waits."""
        here = current_task()
        for entry in reversed(seen.get()):
            task = None if entry.task is None else entry.task()
            if task is not None and task is not here:
                return task, callsite.waiting_task(task)
        return here, ()

    def finish(self) -> None:
        """What was never flushed will not be."""
        for note in list(self._notes.values()):
            self._release(note, Outcome.NOTHING)

    def unflushed(self) -> list[Note]:
        """Of the sessions of this context that have changes to flush."""
        found: list[Note] = []
        entries = seen.get()
        if not entries:
            return found
        task = current_task()
        for entry in entries:
            session = entry.session()
            note = None if session is None else self._notes.get(session)
            if session is None or note is None or note in found:
                continue
            here = entry.task is None or entry.task() is task
            if (here or entry.cycle == note.cycle) and unflushed(session):
                found.append(note)
        return found

    def _note(self, session: Session) -> Note:
        note = self._notes.get(session)
        if note is None:
            note = self._notes[session] = Note(weakref.ref(session))
        return note

    def _see(self, session: Session, cycle: int | None) -> None:
        task = current_task()
        kept: list[_Seen] = []
        for entry in seen.get():
            session_of = entry.session()
            same = session_of is session and task is (entry.task and entry.task())
            if same and (cycle is None or entry.cycle == cycle):
                return
            if session_of is not None and not same:
                kept.append(entry)
        where = None if task is None else weakref.ref(task)
        seen.set((*kept[1 - _MOST_SEEN :], _Seen(weakref.ref(session), where, cycle)))

    # --- what SQLAlchemy tells ------------------------------------------------------------

    def _after_attach(self, session: Session, _instance: Any) -> None:
        note = self._note(session)
        note.added = callsite.lines()
        self._see(session, note.cycle)

    def _after_begin(
        self, session: Session, transaction: SessionTransaction, conn: Connection
    ) -> None:
        note = self._note(session)
        if all(known() is not conn for known in note.conns):
            note.conns.append(weakref.ref(conn))
        self._see(session, None)
        if self._joined_commits and not transaction.nested:
            # What a test prepared on a connection that its session only joins is there for it.
            self._settle_joined(note)

    def _after_flush(self, session: Session, _context: Any) -> None:
        note = self._note(session)
        works = self._works(note)
        note.flushed = note.flushed or bool(works)
        self._judge.states.flushed(session, works)
        for held in note.holding.take():
            for work in works:
                work.hold(held.send, held.cause)
            self._judge.learn(held.send, Outcome.NOTHING)

    def _after_commit(self, session: Session) -> None:
        self._judge.transactions.look()
        if self._joined_commits and not session.in_nested_transaction():
            self._settle_joined(self._note(session))

    def _after_rollback(self, session: Session) -> None:
        note = self._notes.get(session)
        if note is None:
            return
        if note.holding.sends:
            lost = unflushed(session)
            if lost and not note.flushed:
                self._judge.never_written(note.holding.sends)
            self._release(note, Outcome.ROLLED_BACK if lost else Outcome.NOTHING)
        if self._joined_commits and not session.in_nested_transaction():
            for work in self._judge.transactions.works_on(self._conns(note)):
                if work.dropped is not None:
                    self._judge.rolled_back(work)

    def _after_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        note = self._notes.get(session)
        if note is None or transaction.nested or transaction.parent is not None:
            return
        self._release(note, Outcome.NOTHING)
        note.cycle += 1
        note.conns = []
        note.added = ()
        note.flushed = False

    def _settle_joined(self, note: Note) -> None:
        for work in self._works(note):
            if not work.committing:
                self._judge.transactions.settle(work, Outcome.COMMITTED)

    def _release(self, note: Note, outcome: Outcome) -> None:
        for held in note.holding.take():
            self._judge.learn(held.send, outcome, held.cause)

    def _conns(self, note: Note) -> list[Connection]:
        return [conn for known in note.conns if (conn := known()) is not None]

    def _works(self, note: Note) -> list[Work]:
        works = self._judge.transactions.works_on(self._conns(note))
        return [work for work in works if work.open]
