"""Who signed out is out: on the server, for every token of that sign-in, at once."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from commitcast.demo.connections import Connections

pytestmark = pytest.mark.anyio


async def _ended(stream: Any) -> None:
    with contextlib.suppress(httpx.TransportError, EOFError):
        async with asyncio.timeout(8):  # far below the keep-alive, at which it would end anyway
            while True:
                await stream.next()


async def test_g7_signing_out_ends_the_token_its_cookies_and_its_streams(
    demo: Any, database: Any
) -> None:
    ada = await demo.person("Ada")
    thread = await ada.make_thread("Space")
    assert (await ada.http.post("/api/session")).status_code == 200
    async with (
        ada.stream(f"thread:{thread}") as by_token,
        ada.stream(f"user:{ada.user_id}", user=ada.user_id) as own,
    ):
        assert (await ada.http.post("/api/logout")).status_code == 204
        await _ended(by_token)
        await _ended(own)
    bearer = ada.http.headers.pop("Authorization")
    for query in ({}, {"user": ada.user_id}):  # the cookies of both names are still sent
        wanted = {"stream": f"thread:{thread}", **query}
        assert (await ada.http.get("/realtime/sse", params=wanted)).status_code == 401
    ada.http.headers["Authorization"] = bearer
    for method, path in (("GET", "threads"), ("POST", "session"), ("POST", "logout")):
        assert (await ada.http.request(method, f"/api/{path}")).status_code == 401
    assert (await ada.http.get("/realtime/sse", params=wanted)).status_code == 401
    async with database.engine().connect() as connection:
        assert (await connection.scalar(text("SELECT count(*) FROM demo_tokens"))) == 0


async def test_another_sign_in_of_the_same_person_stays(demo: Any) -> None:
    here, there = await demo.person("Ada"), await demo.person("Ada")
    thread = await here.make_thread("Space")
    hearing = asyncio.create_task(there.hears(f"thread:{thread}", "message.created"))
    async with there.stream(f"user:{there.user_id}") as other:
        assert (await here.http.post("/api/logout")).status_code == 204
        await _ended(other)  # cut with all of the person's, to come back
    async with there.stream(f"user:{there.user_id}"):
        assert (await there.post(thread, "still here")).status_code == 202
    assert (await hearing)[-1]["data"]["text"] == "still here"


async def test_the_cookie_alone_signs_nobody_out(demo: Any) -> None:
    ada = await demo.person("Ada")
    bearer = ada.http.headers.pop("Authorization")
    assert (await ada.http.post("/api/logout")).status_code == 401
    ada.http.headers["Authorization"] = bearer
    assert (await ada.http.get("/api/threads")).status_code == 200


async def test_who_signs_out_while_a_stream_is_being_opened_is_not_let_in() -> None:
    connections, answers = Connections(), iter(["ada", None])

    async def authenticate(_request: Any) -> str | None:
        return next(answers)  # good when first asked; signed out before the task could be found

    class Request:
        scope: dict[str, Any]

    request = Request()
    served: list[str | None] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        request.scope = scope
        served.append(await connections.noting(authenticate)(request))  # type: ignore[arg-type]

    await connections.serving(app)({}, None, None)  # type: ignore[arg-type]
    assert served == [None]
