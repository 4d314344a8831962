"""Patterns of public code, in words of our own: what a careful reader says of each is what is found.

Where each comes from stands above it. Names of stored files are those of October 2026.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
import socketio
from fastapi import BackgroundTasks, Depends, WebSocket, WebSocketDisconnect
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from sqlalchemy import event, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session
from sse_starlette.sse import EventSourceResponse
from starlette.middleware.base import BaseHTTPMiddleware
from websockets.exceptions import ConnectionClosedError

from commitcast.audit.report import BreachKind
from commitcast.audit.shadow import Shadow

from .stage import PATIENCE_S, Note, Run, Stage, found, line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from .stage import Reader

pytestmark = pytest.mark.anyio

BEFORE = BreachKind.SENT_BEFORE_COMMIT
ROLLED_BACK = BreachKind.SENT_FOR_ROLLED_BACK_WORK
UNTOLD = BreachKind.ROLLBACK_NOT_TOLD

on_sqlite = pytest.mark.parametrize("database_kind", ["sqlite"])

SOCKETIO: Final = "/socket.io/?EIO=4&transport=websocket"


def assert_right(shadow: Shadow, sends: int) -> None:
    assert found(shadow) == {}
    report = shadow.report()
    assert report.score.overall in {100, None}
    assert report.sends == sends


async def joined(client: Reader, namespace: str = "") -> None:
    assert (await client.text()).startswith("0")
    await client.say(f"40{namespace}")
    assert (await client.text()).startswith(f"40{namespace}")


# --- chats ------------------------------------------------------------------------------------


# notarious2/fastapi-chat, src/websocket/handlers.py: one session for a connection, which each handler
# commits; what failed is answered with an error.
async def test_fastapi_chat_commits_reads_again_and_broadcasts(
    stage: Stage, shadow: Shadow
) -> None:
    async def get_session() -> AsyncIterator[AsyncSession]:
        async with stage.sessions() as session:
            yield session

    @stage.app.websocket("/chat")
    async def chat(websocket: WebSocket, db: AsyncSession = Depends(get_session)) -> None:
        await stage.hub.connect(websocket)
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                note = Note(text=await websocket.receive_text())
                try:
                    db.add(Run(status="updated"))
                    await db.flush()
                    db.add(note)
                    await db.commit()
                    await db.refresh(note)
                except SQLAlchemyError:
                    await db.rollback()
                    await websocket.send_json({"status": "error", "message": "Not added"})
                    continue
                await stage.hub.broadcast({"type": "new", "id": note.id})
        stage.hub.disconnect(websocket)

    async with stage.served(), stage.reader("", "/chat") as one, stage.reader() as two:
        await one.say("a")
        assert (await one.next())["type"] == (await two.next())["type"] == "new"
        await one.say("a")
        assert (await one.next())["status"] == "error"
    assert_right(shadow, sends=3)
    assert shadow.report().rollbacks == 1


# vstorm's full-stack-fastapi-nextjs-llm-template, backend/app/api/routes/v1/agent.py: the conversation is told
# of inside the session that commits when it is left; that this failed is only logged.
async def test_the_llm_template_tells_of_a_conversation_before_its_commit(
    stage: Stage, shadow: Shadow
) -> None:
    @contextlib.asynccontextmanager
    async def get_db_context() -> AsyncIterator[AsyncSession]:
        async with stage.sessions() as session:
            try:
                yield session
                await session.commit()
            except Exception:
                await session.rollback()
                raise

    async def send_event(websocket: WebSocket, event_type: str, data: Any) -> None:
        await websocket.send_json({"type": event_type, "data": data})

    @stage.app.websocket("/agent")
    async def agent(websocket: WebSocket) -> None:
        await websocket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                text = await websocket.receive_text()
                with contextlib.suppress(SQLAlchemyError):
                    async with get_db_context() as db:
                        run = Run(status="conversation")
                        db.add(run)
                        await db.flush()
                        await send_event(websocket, "conversation_created", run.id)  # here: created
                        db.add(Note(text=text))
                        await db.flush()  # here: refused
                await send_event(websocket, "user_prompt", text)
                await send_event(websocket, "text_delta", "…")

    async with stage.served(), stage.reader("", "/agent") as client:
        for _ in range(2):  # the second fails, on the same text
            await client.say("a")
            assert [(await client.next())["type"] for _ in range(3)] == [
                "conversation_created", "user_prompt", "text_delta",
            ]  # fmt: skip
    assert found(shadow) == {
        (BEFORE, line("created")): 1,
        (ROLLED_BACK, line("created")): 1,
        (UNTOLD, line("refused")): 1,
    }
    assert shadow.report().sends == 6


# A scheduler's job in a public assistant: objects are marked as notified, told of, and committed together.
@on_sqlite
async def test_a_scheduled_job_that_tells_of_each_row_before_one_commit_is_found(
    stage: Stage, shadow: Shadow
) -> None:
    async def remind() -> None:
        async with stage.sessions() as db:
            due = (await db.scalars(select(Run).where(Run.status == "due"))).all()
            for run in due:
                run.status = "notified"
                await stage.hub.broadcast({"type": "proactive"})  # here: reminder
            if due:
                await db.commit()

    async with stage.sessions.begin() as db:
        db.add_all([Run(status="due"), Run(status="due")])
    async with stage.served(), stage.reader() as reader:
        for _ in range(2):
            await asyncio.create_task(remind())
        await reader.next()
        await reader.next()
    assert found(shadow) == {(BEFORE, line("reminder")): 2}


# --- dependencies, threads ----------------------------------------------------------------------


# FastAPI's docs, "Dependencies with yield": since 0.118 the code after the yield runs after the response and its
# background tasks. A commit there is too late for what they send, and its failure for who was answered.
@pytest.mark.parametrize("kind", ["async", "threads"])
async def test_a_dependency_that_commits_after_the_background_tasks_is_found(
    stage: Stage, shadow: Shadow, kind: str
) -> None:
    sync = stage.sync_sessions()
    loop = asyncio.get_running_loop()
    over: asyncio.Queue[None] = asyncio.Queue()

    async def get_db() -> AsyncIterator[AsyncSession]:
        try:
            async with stage.sessions() as session:
                yield session
                await session.commit()  # here: commit after the answer
        finally:
            over.put_nowait(None)

    def get_db_in_threads() -> Iterator[Session]:
        try:
            with sync() as session:
                yield session
                session.commit()  # here: commit in a thread
        finally:
            loop.call_soon_threadsafe(over.put_nowait, None)

    async def broadcast() -> None:
        for connection in stage.hub.active_connections:
            await connection.send_json({"type": "note"})  # here: background

    async def add(text: str, tasks: BackgroundTasks, db: AsyncSession = Depends(get_db)) -> None:
        db.add(Run(status="noted"))
        await db.flush()
        db.add(Note(text=text))
        tasks.add_task(broadcast)

    def add_in_threads(
        text: str, tasks: BackgroundTasks, db: Session = Depends(get_db_in_threads)
    ) -> None:
        db.add(Run(status="noted"))
        db.flush()
        db.add(Note(text=text))
        tasks.add_task(broadcast)

    stage.app.add_api_route("/notes", add if kind == "async" else add_in_threads, methods=["POST"])
    async with stage.served() as client, stage.reader() as reader:
        for _ in range(2):  # the second fails, on the same text, after it was answered
            assert (await client.post("/notes?text=a")).status_code == 200
            await reader.next()
            await asyncio.wait_for(over.get(), PATIENCE_S)  # who has left need not be told
    marker = "commit after the answer" if kind == "async" else "commit in a thread"
    assert found(shadow) == {
        (BEFORE, line("background")): 1,
        (ROLLED_BACK, line("background")): 1,
        (UNTOLD, line(marker)): 1,
    }


# The same docs: what fails in a dependency after its yield, or in a background task, is not seen by who asked.
@on_sqlite
async def test_a_failure_after_the_answer_was_not_told(stage: Stage, shadow: Shadow) -> None:
    async def get_db() -> AsyncIterator[AsyncSession]:
        async with stage.sessions() as session:
            yield session
            await session.commit()  # here: after the answer

    async def work() -> None:
        async with stage.sessions.begin() as session:  # here: work
            session.add(Run(status="noted"))
            await session.flush()
            raise ValueError

    @stage.app.post("/notes")
    async def add(db: AsyncSession = Depends(get_db)) -> dict[str, bool]:
        db.add(Run(status="noted"))
        await db.flush()
        db.add(Note(text="a"))
        return {"ok": True}

    @stage.app.post("/work")
    async def begin(tasks: BackgroundTasks) -> None:
        tasks.add_task(work)

    async with stage.served() as client:
        for path in ("/notes", "/notes", "/work"):
            assert (await client.post(path)).status_code == 200
    assert found(shadow) == {(UNTOLD, line("after the answer")): 1, (UNTOLD, line("work")): 1}


# "Call async code from a def endpoint" in many answers: asyncio.run in the endpoint's thread.
@on_sqlite
async def test_an_endpoint_that_runs_a_loop_of_its_own_is_named(
    stage: Stage, shadow: Shadow
) -> None:
    sessions = stage.sync_sessions()

    @shadow.sends
    async def publish(message: dict[str, str]) -> None:
        await asyncio.sleep(0)

    async def broadcast(message: dict[str, str]) -> None:
        await publish(message)

    @stage.app.post("/notes")
    def add() -> None:
        with sessions() as db:
            db.add(Note(text="a"))
            db.flush()
            asyncio.run(broadcast({"type": "early"}))  # here: own loop
            db.commit()
        asyncio.run(broadcast({"type": "in time"}))

    async with stage.served() as client:
        assert (await client.post("/notes")).status_code == 200
    assert found(shadow) == {(BEFORE, line("own loop")): 1}
    assert shadow.report().sends == 2


# Many chat tutorials with a synchronous session: saved in a thread of the pool, then sent.
@on_sqlite
async def test_saving_in_a_thread_and_then_sending_is_right(stage: Stage, shadow: Shadow) -> None:
    sessions = stage.sync_sessions()

    def save(text: str) -> int:
        with sessions.begin() as db:
            db.add(note := Note(text=text))
            db.flush()
            return note.id

    @stage.app.websocket("/chat")
    async def chat(websocket: WebSocket) -> None:
        await websocket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                text = await websocket.receive_text()
                await websocket.send_json({"id": await run_in_threadpool(save, text)})

    async with stage.served(), stage.reader("", "/chat") as reader:
        for text in "ab":
            await reader.say(text)
            await reader.next()
    assert_right(shadow, sends=2)


# SQLAlchemy's docs, "Using asyncio scoped session", and how a public service closes it: shielded, in a task.
@on_sqlite
async def test_a_scoped_session_that_is_closed_in_a_shield_is_judged_like_any(
    stage: Stage, shadow: Shadow
) -> None:
    scoped = async_scoped_session(stage.sessions, scopefunc=asyncio.current_task)

    async def get_session() -> AsyncIterator[AsyncSession]:
        session = scoped()
        try:
            yield session
            await session.commit()
        except Exception:
            await session.rollback()
            raise
        finally:
            await asyncio.shield(session.close())
            await asyncio.shield(scoped.remove())

    @stage.app.post("/notes")
    async def add(text: str, db: AsyncSession = Depends(get_session)) -> None:
        db.add(Note(text=text))
        await db.flush()
        if text == "bad":
            raise ValueError
        if text == "early":
            await stage.hub.broadcast({"type": "note"})  # here: scoped

    async with stage.served() as client, stage.reader() as reader:
        for text, status in (("a", 200), ("bad", 500), ("early", 200)):
            assert (await client.post(f"/notes?text={text}")).status_code == status
        await reader.next()
    assert found(shadow) == {(BEFORE, line("scoped")): 1}


# exeris (app/notification queue): what is to be sent waits for the session's after_commit.
@on_sqlite
async def test_sending_from_the_sessions_after_commit_is_right(
    stage: Stage, shadow: Shadow
) -> None:
    sending: list[asyncio.Task[None]] = []

    def send(session: Session) -> None:
        loop = asyncio.get_running_loop()
        messages = session.info.pop("to_send", [])
        sending.extend(loop.create_task(stage.hub.broadcast(message)) for message in messages)

    @stage.app.post("/notes")
    async def add() -> None:
        async with stage.sessions() as db:
            db.add(Note(text="a"))
            db.sync_session.info["to_send"] = [{"type": "note"}]
            await db.flush()
            await db.commit()

    event.listen(Session, "after_commit", send)
    try:
        async with stage.served() as client, stage.reader() as reader:
            await client.post("/notes")
            await reader.next()
    finally:
        event.remove(Session, "after_commit", send)
    assert_right(shadow, sends=1)


# FastAPI's docs, "Testing WebSockets": the app runs in a thread that the client starts.
@on_sqlite
async def test_an_app_under_fastapis_test_client_is_judged(stage: Stage, shadow: Shadow) -> None:
    sessions = stage.sync_sessions()

    @stage.app.websocket("/notes")
    async def notes(websocket: WebSocket) -> None:
        await websocket.accept()
        text = await websocket.receive_text()
        with sessions() as db:
            db.add(Note(text=text))
            db.flush()
            await websocket.send_json({"type": "early"})  # here: test client
            db.commit()
        await websocket.send_json({"type": "in time"})

    def run() -> None:
        with TestClient(stage.app).websocket_connect("/notes") as client:
            client.send_text("a")
            assert [client.receive_json()["type"] for _ in range(2)] == ["early", "in time"]

    await asyncio.to_thread(run)
    assert found(shadow) == {(BEFORE, line("test client")): 1}
    assert shadow.report().sends == 2


# --- streams ------------------------------------------------------------------------------------


# sse-starlette's docs and agent back ends: a task works and commits, a generator reads its queue.
async def test_a_producer_that_commits_before_it_queues_is_right(
    stage: Stage, shadow: Shadow
) -> None:
    async def work(queue: asyncio.Queue[dict[str, str] | None]) -> None:
        async with stage.sessions() as db:
            db.add(run := Run(status="running"))
            await db.commit()
            await queue.put({"event": "started", "data": "1"})
            for token in "ab":
                await queue.put({"event": "token", "data": token})
            run.status = "done"
            await db.commit()
            await queue.put({"event": "done", "data": "1"})
        await queue.put(None)

    async def events() -> AsyncIterator[dict[str, str]]:
        queue: asyncio.Queue[dict[str, str] | None] = asyncio.Queue()
        task = asyncio.create_task(work(queue))
        while (item := await queue.get()) is not None:
            yield item
        await task

    @stage.app.get("/events")
    async def stream() -> EventSourceResponse:
        return EventSourceResponse(events())

    async with stage.served() as client:
        assert (await client.get("/events")).text.count("event: ") == 4
    assert_right(shadow, sends=4)


# LangGraph and OpenAI chat back ends: the question is committed, the answer streamed, and saved after it. That
# the model thinks for two seconds says nothing of the question's commit.
@on_sqlite
async def test_an_answer_that_is_streamed_and_then_saved_is_right_and_not_late(
    stage: Stage, shadow: Shadow
) -> None:
    thought_s = [0.0]
    shadow._judge.clock = lambda: time.monotonic() + thought_s[0]

    async def get_db() -> AsyncIterator[AsyncSession]:
        async with stage.sessions() as db:
            yield db

    async def answer() -> AsyncIterator[str]:
        thought_s[0] = 2.0
        try:
            for token in "abc":
                yield f'data: {{"type": "token", "text": "{token}"}}\n\n'
            yield "data: [DONE]\n\n"
        finally:
            async with stage.sessions.begin() as db:
                db.add(Note(text="abc"))

    @stage.app.get("/ask")
    async def ask(db: AsyncSession = Depends(get_db)) -> StreamingResponse:
        db.add(Note(text="question"))
        await db.commit()
        return StreamingResponse(answer(), media_type="text/event-stream")

    async def middleware(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    stage.app.add_middleware(BaseHTTPMiddleware, dispatch=middleware)
    async with stage.served() as client:
        assert (await client.get("/ask")).text.count("data: ") == 4
    assert_right(shadow, sends=4)
    assert shadow.report().score.counts["database_socket"].steps == 0  # type: ignore[index]


# onyx-dot-app/onyx, backend/onyx/server: a plain generator of lines of JSON, called an event stream.
@on_sqlite
async def test_lines_of_json_from_a_generator_in_a_generator_are_judged(
    stage: Stage, shadow: Shadow
) -> None:
    sessions = stage.sync_sessions()

    def packets(db: Session) -> Iterator[dict[str, Any]]:
        db.add(Note(text="question"))
        db.commit()
        yield {"answer_piece": "a"}
        db.add(Note(text="answer"))
        db.flush()
        yield {"message_id": 1}
        db.commit()

    def lines() -> Iterator[str]:
        with sessions() as db:
            for packet in packets(db):
                yield json.dumps(packet) + "\n"  # here: line of JSON

    @stage.app.post("/send-message")
    def send() -> StreamingResponse:
        return StreamingResponse(lines(), media_type="text/event-stream")

    async with stage.served() as client:
        assert (await client.post("/send-message")).text.count("\n") == 2
    assert found(shadow) == {(BEFORE, line("line of JSON")): 1}
    assert shadow.report().sends == 2


# --- how failures are told ----------------------------------------------------------------------


# "except: await db.rollback(); return {…}" in many endpoints, GraphQL and JSON-RPC: told with status 200.
@on_sqlite
async def test_an_answer_that_says_error_has_told_whatever_its_status(
    stage: Stage, shadow: Shadow
) -> None:
    answers: list[dict[str, Any]] = [
        {"status": "error", "reason": "duplicate"},
        {"error": "duplicate"},
        {"ok": False, "analyzed": 0},
        {"success": False},
        {"data": None, "errors": [{"message": "duplicate"}]},
        {"ok": True},
    ]

    @stage.app.post("/notes/{n}")
    async def add(n: int) -> dict[str, Any]:
        async with stage.sessions() as db:
            db.add(Note(text="a"))
            await db.flush()
            await db.rollback()  # here: answered
        return answers[n]

    async with stage.served() as client:
        for n in range(len(answers)):
            assert (await client.post(f"/notes/{n}")).status_code == 200
    assert found(shadow) == {(UNTOLD, line("answered")): 1}
    assert shadow.report().rollbacks == len(answers)


# A reward claim that another request has made: only the team knows that this answer tells of a failure. Lists, and
# what a handler acknowledges with nothing, are not asked about.
@on_sqlite
async def test_a_team_may_say_which_answers_tell(stage: Stage) -> None:
    shadow = Shadow(is_notice=lambda message: message.get("status") == "already_claimed")

    @stage.app.post("/claim")
    async def claim() -> dict[str, str]:
        async with stage.sessions() as db:
            db.add(Note(text="a"))
            await db.flush()
            await db.rollback()
        return {"status": "already_claimed"}

    @stage.app.get("/claims")
    async def claims() -> list[str]:
        return ["a"]

    with shadow:
        async with stage.served() as client:
            await client.post("/claim")
            assert (await client.get("/claims")).json() == ["a"]
    assert_right(shadow, sends=0)
    assert shadow.report().rollbacks == 1


# Agent sockets and video calls: "except WebSocketDisconnect: db.rollback()", who walked away saves nothing.
@on_sqlite
@pytest.mark.parametrize("how", ["while reading", "while sending", "while streaming", "after it"])
async def test_who_has_left_needs_no_notice(stage: Stage, shadow: Shadow, how: str) -> None:
    ready, done = asyncio.Event(), asyncio.Event()

    @stage.app.websocket("/call")
    async def call(websocket: WebSocket) -> None:
        await websocket.accept()
        async with stage.sessions() as db:
            db.add(Note(text="draft"))
            await db.flush()
            ready.set()
            try:
                while True:
                    if how == "while reading":
                        await websocket.receive_text()
                    else:
                        await websocket.send_json({"type": "chunk"})  # here: chunk
                        await asyncio.sleep(0.01)
            except (WebSocketDisconnect, RuntimeError):
                await db.rollback()
        done.set()

    async def events() -> AsyncIterator[str]:
        yield ": hello\n\n"
        try:
            async with stage.sessions.begin() as db:
                db.add(Note(text="draft"))
                await db.flush()
                if how == "after it":
                    await db.rollback()
                ready.set()
                await asyncio.Event().wait()
        finally:
            done.set()

    @stage.app.get("/events")
    async def stream() -> StreamingResponse:
        return StreamingResponse(events(), media_type="text/event-stream")

    async with stage.served() as client:
        if how in {"while streaming", "after it"}:
            async with client.stream("GET", "/events"):
                await ready.wait()
        else:
            async with stage.reader("", "/call"):
                await ready.wait()
        await asyncio.wait_for(done.wait(), 20)
    kinds = {kind for kind, _ in found(shadow)}
    assert kinds <= ({ROLLED_BACK} if how == "while sending" else set())
    assert shadow.report().rollbacks == 1


# Starlette's docs: an exception that an endpoint raises closes its socket, or ends its stream, as failed.
@on_sqlite
async def test_a_connection_that_an_exception_cuts_off_was_told(
    stage: Stage, shadow: Shadow
) -> None:
    @stage.app.websocket("/run")
    async def run(websocket: WebSocket) -> None:
        await websocket.accept()
        async with stage.sessions.begin() as db:
            db.add(Note(text="a"))
            await db.flush()
            await websocket.send_json({"type": "step"})  # here: socket
            raise ValueError

    async def events() -> AsyncIterator[str]:
        async with stage.sessions.begin() as db:
            db.add(Note(text="b"))
            await db.flush()
            yield "data: step\n\n"  # here: stream
            raise ValueError

    @stage.app.get("/events")
    async def stream() -> StreamingResponse:
        return StreamingResponse(events(), media_type="text/event-stream")

    async with stage.served() as client:
        async with stage.reader("", "/run") as reader:
            await reader.next()
            with pytest.raises(ConnectionClosedError):
                await reader.next()
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/events")
    assert found(shadow) == {(ROLLED_BACK, line("socket")): 1, (ROLLED_BACK, line("stream")): 1}


# Webhook receivers: an insert that finds the event already there, and a rollback of nothing.
@on_sqlite
async def test_an_insert_of_no_row_is_no_change(stage: Stage, shadow: Shadow) -> None:
    @stage.app.post("/hook")
    async def hook() -> dict[str, bool]:
        async with stage.sessions() as db:
            inserted: Any = await db.execute(
                sqlite.insert(Note).values(text="event").on_conflict_do_nothing()
            )
            if not inserted.rowcount:
                await db.rollback()
                return {"duplicate": True}
            await db.commit()
        await stage.hub.broadcast({"type": "hook"})
        return {"duplicate": False}

    async with stage.served() as client, stage.reader() as reader:
        assert [(await client.post("/hook")).json()["duplicate"] for _ in range(2)] == [False, True]
        await reader.next()
    assert_right(shadow, sends=1)
    assert shadow.report().rollbacks == 0


# --- socket.io and workers ------------------------------------------------------------------------


# python-socketio's docs, class-based namespaces; `emit` before the commit, as in several chat servers.
async def test_a_namespace_that_emits_before_its_commit_is_found(
    stage: Stage, shadow: Shadow
) -> None:
    server = socketio.AsyncServer(async_mode="asgi")
    stage.app.mount("/socket.io", socketio.ASGIApp(server))

    class Chat(socketio.AsyncNamespace):  # type: ignore[misc] # it has no types
        async def on_save(self, sid: str, text: str) -> bool:
            async with stage.sessions() as db:
                db.add(Note(text=text))
                await db.flush()
                await self.emit("early", text, room=sid)  # here: namespace
                await db.commit()
            await self.emit("in_time", text, room=sid)
            return True

    server.register_namespace(Chat("/chat"))
    async with stage.served(), stage.reader("", SOCKETIO) as client:
        await joined(client, "/chat,")
        await client.say('42/chat,7["save","a"]')
        got = [await client.text() for _ in range(3)]
    assert [text.partition("[")[0] for text in got] == ["42/chat,", "42/chat,", "43/chat,7"]
    assert found(shadow) == {(BEFORE, line("namespace")): 1}
    assert shadow.report().sends == 2


# python-socketio's docs: an acknowledgement tells the caller, an emit to nobody in particular tells everybody. The
# server is the outermost app, `ASGIApp(sio, other_asgi_app=app)`, so that there is no request of Starlette's.
@on_sqlite
async def test_acknowledgements_and_emits_of_errors_tell(stage: Stage, shadow: Shadow) -> None:
    server = socketio.AsyncServer(async_mode="asgi")

    async def fail(sid: str, how: str) -> dict[str, Any]:
        async with stage.sessions() as db:
            db.add(Note(text="a"))
            await db.flush()
            if how in {"shown", "never"}:
                await server.emit("saved", how, to=sid)  # here: shown
            if how == "before":
                await server.emit("save_failed", how, to=sid)
            await db.rollback()  # here: failed
        if how == "shown":
            await server.emit("save_failed", how)
        elif how == "after":
            await server.emit("save_failed", how, to=sid)
        return {"ok": how != "acknowledged"}

    server.on("save", fail)
    stage.app = socketio.ASGIApp(server, other_asgi_app=stage.app)
    async with stage.served(), stage.reader("", SOCKETIO) as client:
        await joined(client)
        for how in ("acknowledged", "before", "after", "shown", "never"):
            await client.say(f'420["save","{how}"]')
            while not (await client.text()).startswith("430"):
                pass
    assert found(shadow) == {(ROLLED_BACK, line("shown")): 2, (UNTOLD, line("failed")): 1}


# Workers in a thread of the process (camera, queue, agent loop): they tell through run_coroutine_threadsafe.
@on_sqlite
async def test_a_worker_thread_tells_and_tries_again(stage: Stage, shadow: Shadow) -> None:
    sessions = stage.sync_sessions()
    loop = asyncio.get_running_loop()

    def tell(message: dict[str, str]) -> None:
        asyncio.run_coroutine_threadsafe(stage.hub.broadcast(message), loop).result(20)

    def attempt(*, commits: bool) -> None:
        with sessions() as db:
            db.add(Note(text="a"))
            db.flush()
            if commits:
                db.commit()
            else:
                db.rollback()

    def work() -> None:
        attempt(commits=False)
        tell({"type": "job_failed"})
        attempt(commits=False)
        attempt(commits=True)
        tell({"type": "job_done"})

    async with stage.served(), stage.reader() as reader:
        thread = threading.Thread(target=work)
        thread.start()
        assert [(await reader.next())["type"] for _ in range(2)] == ["job_failed", "job_done"]
        await asyncio.to_thread(thread.join)
    assert_right(shadow, sends=2)
    assert shadow.report().rollbacks == 2
