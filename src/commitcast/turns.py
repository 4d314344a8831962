"""Turns: where a pool gives one connection to several users, Commitcast waits for the others.

A database in memory has one connection (StaticPool): what one user rolls back or commits, it does
for all. So Commitcast's own work begins only while no transaction of the application is open, and
one that begins meanwhile waits until that work has ended, some milliseconds. Among themselves the
application's transactions are not ordered: without Commitcast nobody would do that either.

Nothing of ours is cancelled inside the database: SQLAlchemy closes a connection whose statement was
cancelled, and with the only one a database in memory is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from sqlalchemy import event as sa_event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncTransaction

from commitcast.errors import CommitcastError
from commitcast.outlast import end, outlast
from commitcast.sqlite import UNQUEUED_OPTION

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from sqlalchemy.engine import Connection, Engine

_T = TypeVar("_T")
_OWN: Final = "commitcast_own"
"""Also what keeps ``commitcast.audit`` from judging it."""
_LOOK_EVERY_S: Final = 0.001
_LOOK_AT_LEAST_EVERY_S: Final = 0.02
_PATIENCE_S: Final = 15.0


class TransactionOpen(CommitcastError):
    """A transaction is open on the only connection that there is, so the work cannot begin."""


class _Theirs:
    """A transaction of the application, as it was seen to begin."""

    def __init__(self) -> None:
        self.seen = False
        """Whether SQLAlchemy has it on its connection yet; while it begins it has not."""
        task = _current_task()
        self.task = None if task is None else weakref.ref(task)

    def is_open(self, conn: Connection) -> bool:
        there = conn.get_transaction() is not None
        self.seen |= there
        # A COMMIT that failed leaves the transaction there, until it is rolled back.
        return there or not (self.seen or conn.closed)


class Turns:
    """Of one engine; `engine` is what Commitcast takes connections from."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._sync = engine.sync_engine
        options = {_OWN: True, UNQUEUED_OPTION: True}
        self.engine: AsyncEngine = _TurnEngine(self._sync.execution_options(**options), self)
        self._guard = threading.Lock()
        self._theirs: weakref.WeakKeyDictionary[Connection, _Theirs] = weakref.WeakKeyDictionary()
        self._ours: tuple[object, asyncio.AbstractEventLoop] | None = None
        self._kept: list[AsyncConnection] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        for name, listener in self._listeners():
            sa_event.listen(self._sync, name, listener)

    def detach(self) -> None:
        """Follow the application's transactions no more."""
        for name, listener in self._listeners():
            if sa_event.contains(self._sync, name, listener):
                sa_event.remove(self._sync, name, listener)

    def _listeners(self) -> tuple[tuple[str, Any], ...]:
        return (
            ("begin", self._enter),
            ("before_cursor_execute", self._before_execute),
            ("commit", self._ends),
            ("rollback", self._ends),
        )

    # --- the application's ----------------------------------------------------------------

    def _enter(self, conn: Connection) -> None:
        """A transaction begins, or one goes on that began before there was a coordinator."""
        if conn.get_execution_options().get(_OWN) or self._admit(conn):
            return
        run_async = getattr(conn.connection.dbapi_connection, "run_async", None)
        until = time.monotonic() + _PATIENCE_S
        if run_async is not None:
            run_async(lambda _driver: self._wait_for_ours(conn, until))
        else:
            while not self._admit(conn):
                self._lose_patience(until)
                time.sleep(_LOOK_EVERY_S)

    def _before_execute(self, conn: Connection, *_: object) -> None:
        known = self._theirs.get(conn)
        if known is None or not known.is_open(conn):
            self._enter(conn)

    def _ends(self, conn: Connection) -> None:
        known = self._theirs.get(conn)
        if known is not None:
            known.seen = True

    def _admit(self, conn: Connection) -> bool:
        with self._guard:
            if self._ours is not None and not self._ours[1].is_closed():
                return False
            self._theirs[conn] = _Theirs()
            return True

    async def _wait_for_ours(self, conn: Connection, until: float) -> None:
        while not self._admit(conn):
            self._lose_patience(until)
            await asyncio.sleep(_LOOK_EVERY_S)

    @staticmethod
    def _lose_patience(until: float) -> None:
        if time.monotonic() > until:
            raise TransactionOpen(
                "Commitcast's own work on the only connection does not end: is its event loop "
                "running? Give it a SQLite database in a file"
            )

    # --- ours -----------------------------------------------------------------------------

    def check(self) -> None:
        """Raises `TransactionOpen` if the running task would wait for itself."""
        task = _current_task()
        with self._guard:
            open_here = any(
                theirs.task is not None and theirs.task() is task and theirs.is_open(conn)
                for conn, theirs in self._theirs.items()
            )
        if open_here and task is not None:
            raise TransactionOpen(
                "this task has a transaction open on the only connection of the engine, for which "
                "Commitcast would wait for ever: end it first, or give a SQLite database in a file"
            )

    async def take(self, holder: object) -> None:
        """Wait until no transaction of the application is open; then it is our turn."""
        loop, pause_s = asyncio.get_running_loop(), _LOOK_EVERY_S
        while True:
            self.check()
            with self._guard:
                free = self._ours is None or self._ours[1].is_closed()
                if free and not any(t.is_open(conn) for conn, t in self._theirs.items()):
                    self._ours = holder, loop
                    return
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LOOK_AT_LEAST_EVERY_S)

    def give(self, holder: object) -> None:
        """The turn is over; nothing happens if it was not the holder's."""
        with self._guard:
            if self._ours is not None and self._ours[0] is holder:
                self._ours = None

    async def still(self) -> None:
        """Wait until nothing of ours is under way: then whatever of ours waits may be cancelled."""
        loop = asyncio.get_running_loop()
        while self._ours is not None and self._ours[1] is loop:  # noqa: ASYNC110 - of any thread
            await asyncio.sleep(_LOOK_EVERY_S)

    async def outlast(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run `work` in a task of its own, which goes on if who waits for it is cancelled."""
        try:
            self.check()
        except TransactionOpen:
            work.close()
            raise
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            waiting = asyncio.current_task()
            if task.cancelled() and waiting is not None and not waiting.cancelling():
                raise TransactionOpen("Commitcast stops, and had not got its turn") from None
            raise

    async def end(self) -> None:
        """Cancel what was left to outlast its caller, none of it in the database.

        Otherwise it would go on after the application has disposed of its engine: with a connection
        that nobody closes, or in a new database in memory.
        """
        loop = asyncio.get_running_loop()
        await self.still()
        await end(task for task in self._tasks if task.get_loop() is loop)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()

    def keep(self, conn: AsyncConnection) -> None:
        """Keep a connection that cannot be returned now: that would roll back what is not ours."""
        self._kept.append(conn)

    async def return_kept(self) -> None:
        """Return what was kept; in our turn."""
        while self._kept:
            await _whole(AsyncConnection.close(self._kept.pop()))


class _TurnConnection(AsyncConnection):
    """Takes its turn before it is taken from the pool, and ends it when it has been returned."""

    def __init__(self, engine: AsyncEngine, turns: Turns) -> None:
        super().__init__(engine)
        self._turns = turns

    async def start(self, is_ctxmanager: bool = False) -> Self:
        await self._turns.take(self)
        try:
            try:
                await _whole(super().start(is_ctxmanager))
                await self._wait_for_the_unseen()
            except BaseException:
                if self.sync_connection is not None:
                    self._turns.keep(self)
                raise
            await self._turns.return_kept()
        except BaseException:
            self._turns.give(self)
            raise
        return self

    async def _wait_for_the_unseen(self) -> None:
        """Wait for a transaction that nobody saw begin; who goes on with it is taken in."""
        until = time.monotonic() + _PATIENCE_S
        while await self._is_in_transaction():
            self._turns.give(self)
            if time.monotonic() > until:
                raise TransactionOpen(
                    "the only connection of the engine has a transaction open that began before "
                    "the coordinator was made: make it first"
                )
            await asyncio.sleep(_LOOK_AT_LEAST_EVERY_S)
            await self._turns.take(self)

    async def _is_in_transaction(self) -> bool:
        raw = await self.get_raw_connection()
        return bool(getattr(raw.driver_connection, "in_transaction", False))

    async def close(self) -> None:
        try:
            await _whole(super().close())
        finally:
            self._turns.give(self)

    async def execute(self, *args: Any, **options: Any) -> Any:
        return await _whole(super().execute(*args, **options))

    async def run_sync(self, *args: Any, **options: Any) -> Any:
        return await _whole(super().run_sync(*args, **options))

    async def commit(self) -> None:
        await _whole(super().commit())

    async def rollback(self) -> None:
        await _whole(super().rollback())

    def begin(self) -> AsyncTransaction:
        return _TurnTransaction(self)

    def begin_nested(self) -> AsyncTransaction:
        return _TurnTransaction(self, nested=True)


class _TurnTransaction(AsyncTransaction):
    """Begins and ends whole, though who waits for it is cancelled."""

    async def start(self, is_ctxmanager: bool = False) -> Self:
        await _whole(super().start(is_ctxmanager))
        return self

    async def commit(self) -> None:
        await _whole(super().commit())

    async def rollback(self) -> None:
        await _whole(super().rollback())

    async def __aexit__(self, type_: object, value: object, traceback: object) -> None:
        await _whole(super().__aexit__(type_, value, traceback))


class _TurnEngine(AsyncEngine):
    """An engine all of whose connections take turns with those of the application."""

    def __init__(self, sync_engine: Engine, turns: Turns) -> None:
        super().__init__(sync_engine)
        self._turns = turns

    def connect(self) -> AsyncConnection:
        return _TurnConnection(self, self._turns)

    def execution_options(self, **options: Any) -> AsyncEngine:
        return _TurnEngine(self.sync_engine.execution_options(**options), self._turns)


async def _whole(step: Coroutine[Any, Any, _T]) -> _T:
    """Let one step in the database end before a cancellation of who waits for it goes on."""
    task = asyncio.get_running_loop().create_task(step)
    interrupted = await outlast(task, _PATIENCE_S)
    if interrupted is None:
        return task.result()
    if task.done() and not task.cancelled():
        task.exception()
    raise interrupted


def _current_task() -> asyncio.Task[Any] | None:
    with contextlib.suppress(RuntimeError):  # no event loop in this thread
        return asyncio.current_task()
    return None
