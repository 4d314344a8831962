"""Patterns of sending that are right score 100; each that is wrong is found, on its line, alone."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import anyio.from_thread
import pytest
import socketio
from fastapi import BackgroundTasks, WebSocket  # noqa: TC002 - FastAPI reads annotations
from fastapi.responses import StreamingResponse
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from commitcast.audit.report import BreachKind

from .stage import ConnectionManager, Note, Run, Stage, found, line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy.orm import Session

    from commitcast.audit.shadow import Shadow

pytestmark = pytest.mark.anyio

BEFORE = BreachKind.SENT_BEFORE_COMMIT
ROLLED_BACK = BreachKind.SENT_FOR_ROLLED_BACK_WORK
UNTOLD = BreachKind.ROLLBACK_NOT_TOLD


def assert_right(shadow: Shadow, sends: int) -> None:
    shadow.finish()
    report = shadow.report()
    assert report.findings == ()
    assert report.score.overall == 100
    assert report.sends == sends


# --- right --------------------------------------------------------------------------------


async def test_commit_then_broadcast_is_right(stage: Stage, shadow: Shadow) -> None:
    @stage.app.post("/notes")
    async def add(text: str) -> dict[str, int]:
        async with stage.sessions() as session:
            note = Note(text=text)
            session.add(note)
            await session.commit()
        await stage.hub.broadcast({"type": "note.created", "id": note.id})
        return {"id": note.id}

    async with stage.served() as client, stage.reader() as one, stage.reader("bob") as two:
        assert (await client.post("/notes?text=a")).status_code == 200
        assert (await one.next())["type"] == (await two.next())["type"] == "note.created"
    assert_right(shadow, sends=2)
    report = shadow.report()
    assert report.transactions == 1
    assert report.score.counts["database_socket"].steps == 1  # type: ignore[index]


async def test_sending_in_a_background_task_after_the_commit_is_right(
    stage: Stage, shadow: Shadow
) -> None:
    @stage.app.post("/notes")
    async def add(text: str, tasks: BackgroundTasks) -> None:
        async with stage.sessions.begin() as session:
            session.add(Note(text=text))
        tasks.add_task(stage.hub.broadcast, {"type": "note.created"})

    async with stage.served() as client, stage.reader() as reader:
        await client.post("/notes?text=a")
        await reader.next()
    assert_right(shadow, sends=1)


async def test_a_stream_that_commits_and_then_yields_is_right(stage: Stage, shadow: Shadow) -> None:
    async def events() -> AsyncIterator[str]:
        yield ": hello\n\n"
        for n in range(3):
            async with stage.sessions.begin() as session:
                session.add(Note(text=str(n)))
            yield f'event: note\ndata: {{"n": {n}}}\n\n'

    @stage.app.get("/events")
    async def stream() -> StreamingResponse:
        return StreamingResponse(events(), media_type="text/event-stream")

    async with stage.served() as client:
        assert (await client.get("/events")).text.count("event: note") == 3
    assert_right(shadow, sends=3)


async def test_reading_again_after_the_commit_and_then_sending_is_right(
    stage: Stage, shadow: Shadow
) -> None:
    @stage.app.post("/notes")
    async def add(text: str) -> None:
        async with stage.sessions() as session:
            note = Note(text=text)
            session.add(note)
            await session.commit()
            await session.refresh(note)
            await stage.hub.broadcast({"type": "note.created", "id": note.id})

    async with stage.served() as client, stage.reader() as reader:
        await client.post("/notes?text=a")
        await reader.next()
    assert_right(shadow, sends=1)


async def test_a_heartbeat_beside_an_open_transaction_is_right(
    stage: Stage, shadow: Shadow
) -> None:
    @stage.app.websocket("/beating")
    async def beating(websocket: WebSocket) -> None:
        await websocket.accept()
        beat, beaten = asyncio.Event(), asyncio.Event()

        async def heartbeat() -> None:
            await beat.wait()
            await websocket.send_json({"type": "heartbeat"})
            beaten.set()

        async with stage.sessions() as session:
            await session.execute(select(Note))
            task = asyncio.create_task(heartbeat())
            session.add(Note(text="a"))
            await session.flush()
            session.add(Note(text="b"))
            beat.set()
            await beaten.wait()
            await session.commit()
        await task
        await websocket.send_json({"type": "note.created"})

    async with stage.served(), stage.reader("", "/beating") as reader:
        assert (await reader.next())["type"] == "heartbeat"
        assert (await reader.next())["type"] == "note.created"
    assert_right(shadow, sends=2)


async def test_sending_to_all_at_once_after_the_commit_is_right_and_timed(
    stage: Stage, shadow: Shadow
) -> None:
    @stage.app.post("/notes")
    async def add(text: str) -> None:
        async with stage.sessions.begin() as session:
            session.add(Note(text=text))
        sockets = stage.hub.active_connections
        await asyncio.gather(*(socket.send_json({"type": "note"}) for socket in sockets))

    async with stage.served() as client, stage.reader() as one, stage.reader() as two:
        await client.post("/notes?text=a")
        await one.next()
        await two.next()
    assert_right(shadow, sends=2)
    assert shadow.report().score.counts["database_socket"].steps == 2  # type: ignore[index]


async def test_get_or_create_is_right(stage: Stage, shadow: Shadow) -> None:
    @stage.app.post("/notes")
    async def get_or_create(text: str) -> None:
        async with stage.sessions() as session:
            session.add(Run(status="asked"))
            await session.flush()
            session.add(Note(text=text))
            try:
                await session.commit()
            except IntegrityError:
                await session.rollback()
                await session.execute(select(Note).where(Note.text == text))
        await stage.hub.broadcast({"type": "note", "text": text})

    async with stage.served() as client, stage.reader() as reader:
        for _ in range(2):
            await client.post("/notes?text=a")
            await reader.next()
    assert_right(shadow, sends=2)
    assert shadow.report().rollbacks == 1


async def test_reading_committing_and_then_streaming_tokens_is_right(
    stage: Stage, shadow: Shadow
) -> None:
    @stage.app.websocket("/ask")
    async def ask(websocket: WebSocket) -> None:
        await websocket.accept()
        question = await websocket.receive_text()
        async with stage.sessions() as session:
            await session.execute(select(Note))
            session.add(Note(text=question))
            await session.commit()
        for token in ("to", "ken", "s"):
            await websocket.send_json({"type": "token", "text": token})
        async with stage.sessions.begin() as session:
            session.add(Note(text="tokens"))
        await websocket.send_json({"type": "answer"})

    async with stage.served(), stage.reader("", "/ask") as reader:
        await reader.say("well?")
        while (await reader.next())["type"] != "answer":
            pass
    assert_right(shadow, sends=4)


# --- wrong --------------------------------------------------------------------------------


async def test_sending_inside_a_transaction_is_found(stage: Stage, shadow: Shadow) -> None:
    async def save(session: Any, text: str) -> None:
        session.add(Note(text=text))
        await session.flush()

    @stage.app.post("/notes")
    async def add(text: str) -> None:
        async with stage.sessions.begin() as session:
            await save(session, text)
            await stage.hub.broadcast({"type": "note.created"})  # here: inside

    async with stage.served() as client, stage.reader() as reader:
        for text in "abc":
            await client.post(f"/notes?text={text}")
            await reader.next()
    assert found(shadow) == {(BEFORE, line("inside")): 3}
    finding = shadow.report().findings[0]
    assert finding.site.function == "add"
    assert [site.function for site in finding.through] == ["ConnectionManager.broadcast"]
    assert finding.event_types == ("note.created",)
    assert finding.worst_ms is not None
    assert finding.worst_ms > 0


async def test_sending_before_the_flush_is_found(stage: Stage, shadow: Shadow) -> None:
    @stage.app.post("/notes")
    async def add(text: str) -> None:
        async with stage.sessions() as session:
            session.add(Note(text=text))
            await stage.hub.broadcast({"type": "note.created"})  # here: unflushed
            await session.commit()

    async with stage.served() as client, stage.reader() as reader:
        await client.post("/notes?text=a")
        await reader.next()
    assert found(shadow) == {(BEFORE, line("unflushed")): 1}


async def test_a_send_in_a_task_begun_before_the_commit_is_found(
    stage: Stage, shadow: Shadow
) -> None:
    async def tell(websocket: WebSocket) -> None:
        await websocket.send_json({"type": "note.created", "from": "function"})  # here: function

    @stage.app.websocket("/tasks")
    async def tasks(websocket: WebSocket) -> None:
        await websocket.accept()
        async with stage.sessions() as session:
            session.add(Note(text="a"))
            first = asyncio.create_task(websocket.send_json({"type": "note.created"}))  # here: task
            await first
            await session.flush()
            await asyncio.create_task(tell(websocket))
            await session.commit()
            row = await session.get_one(Note, 1)
            row.text = "b"
            await asyncio.wait_for(websocket.send_json({"type": "note"}), 20)  # here: modified
            later = asyncio.create_task(websocket.send_json({"type": "note"}))  # here: later
            await session.commit()
            await later

    async with stage.served(), stage.reader("", "/tasks") as reader:
        for _ in range(4):
            await reader.next()
    marked = ("task", "function", "modified", "later")
    assert found(shadow) == {(BEFORE, line(marker)): 1 for marker in marked}


async def test_a_send_for_work_that_is_rolled_back_is_found(stage: Stage, shadow: Shadow) -> None:
    @stage.app.post("/notes")
    async def add(text: str) -> None:
        with contextlib.suppress(ValueError):
            async with stage.sessions.begin() as session:  # here: rolled back
                session.add(Note(text=text))
                await session.flush()
                await stage.hub.broadcast({"type": "note.created"})  # here: phantom
                raise ValueError(text)

    async with stage.served() as client, stage.reader() as reader:
        await client.post("/notes?text=a")
        await reader.next()
    assert found(shadow) == {
        (ROLLED_BACK, line("phantom")): 1,
        (UNTOLD, line("rolled back")): 1,
    }


async def test_a_stream_that_yields_inside_a_transaction_is_found(
    stage: Stage, shadow: Shadow
) -> None:
    async def events() -> AsyncIterator[str]:
        async with stage.sessions.begin() as session:
            session.add(Note(text="a"))
            await session.flush()
            yield 'data: {"type": "note"}\n\n'  # here: yield

    @stage.app.get("/events")
    async def stream() -> StreamingResponse:
        return StreamingResponse(events(), media_type="text/event-stream")

    async with stage.served() as client:
        await client.get("/events")
    assert found(shadow) == {(BEFORE, line("yield")): 1}


async def test_a_plain_generator_that_yields_inside_a_transaction_is_found(
    stage: Stage, shadow: Shadow
) -> None:
    sessions = stage.sync_sessions()

    def events() -> Iterator[str]:
        with sessions.begin() as session:
            session.add(Note(text="a"))
            session.flush()
            yield 'data: {"type": "note"}\n\n'  # here: plain yield

    @stage.app.get("/events")
    def stream() -> StreamingResponse:
        return StreamingResponse(events(), media_type="text/event-stream")

    async with stage.served() as client:
        await client.get("/events")
    assert found(shadow) == {(BEFORE, line("plain yield")): 1}


async def test_a_rollback_in_a_background_task_that_nobody_is_told_of_is_found(
    stage: Stage, shadow: Shadow
) -> None:
    async def run() -> None:
        try:
            async with stage.sessions() as session:
                session.add(Note(text="a"))
                await session.flush()
                raise ValueError  # noqa: TRY301
        except ValueError:
            pass

    async def run_with_rollback() -> None:
        async with stage.sessions() as session:
            session.add(Note(text="b"))
            await session.flush()
            await session.rollback()  # here: background rollback

    @stage.app.post("/in_request")
    async def in_request(tasks: BackgroundTasks) -> None:
        tasks.add_task(run_with_rollback)

    @stage.app.post("/in_task")
    async def in_task() -> None:
        started.append(asyncio.create_task(run_with_rollback()))

    started: list[asyncio.Task[None]] = []
    async with stage.served() as client:
        await client.post("/in_request")
        await client.post("/in_task")
        await started[0]
    assert found(shadow) == {(UNTOLD, line("background rollback")): 2}


async def test_a_socketio_emit_before_the_commit_is_found(stage: Stage, shadow: Shadow) -> None:
    server = socketio.AsyncServer(async_mode="asgi")
    stage.app.mount("/socket.io", socketio.ASGIApp(server))

    @server.event  # type: ignore[untyped-decorator] # it has no types
    async def note(_sid: str, text: str) -> None:
        async with stage.sessions() as session:
            session.add(Note(text=text))
            await session.flush()
            await server.emit("note_created", {"text": text})  # here: emit
            await session.commit()
        await server.emit("note_committed", {"text": text})

    path = "/socket.io/?EIO=4&transport=websocket"
    async with stage.served(), stage.reader("", path) as client:
        assert (await client.text()).startswith("0")
        await client.say("40")
        assert (await client.text()).startswith("40")
        await client.say('42["note","a"]')
        got = [await client.text(), await client.text()]
    assert ["created" in got[0], "committed" in got[1]] == [True, True]
    assert found(shadow) == {(BEFORE, line("emit")): 1}
    assert shadow.report().sends == 2
    assert shadow.report().findings[0].event_types == ("note_created",)


async def test_a_decorated_function_called_before_the_commit_is_found(
    stage: Stage, shadow: Shadow
) -> None:
    sent: list[dict[str, str]] = []

    @shadow.sends
    async def push(_user: str, message: dict[str, str]) -> None:
        sent.append(message)

    @shadow.sends
    def push_plainly(message: dict[str, str]) -> None:
        sent.append(message)

    async with stage.sessions() as session:
        session.add(Note(text="a"))
        await session.flush()
        await push("ann", {"type": "async"})  # here: decorated
        push_plainly({"type": "plain"})  # here: decorated plainly
        await session.commit()
    await push("ann", {"type": "async"})
    assert len(sent) == 3
    assert found(shadow) == {
        (BEFORE, line("decorated")): 1,
        (BEFORE, line("decorated plainly")): 1,
    }
    assert shadow.report().sends == 3


async def test_a_send_for_a_savepoint_that_is_rolled_back_is_found(
    stage: Stage, shadow: Shadow
) -> None:
    @stage.app.post("/notes")
    async def add() -> None:
        async with stage.sessions() as session:
            with contextlib.suppress(ValueError):
                async with session.begin_nested():
                    session.add(Note(text="a"))
                    await session.flush()
                    await stage.hub.broadcast({"type": "note.created"})  # here: savepoint
                    raise ValueError
            await stage.hub.broadcast({"type": "fine"})
            await session.commit()

    async with stage.served() as client, stage.reader() as reader:
        await client.post("/notes")
        await reader.next()
        await reader.next()
    assert found(shadow) == {(ROLLED_BACK, line("savepoint")): 1}


async def test_a_sync_endpoint_that_sends_from_its_thread_is_found(
    stage: Stage, shadow: Shadow
) -> None:
    sessions = stage.sync_sessions()

    def save(session: Session, text: str) -> None:
        session.add(Note(text=text))
        session.flush()

    @stage.app.post("/notes")
    def add(text: str) -> None:
        with sessions() as session:
            save(session, text)
            anyio.from_thread.run(stage.hub.broadcast, {"type": "early"})  # here: thread
            session.commit()
        anyio.from_thread.run(stage.hub.broadcast, {"type": "in time"})

    async with stage.served() as client, stage.reader() as reader:
        assert (await client.post("/notes?text=a")).status_code == 200
        await reader.next()
        await reader.next()
    shadow.finish()
    (finding,) = shadow.report().findings
    assert finding.kind is BEFORE
    assert finding.event_types == ("early",)
    assert finding.site.line == line("thread")


async def test_a_message_for_another_user_is_found(stage: Stage) -> None:
    from commitcast.audit.shadow import Shadow

    shadow = Shadow(
        user_of=lambda scope: scope["path"].rpartition("/")[2],
        may_see=lambda user, message: message.get("to", user) == user,
    )
    hub = ConnectionManager()

    @stage.app.websocket("/inbox/{user}")
    async def inbox(websocket: WebSocket, user: str) -> None:
        await hub.connect(websocket)
        await websocket.send_json({"type": "welcome", "to": user})
        await websocket.receive_text()
        for connection in hub.active_connections:
            await connection.send_json({"type": "mail", "to": user})  # here: everybody

    with shadow:
        async with (
            stage.served(),
            stage.reader("bob", "/inbox/") as bob,
            stage.reader("ann", "/inbox/") as ann,
        ):
            await bob.next()
            await ann.next()
            await ann.say("go")
            await ann.next()
            await bob.next()
    assert found(shadow) == {(BreachKind.SENT_TO_ANOTHER_USER, line("everybody")): 1}
    assert shadow.report().sends == 4
    counts = shadow.report().score.counts["isolation"]  # type: ignore[index]
    assert (counts.steps, counts.broken) == (4, 1)


async def test_a_state_told_before_its_row_has_it_is_found(stage: Stage, shadow: Shadow) -> None:
    shadow.watch_state(
        Run, lambda message: (message["run"], message["status"]) if "run" in message else None
    )

    async def set_status(run: int, status: str) -> None:
        async with stage.sessions.begin() as session:
            row = await session.get_one(Run, run)
            row.status = status

    @stage.app.post("/runs")
    async def run() -> None:
        async with stage.sessions.begin() as session:
            row = Run(status="running")
            session.add(row)
        await stage.hub.broadcast({"type": "run", "run": row.id, "status": "running"})
        done = {"type": "run", "run": row.id, "status": "completed"}
        await stage.hub.broadcast(done)  # here: told
        await set_status(row.id, "completed")
        await stage.hub.broadcast(done)
        await stage.hub.broadcast({"run": row.id, "status": "archived"})  # here: no
        await stage.hub.broadcast({"type": "run", "run": 999, "status": "never seen"})

    async with stage.served() as client, stage.reader() as reader:
        await client.post("/runs")
        for _ in range(5):
            await reader.next()
    shadow.finish()
    by_line = {f.site.line: f for f in shadow.report().findings}
    assert {f.kind for f in by_line.values()} == {BreachKind.STATE_APART}
    assert sorted(by_line) == [line("told"), line("no")]
    assert by_line[line("no")].worst_ms is None
    assert (by_line[line("told")].worst_ms or 0) > 0
    counts = shadow.report().score.counts["agent_state"]  # type: ignore[index]
    assert (counts.steps, counts.broken) == (4, 2)
