"""Writes a run's steps down: each in the run's row and as an event, in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
from sqlalchemy import update

from commitcast import Event, emit
from commitcast.demo.chat import add_message, thread_stream
from commitcast.demo.tables import COMPLETED, FAILED, QUEUED, RUNNING, Run, now

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from commitcast.demo.database import Database

_LONGEST_ANSWER = 8_000


class RunEnded(Exception):
    """The run is no longer ours to write: it was settled by someone else."""


def emit_about(session: AsyncSession, run: Run, kind: str, data: dict[str, Any]) -> None:
    """Emit an event about a run to the members of its thread."""
    about = {"user_id": run.user_id, "thread_id": run.thread_id, "run_id": run.id}
    emit(
        session, thread_stream(run.thread_id), Event(kind, {**about, **data}),
        actor=run.user_id, operation=run.operation_id,
    )  # fmt: skip


async def move(session: AsyncSession, run: Run, before: tuple[str, ...], **values: Any) -> None:
    """Change a run that is in one of the states `before`; raises RunEnded when it is not."""
    changed = await session.scalar(
        update(Run)
        .where(Run.id == run.id, Run.state.in_(before))
        .values(**values)
        .returning(Run.id)
    )
    if changed is None:
        raise RunEnded(run.id)


async def fail(session: AsyncSession, run: Run, before: tuple[str, ...], why: str) -> None:
    """End a run without an answer."""
    await move(session, run, before, state=FAILED, error=why, finished_at=now())
    emit_about(session, run, "agent_failed", {"state": FAILED, "error": why})


class RunJournal:
    """The steps of one run. No transaction is open between two of them."""

    def __init__(self, database: Database, run: Run, step_delay_s: float) -> None:
        self._database = database
        self._run = run
        self._delay_s = step_delay_s
        self._steps: list[dict[str, Any]] = []
        self._one_at_a_time = anyio.Lock()

    async def started(self) -> None:
        """The run begins."""
        async with self._database.writing() as session:
            await move(session, self._run, (QUEUED,), state=RUNNING)
            emit_about(
                session, self._run, "agent_started",
                {"state": RUNNING, "message_id": self._run.message_id},
            )  # fmt: skip
        await anyio.sleep(self._delay_s)

    async def thinking(self, text: str | None) -> None:
        """The model works; a text belongs to the thinking that was announced before it."""
        step = self._steps[-1] if text is not None and self._steps else None
        if step is None or step["kind"] != "thinking":
            step = self._new_step("thinking")
        step["text"] = text
        await self._write("agent_thinking", step)

    async def tool_executing(self, call_id: str, tool: str, arguments: dict[str, Any]) -> None:
        """A tool is about to run."""
        step = self._new_step("tool")
        step |= {"tool": tool, "call_id": call_id, "arguments": arguments, "outcome": None}
        await self._write("tool_executing", step)

    async def tool_completed(self, call_id: str, tool: str, outcome: dict[str, Any]) -> None:
        """A tool has run."""
        for step in reversed(self._steps):
            if step.get("call_id") == call_id and step["tool"] == tool:
                step["outcome"] = outcome
                await self._write("tool_completed", step)
                return

    async def completed(self, answer: str) -> None:
        """The answer: its message, the run's end and both events in one commit."""
        text = (
            answer.replace("\x00", "")[:_LONGEST_ANSWER].strip()
            or "(The agent had nothing to say.)"
        )
        async with self._database.writing() as session:
            await move(session, self._run, (RUNNING,), state=COMPLETED, finished_at=now())
            message = await add_message(session, self._run, author=None, text=text)
            emit_about(
                session, self._run, "agent_completed",
                {"state": COMPLETED, "message_id": message.id},
            )  # fmt: skip

    async def failed(self, why: str) -> None:
        """The run ends without an answer."""
        async with self._database.writing() as session:
            await fail(session, self._run, (QUEUED, RUNNING), why)

    def _new_step(self, kind: str) -> dict[str, Any]:
        step: dict[str, Any] = {"step": len(self._steps) + 1, "kind": kind}
        self._steps.append(step)
        return step

    async def _write(self, kind: str, step: dict[str, Any]) -> None:
        async with self._one_at_a_time:
            async with self._database.writing() as session:
                await move(session, self._run, (RUNNING,), steps=self._steps)
                emit_about(session, self._run, kind, step)
            await anyio.sleep(self._delay_s)
