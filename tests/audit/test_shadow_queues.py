"""What one task puts into a queue and another sends, as in most SSE endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from fastapi import WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy import insert
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.endpoints import WebSocketEndpoint
from starlette.routing import WebSocketRoute

from commitcast.audit import queues
from commitcast.audit.report import BreachKind
from commitcast.score import LayerPair

from .stage import PATIENCE_S, Note, Run, found, line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    import httpx
    from starlette.responses import Response

    from commitcast.audit.shadow import Shadow

    from .stage import Stage

pytestmark = pytest.mark.anyio

BEFORE = BreachKind.SENT_BEFORE_COMMIT
ROLLED_BACK = BreachKind.SENT_FOR_ROLLED_BACK_WORK
UNTOLD = BreachKind.ROLLBACK_NOT_TOLD

on_sqlite = pytest.mark.parametrize("database_kind", ["sqlite"])


def sse(body: AsyncIterator[str] | Iterator[str]) -> Response:
    return StreamingResponse(body, media_type="text/event-stream")


class Broker:
    """A queue for each client of the SSE endpoint /events."""

    def __init__(self, stage: Stage, respond: Callable[[asyncio.Queue[Any]], Response]) -> None:
        self._queues: list[asyncio.Queue[Any]] = []
        self._stage = stage
        self.read = asyncio.Event()
        """A client has got something."""

        @stage.app.get("/events", response_model=None)
        async def events() -> Response:
            mine: asyncio.Queue[Any] = asyncio.Queue()
            self._queues.append(mine)
            return respond(mine)

    async def publish(self, message: Any) -> None:
        for each in self._queues:
            await each.put(message)

    async def was_read(self) -> None:
        await asyncio.wait_for(self.read.wait(), PATIENCE_S)
        self.read.clear()

    @contextlib.asynccontextmanager
    async def client(self, http: httpx.AsyncClient) -> AsyncIterator[asyncio.Queue[str]]:
        """One that reads from /events; yields the data it gets."""
        got: asyncio.Queue[str] = asyncio.Queue()
        async with http.stream("GET", "/events") as response:

            async def reading() -> None:
                async for text in response.aiter_lines():
                    if text.startswith("data:"):
                        got.put_nowait(text.removeprefix("data:").strip())
                        self.read.set()

            task = asyncio.create_task(reading())
            try:
                yield got
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


async def plain(mine: asyncio.Queue[Any]) -> AsyncIterator[str]:
    while (message := await mine.get()) is not None:
        yield f"data: {json.dumps(message)}\n\n"


async def with_heartbeat(mine: asyncio.Queue[Any]) -> AsyncIterator[str]:
    while True:
        try:
            message = await asyncio.wait_for(mine.get(), PATIENCE_S)
        except TimeoutError:
            yield ": ping\n\n"
            continue
        if message is None:
            return
        yield f"event: note\ndata: {json.dumps(message)}\n\n"


async def in_two(mine: asyncio.Queue[Any]) -> AsyncIterator[str]:
    async def messages() -> AsyncIterator[Any]:
        while (message := await mine.get()) is not None:
            yield message

    async for message in messages():
        yield f"data: {json.dumps(message)}\n\n"


async def gated(mine: asyncio.Queue[Any], gate: asyncio.Event) -> AsyncIterator[str]:
    while True:
        message = await mine.get()
        await gate.wait()
        yield f"data: {json.dumps(message)}\n\n"


async def rendered_before(mine: asyncio.Queue[Any]) -> AsyncIterator[str]:
    async for chunk in in_two(mine):
        yield chunk


async def ready(mine: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    while (event := await mine.get()) is not None:
        yield event


def in_threads(mine: asyncio.Queue[Any], loop: asyncio.AbstractEventLoop) -> Iterator[str]:
    while (message := asyncio.run_coroutine_threadsafe(mine.get(), loop).result()) is not None:
        yield f"data: {json.dumps(message)}\n\n"


@dataclass
class Said:
    text: str


RESPONSES: dict[str, tuple[Callable[[asyncio.Queue[Any]], Response], Callable[[str], Any]]] = {
    "a record": (lambda mine: sse(plain(mine)), lambda text: {"type": "said", "text": text}),
    "with a heartbeat": (lambda mine: sse(with_heartbeat(mine)), lambda text: {"text": text}),
    "two generators": (lambda mine: sse(in_two(mine)), lambda text: [text]),
    "three generators": (lambda mine: sse(rendered_before(mine)), lambda text: {"text": text}),
    "an event as text": (
        lambda mine: sse(ready(mine)),
        lambda text: f'data: {{"t": "{text}"}}\n\n',
    ),
    "sse-starlette": (
        lambda mine: EventSourceResponse(ready(mine)),
        lambda text: ServerSentEvent(data=json.dumps({"text": text})),
    ),
    "threads": (
        lambda mine: sse(in_threads(mine, asyncio.get_running_loop())),
        lambda text: {"text": text},
    ),
}
of_each_kind = pytest.mark.parametrize(("respond", "message"), RESPONSES.values(), ids=RESPONSES)


@of_each_kind
@on_sqlite
async def test_put_before_the_commit_is_named_where_it_is_put(
    stage: Stage, shadow: Shadow, respond: Any, message: Callable[[str], Any]
) -> None:
    broker = Broker(stage, respond)

    @stage.app.post("/notes")
    async def add() -> None:
        async with stage.sessions.begin() as session:
            session.add(Note(text="a"))
            await session.flush()
            await broker.publish(message("a"))  # here: early
            await broker.was_read()

    async with stage.served() as http, broker.client(http) as got:
        assert (await http.post("/notes")).status_code == 200
        assert "a" in await got.get()
        await broker.publish(None)
    assert found(shadow) == {(BEFORE, line("early")): 1}


@of_each_kind
@on_sqlite
async def test_put_after_the_commit_is_in_step_and_timed_once(
    stage: Stage, shadow: Shadow, respond: Any, message: Callable[[str], Any]
) -> None:
    broker = Broker(stage, respond)

    @stage.app.post("/notes")
    async def add(text: str) -> None:
        async with stage.sessions.begin() as session:
            session.add(Note(text=text))
        await broker.publish(message(text))

    async with stage.served() as http, broker.client(http) as one, broker.client(http) as two:
        for text in ("a", "b"):
            assert (await http.post("/notes", params={"text": text})).status_code == 200
            assert text in await one.get()
            assert text in await two.get()
        await broker.publish(None)
    assert found(shadow) == {}
    assert shadow.report().score.overall == 100
    assert shadow.report().sends == 4
    timed = shadow.report().score.counts[LayerPair.DATABASE_SOCKET]
    assert timed.steps == 2


async def test_what_was_put_for_work_that_rolled_back_is_found_however_late_it_leaves(
    stage: Stage, shadow: Shadow
) -> None:
    gate = asyncio.Event()
    broker = Broker(stage, lambda mine: sse(gated(mine, gate)))

    @stage.app.post("/notes")
    async def add() -> None:
        async with stage.sessions.begin() as session:
            session.add(Note(text="a"))
            await session.flush()
            await broker.publish({"type": "said", "text": "a"})  # here: phantom
            raise ValueError

    async with stage.served() as http, broker.client(http) as got:
        assert (await http.post("/notes")).status_code == 500
        gate.set()
        assert "a" in await got.get()
    assert found(shadow) == {(ROLLED_BACK, line("phantom")): 1}


async def test_what_a_savepoint_took_back_is_found(stage: Stage, shadow: Shadow) -> None:
    broker = Broker(stage, lambda mine: sse(plain(mine)))

    @stage.app.post("/notes")
    async def add() -> None:
        async with stage.sessions.begin() as session:
            session.add(Note(text="kept"))
            await session.flush()
            with contextlib.suppress(ValueError):
                async with session.begin_nested():
                    session.add(Note(text="a"))
                    await session.flush()
                    await broker.publish({"type": "said", "text": "a"})  # here: in savepoint
                    await broker.was_read()
                    raise ValueError

    async with stage.served() as http, broker.client(http):
        assert (await http.post("/notes")).status_code == 200
    assert found(shadow)[ROLLED_BACK, line("in savepoint")] == 1


async def test_each_of_several_clients_counts(stage: Stage, shadow: Shadow) -> None:
    broker = Broker(stage, lambda mine: sse(plain(mine)))

    @stage.app.post("/notes")
    async def add() -> None:
        async with stage.sessions.begin() as session:
            session.add(Note(text="a"))  # not flushed yet
            await broker.publish({"type": "said"})  # here: to three
            await broker.was_read()
            await asyncio.wait_for(asyncio.gather(*(c.get() for c in clients)), PATIENCE_S)

    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(stage.served())
        clients = [await stack.enter_async_context(broker.client(http)) for _ in range(3)]
        assert (await http.post("/notes")).status_code == 200
    assert found(shadow) == {(BEFORE, line("to three")): 3}
    assert shadow.report().sends == 3


class Sockets:
    """A WebSocket at /queued that a task of its own sends to."""

    def __init__(self, stage: Stage, send: Callable[[WebSocket, Any], Any]) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()

        @stage.app.websocket("/queued/{user}")
        async def queued(websocket: WebSocket, user: str) -> None:
            del user
            await websocket.accept()

            async def sender() -> None:
                while True:
                    await send(websocket, await self.queue.get())

            task = asyncio.create_task(sender())
            with contextlib.suppress(WebSocketDisconnect):
                while True:
                    await websocket.receive_text()
            task.cancel()


@pytest.mark.parametrize(
    "send",
    [
        lambda websocket, said: websocket.send_json(said),
        lambda websocket, said: websocket.send_text(json.dumps(said)),
        lambda websocket, said: asyncio.create_task(websocket.send_text(json.dumps(said))),
    ],
    ids=["send_json", "send_text", "a task of its own"],
)
@on_sqlite
async def test_a_sender_task_of_a_websocket(stage: Stage, shadow: Shadow, send: Any) -> None:
    sockets = Sockets(stage, send)
    read = asyncio.Event()

    @stage.app.post("/notes")
    async def add() -> None:
        async with stage.sessions() as session:
            session.add(Note(text="a"))
            await session.flush()
            sockets.queue.put_nowait({"type": "said", "text": "a"})  # here: to a sender
            await asyncio.wait_for(read.wait(), PATIENCE_S)
            await session.commit()
        sockets.queue.put_nowait({"type": "saved", "text": "a"})

    async with stage.served() as http, stage.reader("ann", "/queued/") as reader:
        adding = asyncio.create_task(http.post("/notes"))
        assert (await reader.next())["type"] == "said"
        read.set()
        assert (await adding).status_code == 200
        assert (await reader.next())["type"] == "saved"
    assert found(shadow) == {(BEFORE, line("to a sender")): 1}


@on_sqlite
async def test_a_memory_stream_of_anyio(stage: Stage, shadow: Shadow) -> None:
    into, out = anyio.create_memory_object_stream[Any](8)

    async def messages() -> AsyncIterator[str]:
        async for message in out:
            yield f"data: {json.dumps(message)}\n\n"

    broker = Broker(stage, lambda _mine: sse(messages()))

    @stage.app.post("/notes")
    async def add() -> None:
        async with stage.sessions.begin() as session:
            session.add(Note(text="a"))
            await session.flush()
            await into.send({"type": "said"})  # here: into a stream
            await broker.was_read()

    async with stage.served() as http, broker.client(http):
        assert (await http.post("/notes")).status_code == 200
    into.close()
    out.close()
    assert found(shadow) == {(BEFORE, line("into a stream")): 1}


@on_sqlite
async def test_a_function_in_a_thread(stage: Stage, shadow: Shadow) -> None:
    loop = asyncio.get_running_loop()
    sessions = stage.sync_sessions()
    ours: queue.Queue[Any] = queue.Queue()
    mine: list[asyncio.Queue[Any]] = []

    def respond(its: asyncio.Queue[Any]) -> Response:
        mine.append(its)
        return sse(plain(its))

    def blocking() -> Iterator[str]:
        while (message := ours.get()) is not None:
            yield f"data: {json.dumps(message)}\n\n"

    broker = Broker(stage, respond)
    threads_read: queue.Queue[None] = queue.Queue()

    @stage.app.get("/blocking", response_model=None)
    async def read() -> Response:
        return sse(blocking())

    @stage.app.post("/notes")
    def add() -> None:
        with sessions.begin() as session:
            session.add(Note(text="a"))
            session.flush()  # here: changed in a thread
            ours.put({"type": "said"})  # here: a thread's queue
            loop.call_soon_threadsafe(mine[0].put_nowait, {"type": "said"})
            threads_read.get(timeout=PATIENCE_S)
            threads_read.get(timeout=PATIENCE_S)

    async with (
        stage.served() as http,
        broker.client(http) as one,
        http.stream("GET", "/blocking") as two,
    ):
        adding = asyncio.create_task(http.post("/notes"))
        await one.get()
        threads_read.put(None)
        async for text in two.aiter_lines():
            if text.startswith("data:"):
                break
        threads_read.put(None)
        assert (await adding).status_code == 200
        ours.put(None)
    assert found(shadow) == {
        (BEFORE, line("a thread's queue")): 1,
        (BEFORE, line("changed in a thread")): 1,
    }


# --- what is not accused ----------------------------------------------------------------------


async def test_what_leaves_after_a_commit_is_in_step_though_it_was_put_before(
    stage: Stage, shadow: Shadow
) -> None:
    """Nothing tells of a plain connection's COMMIT but the next look, which is the send's."""
    gate = asyncio.Event()
    broker = Broker(stage, lambda mine: sse(gated(mine, gate)))

    @stage.app.post("/notes")
    async def add() -> None:
        async with stage.engine.connect() as conn:
            await conn.execute(insert(Note).values(text="a"))
            await broker.publish({"type": "said"})
            await conn.commit()
            gate.set()
            await broker.was_read()

    async with stage.served() as http, broker.client(http):
        assert (await http.post("/notes")).status_code == 200
    assert found(shadow) == {}
    assert shadow.report().sends == 1


@on_sqlite
async def test_a_signal_is_not_a_message(stage: Stage, shadow: Shadow) -> None:
    """Readers that are woken up read rows themselves; what wakes them says nothing."""

    async def reading(mine: asyncio.Queue[Any]) -> AsyncIterator[str]:
        while True:
            signal = await mine.get()
            assert signal in {None, True, 7, 1.5, (), "look"}
            yield f"data: {json.dumps({'rows': ['old']})}\n\n"

    broker = Broker(stage, lambda mine: sse(reading(mine)))

    @stage.app.post("/notes")
    async def add() -> None:
        async with stage.sessions.begin() as session:
            session.add(Note(text="a"))
            await session.flush()
            for signal in (None, True, 7, 1.5, (), "look"):
                await broker.publish(signal)
                await broker.was_read()

    async with stage.served() as http, broker.client(http):
        assert (await http.post("/notes")).status_code == 200
    assert found(shadow) == {}
    assert shadow.report().sends == 6


@on_sqlite
async def test_a_neighbour_is_not_held_against_who_sends_something_else(
    stage: Stage, shadow: Shadow
) -> None:
    sockets = Sockets(stage, lambda websocket, said: websocket.send_json(said))
    gate, sent = asyncio.Event(), asyncio.Event()

    @stage.app.post("/slow")
    async def slow() -> None:
        async with stage.sessions.begin() as session:
            session.add(Run(status="slow"))
            await session.flush()
            gate.set()
            await asyncio.wait_for(sent.wait(), PATIENCE_S)

    async with stage.served() as http, stage.reader("ann", "/queued/") as reader:
        posting = asyncio.create_task(http.post("/slow"))
        await gate.wait()
        sockets.queue.put_nowait({"type": "tick"})  # by nobody who has changed anything
        assert (await reader.next())["type"] == "tick"
        sent.set()
        assert (await posting).status_code == 200
    assert found(shadow) == {}


@on_sqlite
async def test_an_object_that_is_put_again_after_the_commit_is_in_step(
    stage: Stage, shadow: Shadow
) -> None:
    sockets = Sockets(stage, lambda websocket, said: websocket.send_json(said))
    said = {"type": "said"}

    @stage.app.post("/notes")
    async def add() -> None:
        never: asyncio.Queue[Any] = asyncio.Queue()
        async with stage.sessions() as session:
            session.add(Note(text="a"))
            await session.flush()
            never.put_nowait(said)
            await session.rollback()
            session.add(Note(text="a"))
            await session.commit()
        sockets.queue.put_nowait(said)

    async with stage.served() as http, stage.reader("ann", "/queued/") as reader:
        assert (await http.post("/notes")).status_code == 200
        assert (await reader.next())["type"] == "said"
    assert found(shadow) == {}


@on_sqlite
async def test_an_object_that_is_put_again_by_who_changes_nothing_is_in_step(
    stage: Stage, shadow: Shadow
) -> None:
    sockets = Sockets(stage, lambda websocket, said: websocket.send_json(said))
    said = {"type": "said"}

    @stage.app.post("/notes")
    async def add() -> None:
        async with stage.sessions() as session:
            session.add(Note(text="a"))
            await session.flush()
            asyncio.Queue[Any]().put_nowait(said)
            raise ValueError

    @stage.app.post("/say")
    async def say() -> None:
        sockets.queue.put_nowait(said)

    async with stage.served() as http, stage.reader("ann", "/queued/") as reader:
        assert (await http.post("/notes")).status_code == 500
        assert (await http.post("/say")).status_code == 200
        assert (await reader.next())["type"] == "said"
    assert found(shadow) == {}


@on_sqlite
async def test_who_puts_something_may_send_something_else(stage: Stage, shadow: Shadow) -> None:
    """It has what it puts in a variable as well; that the other is no notice is not to the point."""
    jobs: asyncio.Queue[Any] = asyncio.Queue()

    class Work(WebSocketEndpoint):  # which has it in a variable as well
        encoding = "json"

        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            async with stage.sessions() as session:
                session.add(Note(text=data["text"]))
                await session.flush()
                jobs.put_nowait(data)
                await session.rollback()
            await websocket.send_json({"type": "error"})
            await websocket.send_json({"type": "busy"})

    stage.app.router.routes.append(WebSocketRoute("/work", Work))
    async with stage.served(), stage.reader("", "/work") as reader:
        await reader.say('{"text": "a"}')
        assert [(await reader.next())["type"] for _ in range(2)] == ["error", "busy"]
    assert found(shadow) == {}
    assert shadow.report().sends == 2


# --- telling of rollbacks ---------------------------------------------------------------------


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("shown", [True, False])
async def test_a_notice_may_go_through_the_queue(
    stage: Stage, shadow: Shadow, *, told: bool, shown: bool
) -> None:
    broker = Broker(stage, lambda mine: sse(plain(mine)))

    @stage.app.post("/notes")
    async def add() -> dict[str, bool]:
        async with stage.sessions() as session:
            session.add(Note(text="a"))
            await session.flush()
            if shown:
                await broker.publish({"type": "said"})  # here: shown
                await broker.was_read()
            await session.rollback()  # here: back
        if told:
            await broker.publish({"type": "error", "message": "not saved"})
        return {}

    async with stage.served() as http, broker.client(http) as got:
        assert (await http.post("/notes")).status_code == 200
        for _ in range(told + shown):
            await asyncio.wait_for(got.get(), PATIENCE_S)
    expected = {(ROLLED_BACK, line("shown")): 1} if shown else {}
    if not told:
        expected[UNTOLD, line("back")] = 1
    assert found(shadow) == expected


class Failure(BaseModel):
    type: str = "error"
    data: dict[str, int] = {"note": 1}


@pytest.mark.parametrize(
    "notice",
    [{"type": "error"}, '{"type": "error"}', Failure(), ServerSentEvent(data='{"type": "error"}')],
    ids=["a record", "text", "a model with data", "an event with data"],
)
@on_sqlite
async def test_a_notice_is_known_in_whatever_is_put(
    stage: Stage, shadow: Shadow, notice: Any
) -> None:
    mine: asyncio.Queue[Any] = asyncio.Queue()

    @stage.app.post("/notes")
    async def add() -> dict[str, bool]:
        async with stage.sessions() as session:
            session.add(Note(text="a"))
            await session.flush()
            await session.rollback()
        mine.put_nowait(notice)
        return {}

    async with stage.served() as http:
        assert (await http.post("/notes")).status_code == 200
    assert found(shadow) == {}
    assert shadow.report().rollbacks == 1


@on_sqlite
async def test_a_notice_that_nobody_takes_out_of_the_queue_tells_nobody(
    stage: Stage, shadow: Shadow
) -> None:
    broker = Broker(stage, lambda mine: sse(plain(mine)))
    unread: asyncio.Queue[Any] = asyncio.Queue()

    @stage.app.post("/notes")
    async def add() -> dict[str, bool]:
        async with stage.sessions() as session:
            session.add(Note(text="a"))
            await session.flush()
            await broker.publish({"type": "said"})  # here: seen
            await broker.was_read()
            await session.rollback()  # here: taken back
        unread.put_nowait({"type": "error"})
        return {}

    async with stage.served() as http, broker.client(http):
        assert (await http.post("/notes")).status_code == 200
        shadow.finish()  # while the client is there
    assert found(shadow) == {(ROLLED_BACK, line("seen")): 1, (UNTOLD, line("taken back")): 1}


@on_sqlite
async def test_who_was_shown_something_is_not_told_by_the_answer_to_another(
    stage: Stage, shadow: Shadow
) -> None:
    broker = Broker(stage, lambda mine: sse(plain(mine)))

    @stage.app.post("/notes")
    async def add() -> None:
        async with stage.sessions() as session:
            session.add(Note(text="a"))
            await session.flush()
            await broker.publish({"type": "said"})  # here: others saw
            await broker.was_read()
            raise ValueError  # here: told to one

    async with stage.served() as http, broker.client(http):
        assert (await http.post("/notes")).status_code == 500
        shadow.finish()
    kinds = {(finding.kind, finding.count) for finding in shadow.report().findings}
    assert kinds == {(ROLLED_BACK, 1), (UNTOLD, 1)}


# --- bounds -----------------------------------------------------------------------------------


@on_sqlite
async def test_what_is_kept_of_queues_is_bounded(stage: Stage, shadow: Shadow) -> None:
    kept = shadow._judge.queues
    mine: asyncio.Queue[Any] = asyncio.Queue()
    async with stage.sessions.begin() as session:
        session.add(Note(text="a"))
        await session.flush()
        for n in range(5 * queues.MOST_HANDED):
            mine.put_nowait({"n": n})
        assert 0 < len(kept) <= queues.MOST_HANDED
    shadow.finish()
    assert len(kept) == 0
    assert shadow.report().findings == ()


@on_sqlite
async def test_what_libraries_put_is_not_kept_and_one_object_is_held_once(
    stage: Stage, shadow: Shadow
) -> None:
    kept = shadow._judge.queues
    library: dict[str, Any] = {}
    source = "def put(queue, item): queue.put_nowait(item)"
    exec(compile(source, "/lib/site-packages/pool.py", "exec"), library)
    async with stage.sessions.begin() as session:
        session.add(Note(text="a"))
        await session.flush()
        library["put"](asyncio.Queue(), {"job": 1})
        assert len(kept) == 0
        said = {"type": "said"}
        for _ in range(3):
            asyncio.Queue[Any]().put_nowait(said)
        (work,) = shadow._judge.transactions._live
        assert len(work.holding.sends) == 1
