"""Writes a run's steps down: each in the run's row and as an event, in one commit.

Each step is a checkpoint of the answer's operation (`Operation.begin`): it is there for everybody
to see, and is taken back with all others if the operation rolls back.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sqlalchemy import update

from commitcast import Event, emit
from commitcast.demo.chat import add_message, thread_stream
from commitcast.demo.tables import COMPLETED, FAILED, QUEUED, RUNNING, Run, now

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from commitcast.demo.faults import Injection
    from commitcast.operation import Operation

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
    """The steps of one run. No transaction is open between two of them.

    `session` is the operation's own, from `Operation.begin`.
    """

    def __init__(
        self,
        operation: Operation,
        session: AsyncSession,
        run: Run,
        step_delay_s: float,
        fault: Injection,
    ) -> None:
        self._operation = operation
        self._session = session
        self._run = run
        self._fault = fault
        self._delay_s = step_delay_s
        self._steps: list[dict[str, Any]] = []
        self._one_at_a_time = asyncio.Lock()

    async def started(self) -> None:
        """The run begins."""
        session, run = self._session, self._run
        run.operation_id = self._operation.id
        await move(session, run, (QUEUED,), state=RUNNING, operation_id=run.operation_id)
        emit_about(session, run, "agent_started", {"state": RUNNING, "message_id": run.message_id})
        await session.commit()
        await asyncio.sleep(self._delay_s)

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
        await self._fault.in_the_middle()

    async def tool_completed(self, call_id: str, tool: str, outcome: dict[str, Any]) -> None:
        """A tool has run."""
        for step in reversed(self._steps):
            if step.get("call_id") == call_id and step["tool"] == tool:
                step["outcome"] = outcome
                await self._write("tool_completed", step)
                return

    async def completed(self, answer: str) -> None:
        """The answer: its message, the run's end and both events, for the operation's commit."""
        await self._fault.in_the_middle()  # unless there was a step to do it at
        text = (
            answer.replace("\x00", "")[:_LONGEST_ANSWER].strip()
            or "(The agent had nothing to say.)"
        )
        session, run = self._session, self._run
        await move(session, run, (RUNNING,), state=COMPLETED, finished_at=now())
        message = await add_message(
            session, run, author=None, text=text, operation_id=self._operation.id
        )
        emit_about(session, run, "agent_completed", {"state": COMPLETED, "message_id": message.id})
        self._operation.result = {"run_id": run.id, "message_id": message.id}
        await self._fault.before_commit(session)

    def _new_step(self, kind: str) -> dict[str, Any]:
        step: dict[str, Any] = {"step": len(self._steps) + 1, "kind": kind}
        self._steps.append(step)
        return step

    async def _write(self, kind: str, step: dict[str, Any]) -> None:
        async with self._one_at_a_time:
            await move(self._session, self._run, (RUNNING,), steps=self._steps)
            emit_about(self._session, self._run, kind, step)
            await self._session.commit()
            await asyncio.sleep(self._delay_s)
