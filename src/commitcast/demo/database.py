"""The demo's database: SQLite or PostgreSQL, one engine, sessions to write and to read with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from commitcast import sqlite
from commitcast.demo.tables import Base

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from sqlalchemy import URL

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}


def read_url(text: str | URL) -> URL:
    """A database URL with an async driver; raises ValueError with what to write instead."""
    try:
        url = make_url(text)
    except ArgumentError:
        raise ValueError(
            "that is not a database URL; write sqlite+aiosqlite:///chat.db "
            "or postgresql+asyncpg://user:password@host/name"
        ) from None
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise ValueError(
            f"the demo runs on SQLite and PostgreSQL, not on {url.drivername}; "
            "write sqlite+aiosqlite:///… or postgresql+asyncpg://…"
        )
    if driver.startswith("sqlite") and url.database in (None, "", ":memory:"):
        raise ValueError("an SQLite database in memory is gone at the end; name a file")
    return url.set(drivername=driver)


class Database:
    """An engine and its sessions; `writing` commits at its end, `reading` never does."""

    def __init__(self, url: str | URL) -> None:
        self.engine = create_async_engine(read_url(url), pool_pre_ping=True)
        if self.engine.dialect.name == "sqlite":
            sqlite.configure(self.engine)
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        self._readers = async_sessionmaker(
            self.engine.execution_options(commitcast_read_only=True), expire_on_commit=False
        )

    def writing(self) -> AbstractAsyncContextManager[AsyncSession]:
        """A session whose transaction commits at the end of the block."""
        return self._sessions.begin()

    def reading(self) -> AbstractAsyncContextManager[AsyncSession]:
        """A session to read with; on SQLite it waits for no writer."""
        return self._readers()

    async def create_tables(self) -> None:
        """Create the demo's tables that are missing."""
        async with self.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
