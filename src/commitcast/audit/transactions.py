"""Which transactions have changes, and how they end: what SQLAlchemy's public events tell.

An engine's ``commit`` fires before COMMIT is sent, for a real one only; that it returned is known
from the session, or for a plain connection the next time anybody looks (docs/decisions/0002).
"""

from __future__ import annotations

import re
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event as sa_event
from sqlalchemy.engine import Engine, RootTransaction
from sqlalchemy.pool import Pool

from commitcast.audit import callsite
from commitcast.audit.channel import current_task, current_unit
from commitcast.audit.nested import names, savepoints_on
from commitcast.audit.work import Outcome, Work
from commitcast.pending import last_buffer, moment

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from sqlalchemy.engine import Connection, ExceptionContext

    from commitcast.audit.channel import Unit
    from commitcast.audit.judge import Judge

open_works: ContextVar[tuple[Work, ...]] = ContextVar("commitcast_open_works", default=())
"""Those that changed something in this context, or in the one it was made from before that."""

MOST_OPEN: Final = 10_000
_OWN: Final = "commitcast_own"
_NO_WORDS: Final = re.compile(
    r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\$(\w*)\$.*?\$\1\$", re.DOTALL
)
_LOCKS: Final = re.compile(r"\bfor\s+(no\s+key\s+)?update\b", re.IGNORECASE)
_CHANGES: Final = re.compile(r"\s*(insert|update|delete|merge|replace)\b", re.IGNORECASE)
_ANYWHERE: Final = re.compile(r"\b(insert|update|delete|merge)\b", re.IGNORECASE)
_WITH: Final = re.compile(r"\s*with\b", re.IGNORECASE)


def changes(statement: str) -> bool:
    """Whether the text of a statement is one that changes rows."""
    words = _LOCKS.sub(" ", _NO_WORDS.sub(" ", statement))
    if _CHANGES.match(words):
        return True
    return _WITH.match(words) is not None and _ANYWHERE.search(words) is not None


class Transactions:
    """Follows the transactions of engines."""

    def __init__(self, judge: Judge, engines: Iterable[Any] | None) -> None:
        self._judge = judge
        self._dialects = (
            None
            if engines is None
            else {id(getattr(engine, "sync_engine", engine).dialect) for engine in engines}
        )
        self._kept = list(engines or ())
        self._of_root: weakref.WeakKeyDictionary[RootTransaction, Work] = (
            weakref.WeakKeyDictionary()
        )
        self._commits: weakref.WeakKeyDictionary[asyncio.Task[Any], float] = (
            weakref.WeakKeyDictionary()
        )
        self._live: dict[Work, None] = {}
        self._committing: dict[Work, None] = {}
        self._rolling_back: dict[Work, None] = {}
        """Those that a savepoint is being rolled back of, which is over when SQLAlchemy says so."""
        listeners: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
            (Engine, "begin", self._begin),
            (Engine, "commit", self._commit),
            (Engine, "rollback", self._rollback),
            (Engine, "savepoint", self._savepoint),
            (Engine, "rollback_savepoint", self._rollback_savepoint),
            (Engine, "release_savepoint", self._release_savepoint),
            (Engine, "after_cursor_execute", self._after_cursor_execute),
            (Engine, "handle_error", self._handle_error),
            (Pool, "checkin", self._checkin),
        )
        self._listeners = [(target, name, judge.guarded(fn)) for target, name, fn in listeners]

    def listen(self) -> None:
        """Begin to follow."""
        for target, name, listener in self._listeners:
            sa_event.listen(target, name, listener)

    def stop(self) -> None:
        """Follow no more."""
        for target, name, listener in self._listeners:
            sa_event.remove(target, name, listener)

    # --- asking ---------------------------------------------------------------------------

    def watches(self, conn: Connection) -> bool:
        """Whether a connection is one of those that are followed."""
        if self._dialects is not None and id(conn.dialect) not in self._dialects:
            return False
        return not conn.get_execution_options().get(_OWN)

    def current(self) -> tuple[Work, ...]:
        """Open works of this context."""
        works = open_works.get()
        if not works:
            return ()
        self.look()
        return tuple(work for work in works if work.judge is self._judge and work.open)

    def work_on(self, conn: Connection) -> Work | None:
        """The open work of a connection."""
        root = conn.get_transaction()
        return self._of_root.get(root) if isinstance(root, RootTransaction) else None

    def last_commit(self) -> float | None:
        """When the last COMMIT of this task, or of the request it works for, returned."""
        unit = current_unit.get()
        times: list[float | None] = []
        if unit is not None and not unit.over:  # else the task may be as old as the process
            times += [w.committed_at for w in open_works.get() if w.judge is self._judge]
        if (task := current_task()) is not None:
            times.append(self._commits.get(task))
        return max((at for at in times if at is not None), default=None)

    def works_on(self, conns: Iterable[Connection]) -> list[Work]:
        """The works of several connections."""
        self._look_at_savepoints()
        return [work for conn in conns if (work := self.work_on(conn)) is not None]

    def of_unit(self, unit: Unit) -> list[Work]:
        """The open works that were begun in a request."""
        self._look_at_savepoints()
        return [work for work in list(self._live) if work.unit is unit and work.open]

    def look(self) -> None:
        """End the works whose COMMIT has returned, and what was rolled back to a savepoint."""
        self._look_at_savepoints()
        if self._committing:
            for work in [work for work in list(self._committing) if work.over()]:
                self.settle(work, Outcome.COMMITTED)

    def settle(self, work: Work, outcome: Outcome, *, here: bool = True) -> None:
        """A work has ended; `here` if the running code ended it."""
        with self._judge.lock:
            if work.ended:
                return
            self._live.pop(work, None)
            self._committing.pop(work, None)
            self._rolling_back.pop(work, None)
            root = work.root()
            if root is not None:
                self._of_root.pop(root, None)
            task = None if work.task is None else work.task()
            if task is not None and outcome is Outcome.COMMITTED:
                self._commits[task] = self._judge.clock()
            self._judge.work_ended(work, outcome, here=here)

    def finish(self) -> None:
        """End what has ended without anybody having been told."""
        self.look()
        for work in list(self._live):
            if work.conn() is None or work.root() is None:
                self.settle(work, Outcome.ROLLED_BACK, here=False)

    @property
    def live(self) -> int:
        """How many works have not ended."""
        return len(self._live)

    # --- what SQLAlchemy tells ------------------------------------------------------------

    def _begin(self, _conn: Connection) -> None:
        self.look()

    def _checkin(self, *_: Any) -> None:
        self.look()
        if len(self._live) > MOST_OPEN:
            self.finish()
            while len(self._live) > MOST_OPEN:
                self.settle(next(iter(self._live)), Outcome.COMMITTED)

    def _after_cursor_execute(
        self, conn: Connection, cursor: Any, statement: str, _parameters: Any, context: Any,
        _many: bool,
    ) -> None:  # fmt: skip
        if not self.watches(conn):
            return
        self._judge.rollbacks.statement_succeeded()
        if not _changed(cursor, statement, context):
            return
        root = conn.get_transaction()
        if not isinstance(root, RootTransaction):
            return
        open_savepoints = self._open_savepoints(conn)
        work = self._of_root.get(root)
        if work is None:
            if _commits_by_itself(conn):
                return
            work = Work(self._judge, conn, root, self._judge.clock())
            for name in open_savepoints:
                work.savepoint(name)
            self._of_root[root] = work
            self._live[work] = None
        task, lines = current_task(), callsite.lines()
        if not lines:
            task, lines = self._judge.sessions.whose()
        work.change(lines, task)
        work.announced = work.announced or _announced(conn, root)
        works = open_works.get()
        if work not in works:
            open_works.set((*(w for w in works if not w.ended), work))

    def _savepoint(self, conn: Connection, _name: str | None) -> None:
        self._look_at(conn)
        savepoints = savepoints_on(conn, begins=True)
        if savepoints is None:
            return
        begun = moment()
        savepoints.begins(begun)
        work = self.work_on(conn)
        if work is not None:
            work.savepoint(str(begun))

    def _release_savepoint(self, conn: Connection, _name: str, _context: None) -> None:
        self._look_at(conn)

    def _rollback_savepoint(self, conn: Connection, _name: str, _context: None) -> None:
        self._look_at(conn)
        savepoints, work = savepoints_on(conn), self.work_on(conn)
        if savepoints is not None:
            savepoints.rolls_back(moment())
        if work is not None:
            work.aborted = False
            self._rolling_back[work] = None

    def _open_savepoints(self, conn: Connection) -> list[str]:
        self._look_at(conn)
        return names(savepoints_on(conn))

    def _look_at_savepoints(self) -> None:
        """Of the works whose rollback to a savepoint is over, from wherever it is asked."""
        for work in list(self._rolling_back):
            conn = work.conn()
            savepoints = None if conn is None else savepoints_on(conn)
            if conn is not None and savepoints is not None and savepoints.has_rolled_back:
                self._look_at(conn)

    def _look_at(self, conn: Connection) -> None:
        """See which savepoints have ended; where the connection does nothing that is half done."""
        savepoints, work = savepoints_on(conn), self.work_on(conn)
        if savepoints is None:
            return
        with self._judge.lock:
            before = names(savepoints)
            undone = savepoints.look(conn.get_nested_transaction())
            if work is None:
                return
            self._rolling_back.pop(work, None)
            ended = [name for name in before if name not in names(savepoints)]
            if undone is not None:
                self._drop(work, [name for name in before if int(name) >= undone[0]])
            for name in reversed(ended):
                work.release(name)  # where it is still known, it was not rolled back

    def _drop(self, work: Work, savepoints: list[str]) -> None:
        had = work.changed
        dropped = work.roll_back_to(savepoints[0]) if savepoints else []
        if had:
            self._judge.changes_dropped(work, dropped)

    def _commit(self, conn: Connection) -> None:
        self._look_at(conn)
        work = self.work_on(conn)
        if work is None:
            return
        if work.aborted and conn.dialect.name == "postgresql":
            # The server answers this COMMIT with ROLLBACK, and SQLAlchemy does not say so.
            self.settle(work, Outcome.ROLLED_BACK)
            return
        work.committing = True
        self._committing[work] = None

    def _rollback(self, conn: Connection) -> None:
        self._look_at(conn)
        work = self.work_on(conn)
        if work is None:
            return
        # A COMMIT that was cut off may have happened: nothing says that it did not.
        self.settle(work, Outcome.COMMITTED if work.committing else Outcome.ROLLED_BACK)

    def _handle_error(self, context: ExceptionContext) -> None:
        conn = context.connection
        work = None if conn is None else self.work_on(conn)
        if work is None:
            return
        work.aborted = True
        answered = isinstance(context.original_exception, Exception) and not context.is_disconnect
        if work.committing and answered:
            # SQLAlchemy tells of no rollback after a COMMIT that was refused.
            self.settle(work, Outcome.ROLLED_BACK)


def _changed(cursor: Any, statement: str, context: Any) -> bool:
    if context is None:
        return changes(statement)
    if not (context.isinsert or context.isupdate or context.isdelete or changes(statement)):
        return False
    # Where rows come back, SQLite counts them when they have been read.
    counted = cursor.description is None
    return not counted or getattr(cursor, "rowcount", -1) != 0


def _announced(conn: Connection, root: RootTransaction) -> bool:
    buffer = last_buffer(conn)
    return buffer is not None and buffer.root() is root and buffer.bound is not None


def _commits_by_itself(conn: Connection) -> bool:
    level = str(conn.get_execution_options().get("isolation_level", ""))
    if level.replace("_", " ").upper() == "AUTOCOMMIT":
        return True
    proxied = conn.connection
    if getattr(proxied.dbapi_connection, "autocommit", False) is True:
        return True
    # SQLite without a transaction, right after a change.
    return getattr(proxied.driver_connection, "in_transaction", True) is False
