"""Who has to be told of a rollback, and by what."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import HTTPException, WebSocket
from sqlalchemy import select

from commitcast.audit.report import BreachKind
from commitcast.audit.rollbacks import MOST_PENDING

from .stage import Note, Stage, found, line

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sqlalchemy.ext.asyncio import AsyncSession

    from commitcast.audit.shadow import Shadow

    Handler = Callable[[WebSocket], Coroutine[Any, Any, None]]

pytestmark = pytest.mark.anyio

PHANTOM = BreachKind.SENT_FOR_ROLLED_BACK_WORK
UNTOLD = BreachKind.ROLLBACK_NOT_TOLD


@pytest.fixture
def database_kind() -> str:
    """What is told does not depend on the database."""
    return "sqlite"


async def fail(session: AsyncSession) -> None:
    session.add(Note(text="a"))
    await session.flush()
    raise ValueError


def told(shadow: Shadow) -> int:
    counts = shadow.report().score.counts["rollback_notification"]  # type: ignore[index]
    return counts.steps - counts.broken


@pytest.mark.parametrize("status", [400, 409, 500])
async def test_a_request_that_fails_visibly_has_told(
    stage: Stage, shadow: Shadow, status: int
) -> None:
    @stage.app.post("/notes")
    async def add() -> None:
        try:
            async with stage.sessions.begin() as session:
                await fail(session)
        except ValueError:
            if status == 500:
                raise
            raise HTTPException(status) from None

    async with stage.served() as client:
        assert (await client.post("/notes")).status_code == status
    assert found(shadow) == {}
    assert told(shadow) == 1


async def test_a_request_that_says_it_went_well_has_not_told(stage: Stage, shadow: Shadow) -> None:
    @stage.app.post("/notes")
    async def add() -> None:
        with contextlib.suppress(ValueError):
            async with stage.sessions.begin() as session:  # here: swallowed
                await fail(session)

    async with stage.served() as client:
        assert (await client.post("/notes")).status_code == 200
    assert found(shadow) == {(UNTOLD, line("swallowed")): 1}


async def on_socket(stage: Stage, handler: Handler, *messages: str) -> None:
    """Serve one socket on which each message said runs the handler; read what comes back."""

    @stage.app.websocket("/one")
    async def one(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()
        await handler(websocket)
        with contextlib.suppress(RuntimeError):
            await websocket.send_json({"type": "end"})
            await websocket.receive_text()

    async with stage.served(), stage.reader("", "/one") as reader:
        await reader.say("go")
        for kind in (*messages, "end"):
            assert (await reader.next())["type"] == kind


async def test_a_notice_after_the_rollback_tells(stage: Stage, shadow: Shadow) -> None:
    async def handler(websocket: WebSocket) -> None:
        try:
            async with stage.sessions.begin() as session:
                await fail(session)
        except ValueError:
            await websocket.send_json({"type": "note.failed"})

    await on_socket(stage, handler, "note.failed")
    assert found(shadow) == {}
    assert told(shadow) == 1


async def test_a_notice_inside_the_transaction_tells_and_is_no_phantom(
    stage: Stage, shadow: Shadow
) -> None:
    async def handler(websocket: WebSocket) -> None:
        async with stage.sessions() as session:
            try:
                await fail(session)
            except ValueError:
                await websocket.send_json({"error": "not saved", "type": "note"})
                await session.rollback()

    await on_socket(stage, handler, "note")
    assert found(shadow) == {}
    assert told(shadow) == 1


async def test_a_next_message_comes_too_late(stage: Stage, shadow: Shadow) -> None:
    async def handler(websocket: WebSocket) -> None:
        with contextlib.suppress(ValueError):
            async with stage.sessions.begin() as session:  # here: too late
                await fail(session)
        await websocket.send_json({"type": "done"})
        await websocket.receive_text()
        await websocket.send_json({"type": "note.failed"})

    @stage.app.websocket("/late")
    async def late(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()
        await handler(websocket)

    async with stage.served(), stage.reader("", "/late") as reader:
        await reader.say("go")
        await reader.next()
        await reader.say("on")
        await reader.next()
    assert found(shadow) == {(UNTOLD, line("too late")): 1}


async def test_each_who_saw_it_has_to_be_told(stage: Stage, shadow: Shadow) -> None:
    @stage.app.post("/notes")
    async def add(everybody: int) -> None:
        try:
            async with stage.sessions.begin() as session:  # here: only one
                session.add(Note(text="a"))
                await session.flush()
                await stage.hub.broadcast({"type": "note"})  # here: shown
                raise ValueError  # noqa: TRY301 - what fails is not the point
        except ValueError:
            reached = stage.hub.active_connections[: None if everybody else 1]
            for connection in reached:
                await connection.send_json({"type": "rollback"})
            raise HTTPException(409) from None

    async with stage.served() as client, stage.reader() as one, stage.reader() as two:
        await client.post("/notes?everybody=1")
        assert [(await r.next())["type"] for r in (one, one, two, two)] == [
            "note",
            "rollback",
        ] * 2
        assert told(shadow) == 1
        await client.post("/notes?everybody=0")
        assert [(await r.next())["type"] for r in (one, one, two)] == ["note", "rollback", "note"]
    assert found(shadow) == {(PHANTOM, line("shown")): 4, (UNTOLD, line("only one")): 1}
    assert told(shadow) == 1


async def test_who_saw_it_and_is_still_there_was_not_told(stage: Stage, shadow: Shadow) -> None:
    async with stage.served(), stage.reader() as reader:
        with contextlib.suppress(ValueError):
            async with stage.sessions.begin() as session:  # here: shown and silent
                session.add(Note(text="a"))
                await session.flush()
                await stage.hub.broadcast({"type": "note"})  # here: seen
                raise ValueError
        await reader.next()
        assert found(shadow) == {
            (PHANTOM, line("seen")): 1,
            (UNTOLD, line("shown and silent")): 1,
        }


async def test_closing_the_socket_as_failed_tells(stage: Stage, shadow: Shadow) -> None:
    @stage.app.websocket("/closing")
    async def closing(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            async with stage.sessions.begin() as session:
                await fail(session)
        except ValueError:
            await websocket.close(1011)

    async with stage.served(), stage.reader("", "/closing") as reader:
        with contextlib.suppress(Exception):
            await reader.next()
    assert found(shadow) == {}
    assert told(shadow) == 1


async def test_what_is_done_again_was_no_failure(stage: Stage, shadow: Shadow) -> None:
    async def handler(_websocket: WebSocket) -> None:
        with contextlib.suppress(ValueError):
            async with stage.sessions.begin() as session:
                await fail(session)
        async with stage.sessions.begin() as session:
            await session.execute(select(Note))

    await on_socket(stage, handler)
    assert found(shadow) == {}
    assert told(shadow) == 0
    assert shadow.report().rollbacks == 1


async def test_a_task_may_tell_until_it_ends(stage: Stage, shadow: Shadow) -> None:
    async def work(websocket: WebSocket, *, tell: bool) -> None:
        with contextlib.suppress(ValueError):
            async with stage.sessions.begin() as session:  # here: in a task
                await fail(session)
        await go_on.wait()
        if tell:
            await websocket.send_json({"type": "note.failed"})

    async def handler(websocket: WebSocket) -> None:
        tasks.append(asyncio.create_task(work(websocket, tell=True)))

    tasks: list[asyncio.Task[None]] = []
    go_on = asyncio.Event()

    @stage.app.websocket("/tasks")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()
        tasks.append(asyncio.create_task(work(websocket, tell=True)))
        await websocket.receive_text()
        go_on.set()
        await tasks[0]
        tasks.append(asyncio.create_task(work(websocket, tell=False)))
        await websocket.receive_text()

    async with stage.served(), stage.reader("", "/tasks") as reader:
        await reader.say("go")
        await reader.say("on")
        assert (await reader.next())["type"] == "note.failed"
        assert told(shadow) == 1
        while len(tasks) < 2:  # noqa: ASYNC110 - the app's own list
            await asyncio.sleep(0)
        await tasks[1]
    assert found(shadow) == {(UNTOLD, line("in a task")): 1}


async def test_waiting_rollbacks_are_bounded(stage: Stage, shadow: Shadow) -> None:
    judge = shadow._judge
    async with stage.engine.connect() as conn:
        for _ in range(3):
            await conn.execute(Note.__table__.insert().values(text="a"))  # type: ignore[attr-defined]
            await conn.rollback()
    assert judge.rollbacks.pending <= MOST_PENDING
    assert judge.rollbacks.pending == 1  # each statement made the one before good
