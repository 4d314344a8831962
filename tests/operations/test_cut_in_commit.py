"""G6: the connection is lost in COMMIT, at each place where it can be; real bytes, real sockets.

A read at once after the cut proves nothing: the COMMIT may still be on its way (DESIGN §9).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import DBAPIError

from commitcast import OutcomeUnknown

from .application import ON_POSTGRESQL, App, checkpoint, running, save
from .proxy import Fault, Proxy, proxied

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import Database

    from .judge import Judge

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("driver", ON_POSTGRESQL)]

MARK = "this row's transaction is cut"
WORKS = pytest.mark.parametrize("work", ["begun", "shown", "bound"])


@contextlib.asynccontextmanager
async def cut(
    database: Database, driver: str, judge: Judge, fault: Fault, **options: Any
) -> AsyncIterator[tuple[Proxy, App]]:
    """The application behind a wire that goes wrong in the COMMIT of the row `MARK`."""
    async with proxied(database.url, MARK.encode(), fault) as (proxy, url):
        database.url = url
        engine = database.engine(driver)
        async with running(engine, judge, database.coordinator, **options) as app:
            yield proxy, app
        await engine.dispose()


async def marked(app: App, work: str) -> None:
    """One operation whose COMMIT goes wrong."""
    match work:
        case "begun":
            async with app.entered() as op, op.begin() as session:
                save(session, op, text=MARK)
        case "shown":
            async with app.entered() as op, op.begin() as session:
                await checkpoint(session, op)
                save(session, op, text=MARK)
        case "bound":
            async with app.entered() as op, app.session() as session:
                op.bind(session)
                save(session, op, text=MARK)
                await session.commit()


async def goes_on(app: App) -> None:
    """What comes after commits."""
    async with app.entered() as op, op.begin() as session:
        save(session, op)


@WORKS
@pytest.mark.parametrize("fault", [Fault.BEFORE, Fault.BETWEEN])
async def test_g6_cut_before_the_server_has_all_of_commit_is_told_once(
    database: Database, driver: str, judge: Judge, fault: Fault, work: str
) -> None:
    async with cut(database, driver, judge, fault) as (proxy, app):
        with pytest.raises((DBAPIError, OSError)) as caught:
            await marked(app, work)
        assert proxy.struck.is_set()
        assert any("rolled_back" in note for note in caught.value.__notes__)
        await goes_on(app)
        assert await app.outcomes() == ["rolled_back", "committed"]


@WORKS
async def test_g6_cut_after_the_server_took_commit_is_not_told(
    database: Database, driver: str, judge: Judge, work: str
) -> None:
    async with cut(database, driver, judge, Fault.AFTER) as (proxy, app):
        if work == "bound":  # the caller's own commit raised: only the note says what became of it
            with pytest.raises((DBAPIError, OSError)) as caught:
                await marked(app, work)
            assert any("committed" in note for note in caught.value.__notes__)
        else:
            await marked(app, work)
        assert proxy.struck.is_set()
        await goes_on(app)
        assert await app.outcomes() == ["committed", "committed"]


@WORKS
@pytest.mark.parametrize("asked_first", [True, False])
async def test_g6_a_commit_that_arrives_after_the_cut_finds_one_outcome(
    database: Database, driver: str, judge: Judge, work: str, asked_first: bool
) -> None:
    async with cut(database, driver, judge, Fault.LATE, settle_wait_s=1.0) as (proxy, app):
        working = asyncio.create_task(marked(app, work))
        await proxy.struck.wait()
        if asked_first:  # the settling waits for the transaction, which has inserted its outcome
            assert await asyncio.to_thread(judge.open) == 1
            with pytest.raises((OutcomeUnknown, DBAPIError, OSError)):
                await working
            assert await asyncio.to_thread(judge.open) == 1
        proxy.release()
        with contextlib.suppress(OutcomeUnknown, DBAPIError, OSError):
            await working
        assert await app.outcomes() == ["committed"]


@WORKS
@pytest.mark.parametrize("arrives", [True, False])
async def test_g6_a_commit_that_hangs_is_unknown_and_then_settled_once(
    database: Database, driver: str, judge: Judge, work: str, arrives: bool
) -> None:
    limits = {"commit_limit_s": 0.3, "settle_wait_s": 0.3}
    async with cut(database, driver, judge, Fault.HANG, **limits) as (proxy, app):
        working = asyncio.create_task(marked(app, work))
        await proxy.struck.wait()
        if work == "bound":
            working.cancel()  # nobody limits the caller's own commit
            with pytest.raises(asyncio.CancelledError):
                await working
        else:
            with pytest.raises(OutcomeUnknown):
                await working
        assert await asyncio.to_thread(judge.open) == 1
        if arrives:
            proxy.release()
        else:
            proxy.drop()
        assert await app.outcomes() == ["committed" if arrives else "rolled_back"]
        await goes_on(app)
