"""The WebSocket endpoint of docs/guide.md, on a real server with a published client."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
import websockets
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from websockets.asyncio.client import connect

from commitcast import SubscriptionClosed
from serving import served

from .live import PATIENCE_S, say, until

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

    from commitcast import Coordinator
    from conftest import Database

pytestmark = pytest.mark.anyio


def application(coordinator: Coordinator) -> Starlette:
    async def live(websocket: WebSocket) -> None:
        await websocket.accept()
        async with coordinator.subscribe(websocket.path_params["stream"]) as subscription:

            async def until_left() -> None:
                while (await websocket.receive())["type"] != "websocket.disconnect":
                    pass
                subscription.close("the client left")

            leaving = asyncio.create_task(until_left())
            try:
                async for event in subscription:
                    await websocket.send_text(event.frame)
            except SubscriptionClosed as closed:
                if not leaving.done():
                    await websocket.close(1012, str(closed.position))
            finally:
                leaving.cancel()

    return Starlette(routes=[WebSocketRoute("/live/{stream}", live)], lifespan=coordinator.lifespan)


async def test_a_drain_ends_a_websocket_with_a_code_and_its_position_and_no_traceback(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, drain_s=0)
    async with (
        served(application(coordinator)) as server,
        asyncio.timeout(PATIENCE_S),
        connect(f"ws://127.0.0.1:{server.port}/live/thread:7") as client,
    ):
        await until(lambda: coordinator.counts()["subscriptions"] == 1)
        await say(engine, "thread:7", 1)
        frame: dict[str, Any] = json.loads(await client.recv())
        assert frame["data"] == {"n": 1}
        coordinator.begin_drain()
        with pytest.raises(websockets.ConnectionClosed):
            await client.recv()
        assert client.close_code == 1012
        assert client.close_reason == f"{frame['epoch']}:{frame['offset']}"
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("politely", [True, False])
async def test_a_websocket_client_that_left_is_noticed_without_another_event(
    database: Database, caplog: pytest.LogCaptureFixture, politely: bool
) -> None:
    coordinator = database.coordinator(drain_s=0)
    async with served(application(coordinator)) as server, asyncio.timeout(PATIENCE_S):
        client = await connect(f"ws://127.0.0.1:{server.port}/live/thread:7")
        await until(lambda: coordinator.counts()["subscriptions"] == 1)
        if politely:
            await client.close()
        else:
            client.transport.abort()
        await until(lambda: coordinator.counts()["subscriptions"] == 0)
        with contextlib.suppress(websockets.ConnectionClosed):
            await client.close()
    assert not [record for record in caplog.records if record.exc_info]
