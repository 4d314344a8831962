"""G6: each way in which the work can fail is told once, and what committed is never told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.exc import IntegrityError

from commitcast import OperationTimedOut
from commitcast.telemetry import CoordinationEventType

from .application import ANN, RUN, THREAD, App, Boom, checkpoint, save

if TYPE_CHECKING:
    from commitcast.operation import Operation

pytestmark = pytest.mark.anyio


def note(op: Operation, outcome: str) -> list[str]:
    return [f"operation {op.id}.1: {outcome}"]


async def test_g6_what_committed_is_not_told(app: App) -> None:
    async with app.entered() as op, op.begin() as session:
        save(session, op)
    assert await app.outcomes() == ["committed"]
    assert op.outcome == "committed"
    assert app.judge.notifications() == []


async def test_g6_an_exception_in_the_work_is_told_once_and_goes_on(app: App) -> None:
    with pytest.raises(Boom) as caught:
        async with app.entered(user_message="Not saved, sorry.") as op, op.begin() as session:
            save(session, op)
            await session.flush()
            raise Boom
    assert caught.value.__notes__ == note(op, "rolled_back")
    assert await app.outcomes() == ["rolled_back"]
    told = app.judge.notifications()
    assert [stream for stream, _ in told] == [THREAD, ANN]
    data = told[0][1]
    assert data == told[1][1]
    assert data["user_message"] == "Not saved, sorry."
    assert data["transaction_id"] == op.transaction_id
    assert data["retract"] == []
    assert data["failed_operation"] == "save"
    assert app.judge.errors() == ["Boom"]


async def test_g6_an_exception_before_any_transaction_is_told_once(app: App) -> None:
    with pytest.raises(Boom) as caught:
        async with app.entered() as op:
            raise Boom
    assert caught.value.__notes__ == note(op, "rolled_back")
    assert await app.outcomes() == ["rolled_back"]


async def test_g6_streams_that_a_checkpoint_showed_something_on_are_told(app: App) -> None:
    with pytest.raises(Boom):
        async with app.entered() as op, op.begin() as session:
            await checkpoint(session, op)
            await checkpoint(session, op, stream="run:2")
            save(session, op)
            raise Boom
    assert await app.outcomes() == ["rolled_back"]
    told = app.judge.notifications()
    assert {stream for stream, _ in told} == {ANN, THREAD, RUN, "run:2"}
    assert told[0][1]["retract"] == [RUN, "run:2"]
    assert told[0][1]["affected_layers"] == ["database", "websocket"]


async def test_g6_a_checkpoint_of_what_commits_is_told_to_nobody(app: App) -> None:
    async with app.entered() as op, op.begin() as session:
        await checkpoint(session, op)
        save(session, op)
    assert await app.outcomes() == ["committed"]


async def test_g6_a_constraint_violation_at_flush_is_told_once_without_its_values(
    app: App,
) -> None:
    with pytest.raises(IntegrityError):
        async with app.entered() as op, op.begin() as session:
            save(session, op, text="secret")
            await session.flush()
            save(session, op, text="secret")
            await session.flush()
    assert await app.outcomes() == ["rolled_back"]
    (error,) = app.judge.errors()
    assert error == (
        "IntegrityError, SQLSTATE 23505, saved_text_key" if app.postgresql else "IntegrityError"
    )
    told = app.judge.notifications()
    assert "secret" not in str(told)
    assert "Integrity" not in str(told)
    assert told[0][1]["recovery_actions"] == ["change_input", "reload"]


async def test_g6_a_constraint_violation_at_commit_is_told_once(app: App) -> None:
    with pytest.raises(IntegrityError) as caught:
        async with app.entered() as op, op.begin() as session:
            save(session, op, follows=123456)
    assert caught.value.__notes__ == note(op, "rolled_back")
    assert await app.outcomes() == ["rolled_back"]
    (error,) = app.judge.errors()
    assert error is not None
    assert error.startswith("IntegrityError, SQLSTATE 23503" if app.postgresql else "Integrity")


async def test_g6_after_a_failed_transaction_another_may_commit_and_none_is_told(
    app: App,
) -> None:
    async with app.entered() as op:
        for follows in (123456, None):
            try:
                async with op.begin() as session:
                    save(session, op, follows=follows)
            except IntegrityError:
                assert op.outcome is None
    assert await app.outcomes() == ["committed"]


async def test_g6_leaving_without_a_commit_is_told_once(app: App) -> None:
    async with app.entered() as op:
        pass
    assert op.outcome == "rolled_back"
    async with app.entered() as op:
        op.bind(app.session())
    assert op.outcome == "rolled_back"
    assert await app.outcomes() == ["rolled_back"] * 2
    assert app.judge.errors() == ["LeftWithoutCommit"] * 2


async def test_g6_an_exception_after_the_commit_is_not_told(app: App) -> None:
    with pytest.raises(Boom) as caught:
        async with app.entered() as op:
            async with op.begin() as session:
                save(session, op)
            raise Boom
    assert caught.value.__notes__ == note(op, "committed")
    assert await app.outcomes() == ["committed"]


async def test_g6_a_deadline_that_passes_in_a_transaction_is_told_once(app: App) -> None:
    with pytest.raises(OperationTimedOut) as caught:
        async with app.entered(deadline_s=0.2) as op, op.begin() as session:
            save(session, op)
            await session.flush()
            await asyncio.Event().wait()
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.operation_id == op.id
    assert await app.outcomes() == ["rolled_back"]
    assert app.judge.errors() == ["DeadlinePassed"]


async def test_g6_a_deadline_that_passes_outside_a_transaction_is_told_once(app: App) -> None:
    with pytest.raises(OperationTimedOut):
        async with app.entered(deadline_s=0.2):
            await asyncio.Event().wait()
    assert await app.outcomes() == ["rolled_back"]


async def test_g6_a_deadline_that_passes_after_the_commit_is_not_told(app: App) -> None:
    with pytest.raises(OperationTimedOut):
        async with app.entered() as op:
            async with op.begin() as session:
                save(session, op)
            assert op._timeout is not None
            op._timeout.reschedule(asyncio.get_running_loop().time())  # to wait for no clock
            await asyncio.Event().wait()
    assert await app.outcomes() == ["committed"]


async def test_g6_a_timeout_of_the_callers_is_told_once(app: App) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5), app.entered() as op, op.begin() as session:
            save(session, op)
            await asyncio.Event().wait()
    assert await app.outcomes() == ["rolled_back"]
    assert app.judge.errors() == ["CancelledError"]


async def test_g6_observers_hear_of_each_end_once(app: App) -> None:
    async with app.entered() as kept, kept.begin() as session:
        save(session, kept)
    with pytest.raises(Boom):
        async with app.entered() as broken, broken.begin():
            raise Boom
    assert await app.outcomes() == ["committed", "rolled_back"]
    assert [(e.type, e.operation_id) for e in app.observed] == [
        (CoordinationEventType.TRANSACTION_STARTED, kept.id),
        (CoordinationEventType.TRANSACTION_COMMITTED, kept.id),
        (CoordinationEventType.TRANSACTION_STARTED, broken.id),
        (CoordinationEventType.TRANSACTION_ROLLED_BACK, broken.id),
    ]
    assert app.coordinator.rollbacks == 0  # an operation's end is told by its outcome


async def test_g6_a_follower_that_raises_changes_no_outcome_and_stops_no_other(app: App) -> None:
    def broken() -> None:
        raise Boom

    async with app.operation() as kept:
        kept.after_commit(broken)
        app.follow(kept)
        async with kept.begin() as session:
            save(session, kept)
    async with app.operation() as left:
        left.on_rollback(broken)
        app.follow(left)
    assert await app.outcomes() == ["committed", "rolled_back"]
    failed = [e for e in app.observed if e.type is CoordinationEventType.LAYER_SYNC_ERROR]
    assert [(e.operation_id, e.error) for e in failed] == [(kept.id, "Boom"), (left.id, "Boom")]


async def test_g6_a_follower_may_be_awaited(app: App) -> None:
    done: list[str] = []

    async def undo() -> None:
        await asyncio.sleep(0)
        done.append("undone")

    async with app.entered() as op:
        op.on_rollback(undo)
    assert done == ["undone"]
    assert await app.outcomes() == ["rolled_back"]
