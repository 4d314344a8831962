"""The door over real sockets: cookies, pages of other sites, callables that refuse by raising."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import HTTPException, WebSocketException

from .live import anybody, bearer, say, serving

if TYPE_CHECKING:
    from conftest import Database

pytestmark = pytest.mark.anyio

SSE = "/realtime/sse?stream=user:ann"
FRIEND = "https://friend.example"


def cookie(request: Any) -> str | None:
    user: str | None = request.cookies.get("token")
    return user


async def test_a_cookie_of_another_application_does_not_hide_ours(database: Database) -> None:
    async with serving(database.coordinator(drain_s=0), authenticate=cookie) as site:
        for others in ('g_state={"i_l":0}; token=ann', "token=ann; a[b]=1; \xe9=\xe9"):
            client = await site.get(SSE, user=None, headers={"Cookie": others})
            assert client.status == 200
            await client.named("subscribed")


async def test_g10_one_request_past_the_limits_is_refused_at_once(database: Database) -> None:
    async with serving(database.coordinator(drain_s=0), authenticate=cookie) as site:
        for path in ("/realtime/sse?stream=a", "/realtime/livez", "/realtime/else"):
            many = {f"X-{n}": "b" for n in range(101)}
            client = await site.get(path, user=None, headers=many)
            assert client.status == 431
            assert "header lines; the most is 100" in (await client.problem())["detail"]


async def test_a_page_that_is_allowed_may_ask_first_and_then_connect(database: Database) -> None:
    async with serving(database.coordinator(drain_s=0), allowed_origins=(FRIEND,)) as site:
        asked = await site.get(
            SSE, method="OPTIONS", user=None,
            headers={
                "Origin": FRIEND,
                "Access-Control-Request-Method": "GET",
                "Access-Control-Request-Headers": "authorization,last-event-id, traceparent, a b",
            },
        )  # fmt: skip
        assert asked.status == 204
        assert asked.headers["access-control-allow-origin"] == FRIEND
        assert asked.headers["access-control-allow-credentials"] == "true"
        assert "GET" in asked.headers["access-control-allow-methods"]
        allowed = asked.headers["access-control-allow-headers"]
        assert allowed == "authorization, last-event-id, traceparent"
        assert int(asked.headers["access-control-max-age"]) > 0
        assert asked.headers["vary"] == "origin"
        client = await site.get(SSE, headers={"Origin": FRIEND})
        assert client.headers["access-control-allow-origin"] == FRIEND
        assert client.headers["vary"] == "origin"
        await client.named("subscribed")


@pytest.mark.parametrize("origin", ["https://foe.example", "http://friend.example", "http://["])
@pytest.mark.parametrize("method", ["OPTIONS", "GET"])
async def test_g7_a_page_that_is_not_allowed_is_refused_before_it_connects(
    database: Database, origin: str, method: str
) -> None:
    async with serving(database.coordinator(drain_s=0), allowed_origins=(FRIEND,)) as site:
        client = await site.get(
            SSE, method=method,
            headers={"Origin": origin, "Access-Control-Request-Method": "GET"},
        )  # fmt: skip
        assert client.status == 403
        assert "access-control-allow-origin" not in client.headers
        assert client.headers["vary"] == "origin"
        await client.problem()


REFUSALS: list[tuple[Exception, int]] = [
    (HTTPException(401, "expired", {"WWW-Authenticate": 'Bearer error="invalid_token"'}), 401),
    (HTTPException(401, "expired"), 401),
    (HTTPException(403, "swordfish"), 403),
    (HTTPException(404, "swordfish"), 404),
    (WebSocketException(1008, "swordfish"), 403),
]


@pytest.mark.parametrize("which", ["authenticate", "authorize"])
@pytest.mark.parametrize(("error", "status"), REFUSALS)
async def test_g7_a_callable_refuses_by_raising_what_its_framework_refuses_with(
    database: Database,
    which: str,
    error: Exception,
    status: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuses(*_: object) -> Any:
        raise error

    callables: Any = {"authenticate": bearer, "authorize": anybody, which: refuses}
    async with serving(database.coordinator(drain_s=0), **callables) as site:
        for accept in ("text/event-stream", "*/*"):
            # also an EventSource: it gives up on the status, and does not come back for ever
            client = await site.get(SSE, headers={"Accept": accept})
            assert client.status == status
            assert "swordfish" not in json.dumps(await client.problem())
            if status == 401:
                given = getattr(error, "headers", None) or {"WWW-Authenticate": "Bearer"}
                assert client.headers["www-authenticate"] == given["WWW-Authenticate"]
    assert "raised" not in caplog.text


@pytest.mark.parametrize("status", [400, 422, 429, 500, 503])
async def test_g7_a_callable_that_raises_another_status_did_not_answer(
    database: Database, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_request: object) -> Any:
        raise HTTPException(status, "swordfish")

    async with serving(database.coordinator(drain_s=0), authenticate=broken) as site:
        client = await site.get(SSE)
        assert client.status == 500
        assert "swordfish" not in json.dumps(await client.problem())
    assert "authenticate raised" in caplog.text


@pytest.mark.parametrize("which", ["authenticate", "authorize"])
async def test_g7_a_callable_that_refuses_later_by_raising_closes_the_connection_for_good(
    database: Database, which: str, caplog: pytest.LogCaptureFixture
) -> None:
    expired = False

    def ask(*given: Any) -> Any:
        if expired:
            raise HTTPException(401, "expired")
        return bearer(*given) if which == "authenticate" else anybody(*given)

    callables: Any = {"authenticate": bearer, "authorize": anybody, which: ask}
    engine = database.engine()
    coordinator = database.coordinator(engine, drain_s=0, keep_alive_s=0.05)
    async with serving(coordinator, **callables) as site:
        client = await site.listen("user:ann")
        await client.named("subscribed")
        await say(engine, "user:ann", 1)
        assert await client.numbers(1) == [1]
        expired = True
        assert await client.named("closed") == {"reason": "forbidden"}
        assert await client.message() is None
    assert "raised" not in caplog.text


async def test_what_is_not_there_is_named_with_what_is(database: Database) -> None:
    async with serving(database.coordinator(drain_s=0)) as site:
        found = await (await site.get("/realtime/deeper/sse?stream=a")).problem()
        assert "'/realtime/deeper/sse'" in found["detail"]
        assert "'/realtime'" in found["detail"]
        assert "/sse?stream=NAME" in found["detail"]
