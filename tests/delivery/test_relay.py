"""`deliver=`: a socket layer that a team has is handed each committed event, in order."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from commitcast.relay import Relay
from commitcast.settings import Retention
from commitcast.undelivered import Undelivered

from .live import PATIENCE_S, say, until

if TYPE_CHECKING:
    from commitcast import CommittedEvent
    from conftest import Database

pytestmark = pytest.mark.anyio


class SocketLayer:
    """Takes events; refuses those that a test calls poison."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, int]] = []
        self.poison: set[int] = set()
        self.refused = 0
        self._changed = asyncio.Event()

    def send(self, event: CommittedEvent) -> None:
        n = event.data["n"]
        if n in self.poison:
            self.refused += 1
            self._changed.set()
            raise ConnectionError("no")
        self.taken.append((event.stream, n))
        self._changed.set()

    async def send_later(self, event: CommittedEvent) -> None:
        await asyncio.sleep(0)
        self.send(event)

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def of(self, stream: str) -> list[int]:
        return [n for name, n in self.taken if name == stream]


@pytest.mark.parametrize("later", [False, True])
async def test_g3_g4_deliver_is_handed_every_commit_in_the_order_of_its_stream(
    database: Database, later: bool
) -> None:
    engine, layer = database.engine(), SocketLayer()
    send: Any = layer.send_later if later else layer.send
    coordinator = database.coordinator(engine, deliver=send, page_events=3)
    async with coordinator:
        for n in range(10):
            await say(engine, f"thread:{n % 2}", n, n + 100)
        await layer.until(lambda: len(layer.taken) >= 20)
    for stream in (0, 1):
        expected = [m for n in range(stream, 10, 2) for m in (n, n + 100)]
        assert layer.of(f"thread:{stream}") == expected


async def test_a_new_relay_on_psycopg_is_not_handed_the_past(database: Database) -> None:
    if database.kind == "sqlite":
        pytest.skip("a driver of PostgreSQL")
    engine, layer = database.engine("postgresql+psycopg"), SocketLayer()
    before = database.coordinator(engine)
    await say(engine, "thread:7", -1)
    before.detach()
    first = database.coordinator(engine, deliver=layer.send)
    async with first:
        await relay_owns(first)
        await say(engine, "thread:7", 1)
        await layer.until(lambda: len(layer.taken) >= 1)
    assert layer.of("thread:7") == [1]


async def test_g3_deliver_is_not_handed_the_past_and_continues_after_a_restart(
    database: Database,
) -> None:
    engine, layer = database.engine(), SocketLayer()
    before = database.coordinator(engine)
    await say(engine, "thread:7", -1)
    before.detach()
    first = database.coordinator(engine, deliver=layer.send)
    async with first:
        await relay_owns(first)
        await say(engine, "thread:7", 1, 2)
        await layer.until(lambda: len(layer.taken) >= 2)
    await say(engine, "thread:7", 3)
    await say(engine, "thread:new", 4)
    first.detach()
    async with database.coordinator(engine, deliver=layer.send):
        await layer.until(lambda: len(layer.taken) >= 4)
    assert layer.of("thread:7") == [1, 2, 3]
    assert layer.of("thread:new") == [4]


def recorded_pauses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Relay, float]]:
    pause, pauses = Relay._pause_s, list[tuple[Relay, float]]()

    def paused(self: Relay) -> float:
        pauses.append((self, pause(self)))
        return pauses[-1][1]

    monkeypatch.setattr(Relay, "_pause_s", paused)
    return pauses


async def relay_owns(coordinator: Any) -> None:
    relays = coordinator.tables.relays
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with coordinator._reader.connect() as conn:
                if (await conn.execute(relays.select())).first() is not None:
                    return


async def test_g3_an_event_that_was_refused_is_tried_again_and_holds_up_only_its_stream(
    database: Database,
) -> None:
    engine, layer = database.engine(), SocketLayer()
    layer.poison = {2}
    async with database.coordinator(engine, deliver=layer.send, poll_interval_s=0.05):
        await say(engine, "thread:sick", 1, 2, 3)
        await say(engine, "thread:well", 4, 5, 6)
        await layer.until(lambda: layer.refused >= 2 and len(layer.of("thread:well")) == 3)
        assert layer.of("thread:sick") == [1]
        layer.poison.clear()
        await layer.until(lambda: len(layer.of("thread:sick")) == 3)
    assert layer.of("thread:sick") == [1, 2, 3]


async def test_g3_a_stream_that_never_pauses_does_not_hold_up_the_others(
    database: Database,
) -> None:
    """Each event of the busy stream is followed by its next one before it is confirmed."""
    engine, layer = database.engine(), SocketLayer()

    async def deliver(event: CommittedEvent) -> None:
        if event.stream == "thread:busy" and not layer.of("thread:quiet"):
            if len(layer.of("thread:busy")) == 2:
                await say(engine, "thread:quiet", 0)
            await say(engine, "thread:busy", event.data["n"] + 1)
        layer.send(event)

    async with database.coordinator(engine, deliver=deliver):
        await say(engine, "thread:busy", 0)
        await layer.until(lambda: layer.of("thread:quiet") or len(layer.taken) > 60)
    assert layer.of("thread:quiet") == [0]


@pytest.mark.parametrize(("turn_s", "looks"), [(60.0, range(1, 10)), (0.0, range(11, 20))])
async def test_a_backlog_is_delivered_in_turns_and_not_with_a_look_at_all_streams_for_each_page(
    database: Database, monkeypatch: pytest.MonkeyPatch, turn_s: float, looks: range
) -> None:
    engine, layer, asked = database.engine(), SocketLayer(), list[Any]()
    async with database.coordinator(engine, deliver=layer.send) as coordinator:
        await relay_owns(coordinator)
    await say(engine, "thread:7", *range(30))
    read = Undelivered._read

    async def counted(self: Undelivered, wanted: Any) -> list[Any]:
        asked.append(wanted)
        return await read(self, wanted)

    monkeypatch.setattr(Undelivered, "_read", counted)
    monkeypatch.setattr("commitcast.relay._TURN_S", turn_s)
    coordinator.detach()
    async with database.coordinator(engine, deliver=layer.send, page_events=3, poll_interval_s=60):
        await layer.until(lambda: len(layer.taken) >= 30)
        await say(engine, "thread:8", 30)
        await layer.until(lambda: len(layer.taken) >= 31)
    assert layer.of("thread:7") == [*range(30)]
    assert len(asked) in looks


async def test_g10_a_commit_is_delivered_without_a_look_at_streams_it_has_nothing_to_do_with(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, layer, looks = database.engine(), SocketLayer(), list[Any]()
    look = Undelivered._look

    async def counted(self: Undelivered) -> list[Any]:
        looks.append(None)
        return await look(self)

    monkeypatch.setattr(Undelivered, "_look", counted)
    async with database.coordinator(engine, deliver=layer.send, poll_interval_s=60) as coordinator:
        await relay_owns(coordinator)
        await say(engine, "thread:7", 0)
        await layer.until(lambda: layer.of("thread:7"))
        before = len(looks)
        for n in range(1, 20):
            await say(engine, f"thread:{n % 3}", n)
        await layer.until(lambda: len(layer.taken) >= 20)
        assert len(looks) == before


async def test_g3_where_looking_at_all_streams_takes_long_it_takes_a_share_of_the_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("commitcast.undelivered.time.monotonic", lambda: clock[0])
    engine = database.engine()
    undelivered = Undelivered(engine, database.coordinator(engine).tables, "default", 1.0)
    for takes_s, pause_s in ((0.001, 1.0), (3.0, 60.0)):
        clock[0] = undelivered.look_at

        async def read(_wanted: Any, takes_s: float = takes_s) -> list[Any]:
            clock[0] += takes_s
            return []

        monkeypatch.setattr(undelivered, "_read", read)
        assert await undelivered.next() == ([], set())
        assert await undelivered.next() is None
        assert undelivered.look_at - clock[0] == pytest.approx(pause_s)


@pytest.mark.parametrize("sick_first", [True, False])
async def test_g3_streams_that_are_refused_hold_up_no_other_however_many_they_are(
    database: Database, monkeypatch: pytest.MonkeyPatch, sick_first: bool
) -> None:
    monkeypatch.setattr("commitcast.undelivered._AT_ONCE", 2)
    engine, layer = database.engine(), SocketLayer()
    layer.poison = {1}
    streams = [(f"thread:sick-{i}", 1) for i in range(4)]
    streams.insert(len(streams) if sick_first else 0, ("thread:well", 2))
    async with database.coordinator(engine, deliver=layer.send, poll_interval_s=0.05):
        for stream, n in streams:
            await say(engine, stream, n)
        await layer.until(lambda: layer.of("thread:well"))
        await layer.until(lambda: layer.refused >= 8)
        await say(engine, "thread:well", 3)
        await layer.until(lambda: layer.of("thread:well") == [2, 3])


async def test_g3_streams_that_never_pause_take_turns_with_those_past_the_first_page(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commitcast.undelivered._AT_ONCE", 2)
    engine, layer = database.engine(), SocketLayer()

    async def deliver(event: CommittedEvent) -> None:
        if event.stream != "thread:quiet" and not layer.of("thread:quiet"):
            await say(engine, event.stream, event.data["n"] + 1)
        layer.send(event)

    async with database.coordinator(engine, deliver=deliver):
        await say(engine, "thread:busy-1", 0)
        await say(engine, "thread:busy-2", 0)
        await say(engine, "thread:quiet", 0)
        await layer.until(lambda: layer.of("thread:quiet") or len(layer.taken) > 60)
    assert layer.of("thread:quiet") == [0]


async def test_a_refused_stream_that_was_erased_is_not_asked_about_for_ever(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = recorded_pauses(monkeypatch)
    engine, layer = database.engine(), SocketLayer()
    layer.poison = {1}
    coordinator = database.coordinator(engine, deliver=layer.send, poll_interval_s=30)
    async with coordinator:
        await say(engine, "thread:7", 1)
        await layer.until(lambda: layer.refused)
        pauses.clear()  # before: afterwards the relay may have begun its long pause already
        await coordinator.erase(stream="thread:7")
        async with asyncio.timeout(PATIENCE_S):
            while max((pause_s for _, pause_s in pauses), default=0) < 15:  # noqa: ASYNC110 - nobody signals it
                await asyncio.sleep(0.01)


async def test_g10_a_relay_that_another_node_has_waits_for_its_poll(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses, layer = recorded_pauses(monkeypatch), SocketLayer()
    first = database.coordinator(deliver=layer.send, poll_interval_s=30)
    async with first:
        await relay_owns(first)
        second = database.coordinator(deliver=layer.send, poll_interval_s=30)
        async with second:
            await until(lambda: any(relay is second._relay for relay, _ in pauses))
            assert {pause_s for relay, pause_s in pauses if relay is second._relay} == {30}


async def test_g10_a_relay_whose_database_is_away_asks_it_no_more_often_than_it_polls(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses, layer, engine = recorded_pauses(monkeypatch), SocketLayer(), database.engine()
    read, away = Undelivered._read, asyncio.Event()

    async def fails(self: Undelivered, wanted: Any) -> list[Any]:
        if not away.is_set():
            return await read(self, wanted)
        pauses.clear()
        raise ConnectionResetError("the database went away")

    monkeypatch.setattr(Undelivered, "_read", fails)
    async with database.coordinator(engine, deliver=layer.send, poll_interval_s=30) as coordinator:
        await relay_owns(coordinator)
        await say(engine, "thread:7", 1)
        await layer.until(lambda: layer.of("thread:7"))
        away.set()
        await say(engine, "thread:7", 2)
        await until(lambda: pauses)
        assert pauses[-1][1] > 15


async def test_g3_the_relay_survives_a_database_error_in_the_middle_of_a_delivery(
    database: Database,
) -> None:
    engine, layer = database.engine(), SocketLayer()
    coordinator = database.coordinator(engine, deliver=layer.send, poll_interval_s=0.05)
    honest, failures = coordinator.log.page, 0

    async def page(*args: Any) -> Any:
        nonlocal failures
        failures += 1
        if failures in {1, 2}:
            raise ConnectionResetError("the database went away")
        return await honest(*args)

    coordinator.log.page = page  # type: ignore[method-assign, assignment]
    async with coordinator:
        await say(engine, "thread:7", 1)
        await layer.until(lambda: len(layer.taken) >= 1)
        assert failures >= 3


async def test_g5_two_nodes_share_the_work_and_when_the_owner_stops_the_other_goes_on(
    database: Database,
) -> None:
    engines = [database.engine(), database.engine()]
    layers = [SocketLayer(), SocketLayer()]
    nodes = [
        database.coordinator(e, deliver=layer.send, poll_interval_s=0.05, relay_lease_s=0.8)
        for e, layer in zip(engines, layers, strict=True)
    ]
    async with nodes[1]:
        async with nodes[0]:
            for n in range(10):
                await say(engines[n % 2], "thread:7", n)
            await asyncio.wait(
                [asyncio.create_task(x.until(lambda x=x: len(x.taken) >= 10)) for x in layers],
                return_when=asyncio.FIRST_COMPLETED,
            )
            assert sorted(len(layer.taken) for layer in layers) == [0, 10]
            owner = 0 if layers[0].taken else 1
            assert layers[owner].of("thread:7") == list(range(10))
            if owner == 1:
                await nodes[1].__aexit__(None, None, None)
                await say(engines[0], "thread:7", 10, 11)
                await layers[0].until(lambda: len(layers[0].taken) >= 2)
        if owner == 0:
            await say(engines[1], "thread:7", 10, 11)
            await layers[1].until(lambda: len(layers[1].taken) >= 2)
    assert layers[1 - owner].of("thread:7") == [10, 11]
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        if "until" in repr(task.get_coro()):
            task.cancel()


async def test_g3_what_was_trimmed_before_it_was_delivered_is_logged_and_delivery_goes_on(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    engine, layer = database.engine(), SocketLayer()
    layer.poison = {1}
    coordinator = database.coordinator(
        engine,
        deliver=layer.send,
        poll_interval_s=0.05,
        retention=Retention(max_age=timedelta(days=1), max_events_per_stream=2, every_s=0),
    )
    async with coordinator:
        await say(engine, "thread:7", 1, 2, 3, 4, 5)
        await layer.until(lambda: layer.refused >= 1)
        await coordinator.trim()
        await layer.until(lambda: len(layer.taken) >= 2)
        assert layer.of("thread:7") == [4, 5]
    assert "events 1 to 3 of thread:7 were trimmed before they were delivered" in caplog.text


async def test_g3_a_stream_erased_and_made_again_is_delivered_from_its_beginning(
    database: Database,
) -> None:
    engine, layer = database.engine(), SocketLayer()
    coordinator = database.coordinator(engine, deliver=layer.send)
    async with coordinator:
        await say(engine, "thread:7", 1, 2, 3)
        await layer.until(lambda: len(layer.taken) >= 3)
        await coordinator.erase(stream="thread:7")
        await say(engine, "thread:7", 4, 5)
        await layer.until(lambda: len(layer.taken) >= 5)
    assert layer.of("thread:7") == [1, 2, 3, 4, 5]
