"""G4: offsets are contiguous and in commit order, whoever writes at the same time."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import BigInteger, Identity, Integer, create_engine, insert, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import AsyncAdaptedQueuePool

from commitcast import Coordinator, Event, emit, sqlite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from .places import Place

WRITERS = 64
ROUNDS = 6


class Base(DeclarativeBase):
    """Tables of this file."""


class Entry(Base):
    """One line of a stream's audience, numbered by the team under the team's own lock."""

    __tablename__ = "entries"

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True
    )
    stream: Mapped[str] = mapped_column()
    ref: Mapped[str] = mapped_column()


class Counter(Base):
    """The team's own last number of each stream."""

    __tablename__ = "counters"

    stream: Mapped[str] = mapped_column(primary_key=True)
    last: Mapped[int] = mapped_column()


@pytest.fixture
def tables(place: Place) -> Iterator[None]:
    Base.metadata.drop_all(place.observer)
    Base.metadata.create_all(place.observer)
    yield
    Base.metadata.drop_all(place.observer)


@pytest.fixture
async def coordinator(anyio_backend: str, place: Place) -> AsyncIterator[Coordinator]:
    engine = create_async_engine(
        place.url,
        poolclass=AsyncAdaptedQueuePool,  # SQLAlchemy 2.0.0 has another one for SQLite
        pool_size=WRITERS,
        max_overflow=4,
        pool_timeout=60,
    )
    if place.kind == "sqlite":
        sqlite.configure(engine)
    coordinator = Coordinator(engine)
    yield coordinator
    coordinator.detach()
    await engine.dispose()


def assert_contiguous(place: Place, expected: dict[str, set[str]]) -> None:
    """Each stream has exactly the expected events, numbered 1, 2, 3 … up to its head."""
    found: dict[str, list[tuple[int, str]]] = {}
    for stream, offset, _, ref in place.log():
        found.setdefault(stream, []).append((offset, ref))
    assert {stream: {ref for _, ref in events} for stream, events in found.items()} == expected
    for stream, events in found.items():
        assert [offset for offset, _ in events] == list(range(1, len(events) + 1)), stream
    assert place.heads() == {stream: len(events) for stream, events in found.items()}


@pytest.mark.anyio
async def test_g4_64_writers_of_new_and_old_streams_in_any_order(
    place: Place, tables: None, coordinator: Coordinator
) -> None:
    engine = coordinator._writer
    assert engine is not None
    chance = random.Random(7)
    names = [f"s:{i}" for i in range(12)]
    expected: dict[str, set[str]] = {}
    async with AsyncSession(engine) as session:
        for name in names[:4]:  # these are old
            emit(session, name, Event("e", f"old:{name}"))
            expected[name] = {f"old:{name}"}
        await session.commit()

    async def writer(number: int) -> None:
        async with AsyncSession(engine) as session:
            for round_ in range(ROUNDS):
                chosen = chance.sample(names, chance.randint(1, 5))
                if round_ == 1:
                    chosen.append(f"own:{number}")
                keep = chance.random() > 0.15
                refs = [(name, f"{number}.{round_}.{i}") for i, name in enumerate(chosen * 2)]
                for name, ref in refs:
                    emit(session, name, Event("e", ref))
                    if chance.random() < 0.3:
                        session.add(Entry(stream=name, ref=ref))
                        await session.flush()
                if not keep:
                    await session.rollback()
                    continue
                await session.commit()
                for name, ref in refs:
                    expected.setdefault(name, set()).add(ref)

    async with asyncio.timeout(30):
        await asyncio.gather(*(writer(number) for number in range(WRITERS)))
    assert_contiguous(place, expected)


@pytest.mark.anyio
async def test_g4_offsets_follow_the_order_of_commits(
    place: Place, tables: None, coordinator: Coordinator
) -> None:
    """Whoever sees an event's offset sees in the rows all that came before it, and no more.

    The last event of a stream says how many of the team's rows are there; if commit order and
    offsets differed, a later offset would tell of fewer rows.
    """
    engine = coordinator._writer
    assert engine is not None
    async with AsyncSession(engine) as session:
        session.add(Counter(stream="s", last=0))
        await session.commit()

    async def writer(number: int) -> None:
        async with AsyncSession(engine) as session:
            for _ in range(3):
                counter = await session.get(Counter, "s", with_for_update=True)
                assert counter is not None
                counter.last += 1
                emit(session, "s", Event("e", counter.last))
                await session.commit()
                session.expire_all()

    async with asyncio.timeout(30):
        await asyncio.gather(*(writer(number) for number in range(32)))
    assert [data for _, _, _, data in place.log()] == list(range(1, 97))


@pytest.mark.anyio
async def test_g4_threads_and_tasks_write_to_the_same_streams(
    place: Place, tables: None, coordinator: Coordinator
) -> None:
    driver = "sqlite+pysqlite" if place.kind == "sqlite" else "postgresql+psycopg"
    engine = create_engine(place.url.set(drivername=driver), pool_size=8)
    if place.kind == "sqlite":
        sqlite.configure(engine)
    coordinator.attach(engine)
    expected: dict[str, set[str]] = {"a": set(), "b": set()}

    def in_thread(number: int) -> None:
        with Session(engine) as session:
            for round_ in range(5):
                for name in ("b", "a"):
                    emit(session, name, Event("e", f"t{number}.{round_}"))
                session.add(Entry(stream="a", ref=f"t{number}.{round_}"))
                session.commit()
                for name in ("a", "b"):
                    expected[name].add(f"t{number}.{round_}")

    async def in_task(number: int) -> None:
        async with AsyncSession(coordinator._writer) as session:
            for round_ in range(5):
                for name in ("a", "b"):
                    emit(session, name, Event("e", f"a{number}.{round_}"))
                await session.commit()
                for name in ("a", "b"):
                    expected[name].add(f"a{number}.{round_}")

    async with asyncio.timeout(30):
        await asyncio.gather(
            *(asyncio.to_thread(in_thread, n) for n in range(6)), *(in_task(n) for n in range(6))
        )
    engine.dispose()
    assert_contiguous(place, expected)


@pytest.mark.anyio
async def test_g4_cancelled_writers_leave_no_gap(
    place: Place, tables: None, coordinator: Coordinator
) -> None:
    """A CancelledError out of commit() is not a rollback: what the rows say counts, not it."""
    engine = coordinator._writer
    assert engine is not None
    chance = random.Random(3)

    async def writer(ref: str) -> None:
        async with AsyncSession(engine) as session:
            # Core, without RETURNING: a cursor that aiosqlite left half read keeps SQLite's lock
            await session.execute(insert(Entry).inline().values(stream="s", ref=ref))
            emit(session, "s", Event("e", ref))
            await session.commit()

    async def cancelled(ref: str) -> None:
        task = asyncio.create_task(writer(ref))
        for _ in range(chance.randint(0, 25)):
            await asyncio.sleep(0)
        if chance.random() < 0.7:
            await asyncio.sleep(chance.random() * 0.04)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async with asyncio.timeout(30):
        for batch in range(12):
            await asyncio.gather(*(cancelled(f"{batch}.{i}") for i in range(8)))
        await writer("last")  # the lock is free, the connection usable
    with Session(place.observer) as session:
        rows = set(session.scalars(select(Entry.ref)))
    assert_contiguous(place, {"s": rows})
    assert 1 < len(rows) < 97  # some were cancelled before, some after their commit
