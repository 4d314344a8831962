"""Who may do what, and how a refusal reads."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from commitcast import ConnectionRequest
from commitcast.demo.auth import Gate
from commitcast.demo.database import Database

pytestmark = pytest.mark.anyio


def _problem(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    return body


async def test_the_cookie_opens_streams_and_nothing_else(demo: Any) -> None:
    ada = await demo.person("Ada")
    thread = await ada.make_thread("Space")
    bearer = ada.http.headers.pop("Authorization")
    async with ada.stream(f"thread:{thread}"):
        pass
    async with ada.stream(f"user:{ada.user_id}", user=ada.user_id):
        pass
    for path, body in (
        ("/api/threads", {"title": "Forged"}),
        (f"/api/threads/{thread}/messages", {"text": "Forged"}),
        ("/api/session", {}),
    ):
        _problem(await ada.http.post(path, json=body), 401)
    _problem(await ada.http.get(f"/api/threads/{thread}/messages"), 401)
    cookie = ada.http.cookies["commitcast_demo"]
    stolen = {"Authorization": f"Bearer {cookie}"}
    _problem(await ada.http.get("/api/threads", headers=stolen), 401)
    ada.http.headers["Authorization"] = bearer
    assert (await ada.http.post("/api/session")).status_code == 200


async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(demo: Any) -> None:
    answer = await demo.anyone().http.post("/api/login", json={"name": "Ada"})
    for cookie in answer.headers.get_list("set-cookie"):
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert "Path=/realtime" in cookie
        assert "Max-Age=900" in cookie


async def test_a_form_of_another_site_cannot_sign_in(demo: Any) -> None:
    answer = await demo.anyone().http.post(
        "/api/login", content='{"name": "Ada"}', headers={"Content-Type": "text/plain"}
    )
    _problem(answer, 415)


async def test_a_stranger_neither_reads_nor_writes(demo: Any) -> None:
    ada, eve = await demo.person("Ada"), await demo.person("Eve")
    thread = await ada.make_thread("Space", "Grace")
    _problem(await eve.http.get(f"/api/threads/{thread}/messages"), 404)
    _problem(await eve.http.get(f"/api/threads/{thread}/runs"), 404)
    _problem(await eve.http.post(f"/api/threads/{thread}/messages", json={"text": "hi"}), 404)
    for stream in (f"thread:{thread}", f"user:{ada.user_id}", "thread:nothing", "other:1"):
        answer = await eve.http.get("/realtime/sse", params={"stream": stream})
        assert answer.status_code == 403
    nobody = await demo.anyone().http.get("/realtime/sse", params={"stream": f"thread:{thread}"})
    assert nobody.status_code == 401
    assert (await eve.http.get("/api/threads")).json() == []


async def test_health_and_metrics_are_for_who_is_signed_in_or_on_this_machine(demo: Any) -> None:
    ada, nobody = await demo.person("Ada"), demo.anyone()
    thread = await ada.make_thread("Space")
    async with ada.stream(f"thread:{thread}") as stream:
        await ada.post(thread, "hi")
        await stream.until("message.created")
    report = (await nobody.http.get("/realtime/health")).json()
    assert report["by_pair"]["transaction_boundary"]["score"] == 100
    assert report["by_pair"]["database_socket"]["steps"] >= 1
    text = (await nobody.http.get("/realtime/metrics")).text
    assert "commitcast_coordination_steps_total" in text
    assert ada.user_id not in text + str(report)
    database = Database(demo.url)
    gate = Gate(database)
    headers = [(b"authorization", ada.http.headers["authorization"].encode())]
    elsewhere = {"client": ("203.0.113.7", 4711), "headers": []}
    assert not await gate.is_operator(ConnectionRequest(elsewhere))
    assert await gate.is_operator(ConnectionRequest({**elsewhere, "headers": headers}))
    await database.engine.dispose()


async def test_two_people_in_one_browser_keep_their_own_streams(demo: Any) -> None:
    browser = await demo.person("Ada")
    ada = browser.user_id
    await browser.login("Grace")
    grace = browser.user_id
    del browser.http.headers["Authorization"]
    for user in (ada, grace):
        async with browser.stream(f"user:{user}", user=user):
            pass
    answer = await browser.http.get(
        "/realtime/sse", params={"stream": f"user:{ada}", "user": grace}
    )
    assert answer.status_code == 403


async def test_tokens_are_stored_only_as_digests(demo: Any, database: Any) -> None:
    ada = await demo.person("Ada")
    token = ada.http.headers["Authorization"].removeprefix("Bearer ")
    async with database.engine().connect() as connection:
        rows = (await connection.execute(text("SELECT * FROM demo_tokens"))).all()
    assert rows
    assert token not in str(rows)
    assert ada.http.cookies["commitcast_demo"] not in str(rows)


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/api/login", {}, "#/name"),
        ("/api/login", {"name": "  "}, "#/name"),
        ("/api/login", {"name": "x" * 41}, "#/name"),
        ("/api/login", {"name": "Agent"}, "#/name"),
        ("/api/login", {"name": "a\u0000b"}, "#/name"),
        ("/api/login", ["Ada"], "#/"),
        ("/api/threads", {"title": ""}, "#/title"),
        ("/api/threads", {"title": "x" * 121}, "#/title"),
        ("/api/threads", {"title": "a\nb"}, "#/title"),
        ("/api/threads", {"title": "a\u2028b"}, "#/title"),
        ("/api/threads", {"title": "\u202egnihton"}, "#/title"),
        ("/api/threads", {"title": "\u200b\ufeff"}, "#/title"),
        ("/api/threads", {"title": "t", "members": ["\u0410da"]}, "#/members/0"),
        ("/api/threads", {"title": "t", "members": ["m"] * 21}, "#/members"),
        ("/api/threads", {"title": "t", "members": [7]}, "#/members/0"),
        ("/api/threads/{thread}/messages", {"text": " \n "}, "#/text"),
        ("/api/threads/{thread}/messages", {"text": "x" * 4001}, "#/text"),
        ("/api/threads/{thread}/messages", {"text": "a\u0000b"}, "#/text"),
        ("/api/threads/{thread}/messages", {"text": "a\u0085b"}, "#/text"),
        ("/api/threads/{thread}/messages", {"text": "\u200b \u2060"}, "#/text"),
    ],
)
async def test_bad_input_is_refused_with_its_place(
    demo: Any, path: str, body: Any, where: str
) -> None:
    ada = await demo.person("Ada")
    thread = await ada.make_thread("Space")
    problem = _problem(await ada.http.post(path.format(thread=thread), json=body), 422)
    assert problem["errors"][0]["pointer"] == where
    assert where in problem["detail"]


async def test_other_refusals_are_problems_too(demo: Any) -> None:
    ada = await demo.person("Ada")
    json_type = {"Content-Type": "application/json"}
    _problem(await ada.http.post("/api/login", content="{", headers=json_type), 422)
    _problem(await ada.http.post("/api/login", content=b'{"name": "\xff"}', headers=json_type), 422)
    _problem(await ada.http.post("/api/login", content=b" " * 70_000, headers=json_type), 413)
    _problem(await ada.http.get("/nothing"), 404)
    _problem(await ada.http.get("/api/login"), 405)
    for thread in ("x", "0" * 36, "%00"):
        _problem(await ada.http.post(f"/api/threads/{thread}/messages", json={"text": "hi"}), 404)


async def test_the_page_may_run_only_its_own_scripts(demo: Any) -> None:
    page = await demo.anyone().http.get("/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    for path in ("/static/app.js", "/nothing", "/api/threads", "/realtime/health"):
        headers = (await demo.anyone().http.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["content-security-policy"] == policy, path
