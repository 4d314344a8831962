"""A database with two tables of an app, a server, and a judge that is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from commitcast.audit.shadow import Shadow
from commitcast.health import CoordinationHealthMonitor

from .stage import Base, Stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from commitcast.score import LayerPair
    from conftest import Database


@pytest.fixture
def monitor() -> CoordinationHealthMonitor:
    """One that a slow machine is not late for."""
    slow: dict[LayerPair | str, float] = dict.fromkeys(
        ("database_socket", "agent_state", "rollback_notification"), 60_000.0
    )
    return CoordinationHealthMonitor(thresholds_ms=slow)


@pytest.fixture
def shadow(monitor: CoordinationHealthMonitor) -> Iterator[Shadow]:
    with Shadow(monitor) as installed:
        yield installed


@pytest.fixture
async def stage(database: Database) -> AsyncIterator[Stage]:
    engine = database.engine()
    async with engine.begin() as conn:
        await conn.run_sync(Base.metadata.create_all)
    made = Stage(database, engine)
    yield made
    await made.close()
