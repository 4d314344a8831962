"""G7: a user receives only streams that authorisation allows; deny by default."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from .live import PATIENCE_S, anybody, bearer, say, serving

if TYPE_CHECKING:
    from conftest import Database

pytestmark = pytest.mark.anyio
SSE = "/realtime/sse?stream=user:ann"


async def bearer_later(request: Any) -> str | None:
    return bearer(request)


async def own_later(user: str, stream: str) -> bool:
    return own(user, stream)


def own(user: str, stream: str) -> bool:
    return stream == f"user:{user}"


async def test_g7_without_authenticate_nobody_is_let_in(database: Database) -> None:
    async with serving(database.coordinator(drain_s=0), authenticate=None) as site:
        client = await site.get(SSE)
        assert client.status == 401
        assert client.headers["www-authenticate"] == "Bearer"
        await client.problem()


async def test_g7_without_authorize_nothing_is_readable(database: Database) -> None:
    async with serving(database.coordinator(drain_s=0), authorize=None) as site:
        client = await site.get(SSE)
        assert client.status == 403
        await client.problem()


@pytest.mark.parametrize("nobody", [None, "", False, True])
async def test_g7_who_has_no_id_is_nobody(database: Database, nobody: Any) -> None:
    coordinator = database.coordinator(drain_s=0)
    async with serving(coordinator, authenticate=lambda _: nobody) as site:
        assert (await site.get(SSE)).status == 401


@pytest.mark.parametrize("answer", [False, None, 1, "yes", object()])
async def test_g7_only_exactly_true_allows(database: Database, answer: Any) -> None:
    coordinator = database.coordinator(drain_s=0)
    async with serving(coordinator, authorize=lambda _user, _stream: answer) as site:
        assert (await site.get(SSE)).status == 403


@pytest.mark.parametrize(("authenticate", "authorize"), [(bearer, own), (bearer_later, own_later)])
async def test_g7_a_user_never_gets_the_stream_of_another_whatever_the_cursor(
    database: Database, authenticate: Any, authorize: Any
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, drain_s=0)
    async with serving(coordinator, authenticate=authenticate, authorize=authorize) as site:
        await say(engine, "user:ann", 1, 2)
        await say(engine, "user:bob", -1, -2)
        ann = await site.listen("user:ann", cursor="earliest", user="ann")
        place = await ann.named("subscribed")
        assert await ann.numbers(2) == [1, 2]
        for headers in ({}, {"Last-Event-ID": f"{place['epoch']}:0"}):
            for path in (SSE, f"{SSE}&cursor=earliest", f"{SSE}&cursor={place['epoch']}:0"):
                spy = await site.get(path, user="bob", headers=headers)
                assert spy.status == 403
                assert "n" not in (await spy.problem())["detail"].split()
        # the epoch of another's stream is no key to it, nor to one's own
        bob = await site.listen("user:bob", cursor=f"{place['epoch']}:0", user="bob")
        assert (await bob.named("subscribed"))["recovered"] is False
        await say(engine, "user:ann", 3)
        await say(engine, "user:bob", -3)
        assert await bob.numbers(1) == [-3]
        assert await ann.numbers(1) == [3]


async def test_g7_authorize_is_asked_on_subscribe_and_on_every_page_and_may_say_no_any_time(
    database: Database,
) -> None:
    engine = database.engine()
    asked: list[tuple[str, str]] = []
    pages = 0

    def authorize(user: str, stream: str) -> bool:
        asked.append((user, stream))
        return len(asked) <= allowed

    coordinator = database.coordinator(engine, drain_s=0, page_events=2)
    await say(engine, "user:ann", *range(10))
    async with serving(coordinator, authorize=authorize) as site:
        allowed = 100
        client = await site.listen("user:ann", cursor="earliest")
        await client.named("subscribed")
        assert await client.numbers(10) == list(range(10))
        assert len(asked) == 1 + 5  # to connect, and once a page
        assert set(asked) == {("ann", "user:ann")}
        await client.close()
        for allowed in range(1, len(asked)):
            asked.clear()
            client = await site.listen("user:ann", cursor="earliest")
            seen, closed = 0, None
            while (message := await client.message()) is not None:
                if message.event is None:
                    assert closed is None
                    seen += 1
                elif message.event == "commitcast.closed":
                    closed = message.json
            assert closed == {"reason": "forbidden"}
            assert client.ended_cleanly
            assert seen <= 2 * (allowed - 1)
            pages = max(pages, seen)
            await client.close()
    assert 0 < pages < 10


async def test_g7_a_stream_that_is_never_idle_is_asked_about_again(database: Database) -> None:
    engine = database.engine()
    allowed = True
    coordinator = database.coordinator(engine, drain_s=0, keep_alive_s=0.2)
    async with serving(coordinator, authorize=lambda _user, _stream: allowed) as site:
        client = await site.listen("user:ann")
        await client.named("subscribed")
        allowed = False
        message, n = None, 0
        async with asyncio.timeout(PATIENCE_S):
            while message is None or message.event is None:
                await say(engine, "user:ann", n)
                n += 1
                message = await client.message()
                assert message is not None
        assert message.event == "commitcast.closed"


async def test_g7_a_session_that_ended_ends_its_connection(database: Database) -> None:
    signed_in = {"ann"}
    coordinator = database.coordinator(drain_s=0, keep_alive_s=0.05)

    def who(request: Any) -> str | None:
        user = bearer(request)
        return user if user in signed_in else None

    async with serving(coordinator, authenticate=who) as site:
        client = await site.listen("user:ann")
        await client.named("subscribed")
        assert (await client.comment()) == ": keep-alive"
        signed_in.clear()
        assert (await client.named("closed")) == {"reason": "forbidden"}
        assert await client.message() is None


@pytest.mark.parametrize("which", ["authenticate", "authorize"])
async def test_g7_a_callable_that_raises_lets_nobody_in_and_its_text_never_leaves(
    database: Database, which: str, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("password is swordfish")

    callables: Any = {"authenticate": bearer, "authorize": anybody, which: broken}
    coordinator = database.coordinator(drain_s=0)
    realtime = coordinator.asgi(**callables)
    app = Starlette(
        debug=True, routes=[Mount("/realtime", realtime)], lifespan=coordinator.lifespan
    )
    async with serving(coordinator, app=app) as site:
        client = await site.get(SSE)
        assert client.status == 500
        assert "swordfish" not in str(await client.problem())
        browser = await site.get(SSE, headers={"Accept": "text/event-stream"})
        assert browser.status == 200  # an EventSource that got a 500 never comes back
        message = await browser.message()
        assert message is not None
        assert (message.event, message.json) == ("commitcast.unavailable", {})
        assert int(message.retry or 0) >= 10 * coordinator.settings.retry_ms  # it is no herd's
        assert await browser.message() is None
    assert f"commitcast: {which} raised" in caplog.text


async def test_g7_authorize_that_raises_later_ends_the_stream_and_the_client_may_return(
    database: Database,
) -> None:
    engine = database.engine()
    broken = False

    def authorize(_user: str, _stream: str) -> bool:
        if broken:
            raise RuntimeError("swordfish")
        return True

    coordinator = database.coordinator(engine, drain_s=0, keep_alive_s=0.05)
    async with serving(coordinator, authorize=authorize) as site:
        client = await site.listen("user:ann")
        await client.named("subscribed")
        await say(engine, "user:ann", 1)
        assert await client.numbers(1) == [1]
        broken = True
        assert await client.message() is None
        assert client.ended_cleanly
        broken = False
        await say(engine, "user:ann", 2)
        again = await site.listen("user:ann", headers={"Last-Event-ID": client.last_id or ""})
        await again.named("subscribed")
        assert await again.numbers(1) == [2]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://here", 200),
        ("https://friend.example", 200),
        ("https://foe.example", 403),
        ("http://here.foe.example", 403),
        ("null", 403),
    ],
)
async def test_g7_only_pages_of_allowed_origins_may_connect(
    database: Database, origin: str | None, status: int
) -> None:
    coordinator = database.coordinator(drain_s=0)
    async with serving(coordinator, allowed_origins=("https://friend.example",)) as site:
        headers = {} if origin is None else {"Origin": origin}
        client = await site.get(SSE, headers=headers)
        assert client.status == status
        allow = client.headers.get("access-control-allow-origin")
        assert allow == (origin if origin == "https://friend.example" else None)
        if status == 403:
            await client.problem()
