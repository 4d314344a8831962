"""G6: `Operation.bind` ties the outcome to the next real commit of the caller's, and to no other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from commitcast import Event, emit, sqlite
from commitcast.errors import OperationEnded, OperationLost

from .application import App, Boom, Saved, save

if TYPE_CHECKING:
    from conftest import Database

pytestmark = pytest.mark.anyio


async def test_g6_the_callers_commit_decides(app: App) -> None:
    async with app.entered() as op, app.session() as session:
        op.bind(session)
        save(session, op)
        await session.commit()
        assert op.outcome == "committed"
    assert await app.outcomes() == ["committed"]


async def test_g6_a_transaction_that_began_after_the_announcement_may_be_bound(app: App) -> None:
    async with app.entered() as op, app.session() as session, session.begin():
        await session.connection()
        op.bind(session)
        save(session, op)
    assert await app.outcomes() == ["committed"]


async def test_g6_an_exception_in_the_callers_transaction_is_told_once(app: App) -> None:
    with pytest.raises(Boom):
        async with app.entered() as op, app.session() as session, session.begin():
            op.bind(session)
            save(session, op)
            await session.flush()
            raise Boom
    assert await app.outcomes() == ["rolled_back"]


async def test_g6_an_exception_after_the_callers_commit_is_not_told(app: App) -> None:
    with pytest.raises(Boom):
        async with app.entered() as op, app.session() as session:
            op.bind(session)
            save(session, op)
            await session.commit()
            raise Boom
    assert await app.outcomes() == ["committed"]


async def test_g6_a_released_savepoint_decides_nothing(app: App) -> None:
    async with app.entered() as op, app.session() as session:
        op.bind(session)
        async with session.begin_nested():
            save(session, op)
        assert op.outcome is None
        await session.rollback()
    assert await app.outcomes() == ["rolled_back"]


async def test_g6_a_savepoint_that_is_rolled_back_leaves_the_rest_to_commit(app: App) -> None:
    async with app.entered() as op, app.session() as session:
        op.bind(session)
        inner = await session.begin_nested()
        save(session, op)
        await session.flush()
        await inner.rollback()
        save(session, op)
        await session.commit()
    assert await app.outcomes() == ["committed"]


async def test_g6_bound_in_a_savepoint_that_is_rolled_back_the_session_stays_bound(
    app: App,
) -> None:
    async with app.entered() as op, app.session() as session:
        inner = await session.begin_nested()
        session.add(Saved(operation=op.id, attempt=1))
        await session.flush()
        op.bind(session)
        await inner.rollback()
        save(session, op)
        await session.commit()
    assert op.outcome == "committed"
    assert await app.outcomes() == ["committed"]


async def test_g6_after_a_rollback_the_sessions_next_commit_decides(app: App) -> None:
    async with app.entered() as op, app.session() as session:
        op.bind(session)
        save(session, op)
        await session.flush()
        await session.rollback()
        assert op.outcome is None
        save(session, op)
        await session.commit()
    assert await app.outcomes() == ["committed"]


async def test_g6_after_a_commit_that_failed_the_sessions_next_decides(app: App) -> None:
    async with app.entered() as op, app.session() as session:
        op.bind(session)
        save(session, op, follows=123456)
        with pytest.raises(IntegrityError):
            await session.commit()
        await session.rollback()
        assert op.outcome is None
        save(session, op)
        await session.commit()
    assert await app.outcomes() == ["committed"]


async def test_g6_a_commit_that_failed_is_told_once(app: App) -> None:
    with pytest.raises(IntegrityError):
        async with app.entered() as op, app.session() as session:
            op.bind(session)
            save(session, op, follows=123456)
            await session.commit()
    assert await app.outcomes() == ["rolled_back"]


async def test_g6_the_first_of_several_commits_decides(app: App) -> None:
    async with app.entered() as op, app.session() as session:
        op.bind(session)
        save(session, op)
        await session.commit()
        with pytest.raises(OperationEnded):
            op.emit(Event("saved", {}))
        with pytest.raises(OperationEnded):
            op.bind(session)
        session.add(Saved(operation=op.id, attempt=1, last=False))
        emit(session, "thread:9", Event("more", {}))
        await session.commit()
    assert await app.outcomes() == ["committed"]


async def test_g6_a_savepoint_left_open_commits_with_its_transaction(app: App) -> None:
    async with app.entered() as op, app.session() as session:
        async with session.begin():
            op.bind(session)
            await session.begin_nested()
            save(session, op)
        assert op.outcome == "committed"
    assert await app.outcomes() == ["committed"]


@pytest.mark.parametrize("mode", ["conditional_savepoint", "create_savepoint", "rollback_only"])
@pytest.mark.parametrize("commits", [True, False])
async def test_g6_a_joined_sessions_commit_decides_nothing_the_outer_transaction_does(
    app: App, mode: Any, commits: bool
) -> None:
    async with app.entered() as op, app.engine.connect() as conn:
        outer = await conn.begin()
        async with AsyncSession(bind=conn, join_transaction_mode=mode) as session:
            op.bind(session)
            save(session, op)
            await session.commit()
        assert op.outcome is None
        await (outer.commit() if commits else outer.rollback())
    assert await app.outcomes() == ["committed" if commits else "rolled_back"]


async def test_g6_a_joined_session_in_full_control_decides(app: App) -> None:
    async with app.entered() as op, app.engine.connect() as conn:
        await conn.begin()
        async with AsyncSession(bind=conn, join_transaction_mode="control_fully") as session:
            op.bind(session)
            save(session, op)
            await session.commit()
            assert op.outcome == "committed"
    assert await app.outcomes() == ["committed"]


@pytest.mark.parametrize("how", ["rollback", "close"])
async def test_g6_what_a_joined_session_undid_the_outer_commit_does_not_commit(
    app: App, how: str
) -> None:
    async with app.entered() as op, app.engine.connect() as conn:
        outer = await conn.begin()
        session = AsyncSession(bind=conn, join_transaction_mode="create_savepoint")
        op.bind(session)
        save(session, op)
        await session.flush()
        await getattr(session, how)()
        await conn.execute(insert(Saved).values(operation=op.id, attempt=1, last=False))
        await outer.commit()
        assert op.outcome is None
        await session.close()
    assert await app.outcomes() == ["rolled_back"]


async def test_g6_a_commit_after_leaving_is_refused(app: App) -> None:
    async with app.session() as session:
        async with app.entered() as op:
            op.bind(session)
            if app.postgresql:  # on SQLite settling would wait for this very transaction
                save(session, op)
                await session.flush()
            else:
                await session.begin()
                save(session, op)
        assert await app.outcomes() == ["rolled_back"]
        if app.postgresql:
            with pytest.raises(OperationLost):
                await session.commit()
        else:
            session.expunge_all()
    assert await app.outcomes() == ["rolled_back"]


async def test_g6_a_core_connections_commit_decides(app: App) -> None:
    for commits in (True, False):
        async with app.entered() as op, app.engine.connect() as conn:
            await conn.begin()
            op.bind(conn)
            op.emit(Event("saved", {"attempt": 1, "last": True}))
            await conn.execute(insert(Saved).values(operation=op.id, attempt=1))
            await (conn.commit() if commits else conn.rollback())
        assert op.outcome == ("committed" if commits else "rolled_back")
    assert await app.outcomes() == ["committed", "rolled_back"]


async def test_g6_bound_in_a_savepoint_that_is_rolled_back_a_connection_stays_bound(
    app: App,
) -> None:
    async with app.entered() as op, app.engine.connect() as conn:
        await conn.begin()
        inner = await conn.begin_nested()
        op.bind(conn)
        await inner.rollback()
        op.emit(Event("saved", {"attempt": 1, "last": True}))
        await conn.execute(insert(Saved).values(operation=op.id, attempt=1))
        await conn.commit()
    assert await app.outcomes() == ["committed"]


async def test_g6_a_session_of_a_thread_decides(app: App, database: Database) -> None:
    name = "postgresql+psycopg" if app.postgresql else "sqlite+pysqlite"
    engine = create_engine(database.url.set(drivername=name))
    if not app.postgresql:
        sqlite.configure(engine)
    app.coordinator.attach(engine)

    def work(op: Any, *, fails: bool) -> None:
        with Session(engine) as session, session.begin():
            op.bind(session)
            save(session, op)
            session.flush()
            if fails:
                raise Boom

    async with app.entered() as op:
        await asyncio.to_thread(work, op, fails=False)
        assert op.outcome == "committed"
    with pytest.raises(Boom):
        async with app.entered() as op:
            await asyncio.to_thread(work, op, fails=True)
    assert await app.outcomes() == ["committed", "rolled_back"]
    engine.dispose()
