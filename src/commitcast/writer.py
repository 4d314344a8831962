"""What Commitcast itself writes: on connections of its own, never one of the caller's pool.

An operation is announced while its caller may hold every connection of the team's pool, and is
settled when the caller's connection is lost. The own engine is made from the team's: same
driver, arguments and listeners of the pool, at READ COMMITTED, with connections opened as needed.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import Text, cast, func, literal, select, true
from sqlalchemy import event as sa_event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import AssertionPool, SingletonThreadPool, StaticPool

from commitcast import sqlite
from commitcast.errors import CommitcastError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy import Dialect
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

    from commitcast.log import Log
    from commitcast.turns import Turns

_T = TypeVar("_T")

_CONNECTIONS: Final = 4
_LOCK_TIMEOUT: Final = "2s"
_LIMIT_S: Final = 15.0


class Writer:
    """Runs short pieces of work, each in one transaction of its own."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._direct = False
        sa_event.listen(engine.sync_engine, "do_connect", self._on_connect)
        self._team = engine.sync_engine
        self.engine = own_engine(engine)
        self._postgresql = self.engine.dialect.name == "postgresql"
        # SQLite has one writer; the others would only hold connections while they wait.
        self._places = asyncio.Semaphore(_CONNECTIONS if self._postgresql else 1)
        self._readers = asyncio.Semaphore(1)
        self._reader = self.engine.execution_options(**{sqlite.READ_ONLY_OPTION: True})
        # Beside each other: of an engine and one made from it, SQLAlchemy takes the former's level.
        self._transactional = self._single = self.engine
        if self._postgresql:
            at = self.engine.execution_options
            self._transactional = at(isolation_level="READ COMMITTED")
            self._single = at(isolation_level="AUTOCOMMIT")

    async def run(self, work: Callable[[Connection], _T], *, limit_s: float = _LIMIT_S) -> _T:
        """Run `work` and commit; returned means committed.

        A wait for another transaction's lock ends after 2 s, with the database's error; TimeoutError
        is raised after `limit_s` seconds, whatever the database does.

        Args:
            work: takes the connection; must not keep it.
            limit_s: seconds.
        """
        async with self._places, self._within(limit_s), self._transactional.begin() as conn:
            if self._postgresql:
                await conn.execute(_bounded())
            return await conn.run_sync(work)

    async def each(self, work: Callable[[Connection], _T], *, limit_s: float = _LIMIT_S) -> _T:
        """Run `work` with each statement a transaction of its own, a third of the round trips.

        On SQLite, where that would save nothing, in one transaction; likewise where a pooler in
        transaction mode may be between, which may send a statement's preparation to one server and
        the statement to another.
        """
        if not self._postgresql or not self._direct:
            return await self.run(work, limit_s=limit_s)
        async with self._places, self._within(limit_s), self._single.connect() as conn:
            return await conn.run_sync(work)

    async def read(self, look: Callable[[Connection], _T], *, limit_s: float = _LIMIT_S) -> _T:
        """Run what only reads; on SQLite it waits for no writer."""
        async with self._readers, self._within(limit_s), self._reader.connect() as conn:
            return await conn.run_sync(look)

    @contextlib.asynccontextmanager
    async def _within(self, limit_s: float) -> AsyncIterator[None]:
        limit = asyncio.timeout(limit_s)
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            cause = (
                "the database or a lock did not answer"
                if self._postgresql
                else "SQLite has one writer, and another transaction has it open: end it sooner, "
                "and await nothing else inside it"
            )
            raise TimeoutError(
                f"Commitcast could not read or write within {limit_s:g} s: {cause}"
            ) from error

    async def close(self) -> None:
        """Close the connections."""
        sa_event.remove(self._team, "do_connect", self._on_connect)
        await self.engine.dispose()

    def _on_connect(
        self, dialect: Dialect, _record: object, _arguments: object, options: dict[str, Any]
    ) -> None:
        """Whether statements that are prepared stay where they are: what a pooler has turned off.

        asyncpg prepares every statement, in a message of its own; psycopg sends one that it does
        not prepare as one message. Of connections of a ``creator=`` nothing is known.
        """
        caches = ("statement_cache_size", "prepared_statement_cache_size")
        off = dialect.driver == "asyncpg" and any(options.get(name) in {0, "0"} for name in caches)
        self._direct = not off


def own_engine(engine: AsyncEngine) -> AsyncEngine:
    """An engine on the same database with a pool of its own."""
    from sqlalchemy.ext.asyncio import create_async_engine

    sync: Engine = engine.sync_engine
    if shares_connection(sync):
        raise CommitcastError(
            "operations need a pool with connections of their own: where one connection is shared "
            "(in memory, StaticPool) nothing could be announced beside the caller's transaction"
        )
    # The mark lets commitcast.audit judge what the app does, and not this.
    marked = {"commitcast_own": True}
    own = create_async_engine(
        sync.url, pool=sync.pool.recreate(), execution_options=marked, hide_parameters=True
    )
    if sync.dialect.name == "sqlite":
        sqlite.configure_own(own.sync_engine, sync)
    return own


def is_in_memory(engine: Engine) -> bool:
    """Whether the engine is one of SQLite and has its database in memory."""
    if engine.dialect.name != "sqlite":
        return False
    name = engine.url.database or ""
    return name in {"", ":memory:"} or "mode=memory" in str(engine.url) or ":memory:" in name


def shares_connection(engine: Engine) -> bool:
    """Whether its pool gives one connection to several users, or to one at a time."""
    shared = isinstance(engine.pool, (StaticPool, SingletonThreadPool, AssertionPool))
    return shared or is_in_memory(engine)


async def check_primary(engine: Engine, log: Log) -> None:
    """Raises `StandbyRefused` if an async `engine` is a standby; with another only its own work says."""
    from sqlalchemy.ext.asyncio import AsyncEngine

    if engine.dialect.is_async and not shares_connection(engine):
        async with AsyncEngine(engine).connect() as conn:
            await log.heads(conn, [])


def turns_for(engine: Engine, read_with: AsyncEngine | Engine) -> Turns | None:
    """How delivery takes turns with the application, where both have one connection.

    Raises ValueError for what can neither share nor be read beside the application.
    """
    reader = read_with if isinstance(read_with, Engine) else read_with.sync_engine
    if reader is not engine and (is_in_memory(engine) or is_in_memory(reader)):
        raise ValueError(
            "a SQLite database in memory belongs to one engine, so another (reader=, attach) has "
            "a different one or locks its tables; use one async engine for all, or a file in a "
            "temporary folder"
        )
    if isinstance(read_with, Engine) or not shares_connection(reader):
        return None
    if not isinstance(reader.pool, (StaticPool, SingletonThreadPool)):
        raise ValueError(  # noqa: TRY004 - which pool an engine has is no question of types
            f"delivery cannot read beside the application with {type(reader.pool).__name__} on "
            f"{reader.url!r}: give StaticPool (what SQLAlchemy takes for a SQLite database in "
            "memory), a SQLite database in a file, or reader= with a pool of its own"
        )
    from commitcast.turns import Turns  # needs greenlet, which the base does not bring

    return Turns(read_with)


def _bounded() -> Any:
    return select(
        func.set_config(literal("lock_timeout"), cast(literal(_LOCK_TIMEOUT), Text), true())
    )
