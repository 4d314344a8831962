"""`commitcast.testing.capture`: what a test sees of a session's events."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from commitcast import Event, emit
from commitcast.errors import NotAttached
from commitcast.testing import capture

from .places import App, Base, Note, everywhere


def types(events: list) -> list[str]:  # type: ignore[type-arg]
    return [event.type for event in events]


@everywhere
def test_captured_is_what_each_commit_sends(app: App) -> None:
    with Session(app.engine) as session, capture(session) as events:
        emit(session, "thread:7", Event("a", {"x": 1}), actor="user:1")
        assert events == []
        session.commit()
        assert [(e.stream, e.type, e.data, e.actor) for e in events] == [
            ("thread:7", "a", {"x": 1}, "user:1")
        ]
        session.add(made := Note(text="b"))
        emit(session, "thread:7", lambda: Event("b", made.id))
        session.commit()
        assert isinstance(events[1].data, int)
        emit(session, "thread:7", Event("gone"))
        session.rollback()
        emit(session, "thread:7", Event("c"))
        session.commit()
    assert types(events) == app.sent() == ["a", "b", "c"]


@everywhere
@pytest.mark.parametrize("sql", [True, False])
def test_captured_follows_savepoints(app: App, sql: bool) -> None:
    with Session(app.engine) as session, capture(session) as events:

        def step(name: str) -> None:
            emit(session, "thread:7", Event(name))
            if sql:
                session.add(Note(text=name))
                session.flush()

        step("a")
        with session.begin_nested():
            step("b")
        assert events == []
        outer = session.begin_nested()
        step("c")
        with session.begin_nested():
            step("d")
        outer.rollback()
        step("e")
        session.commit()
    assert types(events) == app.sent() == ["a", "b", "e"]


@everywhere
@pytest.mark.parametrize("mode", ["conditional_savepoint", "rollback_only", "create_savepoint"])
def test_captured_in_a_session_joined_to_an_outer_transaction(app: App, mode: str) -> None:
    with app.engine.connect() as conn:
        outer = conn.begin()
        with (
            Session(conn, join_transaction_mode=mode) as session,  # type: ignore[arg-type]
            capture(session) as events,
        ):
            for name in ("a", "b"):
                session.add(Note(text=name))
                emit(session, "thread:7", Event(name))
                session.commit()
            emit(session, "thread:7", Event("gone"))
            session.rollback()
        if outer.is_active:
            outer.rollback()
    assert types(events) == ["a", "b"]
    assert app.sent() == []


def test_captured_without_a_coordinator() -> None:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        with capture(session) as events:
            session.add(made := Note(text="one"))
            emit(session, "thread:7", lambda: Event("a", made.id))
            emit(session, "thread:7", Event("b"))
            session.commit()
            emit(session, "thread:7", Event("c"))
            session.commit()
        assert [(e.type, e.data) for e in events] == [("a", 1), ("b", {}), ("c", {})]
        with pytest.raises(NotAttached):
            emit(session, "thread:7", Event("d"))
    engine.dispose()


@pytest.mark.anyio
async def test_captured_of_an_async_session(app: App) -> None:
    if app.async_engine is None:
        pytest.skip("a sync driver")
    async with AsyncSession(app.async_engine) as session:
        with capture(session) as events:
            emit(session, "thread:7", Event("a"))
            await session.commit()
            async with session.begin(), session.begin_nested():
                emit(session, "thread:7", Event("b"))
    assert types(events) == app.sent() == ["a", "b"]
