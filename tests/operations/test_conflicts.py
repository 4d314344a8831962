"""G6: transactions that PostgreSQL ends for the sake of others are told once, or tried again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import DBAPIError, OperationalError

from commitcast import OperationError
from commitcast.errors import OperationEnded

from .application import ON_POSTGRESQL, App, Saved, save

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("driver", ON_POSTGRESQL)]


async def rows(app: App) -> tuple[int, int]:
    async with app.engine.begin() as conn:
        for name in ("a", "b"):
            await conn.execute(insert(Saved).values(operation="", attempt=0, last=False, text=name))
        found = await conn.scalars(select(Saved.id).where(Saved.text.in_(["a", "b"])))
        first, second = found
    return first, second


async def touch(session: AsyncSession, row: int) -> None:
    await session.execute(update(Saved).where(Saved.id == row).values(follows=None))


async def opposed(app: App, *, again: bool) -> list[BaseException | None]:
    """Two operations that lock two rows in opposite order, with real sessions."""
    first, second = await rows(app)
    both_hold = asyncio.Barrier(2)
    failed: list[str] = []

    async def once(op_rows: tuple[int, int]) -> None:
        async with app.entered() as op:
            try:
                async with op.begin() as session:
                    save(session, op)
                    await touch(session, op_rows[0])
                    await both_hold.wait()
                    await touch(session, op_rows[1])
            except DBAPIError as error:
                assert op.outcome is None
                failed.append(type(error.orig).__name__)
                if not again:
                    raise
                async with op.begin() as session:
                    save(session, op)
                    await touch(session, op_rows[0])
                    await touch(session, op_rows[1])

    both = await asyncio.gather(
        once((first, second)), once((second, first)), return_exceptions=True
    )
    assert len(failed) == 1
    return list(both)


async def test_g6_a_deadlock_is_told_once(app: App) -> None:
    ended = await opposed(app, again=False)
    assert sum(isinstance(e, DBAPIError) for e in ended) == 1
    assert sorted(await app.outcomes()) == ["committed", "rolled_back"]
    (error,) = filter(None, app.judge.errors())
    assert "SQLSTATE 40P01" in error
    assert app.judge.notifications()[0][1]["recovery_actions"] == ["retry", "reload"]


async def test_g6_after_a_deadlock_the_same_operation_may_commit_and_none_is_told(
    app: App,
) -> None:
    assert await opposed(app, again=True) == [None, None]
    assert await app.outcomes() == ["committed", "committed"]


async def serializable(app: App, *, again: bool) -> None:
    """Its transaction reads what another then changes, and writes."""
    async with app.entered() as op:
        for nth in (1, 2):
            try:
                async with op.begin() as session:
                    await session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
                    await session.scalar(select(func.count()).select_from(Saved))
                    session.add(Saved(operation=op.id, attempt=op.attempt))
                    await session.flush()
                    if nth == 1:
                        await write_skew(app)
            except DBAPIError:
                assert op.outcome is None
                if not again:
                    raise
            else:
                return


async def write_skew(app: App) -> None:
    async with app.session() as other:
        await other.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        await other.scalar(select(func.count()).select_from(Saved))
        other.add(Saved(operation="", attempt=0, last=False))
        await other.commit()


async def test_g6_a_serialization_failure_is_told_once(app: App) -> None:
    app.judge.events_required = False
    with pytest.raises(DBAPIError):
        await serializable(app, again=False)
    assert await app.outcomes() == ["rolled_back"]
    assert "SQLSTATE 40001" in str(app.judge.errors())


async def test_g6_after_a_serialization_failure_another_transaction_may_commit(app: App) -> None:
    app.judge.events_required = False
    await serializable(app, again=True)
    assert await app.outcomes() == ["committed"]


async def test_g6_a_lock_that_is_not_given_in_time_is_told_once(app: App) -> None:
    first, _ = await rows(app)
    async with app.session() as other:
        await touch(other, first)
        with pytest.raises(OperationalError if "psycopg" in app.engine.driver else DBAPIError):
            async with app.entered() as op, op.begin() as session:
                save(session, op)
                await session.execute(select(func.set_config("lock_timeout", "50ms", True)))  # noqa: FBT003 - SQL's own
                await touch(session, first)
    assert await app.outcomes() == ["rolled_back"]


async def test_g6_a_transaction_the_server_had_aborted_is_no_commit(app: App) -> None:
    """`commit()` of one returns normally; the driver is told ROLLBACK."""
    with pytest.raises((DBAPIError, OperationError)) as caught:
        async with app.entered() as op, app.session() as session:
            op.bind(session)
            save(session, op)
            await session.flush()
            conn = await session.connection()
            with pytest.raises(DBAPIError):
                await conn.exec_driver_sql("SELECT 1/0")
            await session.commit()
    assert not isinstance(caught.value, OperationEnded)
    assert await app.outcomes() == ["rolled_back"]
