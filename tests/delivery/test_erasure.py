"""The removal of a person's data: all of it, for every id, from every node's memory, repeatably."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import DDL, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from commitcast import Event, emit
from commitcast.errors import OperationLost

from .live import PATIENCE_S, say

if TYPE_CHECKING:
    from commitcast import Coordinator
    from commitcast.event import CommittedEvent
    from conftest import Database

pytestmark = pytest.mark.anyio
SECRET = "the secret of ann"


def inbox(user: str) -> str:
    """A team's own way to name a user's stream, in which an id does not show."""
    return f"person:{user.encode().hex()}:inbox"


async def rows_with(coordinator: Coordinator, *words: str) -> list[Any]:
    """Every row of Commitcast's tables in which one of `words` is."""
    engine, found = coordinator._writer, []
    assert engine is not None
    async with engine.connect() as conn:
        for table in coordinator.tables.metadata.sorted_tables:
            rows = await conn.execute(select(table))
            found += [(table.name, *row) for row in rows if any(w in str(row) for w in words)]
    return found


async def leave(coordinator: Coordinator, **options: Any) -> None:
    """An operation that fails, with something to say about it."""
    with pytest.raises(RuntimeError):
        async with coordinator.operation("pay", user_message=SECRET, **options):
            raise RuntimeError


@pytest.mark.parametrize(
    "user", ["ann", "auth0|5f7c", "o'brien@x.org", "CORP\\ann", "an n", "änn", "%", "u_"]
)
async def test_nothing_of_a_person_is_left_whatever_their_id_is(
    database: Database, user: str
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, user_stream=inbox)
    async with coordinator:
        for actor, text in ((user, SECRET), ("bob", "of bob")):
            async with AsyncSession(engine) as session:
                emit(session, "thread:7", Event("said", {"text": text}), actor=actor)
                emit(session, inbox(user), Event("mail", {"text": SECRET}))
                await session.commit()
        async with coordinator.operation("save", user=user, id=SECRET) as op, op.begin():
            op.result = {"text": SECRET}
        await leave(coordinator, user=user, stream="thread:7", request=[SECRET])
        assert await coordinator.erase(user=user) > 0
        assert await rows_with(coordinator, SECRET, repr(user)[1:-1], inbox(user)) == []
        assert await coordinator.erase(user=user) == 0, "nothing is left for a second time"
        reader = coordinator.subscribe("thread:7", after="earliest")
        async with reader, asyncio.timeout(PATIENCE_S):
            kinds = [(await anext(reader)).type for _ in range(3)]
    assert kinds == ["commitcast.erased", "said", "commitcast.erased"]


async def test_what_is_in_the_memory_of_every_node_goes_whoever_erases(database: Database) -> None:
    engines = [database.engine(), database.engine()]
    nodes = [database.coordinator(engine, poll_interval_s=60) for engine in engines]
    script = database.coordinator(database.engine())
    async with nodes[0], nodes[1], asyncio.timeout(PATIENCE_S):
        readers = [node.subscribe("thread:7", after="earliest") for node in nodes]
        for reader in readers:
            await reader.start()
        for _ in range(2):
            async with AsyncSession(engines[0]) as session:
                emit(session, "thread:7", Event("said", {"text": SECRET}), actor="ann")
                await session.commit()
        deliveries = [node._delivery for node in nodes]
        for delivery in deliveries:
            assert delivery is not None
            await delivery.poll()
        for reader in readers:
            assert [(await anext(reader)).data["text"] for _ in range(2)] == [SECRET] * 2
        assert all(d is not None and d._memory.bytes for d in deliveries)
        await script.erase(user="ann")
        for delivery in deliveries:
            assert delivery is not None
            await delivery.poll()
            assert delivery._memory.bytes == 0
        for node in nodes:
            late = node.subscribe("thread:7", after="earliest")
            async with late:
                found: list[CommittedEvent] = [await anext(late) for _ in range(2)]
                assert [e.type for e in found] == ["commitcast.erased"] * 2
        for reader in readers:  # nobody is told, for nothing is missing
            assert reader.recovered is True


async def test_g6_an_open_operation_of_the_person_cannot_bring_anything_back(
    database: Database,
) -> None:
    coordinator = database.coordinator()
    async with (
        coordinator,
        asyncio.timeout(PATIENCE_S),
        coordinator.subscribe("thread:7") as others,
    ):
        await others.start()
        with pytest.raises(OperationLost):
            async with coordinator.operation(
                "save", user="ann", stream="thread:7", id=SECRET, user_message=SECRET
            ) as operation:
                await coordinator.erase(user="ann")
                async with operation.begin() as session:
                    operation.result = {"text": SECRET}
                    emit(session, "thread:7", Event("said", {"text": SECRET}), actor="ann")
        notice = await anext(others)
        assert (notice.type, notice.operation) == ("transaction_rolled_back", operation.id)
        assert notice.actor is None
        assert await rows_with(coordinator, SECRET, "ann") == []
        assert await coordinator.operations("rolled_back", everyone=True) == []
        # the same key is a new attempt of somebody who is new here
        async with (
            coordinator.operation(
                "save", user="ann", stream="thread:7", id=SECRET, request=[1]
            ) as again,
            again.begin(),
        ):
            pass
        assert again.outcome == "committed"


async def test_g6_a_transaction_that_comes_after_the_erasure_of_its_attempt_fails(
    database: Database,
) -> None:
    """Its outcome stays, emptied; with the row gone, the late COMMIT would have been the first."""
    coordinator = database.coordinator()
    async with coordinator, asyncio.timeout(PATIENCE_S):
        operation = coordinator.operation("save", user="ann")
        with pytest.raises(OperationLost):
            async with operation:
                await coordinator.erase(user="ann")
                await coordinator.erase(user="ann")
                async with operation.begin():
                    pass
        assert await coordinator.operations("committed", everyone=True) == []


async def test_g10_erasing_goes_in_batches_and_a_long_stream_is_emptied_before_it_goes(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commitcast.erasure._EVENTS_AT_ONCE", 4)
    monkeypatch.setattr("commitcast.erasure._ATTEMPTS_AT_ONCE", 2)
    engine = database.engine()
    coordinator = database.coordinator(engine)
    async with coordinator, asyncio.timeout(PATIENCE_S):
        await say(engine, "thread:7", *range(11), actor="ann")
        await say(engine, "user:ann", *range(11))
        for _ in range(5):
            async with coordinator.operation("save", user="ann") as op, op.begin():
                pass
        assert await coordinator.erase(user="ann") == 11 + 5 + 1
        installation = coordinator.tables.installation
        async with engine.connect() as conn:
            transactions = await conn.scalar(select(installation.c.erasures))
        assert transactions == 3 + 3 + 3
        assert await coordinator.erase(stream="thread:7") == 1
        assert await rows_with(coordinator, "thread:7", "said") == []


async def test_an_event_that_a_trim_holds_is_waited_for_and_nothing_deadlocks(
    database: Database,
) -> None:
    if database.kind != "postgresql":
        pytest.skip("SQLite has one writer")
    engine = database.engine()
    coordinator = database.coordinator(engine)
    events = coordinator.tables.events
    await say(engine, "thread:7", 1, 2, 3, actor="ann")
    async with asyncio.timeout(PATIENCE_S):
        async with engine.connect() as other:
            held = select(events.c.offset).where(events.c.offset == 2).with_for_update()
            await other.execute(held)
            erasing = asyncio.create_task(coordinator.erase(user="ann"))
            left = 3
            while left > 1:
                async with engine.connect() as conn:
                    count = select(func.count()).select_from(events).where(events.c.actor == "ann")
                    left = await conn.scalar(count) or 0
            assert not erasing.done()
            await other.rollback()
        assert await erasing == 3


@pytest.mark.parametrize("table", ["events", "operations"])
async def test_g10_what_is_erased_is_found_by_an_index(database: Database, table: str) -> None:
    coordinator = database.coordinator()
    engine, found = coordinator._writer, coordinator.tables.metadata.tables
    assert engine is not None
    [rows] = [t for name, t in found.items() if name.endswith(table)]
    query = str(
        select(rows.c.attempt if table == "operations" else rows.c.offset)
        .where(rows.c.actor == "ann")
        .compile(engine.sync_engine, compile_kwargs={"literal_binds": True})
    )
    async with engine.connect() as conn:
        if database.kind == "sqlite":
            plan = await conn.execute(DDL(f"EXPLAIN QUERY PLAN {query}"))
        else:
            await conn.execute(DDL("SET LOCAL enable_seqscan = off"))
            plan = await conn.execute(DDL(f"EXPLAIN {query}"))
        assert f"{table}_actor" in str(plan.all())


async def test_a_user_stream_that_raises_leaves_everything_as_it_was(database: Database) -> None:
    def unknown(user: str) -> str:
        raise LookupError(user)

    engine = database.engine()
    coordinator = database.coordinator(engine, user_stream=unknown)
    await say(engine, "thread:7", 1, actor="ann")
    with pytest.raises(LookupError):
        await coordinator.erase(user="ann")
    assert len(await rows_with(coordinator, "ann")) == 1
