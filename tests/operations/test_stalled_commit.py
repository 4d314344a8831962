"""G6: a COMMIT that the server takes its time with, while the one who waits for it goes away."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import DDL

from commitcast import OutcomeUnknown

from .application import ON_POSTGRESQL, App, running, save

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import Database

    from .judge import Judge

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("driver", ON_POSTGRESQL)]

_LOCK = 42
STALL = "stalls"
_WAITS = DDL(f"""
CREATE FUNCTION stall() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  PERFORM pg_advisory_xact_lock_shared({_LOCK}); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER stall AFTER INSERT ON saved DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW WHEN (NEW.text = '{STALL}') EXECUTE FUNCTION stall();
""")


class Gate:
    """While it is shut, the COMMIT of a row that stalls waits in the server."""

    def __init__(self, judge: Judge) -> None:
        self._conn = judge.observer.connect()
        self._conn.execute(_WAITS)
        self._conn.commit()
        self._conn.execute(select(func.pg_advisory_lock(_LOCK)))

    async def reached(self) -> None:
        """Wait until a COMMIT waits."""
        waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        while not self._conn.scalar(waiting):  # noqa: ASYNC110 - it is the server's state
            await asyncio.sleep(0.01)

    def open(self) -> None:
        """Let the COMMIT go on; the server may have been stopped meanwhile."""
        if not self._conn.closed:
            self._conn.invalidate()
            self._conn.close()


@contextlib.asynccontextmanager
async def stalled(
    database: Database, driver: str, judge: Judge, **options: Any
) -> AsyncIterator[tuple[Gate, App]]:
    gate = Gate(judge)
    try:
        engine = database.engine(driver)
        async with running(engine, judge, database.coordinator, **options) as app:
            yield gate, app
    finally:
        gate.open()


async def begun(app: App) -> None:
    async with app.entered() as op, op.begin() as session:
        save(session, op, text=STALL)


async def bound(app: App) -> None:
    async with app.entered() as op, app.session() as session:
        op.bind(session)
        save(session, op, text=STALL)
        await session.commit()


async def test_g6_cancellation_waits_for_our_commit_however_often_it_comes(
    database: Database, driver: str, judge: Judge
) -> None:
    async with stalled(database, driver, judge) as (gate, app):
        working = asyncio.create_task(begun(app))
        await gate.reached()
        for _ in range(3):
            working.cancel()
            done, _ = await asyncio.wait({working}, timeout=0.1)
            assert not done
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert await app.outcomes() == ["committed"]


async def test_g6_the_callers_own_commit_is_interrupted_and_has_one_outcome(
    database: Database, driver: str, judge: Judge
) -> None:
    async with stalled(database, driver, judge) as (gate, app):
        working = asyncio.create_task(bound(app))
        await gate.reached()
        working.cancel()
        await asyncio.sleep(0)
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert len(await app.outcomes()) == 1


async def test_g6_a_commit_past_its_limit_is_given_up_and_told_once(
    database: Database, driver: str, judge: Judge
) -> None:
    """The driver asks the server to cancel it; the settling finds whichever came first."""
    async with stalled(database, driver, judge, commit_limit_s=0.5) as (gate, app):
        with pytest.raises((TimeoutError, asyncio.CancelledError, DBAPIError, OutcomeUnknown)):
            await begun(app)
        gate.open()
        assert len(await app.outcomes()) == 1


async def test_g6_what_settling_waits_for_too_long_is_unknown_until_it_is_not(
    database: Database, driver: str, judge: Judge
) -> None:
    """A deadline that passes while the caller's COMMIT waits in the server: nobody guesses."""
    async with stalled(database, driver, judge, settle_wait_s=0.3) as (gate, app):
        committing = None
        with pytest.raises(OutcomeUnknown):
            async with app.entered() as op:
                session = app.session()
                op.bind(session)
                save(session, op, text=STALL)
                committing = asyncio.create_task(session.commit())
                await gate.reached()
        assert committing is not None
        assert await asyncio.to_thread(judge.open) == 1
        gate.open()
        await committing
        await session.close()
        assert await app.outcomes() == ["committed"]
