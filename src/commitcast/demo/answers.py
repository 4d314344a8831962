"""Runs the agent for each question, one task each, and settles what a dead process left behind.

One server per database: on its start, every run that is still open is taken as left behind by a
killed process. (A run's own lease comes with the library's run tracking.)
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from commitcast.demo.agent import Desk, ask
from commitcast.demo.journal import RunEnded, RunJournal, fail
from commitcast.demo.tables import OPEN_STATES, Message, Run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyio.abc import TaskGroup
    from pydantic_ai import Agent

    from commitcast.demo.database import Database

_logger = logging.getLogger("commitcast.demo")

INTERRUPTED = "The answer was interrupted because the server stopped. Please try again."
MODEL_FAILED = "The agent's model failed. Please try again."
NOT_SAVED = "The answer could not be saved. Please try again."

_MAX_AT_ONCE = 8
_REMEMBERED_MESSAGES = 20
_ATTEMPTS_TO_SETTLE = 5


class Answers:
    """The agent at work."""

    def __init__(self, database: Database, agent: Agent[Desk, str], step_delay_s: float) -> None:
        self._database = database
        self._agent = agent
        self._step_delay_s = step_delay_s
        self._places = anyio.Semaphore(_MAX_AT_ONCE)
        self._tasks: TaskGroup | None = None

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Settle what was left open, answer while the block runs, settle what it leaves open."""
        await self.settle_interrupted()
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                yield
            finally:
                self._tasks = None
                tasks.cancel_scope.cancel()
        await self.settle_interrupted()

    async def settle_interrupted(self) -> None:
        """Fail every open run, each with its event."""
        async with self._database.reading() as session:
            runs = list(await session.scalars(select(Run).where(Run.state.in_(OPEN_STATES))))
        for run in runs:
            try:
                async with self._database.writing() as session:
                    await fail(session, run, OPEN_STATES, INTERRUPTED)
            except RunEnded:
                continue

    def begin(self, run: Run) -> None:
        """Answer a run whose row is committed; a stopped server leaves it to the next start."""
        if self._tasks is not None:
            self._tasks.start_soon(self._answer, run)

    async def _answer(self, run: Run) -> None:
        async with self._places:
            journal = RunJournal(self._database, run, self._step_delay_s)
            try:
                await journal.started()
                question, history = await self._conversation(run)
                answer = await ask(self._agent, question, history, journal)
                await journal.completed(answer)
            except RunEnded:
                _logger.info("run %s was settled elsewhere; its work is dropped", run.id)
            except SQLAlchemyError as error:
                _logger.error("run %s failed in the database: %s", run.id, type(error).__name__)  # noqa: TRY400
                await self._settle(journal, run, NOT_SAVED)
            except Exception as error:  # noqa: BLE001  (whatever a model raises ends this run only)
                _logger.error("run %s failed: %s", run.id, type(error).__name__)  # noqa: TRY400
                await self._settle(journal, run, MODEL_FAILED)

    async def _settle(self, journal: RunJournal, run: Run, why: str) -> None:
        for attempt in range(_ATTEMPTS_TO_SETTLE):
            try:
                await journal.failed(why)
            except RunEnded:
                return
            except SQLAlchemyError:
                await anyio.sleep(2**attempt / 2)
            else:
                return
        _logger.error("run %s could not be settled; the next start will", run.id)

    async def _conversation(self, run: Run) -> tuple[str, list[ModelMessage]]:
        async with self._database.reading() as session:
            asked = await session.get_one(Message, run.message_id)
            earlier = await session.scalars(
                select(Message)
                .where(Message.thread_id == run.thread_id, Message.number < asked.number)
                .order_by(Message.number.desc())
                .limit(_REMEMBERED_MESSAGES)
            )
            history: list[ModelMessage] = [
                ModelResponse(parts=[TextPart(message.text)])
                if message.user_id is None
                else ModelRequest(parts=[UserPromptPart(message.text)])
                for message in reversed(earlier.all())
            ]
        return asked.text, history
