"""G6: the database goes away, restarts and comes back; a real server, stopped and started."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import DDL

from commitcast import OutcomeUnknown

from .application import ON_POSTGRESQL, App, Boom, running, save
from .server import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy import URL

    from commitcast.node import Node
    from conftest import Database

    from .judge import Judge

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("driver", ON_POSTGRESQL)]

MODES = pytest.mark.parametrize("mode", ["fast", "immediate"])
_SLEEPS = DDL("""
CREATE FUNCTION sleeps() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  PERFORM pg_sleep(120); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER sleeps AFTER INSERT ON saved DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW WHEN (NEW.text = 'sleeps') EXECUTE FUNCTION sleeps();
""")
GONE = (DBAPIError, OSError, OutcomeUnknown)


@pytest.fixture(scope="module")
def server(postgresql_url: URL) -> Iterator[Server]:
    """It asks for the other server since that makes the user who runs both."""
    found = Server.create()
    yield found
    found.destroy()


@pytest.fixture(scope="module")
def postgresql_template(server: Server) -> URL:
    return server.template()


@pytest.fixture
async def app(database: Database, driver: str, judge: Judge) -> AsyncIterator[App]:
    async with node(database, driver, judge) as found:
        yield found


@contextlib.asynccontextmanager
async def node(database: Database, driver: str, judge: Judge, **options: Any) -> AsyncIterator[App]:
    options = {"settle_wait_s": 0.5, **options}
    async with running(database.engine(driver), judge, database.coordinator, **options) as found:
        yield found


async def in_commit(app: App) -> asyncio.Task[None]:
    """An operation whose COMMIT has reached the server, which will be long about it."""

    async def work() -> None:
        async with app.entered() as op, op.begin() as session:
            save(session, op, text="sleeps")

    sleeping = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    with app.judge.observer.connect() as conn:
        conn.execute(_SLEEPS)
        conn.commit()
        working = asyncio.create_task(work())
        while not conn.scalar(sleeping):
            conn.rollback()  # which is looked at once for each transaction
            await asyncio.sleep(0.01)
    return working


async def commits(app: App) -> None:
    """The application works again; some connections of its pool may still be those of before."""
    async with asyncio.timeout(30):
        while True:
            try:
                async with app.operation() as op, op.begin() as session:
                    save(session, op)
            except GONE:
                continue
            return


@MODES
async def test_g6_a_restart_during_the_work_is_told_once(
    app: App, server: Server, mode: str
) -> None:
    with pytest.raises(GONE):
        async with app.entered() as op, op.begin() as session:
            save(session, op)
            await session.flush()
            await server.stop(mode)
            await server.start()
            save(session, op)
    assert await app.outcomes() == ["rolled_back"]
    await commits(app)
    assert (await app.outcomes())[-1] == "committed"


@MODES
async def test_g6_a_restart_between_transactions_is_survived(
    app: App, server: Server, mode: str
) -> None:
    async with app.entered() as op:
        await server.stop(mode)
        await server.start()
        for _ in range(10):  # connections of the pool that do not know it yet
            try:
                async with op.begin() as session:
                    save(session, op)
            except GONE:
                continue
            break
    assert await app.outcomes() == ["committed"]


@MODES
async def test_g6_a_restart_during_commit_has_one_outcome(
    app: App, server: Server, mode: str
) -> None:
    working = await in_commit(app)
    await server.stop(mode)
    await server.start()
    with pytest.raises(GONE):
        await working
    assert await app.outcomes() == ["rolled_back"]


@MODES
async def test_g6_down_after_commit_was_sent_is_unknown_and_then_settled_once(
    app: App, server: Server, mode: str
) -> None:
    working = await in_commit(app)
    await server.stop(mode)
    with pytest.raises(OutcomeUnknown) as caught:
        await working
    assert caught.value.operation_id
    await server.start()
    assert await app.outcomes() == ["rolled_back"]


async def test_g6_down_while_leaving_lets_the_exception_through_and_tells_once(
    app: App, server: Server
) -> None:
    with pytest.raises(Boom) as caught:
        async with app.entered() as op:
            await server.stop("fast")
            raise Boom
    assert caught.value.__notes__ == [f"operation {op.id}.1: unknown"]
    await server.start()
    assert await app.outcomes() == ["rolled_back"]


async def test_g6_restarts_at_any_moment_leave_one_outcome_each(app: App, server: Server) -> None:
    stop = asyncio.Event()

    async def busy() -> None:
        while not stop.is_set():
            with contextlib.suppress(*GONE):
                async with app.operation() as op, op.begin() as session:
                    save(session, op)
            await asyncio.sleep(0)

    workers = [asyncio.create_task(busy()) for _ in range(4)]
    for mode in ("immediate", "fast", "immediate"):
        committed = len(await app.judge.committed())
        async with asyncio.timeout(30):
            while len(await app.judge.committed()) < committed + 20:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.02)
        await server.stop(mode)
        await server.start()
    await commits(app)
    stop.set()
    await asyncio.gather(*workers)
    outcomes = await app.outcomes()
    assert outcomes.count("committed") >= 60


async def test_g6_an_outage_longer_than_the_lease_kills_no_living_node(
    database: Database, driver: str, judge: Judge, server: Server
) -> None:
    async with (
        node(database, driver, judge, lease_s=1.0) as one,
        node(database, driver, judge, lease_s=1.0) as two,
    ):
        nodes = [app.coordinator._operations.node for app in (one, two)]  # type: ignore[union-attr]
        before = [n.current for n in nodes]
        async with one.entered() as kept, two.entered() as also_kept:
            await all_judge(nodes)
            await server.stop("fast")
            await asyncio.sleep(2.5)  # the outage, which is to be longer than the lease
            assert not any(n.may_judge() for n in nodes)
            await server.start()
            await all_judge(nodes)
            for app, op in ((one, kept), (two, also_kept)):
                for _ in range(10):  # connections of the pool that do not know it yet
                    with contextlib.suppress(*GONE):
                        async with op.begin() as session:
                            save(session, op)
                        break
                assert op.outcome == "committed", app
        assert [n.current for n in nodes] == before
        with judge.observer.connect() as conn:
            alive = select(func.count()).where(judge.tables.nodes.c.heartbeat.is_not(None))
            assert conn.scalar(alive) == 2
        assert await one.outcomes() == ["committed", "committed"]


async def all_judge(nodes: list[Node]) -> None:
    """Wait until every node has heartbeaten for a lease."""
    async with asyncio.timeout(30):
        while not all(n.may_judge() for n in nodes):  # noqa: ASYNC110 - it is time that makes it so
            await asyncio.sleep(0.05)
