"""The rights of docs/guide.md, given to roles of a real server: enough for each, and no more."""

from __future__ import annotations

import asyncio
import itertools
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import DDL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from commitcast import Event, Retention, emit
from commitcast.errors import LogError, SchemaMissing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from commitcast import Coordinator
    from conftest import Database

    Login = Callable[[str], Awaitable[AsyncEngine]]

pytestmark = pytest.mark.anyio
GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"
_numbers = itertools.count(1)


@pytest.fixture
def database_kind() -> str:
    return "postgresql"  # SQLite has no roles


def grants(role: str) -> list[str]:
    """What the guide says that a role needs."""
    blocks = re.findall(r"```sql\n(GRANT.*?)```", GUIDE.read_text(), re.DOTALL)
    [block] = [b for b in blocks if f"TO {role};" in b]
    return [s for s in block.split(";") if s.strip()]


async def as_owner(database: Database, *statements: str) -> None:
    async with database.engine("postgresql+asyncpg").begin() as conn:
        for statement in statements:
            await conn.execute(DDL(statement))


@pytest.fixture(params=["postgresql+asyncpg", "postgresql+psycopg"])
def login(request: pytest.FixtureRequest, database: Database) -> Login:
    """Make a role with the rights of the guide, and an engine that is logged in as it."""

    async def make(role: str) -> AsyncEngine:
        name = f"{role}_{next(_numbers)}"
        given = [re.sub(rf"\bTO {role}\b", f"TO {name}", s) for s in grants(role)]
        await as_owner(database, f"CREATE ROLE {name} LOGIN", *given)
        url = database.url
        database.url = url.set(username=name)
        try:
            return database.engine(request.param)
        finally:
            database.url = url

    return make


async def refused(engine: AsyncEngine, *statements: str) -> None:
    for statement in statements:
        with pytest.raises(DBAPIError, match=r"permission denied|must be owner"):
            async with engine.begin() as conn:
                await conn.execute(text(statement))


async def say(engine: AsyncEngine, *streams: str, **options: Any) -> None:
    async with AsyncSession(engine) as session:
        for stream in streams:
            emit(session, stream, Event("said", {"n": 1}), **options)
        await session.commit()


async def test_a_role_that_emits_in_sql_can_do_nothing_else(
    database: Database, login: Login
) -> None:
    engine = await login("emits_in_sql")
    for offset in (1, 2):
        async with engine.begin() as conn:
            call = text("SELECT commitcast.emit('thread:7', 'said', '{}')")
            assert await conn.scalar(call) == offset
    await refused(
        engine,
        "SELECT data FROM commitcast.events",
        "SELECT name FROM commitcast.streams",
        "INSERT INTO commitcast.events SELECT 1, 9, 'x', 'transaction_rolled_back', '{}'",
        "UPDATE commitcast.streams SET head = 0",
        "DELETE FROM commitcast.events",
    )


async def test_without_the_grant_nobody_emits_in_sql(database: Database, login: Login) -> None:
    engine = await login("emits_in_python")
    await refused(engine, "SELECT commitcast.emit('thread:7', 'said', '{}')")


async def test_a_role_that_emits_in_python_cannot_read_what_was_said(
    database: Database, login: Login
) -> None:
    engine = await login("emits_in_python")
    coordinator = database.coordinator(engine)
    await say(engine, "thread:7", actor="ann")
    await say(engine, "thread:7", "thread:8", "thread:7")
    await refused(
        engine,
        "SELECT data FROM commitcast.events",
        "SELECT result FROM commitcast.outcomes",
        "UPDATE commitcast.events SET data = '{}'",
        "UPDATE commitcast.streams SET tail = 9",
        "DELETE FROM commitcast.events",
    )
    coordinator.detach()


async def works(coordinator: Coordinator, engine: AsyncEngine) -> None:
    """All that a node does."""
    async with coordinator, asyncio.timeout(20):
        reader = coordinator.subscribe("thread:7", after="earliest")
        await say(engine, "thread:7")
        assert (await anext(reader)).data == {"n": 1}
        await say(engine, "thread:7", "thread:8")
        async with (
            coordinator.operation("save", user="ann", id="k", stream="thread:7") as op,
            op.begin() as session,
        ):
            await session.commit()  # a checkpoint
            op.emit(Event("saved"))
        async with coordinator.operation("save", user="ann"):
            pass  # left without commit
        assert len(await coordinator.operations("rolled_back", everyone=True)) == 1
        assert (await coordinator.check_invariants()).error is None
        operations = coordinator._operations
        assert operations is not None
        await operations.node.beat()
        await operations.reaper.look()
        reader.close()


async def test_a_role_that_serves_does_all_that_a_node_does(
    database: Database, login: Login
) -> None:
    engine = await login("serves")
    soon = timedelta(microseconds=1)
    delivered: asyncio.Queue[Any] = asyncio.Queue()
    coordinator = database.coordinator(
        engine,
        deliver=delivered.put,
        retention=Retention(max_age=soon, operations_max_age=soon, every_s=0),
    )
    await works(coordinator, engine)
    assert delivered.qsize() >= 4
    async with asyncio.timeout(20):
        gone = 0
        while gone < 4:
            gone += await coordinator.trim()
        await coordinator.trim()
    await refused(
        engine,
        "UPDATE commitcast.events SET data = '{}'",
        "UPDATE commitcast.installation SET incarnation = 'x'",
        "UPDATE commitcast.outcomes SET outcome = 'committed'",
        "TRUNCATE commitcast.events",
        "DROP TABLE commitcast.events",
    )


async def test_a_role_that_erases_erases_all(database: Database, login: Login) -> None:
    owner = database.coordinator()
    engine = await login("erases")
    eraser = database.coordinator(engine)
    assert owner._writer is not None
    async with owner:
        await say(owner._writer, "thread:7", "user:ann", actor="ann")
        async with owner.operation("save", user="ann", stream="thread:7") as op, op.begin():
            op.result = {"said": 1}
        async with owner.operation("save", user="ann", stream="thread:7"):
            await eraser.erase(user="ann")
        assert await owner.operations("committed", everyone=True) == []
        assert await eraser.erase(stream="thread:7") == 1
    await refused(
        engine,
        "UPDATE commitcast.installation SET incarnation = 'x'",
        "INSERT INTO commitcast.operations (id) VALUES ('x')",
        "TRUNCATE commitcast.events",
    )


async def test_a_role_that_may_create_a_schema_migrates_into_its_own(
    database: Database, login: Login
) -> None:
    engine = await login("serves")
    name = engine.url.username
    await as_owner(database, f"GRANT CREATE ON DATABASE {database.url.database} TO {name}")
    coordinator = database.coordinator(engine, schema="order")
    await coordinator.migrate()
    await coordinator.migrate()
    async with coordinator:
        await say(engine, "thread:7")
        async with engine.begin() as conn:
            call = text("""SELECT "order".emit('thread:7', 'said')""")
            assert await conn.scalar(call) == 2


async def test_g3_where_the_cluster_may_not_be_asked_the_error_says_what_to_grant(
    database: Database, login: Login
) -> None:
    engine = await login("serves")
    await as_owner(database, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    coordinator = database.coordinator(engine)
    with pytest.raises(LogError, match=r"GRANT EXECUTE ON FUNCTION pg_control_system"):
        await say(engine, "thread:7")
    with pytest.raises(SchemaMissing, match=r"GRANT EXECUTE ON FUNCTION pg_control_system"):
        await coordinator.__aenter__()


HIDING = "CREATE POLICY few ON commitcast.events USING (stream_id < 0)"
SHOWING = "CREATE POLICY everything ON commitcast.events USING (true)"


@pytest.mark.parametrize(
    ("policies", "seen"),
    [
        ([], False),
        ([HIDING], False),
        ([SHOWING], True),
        ([HIDING, SHOWING], True),
        ([SHOWING, HIDING.replace("events", "events AS RESTRICTIVE")], False),
        ([SHOWING + " WITH CHECK (true)", HIDING.replace("USING", "FOR DELETE USING")], True),
        ([SHOWING.replace("USING", "FOR INSERT WITH CHECK").replace("WITH CHECK", "WITH CHECK")],
         False),
    ],
)  # fmt: skip
async def test_g3_row_security_that_may_hide_events_is_refused_and_other_is_not(
    database: Database, login: Login, policies: list[str], seen: bool
) -> None:
    engine = await login("serves")
    await as_owner(database, "ALTER TABLE commitcast.events ENABLE ROW LEVEL SECURITY", *policies)
    coordinator = database.coordinator(engine)
    if seen:
        await works(coordinator, engine)
    else:
        with pytest.raises(SchemaMissing, match="row security may hide rows of events"):
            await coordinator.__aenter__()
    owner = database.coordinator()  # whom it does not bind
    async with owner:
        pass


async def test_row_security_does_not_bind_what_emits_in_sql(
    database: Database, login: Login
) -> None:
    engine = await login("emits_in_sql")
    await as_owner(
        database,
        *(f"ALTER TABLE commitcast.{t} ENABLE ROW LEVEL SECURITY" for t in ("events", "streams")),
    )
    async with engine.begin() as conn:
        assert await conn.scalar(text("SELECT commitcast.emit('thread:7', 'said')")) == 1
