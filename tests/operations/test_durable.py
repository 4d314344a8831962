"""An outcome that was told outlives a crash of the server, however weak the caller's setting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text

if TYPE_CHECKING:
    from conftest import Database

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "postgresql+psycopg"])
async def test_g6_synchronous_commit_is_raised_for_an_outcome_without_events(
    database: Database, driver: str
) -> None:
    if database.kind == "sqlite":
        pytest.skip("a setting of PostgreSQL")
    engine = database.engine(driver)
    coordinator = database.coordinator(engine)
    seen: list[str] = []

    async with coordinator:

        @event.listens_for(engine.sync_engine, "commit")  # after ours: it is the last listener
        def look(conn: Any) -> None:
            seen.append(conn.exec_driver_sql("SHOW synchronous_commit").scalar())

        for level in ("off", "local", "remote_apply"):
            async with coordinator.operation("save", user="ann") as op, op.begin() as session:
                await session.execute(text(f"SET LOCAL synchronous_commit = {level}"))
    assert seen == ["on", "on", "remote_apply"]
