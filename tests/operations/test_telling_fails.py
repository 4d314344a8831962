"""G6: the transaction that tells of a rollback fails itself; it is tried until it is told, once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import DDL

from commitcast.telemetry import CoordinationEventType

from .application import ANN, ON_POSTGRESQL, App, Boom, checkpoint, running, save, until
from .proxy import Fault, proxied

if TYPE_CHECKING:
    from conftest import Database

    from .judge import Judge

pytestmark = pytest.mark.anyio

_REFUSING = {
    "sqlite": (
        """CREATE TRIGGER refuse BEFORE INSERT ON commitcast_events
           WHEN NEW.type = 'transaction_rolled_back' BEGIN SELECT RAISE(ABORT, 'not now'); END""",
        "DROP TRIGGER refuse",
    ),
    "postgresql": (
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN RAISE EXCEPTION 'not now'; END $$;
           CREATE TRIGGER refuse BEFORE INSERT ON commitcast.events FOR EACH ROW
           WHEN (NEW.type = 'transaction_rolled_back') EXECUTE FUNCTION refuse()""",
        "DROP TRIGGER refuse ON commitcast.events",
    ),
}


def failed(app: App) -> int:
    """How many attempts could not be settled yet."""
    return sum(e.type is CoordinationEventType.COORDINATION_FAILED for e in app.observed)


async def broken(app: App, count: int = 1) -> None:
    """Operations that fail, with something shown on a stream."""

    async def one() -> None:
        with pytest.raises(Boom) as caught:
            async with app.entered() as op, op.begin() as session:
                await checkpoint(session, op)
                raise Boom
        assert caught.value.__notes__[0].startswith(f"operation {op.id}.1: ")

    await asyncio.gather(*(one() for _ in range(count)))


async def test_g6_a_notification_that_the_log_refuses_is_told_once_when_it_does_not(
    database: Database, driver: str, judge: Judge
) -> None:
    refuse, accept = _REFUSING[database.kind]
    with judge.observer.begin() as conn:
        conn.execute(DDL(refuse))
    engine = database.engine(driver)
    async with running(engine, judge, database.coordinator, settle_wait_s=0.2) as app:
        await broken(app, 3)
        await until(lambda: failed(app) >= 3)
        assert await asyncio.to_thread(judge.open) == 3
        assert judge.notifications() == []
        async with app.entered() as op, op.begin() as session:  # others are not in its way
            save(session, op)
        with judge.observer.begin() as conn:
            conn.execute(DDL(accept))
        outcomes = await app.outcomes()
    assert outcomes == ["rolled_back"] * 3 + ["committed"]


async def test_g6_a_notification_that_a_node_left_untold_is_told_by_the_next(
    database: Database, driver: str, judge: Judge
) -> None:
    refuse, accept = _REFUSING[database.kind]
    with judge.observer.begin() as conn:
        conn.execute(DDL(refuse))
    async with running(
        database.engine(driver), judge, database.coordinator, settle_wait_s=0.2
    ) as app:
        await broken(app)
    judge.called.clear()  # it dies with the node that had it
    judge.readers.clear()
    assert await asyncio.to_thread(judge.open) == 1
    with judge.observer.begin() as conn:
        conn.execute(DDL(accept))
    async with running(database.engine(driver), judge, database.coordinator, lease_s=1.0) as heir:
        assert await heir.outcomes() == ["rolled_back"]


@pytest.mark.parametrize("driver", ON_POSTGRESQL)
async def test_g6_a_notification_behind_a_locked_stream_is_told_once(
    database: Database, driver: str, judge: Judge
) -> None:
    engine = database.engine(driver)
    streams = judge.tables.streams
    async with running(engine, judge, database.coordinator, settle_wait_s=0.2) as app:
        with pytest.raises(Boom):
            async with app.entered():
                raise Boom  # so that the stream is there
        await until(lambda: judge.open() == 0)
        with judge.observer.connect() as conn:
            conn.execute(select(streams).where(streams.c.name == ANN).with_for_update())
            await broken(app)
            await until(lambda: failed(app) > 0)  # the wait for the lock has its limit
            assert await asyncio.to_thread(judge.open) == 1
            conn.rollback()
        assert await app.outcomes() == ["rolled_back", "rolled_back"]


@pytest.mark.parametrize("driver", ON_POSTGRESQL)
@pytest.mark.parametrize("fault", [Fault.BEFORE, Fault.BETWEEN, Fault.AFTER])
async def test_g6_a_notification_whose_commit_is_cut_is_told_once(
    database: Database, driver: str, judge: Judge, fault: Fault
) -> None:
    async with proxied(database.url, b"rolled_back", fault, times=3) as (proxy, url):
        database.url = url
        engine = database.engine(driver)
        async with running(engine, judge, database.coordinator) as app:
            await broken(app, 4)
            assert set(await app.outcomes()) == {"rolled_back"}
            assert proxy.times == 0
            assert failed(app) > 0
        await engine.dispose()


@pytest.mark.parametrize("driver", ON_POSTGRESQL)
async def test_g6_a_notification_whose_commit_arrives_late_is_told_once(
    database: Database, driver: str, judge: Judge
) -> None:
    async with proxied(database.url, b"rolled_back", Fault.LATE) as (proxy, url):
        database.url = url
        engine = database.engine(driver)
        async with running(engine, judge, database.coordinator, settle_wait_s=0.2) as app:
            await broken(app)
            await proxy.struck.wait()
            await until(lambda: failed(app) > 0)
            assert await asyncio.to_thread(judge.open) == 1
            proxy.release()
            assert await app.outcomes() == ["rolled_back"]
        await engine.dispose()


@pytest.mark.parametrize("driver", ON_POSTGRESQL)
@pytest.mark.parametrize("fault", [Fault.BEFORE, Fault.AFTER])
async def test_g6_an_announcement_that_is_cut_begins_nothing_and_is_told_if_it_was_made(
    database: Database, driver: str, judge: Judge, fault: Fault
) -> None:
    marker = b"thread:cut"  # its statement is its transaction, so there is no COMMIT to be cut
    async with proxied(database.url, marker, fault, at=marker) as (_, url):
        database.url = url
        engine = database.engine(driver)
        async with running(engine, judge, database.coordinator) as app:
            with pytest.raises((DBAPIError, OSError)):
                async with app.operation(stream="thread:cut"):
                    raise AssertionError
            async with app.entered() as op, op.begin() as session:
                save(session, op)
            outcomes = await app.outcomes()
        await engine.dispose()
    assert outcomes == [*(["rolled_back"] if fault is Fault.AFTER else []), "committed"]
