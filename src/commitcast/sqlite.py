"""SQLite as it should be set for a server: `configure(engine)`.

WAL, ``synchronous=FULL`` (a commit survives a power cut), and transactions that take the write
lock when they begin, in the order in which they asked for it. SQLite's own waiting is a lottery
that starves some writers for seconds; here they queue in the process first.

A transaction that only reads should not queue: give its engine or connection the execution
option ``commitcast_read_only=True`` and it begins without the write lock.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event as sa_event
from sqlalchemy.engine import Engine

from commitcast.errors import CommitcastError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine  # needs greenlet, which the base does not bring
    from sqlalchemy.pool import ConnectionPoolEntry

READ_ONLY_OPTION: Final = "commitcast_read_only"
UNQUEUED_OPTION: Final = "commitcast_unqueued"
"""Of who has waited for its turn already (`commitcast.turns`)."""
_LOOK_EVERY_S: Final = 0.0005


def configure(engine: Engine | AsyncEngine, *, busy_timeout_s: float = 30.0) -> None:
    """Set every connection of `engine` up as described above; call it before the first connect.

    Args:
        engine: a SQLite engine, sync (pysqlite) or async (aiosqlite).
        busy_timeout_s: how long, in seconds, a writer waits for the writers of other processes.
    """
    sync = engine if isinstance(engine, Engine) else engine.sync_engine
    if sync.dialect.name != "sqlite":
        raise CommitcastError(f"sqlite.configure takes a SQLite engine, not {sync.dialect.name}")
    queue = _queues[sync] = _WriterQueue(busy_timeout_s)
    timeout_ms = int(busy_timeout_s * 1000)

    def on_connect(dbapi: Any, _record: object) -> None:
        dbapi.isolation_level = None  # the driver's own BEGIN comes too late, before the first DML
        cursor = dbapi.cursor()
        try:
            cursor.execute(f"PRAGMA busy_timeout={timeout_ms}")
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute("PRAGMA foreign_keys=ON")
        finally:
            cursor.close()

    def on_checkin(dbapi: Any, record: ConnectionPoolEntry) -> None:
        # A COMMIT that SQLite refuses (a deferred constraint) leaves its transaction open, with
        # the write lock, and SQLAlchemy takes it for ended.
        driver: Any = record.driver_connection
        if dbapi is not None and driver is not None and driver.in_transaction:
            dbapi.rollback()

    sa_event.listen(sync, "connect", on_connect)
    sa_event.listen(sync, "checkin", on_checkin)
    sa_event.listen(sync, "close", _on_close)
    _queue_writers(sync, queue)


def _on_close(_dbapi: Any, record: ConnectionPoolEntry) -> None:
    # A connection closed while a statement of it is not read to its end (its task was cancelled,
    # and whoever keeps the traceback keeps the cursor) lives on in SQLite, with its transaction
    # and the write lock, until the cursor is collected. So its transaction ends first.
    driver: Any = record.driver_connection
    waits = inspect.iscoroutinefunction(getattr(driver, "rollback", None))
    if not waits or _current_task() is None or not _in_transaction(driver):
        return
    ending = asyncio.get_running_loop().create_task(driver.rollback())  # queued before the close
    _ending.add(ending)
    ending.add_done_callback(_ended)


def _in_transaction(driver: Any) -> bool:
    try:
        return bool(driver.in_transaction)
    except Exception:  # noqa: BLE001 - drivers raise their own for what is closed already
        return False


def _ended(ending: asyncio.Task[None]) -> None:
    _ending.discard(ending)
    if not ending.cancelled():
        ending.exception()  # a connection that is closed already has nothing to end


def configure_own(own: Engine, engine: Engine) -> None:
    """Set up Commitcast's own engine beside a team's, whose pool it was made from.

    Where `engine` was configured, both queue together, and connections are set up already.
    """
    queue = _queues.get(engine)
    if queue is None:
        configure(own)
    else:
        _queue_writers(own, queue)


def holds_writer(engine: Engine) -> bool:
    """Whether the running task has a write transaction open on `engine`: another would wait for it."""
    queue = _queues.get(engine)
    return queue is not None and queue.held_by_this_task()


def _queue_writers(engine: Engine, queue: _WriterQueue) -> None:
    def on_begin(conn: Connection) -> None:
        if conn.get_execution_options().get(READ_ONLY_OPTION):
            conn.exec_driver_sql("BEGIN")
            return
        if conn.get_execution_options().get(UNQUEUED_OPTION):
            conn.exec_driver_sql("BEGIN IMMEDIATE")
            return
        queue.enter(conn)
        try:
            conn.exec_driver_sql("BEGIN IMMEDIATE")
        finally:
            queue.begun(conn)

    sa_event.listen(engine, "begin", on_begin)


class _WriterQueue:
    """First come, first served, across tasks and threads of one process.

    Only the first in the queue looks whether the writer before it has ended, and it looks often:
    SQLAlchemy tells nobody when a COMMIT has returned. The queue is for fairness alone; SQLite's
    lock remains what keeps writers apart, so whoever never ends only sends the rest to it.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._guard = threading.Lock()
        self._waiting: deque[object] = deque()
        self._writer: weakref.ref[Connection] | None = None
        self._task: weakref.ref[asyncio.Task[Any]] | None = None
        self._beginning = False

    def enter(self, conn: Connection) -> None:
        """Wait for this transaction's turn, at most the time given to `configure`."""
        ticket = object()
        with self._guard:
            self._waiting.append(ticket)
        try:
            if not self._take(ticket, conn):
                run_async = getattr(conn.connection.dbapi_connection, "run_async", None)
                until = time.monotonic() + self._patience_s
                if run_async is None:
                    while not self._take(ticket, conn) and time.monotonic() < until:
                        time.sleep(self._pause_s(ticket))
                else:
                    run_async(lambda _driver: self._wait(ticket, conn, until))
        finally:  # cancelled or out of patience
            with self._guard:
                if ticket in self._waiting:
                    self._waiting.remove(ticket)

    def begun(self, conn: Connection) -> None:
        """BEGIN has returned: from now on the connection says how long the transaction lasts."""
        with self._guard:
            if self._writer is not None and self._writer() is conn:
                self._beginning = False

    async def _wait(self, ticket: object, conn: Connection, until: float) -> None:
        while not self._take(ticket, conn) and time.monotonic() < until:  # noqa: ASYNC110 - see above
            await asyncio.sleep(self._pause_s(ticket))

    def _pause_s(self, ticket: object) -> float:
        with self._guard:
            ahead = self._waiting.index(ticket) if ticket in self._waiting else 0
        return _LOOK_EVERY_S * min(1 + ahead, 40)

    def _take(self, ticket: object, conn: Connection) -> bool:
        with self._guard:
            writer = self._writer() if self._writer is not None else None
            busy = writer is not None and (self._beginning or writer.in_transaction())
            if self._waiting[0] is not ticket or busy:
                return False
            self._waiting.popleft()
            self._writer, self._beginning = weakref.ref(conn), True
            task = _current_task()
            self._task = None if task is None else weakref.ref(task)
            return True

    def held_by_this_task(self) -> bool:
        """Whether the open write transaction was begun by the task that asks."""
        with self._guard:
            writer = self._writer() if self._writer is not None else None
            task = self._task() if self._task is not None else None
            busy = writer is not None and (self._beginning or writer.in_transaction())
            return busy and task is not None and task is _current_task()


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop in this thread
        return None


_ending: set[asyncio.Task[None]] = set()
_queues: weakref.WeakKeyDictionary[Engine, _WriterQueue] = weakref.WeakKeyDictionary()
