from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .application import DRIVERS, App, Base, running
from .judge import Judge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from conftest import Database


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def database_kind(driver: str) -> str:
    return driver.partition("+")[0]


@pytest.fixture
def judge(database: Database) -> Iterator[Judge]:
    """Looks at the database, which has the application's tables as well."""
    found = Judge(database.url)
    with found.observer.begin() as conn:
        Base.metadata.create_all(conn)
    yield found
    found.observer.dispose()


@pytest.fixture
async def app(database: Database, driver: str, judge: Judge) -> AsyncIterator[App]:
    """The application on an empty database, once with each driver."""
    async with running(database.engine(driver), judge, database.coordinator) as found:
        yield found
