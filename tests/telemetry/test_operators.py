"""`/health` and `/metrics` are for operators: nobody is one until the team says who."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from commitcast import ConnectionRequest, Coordinator, LayerPair

from .live import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from conftest import Database

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("path", ["/health", "/metrics"])]


def ops(request: ConnectionRequest) -> bool:
    return request.bearer == "ops"


@pytest.fixture
async def coordinator(anyio_backend: str) -> AsyncIterator[Coordinator]:
    """One that is not entered: the app answers nevertheless."""
    engine = create_async_engine("sqlite+aiosqlite://")
    made = Coordinator(engine)
    yield made
    made.detach()
    await engine.dispose()


async def get(
    coordinator: Coordinator,
    path: str,
    operators: Callable[[ConnectionRequest], Any] | None,
    method: str = "GET",
    bearer: str = "ops",
    **headers: str,
) -> httpx.Response:
    app: Any = coordinator.asgi(operators=operators)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        sent = {"Authorization": f"Bearer {bearer}", **headers}
        return await client.request(method, path, headers=sent)


def detail(response: httpx.Response, status: int) -> str:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = json.loads(response.content)
    assert problem["status"] == status
    return str(problem["detail"])


async def test_nobody_is_an_operator_unless_the_team_says_so(
    coordinator: Coordinator, path: str
) -> None:
    assert "operators=" in detail(await get(coordinator, path, None), 403)
    assert (await get(coordinator, path, None, "HEAD")).status_code == 403


@pytest.mark.parametrize("answer", [False, None, 1, "yes", "ops", object()])
async def test_only_true_is_a_yes(coordinator: Coordinator, path: str, answer: object) -> None:
    assert "operators" in detail(await get(coordinator, path, lambda _: answer), 403)


async def test_an_operator_reads_and_another_does_not(coordinator: Coordinator, path: str) -> None:
    async def later(request: ConnectionRequest) -> bool:
        return ops(request)

    for operators in (ops, later):
        assert (await get(coordinator, path, operators)).status_code == 200
        detail(await get(coordinator, path, operators, bearer="ann"), 403)
        detail(await get(coordinator, path, operators, "POST"), 405)


async def test_what_the_teams_function_raises_is_logged_and_not_told(
    coordinator: Coordinator, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(_request: ConnectionRequest) -> bool:
        raise RuntimeError("the password is hunter2")

    async def raises_later(request: ConnectionRequest) -> bool:
        return raises(request)

    for operators in (raises, raises_later):
        caplog.clear()
        response = await get(coordinator, path, operators)
        assert "logged" in detail(response, 500)
        assert "hunter2" not in response.text
        assert "operators raised" in caplog.text


async def test_health_says_what_the_monitor_knows_and_metrics_name_their_extra(
    coordinator: Coordinator, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator.health.track_coordination_event("x", LayerPair.ISOLATION, None)
    if path == "/health":
        response = await get(coordinator, path, ops)
        assert response.headers["content-type"] == "application/json"
        report = response.json()
        assert report["overall"] == 0
        assert report["by_pair"]["isolation"]["broken"] == 1
        assert report["node"]["running"] is False
        return
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "commitcast.metrics", raising=False)
    assert "commitcast[metrics]" in detail(await get(coordinator, path, ops), 501)


async def test_other_paths_say_what_there_is(coordinator: Coordinator, path: str) -> None:
    assert path in detail(await get(coordinator, "/nothing", ops), 404)


async def test_over_a_socket_a_head_has_the_length_and_no_body(
    database: Database, path: str
) -> None:
    async with serving(database.coordinator(drain_s=0), operators=lambda _: True) as client:
        head, whole = await client.head(path), await client.get(path)
    assert head.status_code == whole.status_code == 200
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert int(head.headers["content-length"]) > 0
    assert not head.content
    assert int(whole.headers["content-length"]) == len(whole.content)
