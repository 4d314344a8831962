"""G10: a client is counted from its first byte until its socket is gone, whatever it does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import pytest

from commitcast.pace import Pace

from .live import Client, Site, anybody, bearer, say, serving, until
from .test_bounded import shout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import Database

pytestmark = pytest.mark.anyio
SSE = "/realtime/sse?stream=thread:7"


async def never_reading(site: Site, user: str = "ann") -> Client:
    """A client with a small window for whom there is more than all buffers take."""
    return await site.listen("thread:7", cursor="earliest", slow=True, user=user)


@contextlib.asynccontextmanager
async def requested(site: Site, path: str = SSE, user: str = "ann") -> AsyncIterator[None]:
    """A request that nobody waits to be answered; the client leaves with the block."""
    _, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {user}\r\n\r\n".encode()
    )
    try:
        yield
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


class Hanging:
    """A callable of the team's that answers only when it is allowed to."""

    def __init__(self, answer: Any, *, stubborn: bool = False) -> None:
        self.hangs = True
        self.asked = 0
        self.cancelled = 0
        self.may_end = asyncio.Event()
        self._answer = answer
        self._stubborn = stubborn

    async def __call__(self, *_: object) -> Any:
        self.asked += 1
        while self.hangs and not self.may_end.is_set():
            try:
                await self.may_end.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                if not self._stubborn:
                    raise
        return self._answer


# --- who does not read ------------------------------------------------------------------------


@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_g10_who_never_reads_is_counted_until_the_socket_is_gone(
    database: Database, http: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(
        engine, drain_s=0, write_deadline_s=0.2, max_connections_per_user=2, max_connections=3
    )
    for _ in range(10):
        await shout(engine, "thread:7", *range(10))
    async with serving(coordinator, operators=lambda _: True, http=http, log_config=None) as site:
        silent = [await never_reading(site) for _ in range(2)]
        await until(lambda: coordinator.counts()["connections_stalled"] == 2)
        delivery = coordinator._delivery
        assert delivery is not None
        assert not delivery._feeds  # they cost a socket, and nothing of the streams
        assert (await site.get(SSE)).status == 503
        bob = await site.listen("thread:7", user="bob")
        await bob.named("subscribed")
        assert coordinator.connections == 3
        ready = await site.get("/realtime/readyz")
        assert ready.status == 503  # there is no place left
        assert b'"places":false' in await ready.body()
        assert (await site.get(SSE, user="cid")).status == 503
        metrics = await (await site.get("/realtime/metrics")).body()
        assert b"commitcast_connections_stalled 2.0" in metrics
        for client in silent:
            await client.close()
        await until(lambda: coordinator.connections == 1)
        assert coordinator.counts()["connections_stalled"] == 0
        await (await site.listen("thread:7")).named("subscribed")
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


async def test_g10_who_reads_again_after_the_deadline_is_sent_away_in_order(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, drain_s=0, write_deadline_s=0.2)
    for _ in range(10):
        await shout(engine, "thread:7", *range(10))
    async with serving(coordinator, log_config=None) as site:
        client = await never_reading(site)
        await until(lambda: coordinator.counts()["connections_stalled"] == 1)
        await client.named("subscribed")
        seen = 0
        while await client.message() is not None:
            seen += 1
        assert client.ended_cleanly
        assert 0 < seen < 100
        await until(lambda: not coordinator.connections)
        again = await site.listen("thread:7", headers={"Last-Event-ID": client.last_id or ""})
        assert (await again.named("subscribed"))["recovered"] is True
        assert len(await again.numbers(100 - seen)) == 100 - seen
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


@pytest.mark.parametrize("deadline_s", [0.2, 2.0])
async def test_g10_who_does_not_read_does_not_keep_the_node_from_stopping(
    database: Database, deadline_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, drain_s=0, write_deadline_s=deadline_s)
    for _ in range(10):
        await shout(engine, "thread:7", *range(10))
    async with serving(coordinator, log_config=None) as site:
        await never_reading(site)
        await until(
            lambda: coordinator.counts()[
                "connections_stalled" if deadline_s < 1 else "frames_written"
            ]
        )
        coordinator.begin_drain()
        await until(lambda: not coordinator.connections)
    assert "Traceback" not in caplog.text


# --- who waits for an answer ------------------------------------------------------------------


async def test_g10_who_waits_for_authenticate_has_a_place_and_the_question_ends_with_them(
    database: Database,
) -> None:
    who = Hanging("ann")
    coordinator = database.coordinator(drain_s=0, max_connections=2, access_limit_s=600.0)
    async with serving(coordinator, authenticate=who) as site:
        async with requested(site), requested(site):
            await until(lambda: who.asked == 2)
            assert coordinator.connections == 2
            assert (await site.get(SSE)).status == 503
            assert who.asked == 2  # counted first, asked afterwards
        await until(lambda: not coordinator.connections)
        assert who.cancelled == 2


async def test_g10_who_waits_for_authorize_has_a_place_of_their_user(database: Database) -> None:
    may_read = Hanging(answer=True)
    coordinator = database.coordinator(drain_s=0, max_connections_per_user=2, access_limit_s=600.0)
    async with serving(coordinator, authorize=may_read) as site:
        async with requested(site), requested(site):
            await until(lambda: may_read.asked == 2)
            assert (await site.get(SSE)).status == 503
            async with requested(site, user="bob"):
                await until(lambda: may_read.asked == 3)
        await until(lambda: not coordinator.connections)
        assert may_read.cancelled == 3


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("which", ["authenticate", "authorize", "operators"])
async def test_g7_no_answer_in_time_is_no(
    database: Database, which: str, stubborn: bool, caplog: pytest.LogCaptureFixture
) -> None:
    slow = Hanging("ann" if which == "authenticate" else True, stubborn=stubborn)
    callables: Any = {"authenticate": bearer, "authorize": anybody, which: slow}
    coordinator = database.coordinator(drain_s=0, access_limit_s=0.1)
    path = "/realtime/health" if which == "operators" else SSE
    async with serving(coordinator, **callables) as site:
        client = await site.get(path)
        assert client.status == 503
        assert int(client.headers["retry-after"]) >= 1
        await client.problem()
        browser = await site.get(path, headers={"Accept": "text/event-stream"})
        assert browser.status == 200  # an EventSource that got a 503 never comes back
        body = await browser.body()
        assert b"retry:" in body
        assert b"subscribed" not in body
        assert slow.cancelled == slow.asked == 2
        if stubborn and which != "operators":  # what goes on is counted
            assert coordinator.connections == 2
            slow.may_end.set()
        await until(lambda: not coordinator.connections)
        slow.may_end.set()
    assert f"commitcast: {which} gave no answer within 0.1 s" in caplog.text


@pytest.mark.parametrize("which", ["authenticate", "authorize"])
async def test_g7_no_answer_while_a_client_is_served_ends_its_stream_and_it_may_return(
    database: Database, which: str
) -> None:
    engine = database.engine()
    slow = Hanging("ann" if which == "authenticate" else True)
    slow.hangs = False
    callables: Any = {"authenticate": bearer, "authorize": anybody, which: slow}
    coordinator = database.coordinator(engine, drain_s=0, keep_alive_s=0.05, access_limit_s=0.1)
    async with serving(coordinator, **callables) as site:
        client = await site.listen("thread:7")
        await client.named("subscribed")
        await say(engine, "thread:7", 1)
        assert await client.numbers(1) == [1]
        slow.hangs = True
        assert await client.message() is None
        assert client.ended_cleanly
        slow.hangs = False
        await say(engine, "thread:7", 2)
        again = await site.listen("thread:7", headers={"Last-Event-ID": client.last_id or ""})
        await again.named("subscribed")
        assert await again.numbers(1) == [2]


async def test_g10_nobody_is_served_for_ever_and_who_comes_back_has_missed_nothing(
    database: Database,
) -> None:
    """It bounds what a connection costs whose end the server does not report."""
    engine = database.engine()
    coordinator = database.coordinator(engine, keep_alive_s=0.05, max_connection_s=0.2)
    async with serving(coordinator) as site:
        client = await site.listen("thread:7")
        await client.named("subscribed")
        await say(engine, "thread:7", 1)
        assert await client.numbers(1) == [1]
        assert await client.message() is None
        assert client.ended_cleanly
        await until(lambda: coordinator.counts()["connections"] == 0)
        await say(engine, "thread:7", 2)
        again = await site.listen("thread:7", headers={"Last-Event-ID": client.last_id or ""})
        assert (await again.named("subscribed"))["recovered"] is True
        assert await again.numbers(1) == [2]


async def test_g7_no_answer_about_a_page_hands_out_nothing_of_it(database: Database) -> None:
    engine = database.engine()
    slow = Hanging(answer=True)
    slow.hangs = False

    async def may_read(user: str, stream: str) -> bool:
        slow.hangs = slow.asked == 2  # to connect, and for the first page
        return bool(await slow(user, stream))

    coordinator = database.coordinator(engine, drain_s=0, page_events=2, access_limit_s=0.1)
    await say(engine, "thread:7", *range(6))
    async with serving(coordinator, authorize=may_read) as site:
        client = await site.listen("thread:7", cursor="earliest")
        await client.named("subscribed")
        assert await client.numbers(2) == [0, 1]
        assert await client.message() is None
        assert client.ended_cleanly


async def test_g10_who_leaves_while_a_keep_alive_waits_for_its_answer_is_gone_at_once(
    database: Database,
) -> None:
    may_read = Hanging(answer=True)
    may_read.hangs = False
    coordinator = database.coordinator(drain_s=0, keep_alive_s=0.05, access_limit_s=600.0)
    async with serving(coordinator, authorize=may_read) as site:
        client = await site.listen("thread:7")
        await client.named("subscribed")
        may_read.hangs = True
        asked = may_read.asked
        await until(lambda: may_read.asked > asked)
        await client.close()
        await until(lambda: not coordinator.connections)
        assert may_read.cancelled == 1


# --- who comes often --------------------------------------------------------------------------


async def test_g10_a_user_who_connects_too_often_is_told_when_to_come_back(
    database: Database,
) -> None:
    asked: list[str] = []

    def may_read(user: str, _stream: str) -> bool:
        asked.append(user)
        return True

    coordinator = database.coordinator(drain_s=0, max_connects_per_minute_per_user=3)
    async with serving(coordinator, authorize=may_read) as site:
        for _ in range(3):
            client = await site.listen("thread:7")
            await client.named("subscribed")
            await client.close()
        count = len(asked)
        away = await site.get(SSE)
        assert away.status == 429
        assert 1 <= int(away.headers["retry-after"]) <= 20
        await away.problem()
        browser = await site.get(SSE, headers={"Accept": "text/event-stream"})
        retry_ms = int((await browser.body()).decode().split("retry: ")[1].split("\n")[0])
        assert browser.status == 200
        assert retry_ms > 5000
        assert len(asked) == count  # nobody is asked about a visit that does not count
        assert (await site.get(SSE, user="bob")).status == 200


def test_g10_a_pace_lets_everybody_come_at_once_and_then_keeps_it() -> None:
    pace = Pace(per_minute=5)
    assert [pace.come("ann") for _ in range(5)] == [0.0] * 5
    waits = [pace.come("ann") for _ in range(3)]
    assert all(11 < wait_s <= 12 for wait_s in waits)  # those that do not count cost nothing
    assert pace.come("bob") == 0.0


def test_g10_of_users_whose_visits_are_paid_for_nothing_is_kept() -> None:
    pace = Pace(per_minute=10**9)
    for n in range(20_000):
        assert pace.come(f"user-{n}") == 0.0
    assert len(pace) <= 2048
