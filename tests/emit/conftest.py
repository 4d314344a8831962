from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.schema import DDL

from commitcast import Coordinator, sqlite

from .places import DRIVERS, App, Place

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sqlalchemy import URL


@pytest.fixture(scope="session")
def postgresql_place(postgresql_url: URL) -> Iterator[Place]:
    admin = create_engine(
        postgresql_url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as conn:
        conn.execute(DDL("CREATE DATABASE emit_tests"))
    admin.dispose()
    place = Place(postgresql_url.set(database="emit_tests"))
    place.create()
    yield place
    place.observer.dispose()


@pytest.fixture(scope="session")
def sqlite_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(make_url(f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('emit')}/app.db"))
    place.create()
    yield place
    place.observer.dispose()


@pytest.fixture
def place_of(request: pytest.FixtureRequest) -> Callable[[str], Place]:
    """The database of a kind, empty."""

    def find(kind: str) -> Place:
        place: Place = request.getfixturevalue(f"{kind}_place")
        place.clean()
        return place

    return find


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, place_of: Callable[[str], Place]) -> Place:
    """An empty database, once of each kind."""
    return place_of(request.param)


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def app(
    anyio_backend: str, driver: str, place_of: Callable[[str], Place]
) -> AsyncIterator[App]:
    """An application on an empty database, once with each driver."""
    place = place_of(make_url(f"{driver}://").get_backend_name())
    url = place.url.set(drivername=driver)
    if driver in {"postgresql+asyncpg", "sqlite+aiosqlite"}:
        async_engine = create_async_engine(url)
        engine = async_engine.sync_engine
    else:
        async_engine, engine = None, create_engine(url)
    if place.kind == "sqlite":
        sqlite.configure(engine)
    coordinator = Coordinator(async_engine or engine)
    yield App(place, driver, engine, async_engine, coordinator)
    coordinator.detach()
    if async_engine is None:
        engine.dispose()
    else:
        await async_engine.dispose()
