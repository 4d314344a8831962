"""A plain session that emitted and rolled back tells nobody; it counts, and hooks hear of it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from commitcast import Event, emit
from commitcast.telemetry import CoordinationEventType

from .application import App, Saved

pytestmark = pytest.mark.anyio


@pytest.fixture
def heard(app: App) -> list[tuple[str, ...]]:
    """The streams of each rollback that the hook was called with."""
    found: list[tuple[str, ...]] = []
    app.coordinator.on_rollback(found.append)
    return found


def say(target: Any, *streams: str) -> None:
    for stream in streams:
        emit(target, stream, Event("said", {}))


async def told(app: App) -> list[Any]:
    assert await app.outcomes() == []
    return app.judge.notifications()


def check(app: App, heard: list[tuple[str, ...]], *streams: tuple[str, ...]) -> None:
    assert heard == list(streams)
    assert app.coordinator.rollbacks == len(streams)
    seen = [e for e in app.observed if e.type is CoordinationEventType.TRANSACTION_ROLLED_BACK]
    assert [(e.streams, e.operation_id) for e in seen] == [(s, None) for s in streams]


async def test_a_plain_rollback_counts_once_and_tells_nobody(
    app: App, heard: list[tuple[str, ...]]
) -> None:
    async with app.session() as session:
        say(session, "thread:7", "user:ann", "thread:7")
        session.add(Saved(operation="", attempt=0, last=False))
        await session.flush()
        await session.rollback()
        check(app, heard, ("thread:7", "user:ann"))
        say(session, "thread:8")
        await session.commit()
    check(app, heard, ("thread:7", "user:ann"))
    assert await told(app) == []


async def test_a_rollback_before_any_statement_counts_once(
    app: App, heard: list[tuple[str, ...]]
) -> None:
    async with app.session() as session:
        say(session, "thread:7")
        await session.rollback()
    check(app, heard, ("thread:7",))
    assert await told(app) == []


async def test_a_session_that_is_closed_with_emits_counts_once(
    app: App, heard: list[tuple[str, ...]]
) -> None:
    async with app.session() as session:
        await session.connection()
        say(session, "thread:7")
    check(app, heard, ("thread:7",))
    assert await told(app) == []


async def test_an_exception_in_the_sessions_block_counts_once(
    app: App, heard: list[tuple[str, ...]]
) -> None:
    async def insert_twice() -> None:
        async with app.session() as session, session.begin():
            say(session, "thread:7")
            for _ in range(2):
                session.add(Saved(operation="", attempt=0, last=False, text="same"))
                await session.flush()

    with pytest.raises(IntegrityError):
        await insert_twice()
    check(app, heard, ("thread:7",))
    assert await told(app) == []


async def test_a_commit_that_fails_counts_once(app: App, heard: list[tuple[str, ...]]) -> None:
    async with app.session() as session:
        say(session, "thread:7")
        session.add(Saved(operation="", attempt=0, last=False, follows=123456))
        with pytest.raises(IntegrityError):
            await session.commit()
        await session.rollback()
    check(app, heard, ("thread:7",))
    assert await told(app) == []


async def test_a_savepoint_that_is_rolled_back_is_no_rollback(
    app: App, heard: list[tuple[str, ...]]
) -> None:
    async with app.session() as session:
        say(session, "thread:7")
        inner = await session.begin_nested()
        say(session, "thread:8")
        await session.flush()
        await inner.rollback()
        check(app, heard)
        await session.commit()
        check(app, heard)
        inner = await session.begin_nested()
        say(session, "thread:9")
        await inner.commit()
        await session.rollback()
    check(app, heard, ("thread:9",))
    assert await told(app) == []


async def test_a_core_connection_counts_as_well(app: App, heard: list[tuple[str, ...]]) -> None:
    async with app.engine.connect() as conn:
        await conn.begin()
        say(conn, "thread:7")
        await conn.rollback()
        await conn.begin()
        await conn.rollback()  # without an emit there is nothing to count
    check(app, heard, ("thread:7",))
    assert await told(app) == []


async def test_a_hook_that_raises_stops_neither_the_rollback_nor_the_next_hook(app: App) -> None:
    def broken(_streams: tuple[str, ...]) -> None:
        raise RuntimeError

    after: list[tuple[str, ...]] = []
    app.coordinator.on_rollback(broken)
    app.coordinator.on_rollback(after.append)
    async with app.session() as session:
        say(session, "thread:7")
        await session.rollback()
        say(session, "thread:7")
        await session.commit()
    check(app, after, ("thread:7",))
    assert await told(app) == []
