"""What cannot keep its promise is refused at once and by name; nothing is announced for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from commitcast import Event, OperationError
from commitcast.errors import (
    InvalidEvent,
    LateAnnouncement,
    NotAttached,
    NoTransaction,
    NotRunning,
    OperationEnded,
    SchemaMissing,
    TwoPhaseRefused,
)

from .application import App, Saved, running, save

if TYPE_CHECKING:
    from conftest import Database

    from .judge import Judge

pytestmark = pytest.mark.anyio

AT_ONCE_S = 10.0  # of the 30 s that SQLite would wait


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite"])
async def test_entering_with_sqlites_writer_in_hand_is_refused_at_once(app: App) -> None:
    async with asyncio.timeout(AT_ONCE_S), app.session() as session:
        session.add(Saved(operation="", attempt=0, last=False))
        await session.flush()
        with pytest.raises(LateAnnouncement):
            await app.operation().__aenter__()
        await session.rollback()
        async with app.entered() as op, op.begin() as inner:
            save(inner, op)
            await inner.flush()
            with pytest.raises(LateAnnouncement):
                await app.operation().__aenter__()
    assert await app.outcomes() == ["committed"]


async def test_a_session_whose_transaction_began_before_is_refused(app: App) -> None:
    engine = app.engine.execution_options(commitcast_read_only=True)  # SQLite's writer stays free
    async with AsyncSession(engine) as session:
        await session.connection()
        async with app.entered() as op:
            with pytest.raises(LateAnnouncement) as caught:
                op.bind(session)
            assert caught.value.operation_id == op.id
            await session.rollback()
            op.bind(session)  # what begins now is late no more
            save(session, op)
            await session.commit()
    assert await app.outcomes() == ["committed"]


async def test_two_operations_on_one_session_are_refused(app: App) -> None:
    async with app.entered() as first, app.entered() as second, app.session() as session:
        first.bind(session)
        with pytest.raises(OperationError):
            second.bind(session)
        save(session, first)
        await session.commit()
        second.bind(session)  # the first has its outcome
        save(session, second)
        await session.commit()
    assert await app.outcomes() == ["committed"] * 2


async def test_one_operation_on_two_sessions_is_refused(app: App) -> None:
    async with app.entered() as op, app.session() as one, app.session() as two:
        op.bind(one)
        with pytest.raises(OperationError):
            op.bind(two)
        with pytest.raises(OperationError):
            async with op.begin():
                raise AssertionError
        save(one, op)
        await one.commit()
    assert await app.outcomes() == ["committed"]


async def test_begin_twice_is_refused_inside_and_after_the_first(app: App) -> None:
    async with app.entered() as op:
        async with op.begin() as session:
            with pytest.raises(OperationError):
                async with op.begin():
                    raise AssertionError
            save(session, op)
        with pytest.raises(OperationEnded):
            async with op.begin():
                raise AssertionError
    assert await app.outcomes() == ["committed"]


async def test_an_operation_is_entered_once(app: App) -> None:
    async with app.entered() as op:
        with pytest.raises(OperationEnded):
            await op.__aenter__()
        async with op.begin() as session:
            save(session, op)
    with pytest.raises(OperationEnded):
        await op.__aenter__()
    assert await app.outcomes() == ["committed"]


async def test_what_is_not_entered_or_was_left_takes_nothing(app: App) -> None:
    op = app.operation()
    for _ in range(2):
        with pytest.raises(OperationEnded):
            op.emit(Event("saved", {}))
        with pytest.raises(OperationEnded):
            op.bind(app.session())
        with pytest.raises(OperationEnded):
            await op.begin().__aenter__()
        if op.attempt == 0:
            async with op:
                pass
    assert await app.outcomes() == ["rolled_back"]


async def test_an_emit_without_a_transaction_or_stream_is_refused(app: App) -> None:
    async with app.entered() as op:
        with pytest.raises(NoTransaction):
            op.emit(Event("saved", {}))
        async with op.begin() as session:
            save(session, op)
    async with app.entered(stream=None) as streamless, streamless.begin() as session:
        with pytest.raises(InvalidEvent):
            streamless.emit(Event("saved", {}))
        session.add(Saved(operation=streamless.id, attempt=1))
        streamless.emit(Event("saved", {"attempt": 1, "last": True}), stream="thread:9")
    assert await app.outcomes() == ["committed"] * 2


async def test_an_event_of_the_notifications_type_is_refused_to_others(app: App) -> None:
    async with app.entered() as op, op.begin() as session:
        with pytest.raises(InvalidEvent):
            op.emit(Event("transaction_rolled_back", {}))
        save(session, op)
    assert await app.outcomes() == ["committed"]


async def test_targets_that_no_single_commit_of_ours_decides_are_refused(
    app: App, database: Database, driver: str
) -> None:
    stranger = database.engine(driver)  # with no coordinator
    async with app.entered() as op:
        async with app.engine.connect() as conn:
            with pytest.raises(NoTransaction):
                op.bind(conn)
        async with AsyncSession(stranger) as session:
            with pytest.raises(NotAttached):
                op.bind(session)
                save(session, op)
                await session.commit()
    assert await app.outcomes() == ["rolled_back"]


@pytest.mark.parametrize("began", [False, True])
async def test_a_session_whose_engine_has_no_coordinator_is_refused_where_it_is_bound(
    app: App, database: Database, driver: str, began: bool
) -> None:
    stranger = database.engine(driver).execution_options(commitcast_read_only=True)
    async with app.entered() as op, AsyncSession(stranger) as session, app.session() as own:
        if began:
            await session.connection()
        with pytest.raises(NotAttached, match="Coordinator"):
            op.bind(session)
        op.bind(own)  # the operation is as it was
        save(own, op)
        await own.commit()
    assert await app.outcomes() == ["committed"]


async def test_a_two_phase_session_cannot_decide(app: App) -> None:
    if not app.postgresql:
        pytest.skip("SQLite has no two-phase commit")
    async with app.entered() as op, AsyncSession(app.engine, twophase=True) as session:
        with pytest.raises(TwoPhaseRefused):
            op.bind(session)
    assert await app.outcomes() == ["rolled_back"]


LOOP: list[Any] = []
LOOP.append(LOOP)
BAD: list[dict[str, Any]] = [
    {"name": ""},
    {"name": "x" * 101},
    {"name": "nul\x00"},
    {"user": "x" * 256},
    {"user": "nul\x00"},
    {"user": ""},
    {"id": "x" * 256},
    {"id": ""},
    {"stream": ""},
    {"stream": "nul\x00"},
    {"request": LOOP},
    {"user_message": "x" * 1001},
    {"user_message": "nul\x00"},
    {"deadline_s": 0},
    {"deadline_s": float("nan")},
    {"deadline_s": 1e9},
    {"user": None, "stream": None},
]


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite"])
@pytest.mark.parametrize("options", BAD, ids=[str(n) for n in range(len(BAD))])
async def test_names_and_keys_that_cannot_be_kept_are_refused_before_any_write(
    app: App, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        app.operation(**options)
    assert await app.outcomes() == []


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite"])
async def test_what_is_not_there_yet_is_refused_clearly(app: App) -> None:
    for later in ("agent_state_updates", "cache"):
        given: Any = {later: ["x"]}
        with pytest.raises(OperationError, match=later):
            await app.coordinator.execute_coordinated_operation("save", print, user="a", **given)
    assert await app.outcomes() == []


@pytest.mark.parametrize("mode", ["create_savepoint", "rollback_only", "conditional_savepoint"])
async def test_g2_begin_never_returns_as_if_it_had_committed_in_a_transaction_outside(
    database: Database, driver: str, judge: Judge, mode: Any
) -> None:
    engine = database.engine(driver)
    joined: list[AsyncSession] = []

    def sessions() -> AsyncSession:
        joined.append(AsyncSession(outside, join_transaction_mode=mode))
        return joined[-1]

    async with (
        running(engine, judge, database.coordinator, sessions=sessions) as app,
        engine.connect() as outside,
    ):
        with pytest.raises(OperationError, match="no transaction of its own"):
            async with app.entered() as op:
                await outside.begin()
                try:
                    async with op.begin() as session:
                        save(session, op)
                finally:
                    await outside.rollback()
        assert len(joined) == 1
        assert await app.outcomes() == ["rolled_back"]


async def test_a_coordinator_that_is_not_entered_makes_no_operations(database: Database) -> None:
    coordinator = database.coordinator()
    with pytest.raises(NotRunning):
        coordinator.operation("save", user="ann")
    with pytest.raises(NotRunning):
        await coordinator.find_operation("save", id="x", user="ann")


async def test_a_result_that_cannot_be_stored_is_told_once(app: App) -> None:
    for result in (LOOP, "x" * 70_000):
        with pytest.raises(InvalidEvent):
            async with app.entered() as op, op.begin() as session:
                save(session, op)
                op.result = [result]
    assert await app.outcomes() == ["rolled_back"] * 2


@pytest.mark.parametrize("thing", [object(), {"a": object()}, {1, 2}])
async def test_a_request_that_is_not_json_is_refused_before_anything_is_announced(
    app: App, thing: object
) -> None:
    with pytest.raises(InvalidEvent, match="request= cannot be encoded"):
        app.coordinator.operation("save", user="ann", request=thing)


async def test_a_result_that_is_not_json_keeps_the_transaction_from_committing(app: App) -> None:
    with pytest.raises(InvalidEvent, match="the result of"):
        async with app.entered() as op, op.begin() as session:
            save(session, op)
            op.result = {"row": object()}
    assert await app.outcomes() == ["rolled_back"]


async def test_tables_of_the_version_before_operations_are_told_by_name(
    database: Database,
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine)
    async with engine.begin() as conn:
        await conn.run_sync(coordinator.tables.nodes.drop)
    with pytest.raises(SchemaMissing, match="commitcast migrate"):
        await coordinator.__aenter__()
