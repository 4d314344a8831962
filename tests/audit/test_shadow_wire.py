"""Which sends are seen, and that what leaves is what would have left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import warnings
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import socketio
from fastapi import Depends, FastAPI, WebSocket
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse as FastAPIEvents
from fastapi.sse import ServerSentEvent
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import StreamingResponse
from starlette.routing import Mount, Route

from commitcast.audit.message import Message, of_arguments, of_stream, tells_failure
from commitcast.audit.report import BreachKind
from commitcast.audit.shadow import Shadow

from .stage import Note, Stage, found, line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncSession
    from starlette.requests import Request

    from commitcast.health import CoordinationHealthMonitor

pytestmark = pytest.mark.anyio

BEFORE = BreachKind.SENT_BEFORE_COMMIT


@pytest.fixture
def database_kind() -> str:
    """What is seen of the wire does not depend on the database."""
    return "sqlite"


async def test_events_of_sse_starlette_are_seen_and_its_pings_are_not(
    stage: Stage, shadow: Shadow
) -> None:
    async def events() -> AsyncIterator[dict[str, str]]:
        yield {"comment": "hello"}
        async with stage.sessions.begin() as session:
            session.add(Note(text="a"))
            await session.flush()
            yield {"event": "note", "data": "a"}  # here: sse-starlette
        yield {"event": "note", "data": "b"}

    @stage.app.get("/events")
    async def stream() -> EventSourceResponse:
        return EventSourceResponse(events())

    async with stage.served() as client:
        assert (await client.get("/events")).text.count("event: note") == 2
    assert found(shadow) == {(BEFORE, line("sse-starlette")): 1}
    assert shadow.report().sends == 2


async def test_an_event_that_a_librarys_generator_passes_on_is_named_where_it_is_made(
    stage: Stage, shadow: Shadow
) -> None:
    library: dict[str, Any] = {}
    source = "async def passed_on(events):\n  async for event in events:\n    yield event"
    exec(compile(source, "/lib/site-packages/streams.py", "exec"), library)

    async def events() -> AsyncIterator[str]:
        async with stage.sessions.begin() as session:
            session.add(Note(text="a"))
            await session.flush()
            yield "data: a\n\n"  # here: passed on

    @stage.app.get("/events", response_model=None)
    async def stream() -> StreamingResponse:
        return StreamingResponse(library["passed_on"](events()), media_type="text/event-stream")

    async with stage.served() as client:
        assert (await client.get("/events")).text == "data: a\n\n"
    assert found(shadow) == {(BEFORE, line("passed on")): 1}


async def test_events_of_fastapi_are_seen_where_they_are_yielded(
    stage: Stage, shadow: Shadow
) -> None:
    @stage.app.get("/events", response_class=FastAPIEvents)
    async def events() -> AsyncIterator[ServerSentEvent]:
        async with stage.sessions.begin() as session:
            session.add(Note(text="a"))
            await session.flush()
            yield ServerSentEvent(event="note", data="a")  # here: fastapi
        yield ServerSentEvent(event="note", data="b")

    async with stage.served() as client:
        assert (await client.get("/events")).text.count("event: note") == 2
    assert found(shadow) == {(BEFORE, line("fastapi")): 1}
    assert shadow.report().sends == 2


async def test_a_middleware_that_runs_the_response_in_a_task_hides_nothing(
    stage: Stage, shadow: Shadow
) -> None:
    async def events() -> AsyncIterator[str]:
        async with stage.sessions.begin() as session:
            session.add(Note(text="a"))
            await session.flush()
            yield "event: note\ndata: a\n\n"  # here: behind middleware

    @stage.app.get("/events")
    async def stream() -> StreamingResponse:
        return StreamingResponse(events(), media_type="text/event-stream")

    async def passing(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    stage.app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    async with stage.served() as client:
        await client.get("/events")
    assert found(shadow) == {(BEFORE, line("behind middleware")): 1}
    assert shadow.report().sends == 1


async def test_an_app_in_an_app_is_judged_once(shadow: Shadow) -> None:
    async def stream(_request: Request) -> StreamingResponse:
        return StreamingResponse(iter(["data: a\n\n"]), media_type="text/event-stream")

    inner = Starlette(routes=[Route("/events", stream)])
    app = shadow.wrap(Starlette(routes=[Mount("/inner", inner)]))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/inner/events")).text == "data: a\n\n"
    assert shadow.report().sends == 1


async def test_lines_do_not_reach_out_of_the_request(stage: Stage, shadow: Shadow) -> None:
    async def session() -> AsyncIterator[AsyncSession]:
        async with stage.sessions.begin() as opened:
            opened.add(Note(text="a"))
            await opened.flush()
            yield opened

    @shadow.sends
    async def push(message: str) -> None:
        del message

    @stage.app.post("/notes")
    async def add(_session: Any = Depends(session)) -> None:
        await push("a")  # here: in the request

    # The app runs in this function's task, whose lines would be what both have in common.
    transport = httpx.ASGITransport(stage.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.post("/notes")).status_code == 200
    assert found(shadow) == {(BEFORE, line("in the request")): 1}


async def test_an_asgi_app_of_any_kind_can_be_wrapped(shadow: Shadow) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: a\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b": ping\n\n"})

    transport = httpx.ASGITransport(shadow.wrap(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/")).text == "data: a\n\n: ping\n\n"
    assert shadow.report().sends == 1


async def test_a_send_that_fails_is_not_one(shadow: Shadow) -> None:
    async def broken(_message: dict[str, str]) -> None:
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - the app's own, unchanged
        await shadow.sends(broken)({"type": "a"})
    assert shadow.report().sends == 0


def example() -> FastAPI:
    app = FastAPI()

    @app.get("/json")
    async def plain() -> JSONResponse:
        return JSONResponse({"a": 1}, 418)

    @app.get("/events")
    async def events() -> StreamingResponse:
        return StreamingResponse(
            iter(["data: {\n\n", ": c\n\n", "data: b\n\n"]), media_type="text/event-stream"
        )

    @app.get("/raises")
    async def raises() -> None:
        raise LookupError("of the app")

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("{not json")
        await websocket.send_bytes(b"\xff\x00")
        await websocket.send_json({"a": [1]}, mode="binary")
        await websocket.close(4000, "why")
        await websocket.send_text("too late")

    return app


async def test_what_leaves_and_what_is_raised_are_the_same_with_and_without(
    monitor: CoordinationHealthMonitor,
) -> None:
    app = example()

    async def run(scope: dict[str, Any], *received: dict[str, Any]) -> list[Any]:
        seen: list[Any] = []
        messages = iter(received)

        async def receive() -> dict[str, Any]:
            return next(messages)

        async def send(message: Any) -> None:
            seen.append(dict(message))

        base = {"headers": [], "query_string": b"", "asgi": {"version": "3.0"}}
        try:
            await app({**base, **scope}, receive, send)
        except Exception as error:  # noqa: BLE001 - whatever it raises is compared
            seen.append((type(error), str(error)))
        return seen

    async def everything() -> list[Any]:
        http = {"type": "http", "method": "GET", "scheme": "http", "http_version": "1.1"}
        request = {"type": "http.request", "body": b"", "more_body": False}
        return [
            *[
                await run({**http, "path": path}, request, {"type": "http.disconnect"})
                for path in ("/json", "/raises")
            ],
            await run(
                {**http, "path": "/events", "asgi": {"version": "3.0", "spec_version": "2.4"}},
                request,
            ),
            await run({"type": "websocket", "path": "/ws"}, {"type": "websocket.connect"}),
        ]

    without = await everything()
    broken: dict[str, Any] = dict.fromkeys(("is_notice", "ignore", "user_of", "judges"), _broken)
    for options in ({}, broken):
        with Shadow(monitor, **options):
            assert await everything() == without
    assert await everything() == without


def _broken(*_: object) -> Any:
    raise ZeroDivisionError("in a function given to the judge")


async def test_uninstalling_puts_everything_back(monitor: CoordinationHealthMonitor) -> None:
    import fastapi.routing
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session
    from starlette.websockets import WebSocket as Socket

    owners: list[Any] = [
        Starlette, Socket, StreamingResponse, EventSourceResponse, socketio.AsyncServer,
        socketio.Server, fastapi.routing,
    ]  # fmt: skip

    engine = create_engine("sqlite://")

    def state() -> list[Any]:
        listeners = [
            len(list(getattr(target.dispatch, name)))
            for target, name in ((engine, "commit"), (engine, "begin"), (Session(), "after_flush"))
        ]
        return [dict(vars(owner)) for owner in owners] + listeners

    before = state()
    shadow = Shadow(monitor)
    for _ in range(2):
        shadow.install()
        shadow.install()
        assert shadow.installed
        with pytest.raises(RuntimeError, match="another Shadow is installed"):
            Shadow().install()
        assert state() != before
        shadow.uninstall()
        shadow.uninstall()
        assert state() == before
    assert not shadow.installed


async def test_a_decorated_function_is_itself_without_a_judge(
    monitor: CoordinationHealthMonitor,
) -> None:
    shadow = Shadow(monitor)

    @shadow.sends
    async def push(n: int) -> int:
        return n + 1

    assert await push(1) == 2
    assert shadow.report().sends == 0
    assert inspect.unwrap(push).__name__ == "push"


async def test_what_is_replaced_still_looks_like_a_coroutine_function(
    stage: Stage, shadow: Shadow
) -> None:
    sent: list[str] = []

    @shadow.sends
    async def push(message: str) -> None:
        sent.append(message)

    @stage.app.websocket("/background")
    async def background(websocket: WebSocket) -> None:
        await websocket.accept()
        await BackgroundTask(websocket.send_json, {"type": "a"})()  # awaited, or run in a thread
        await BackgroundTask(push, "b")()

    async with stage.served(), stage.reader("", "/background") as reader:
        assert (await reader.next())["type"] == "a"
    assert sent == ["b"]
    assert inspect.iscoroutinefunction(push)
    assert inspect.iscoroutinefunction(socketio.AsyncServer.emit)
    assert list(inspect.signature(WebSocket.send_json).parameters) == ["self", "data", "mode"]
    assert shadow.report().sends == 2


async def test_a_send_that_is_never_begun_warns_as_it_did(shadow: Shadow) -> None:
    async def push(_message: str) -> None:
        pass

    watched = shadow.sends(push)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        task = asyncio.create_task(watched("a"))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        watched("b").close()
        gc.collect()
        assert seen == []
        watched("c")  # type: ignore[unused-coroutine]
        gc.collect()
    (warning,) = seen
    assert str(warning.message) == f"coroutine '{push.__qualname__}' was never awaited"


async def test_only_the_users_asked_for_are_judged(
    stage: Stage, monitor: CoordinationHealthMonitor
) -> None:
    shadow = Shadow(
        monitor,
        user_of=lambda scope: scope["path"].rpartition("/")[2],
        judges=lambda user: user == "ann",
        ignore=lambda message: message == {"type": "ping"},
    )

    @stage.app.websocket("/as/{user}")
    async def own(websocket: WebSocket, user: str) -> None:
        await websocket.accept()
        async with stage.sessions() as session:
            session.add(Note(text=user))
            await session.flush()
            await websocket.send_json({"type": "ping"})
            await websocket.send_json({"type": "note"})  # here: of ann
            with contextlib.suppress(Exception):
                await session.rollback()  # here: rollback of ann
        await websocket.receive_text()

    with shadow:
        async with stage.served():
            for user in ("ann", "bob"):
                async with stage.reader(user, "/as/") as reader:
                    await reader.next()
                    await reader.next()
                    await reader.say("end")
    shadow.finish()
    assert {(f.kind, f.site.line): f.count for f in shadow.report().findings} == {
        (BreachKind.SENT_FOR_ROLLED_BACK_WORK, line("of ann")): 1,
        (BreachKind.ROLLBACK_NOT_TOLD, line("rollback of ann")): 1,
    }
    assert shadow.report().sends == 1


@pytest.mark.parametrize(
    ("chunk", "types"),
    [
        (b": ping\n\n", []),
        (b"retry: 100\n\n", []),
        (b"id: 4\n\n", []),
        (b"data: hello\n\n", ["message"]),
        (b'data: {"type": "note.created"}\r\n\r\n', ["note.created"]),
        (b"event: a\r\ndata: b\r\ndata: c\r\n\r\n", ["a"]),
        (b'event: told\ndata: {"type": "b"}\n\n: c\n\ndata: {"event": "two"}\n\n', ["told", "two"]),
        (b'data: {"type": "what a user wrote"}\n\n', ["message"]),
    ],
)
async def test_a_chunk_is_its_events(chunk: bytes, types: list[str]) -> None:
    assert [message.event_type for message in of_stream(chunk)] == types


@pytest.mark.parametrize(
    ("value", "is_notice"),
    [
        ({"type": "error"}, True),
        ({"type": "run.failed"}, True),
        ({"event": "rolled_back"}, True),
        ({"error": "no"}, True),
        ({"error": None, "type": "note"}, False),
        ({"type": "note", "text": "an error"}, False),
        ("Error: no", True),
        ("no error", False),
        (b"\xff", False),
    ],
)
async def test_a_notice_is_told_by_its_keys(value: Any, is_notice: bool) -> None:
    assert tells_failure(value) is is_notice


async def test_the_message_of_a_call_is_its_record_or_its_last_text() -> None:
    assert of_arguments(("user:1", {"type": "a"})) == Message({"type": "a"}, "a")
    assert of_arguments(("user:1", '{"type": "b"}')) == Message({"type": "b"}, "b")
    assert of_arguments(("user:1", "hello", 3)) == Message("hello")
