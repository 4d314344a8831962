from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from commitcast import Event, emit

if TYPE_CHECKING:
    from conftest import Database


@pytest.mark.anyio
async def test_an_event_leaves_with_its_commit(database: Database) -> None:
    engine = database.engine()
    async with (
        database.coordinator(engine) as coordinator,
        coordinator.subscribe("thread:7") as subscription,
        AsyncSession(engine) as session,
    ):
        emit(session, "thread:7", Event("message.created", {"id": 3}))
        await session.commit()
        event = await anext(subscription)
        assert (event.offset, event.type, event.data) == (1, "message.created", {"id": 3})
