"""G10: no event, resume, close or count costs more for what does not concern it.

The same work is done beside few and beside many others. Costs are CPU time of this thread, and only
their ratio is judged.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from typing import TYPE_CHECKING, Any

import pytest

from commitcast import Position, Settings
from commitcast.admission import Admission, Place
from commitcast.event import CommittedEvent

from .live import say

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from commitcast import Coordinator
    from commitcast.delivery import Delivery
    from commitcast.subscription import Subscription
    from conftest import Database

pytestmark = pytest.mark.anyio
FEW, MANY = 250, 4000
WORK = 200
ONE_STREAM = [False, True]


def event(offset: int, stream: str = "thread:7", epoch: str = "now") -> CommittedEvent:
    return CommittedEvent(
        stream=stream, epoch=epoch, offset=offset, id=str(offset), type="said", time="",
        data_json="{}", actor=None, operation=None, trace_parent=None,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def beside(
    coordinator: Coordinator, count: int, *, one_stream: bool
) -> AsyncIterator[tuple[Delivery, list[Subscription]]]:
    """Readers that are not concerned, or only in that they read the same stream."""
    async with coordinator:
        delivery = coordinator._delivery
        assert delivery is not None
        readers = [
            coordinator.subscribe("thread:7" if one_stream else f"other:{n}") for n in range(count)
        ]
        await asyncio.gather(*(reader.enter() for reader in readers))
        yield delivery, readers


def cost(work: Callable[[], object]) -> float:
    gc.collect()
    gc.disable()
    try:
        begun = time.thread_time()
        work()
        return time.thread_time() - begun
    finally:
        gc.enable()


@pytest.fixture
def growth(database: Database) -> Callable[..., Any]:
    """How many times more work costs beside many others than beside few."""

    async def measure(
        prepare: Callable[[Coordinator, Delivery], Callable[[], object]], *, one_stream: bool
    ) -> float:
        costs: dict[int, list[float]] = {FEW: [], MANY: []}
        coordinator = database.coordinator(poll_interval_s=3600.0)
        for _ in range(2):
            for count, found in costs.items():
                async with beside(coordinator, count, one_stream=one_stream) as (delivery, _):
                    found.append(cost(prepare(coordinator, delivery)))
        return min(costs[MANY]) / min(costs[FEW])

    return measure


@pytest.fixture
def database_kind() -> str:
    """None of this asks the database."""
    return "sqlite"


@pytest.mark.parametrize("one_stream", ONE_STREAM)
async def test_g10_to_come_and_to_leave_costs_the_same_beside_few_and_many(
    growth: Any, *, one_stream: bool
) -> None:
    def come_and_leave(coordinator: Coordinator, _delivery: Delivery) -> Callable[[], object]:
        def work() -> None:
            for _ in range(WORK):
                reader = coordinator.subscribe("thread:7")
                entering = reader.enter()
                with contextlib.suppress(StopIteration):
                    entering.send(None)
                reader.close()

        return work

    assert await growth(come_and_leave, one_stream=one_stream) < 4


@pytest.mark.parametrize("one_stream", ONE_STREAM)
async def test_g10_a_page_that_one_reader_fetched_costs_the_others_nothing(
    growth: Any, *, one_stream: bool
) -> None:
    def resume(coordinator: Coordinator, delivery: Delivery) -> Callable[[], object]:
        feed = delivery.register(coordinator.subscribe("thread:7"))
        page = [event(offset) for offset in range(1, 11)]
        feed._begin("now", 0)
        feed.take(page)

        def work() -> None:
            for _ in range(WORK):
                feed.take(page)

        return work

    assert await growth(resume, one_stream=one_stream) < 4


@pytest.mark.parametrize("kept", ["for its age", "until memory is full"])
async def test_g10_an_event_costs_the_same_whatever_other_streams_hold(
    database: Database, kept: str
) -> None:
    costs: dict[int, list[float]] = {FEW: [], MANY: []}
    full = kept == "until memory is full"
    # what the others hold is small, and what makes room for the next event is the stream's own
    coordinator = database.coordinator(
        poll_interval_s=3600.0, node_buffer_bytes=5_000 if full else 2**30
    )
    for _ in range(2):
        for count, found in costs.items():
            async with beside(coordinator, count, one_stream=False) as (delivery, _):
                if not full:
                    for name, feed in delivery._feeds.items():
                        feed._begin("now", 0)
                        feed.take([event(1, name)])
                mine = delivery.register(coordinator.subscribe("thread:7"))
                mine._begin("now", 0)
                events = [event(offset) for offset in range(1, 5 * WORK)]

                def work(delivery: Delivery = delivery, events: Any = events) -> None:
                    for each in events:
                        delivery._take("thread:7", [each])

                found.append(cost(work))
    assert min(costs[MANY]) / min(costs[FEW]) < 4


async def test_g10_counting_readers_costs_the_same_for_few_and_many(growth: Any) -> None:
    def count(coordinator: Coordinator, _delivery: Delivery) -> Callable[[], object]:
        def work() -> None:
            for _ in range(WORK):
                coordinator.counts()

        return work

    assert await growth(count, one_stream=True) < 4


def test_g10_a_place_costs_the_same_beside_few_and_many_users() -> None:
    costs: dict[int, list[float]] = {FEW: [], MANY: []}
    for _ in range(2):
        for count, found in costs.items():
            admission = Admission(Settings())
            places = [admission.enter() for _ in range(count)]
            for n, place in enumerate(places):
                assert isinstance(place, Place)
                assert place.take_for(f"user-{n}") is None

            def work(admission: Admission = admission) -> None:
                for n in range(WORK):
                    place = admission.enter()
                    assert isinstance(place, Place)
                    place.take_for(f"late-{n}")
                    place.leave()

            found.append(cost(work))
    assert min(costs[MANY]) / min(costs[FEW]) < 4


async def test_g10_readers_that_are_dropped_without_being_closed_are_forgotten(
    database: Database,
) -> None:
    coordinator = database.coordinator(poll_interval_s=3600.0)
    async with beside(coordinator, FEW, one_stream=True) as (delivery, readers):
        assert coordinator.counts()["subscriptions"] == FEW
        del readers[FEW // 2 :]
        gc.collect()
        assert coordinator.counts()["subscriptions"] == len(delivery.subscriptions()) == FEW // 2
        delivery._free_memory()
        assert delivery._feeds
        readers.clear()
        gc.collect()
        delivery._free_memory()
        assert not delivery._feeds
        assert not coordinator.counts()["subscriptions"]


@pytest.mark.campaign
@pytest.mark.parametrize("database_kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("one_stream", ONE_STREAM)
async def test_g10_each_of_many_resumes_costs_what_each_of_few_does(
    database: Database, *, one_stream: bool
) -> None:
    """The benchmark: all at once, through the database. Prints what it found."""
    engine = database.engine()
    coordinator = database.coordinator(engine)
    each_ms: dict[int, float] = {}
    async with coordinator:
        for count in (250, 2000):
            names = [f"thread:{count}-{0 if one_stream else n}" for n in range(count)]
            for name in dict.fromkeys(names):
                await say(engine, name, *range(10))
            readers = [coordinator.subscribe(name, after="earliest") for name in names]
            for reader in readers:
                await reader.start()
                assert reader.position is not None
            again = [
                coordinator.subscribe(reader.stream, after=Position(reader.position.epoch, 0))
                for reader in readers
                if reader.position is not None
            ]
            for reader in readers:
                reader.close()

            async def resume(reader: Subscription) -> None:
                batch = await reader.next_batch()
                assert isinstance(batch, list)
                assert len(batch) == 10

            begun = time.process_time()
            await asyncio.gather(*(resume(reader) for reader in again))
            for reader in again:
                reader.close()
            each_ms[count] = (time.process_time() - begun) / count * 1000
    print({f"{count} resumes, ms each": round(ms, 3) for count, ms in each_ms.items()})  # noqa: T201
    assert each_ms[2000] < 2 * each_ms[250]
