"""Runs the agent for each question: one task and one operation for each answer.

The operation is announced before the agent works. Its steps are checkpoints, so that each is
committed and shown before the next begins, and all are taken back if the answer does not commit;
the answer, the run's end and the operation's outcome are one commit. Between two steps no
transaction is open.

A run's row follows its operation: it ends *completed* in the operation's own commit, and *failed*
once the operation has rolled back. If the process dies in between, the next start does that, and
answers the questions whose answer had not begun. One server per database: a start takes what is
running for left behind. (A run's own lease comes with the library's run tracking.)
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from commitcast.demo.agent import Desk, ask
from commitcast.demo.chat import thread_stream
from commitcast.demo.faults import ANSWER, FaultInjected
from commitcast.demo.journal import RunEnded, RunJournal, fail
from commitcast.demo.tables import OPEN_STATES, QUEUED, Message, Run
from commitcast.errors import AlreadyCommitted, CommitcastError, InProgress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pydantic_ai import Agent

    from commitcast import Coordinator
    from commitcast.demo.database import Database
    from commitcast.demo.faults import Faults
    from commitcast.operation import Operation

_logger = logging.getLogger("commitcast.demo")

NOT_KEPT: Final = "The answer was not finished, so its steps were taken back. Please ask again."
"""What the rollback notification says, whose text is written before anybody knows why."""
INTERRUPTED: Final = "The answer was interrupted because the server stopped. Please try again."
CANCELLED: Final = "The answer was cancelled before it was finished. Please try again."
MODEL_FAILED: Final = "The agent's model failed. Please try again."
NOT_SAVED: Final = "The answer could not be saved. Please try again."

_DEADLINE_S: Final = 1800.0
_MAX_AT_ONCE: Final = 8
_REMEMBERED_MESSAGES: Final = 20
_ATTEMPTS_TO_SETTLE: Final = 5


class Answers:
    """The agent at work."""

    def __init__(
        self,
        coordinator: Coordinator,
        database: Database,
        faults: Faults,
        agent: Agent[Desk, str],
        step_delay_s: float,
    ) -> None:
        self._coordinator = coordinator
        self._database = database
        self._faults = faults
        self._agent = agent
        self._step_delay_s = step_delay_s
        self._places = asyncio.Semaphore(_MAX_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = False

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Take over what was left open, answer while the block runs, give up what is not done."""
        self._open = True
        await self._take_over()
        try:
            yield
        finally:
            self._open = False
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take_over(self) -> None:
        """Begin the answers that had not begun; fail those that had, each with its event."""
        async with self._database.reading() as session:
            runs = list(
                await session.scalars(
                    select(Run).where(Run.state.in_(OPEN_STATES)).order_by(Run.created_at)
                )
            )
        for run in runs:
            announced = await self._coordinator.find_operation(ANSWER, id=run.id, user=run.user_id)
            if run.state == QUEUED and announced is None:
                self.begin(run)
            else:
                await self._settle(run, INTERRUPTED)

    def operation(self, run: Run) -> Operation:
        """The operation of a run's answer; its id is the same whoever asks for it."""
        return self._coordinator.operation(
            ANSWER, user=run.user_id, stream=thread_stream(run.thread_id), id=run.id,
            user_message=NOT_KEPT, deadline_s=_DEADLINE_S,
        )  # fmt: skip

    def begin(self, run: Run) -> None:
        """Answer a run whose row is committed; a stopped server leaves it to the next start."""
        if self._open:
            task = asyncio.get_running_loop().create_task(self._answer(run))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, run: Run) -> None:
        async with self._places:
            operation, why = self.operation(run), INTERRUPTED
            operation.on_rollback(lambda: self._settle(run, why))
            try:
                async with operation:
                    try:
                        await self._work(operation, run)
                    except BaseException as error:
                        why = self._reason(error)
                        raise
            except RunEnded:
                _logger.info("run %s was settled elsewhere; its work is dropped", run.id)
            except (AlreadyCommitted, InProgress):
                _logger.info("run %s is answered elsewhere", run.id)
            except Exception as error:  # noqa: BLE001  (whatever a model raises ends this run only)
                _logger.error("run %s failed: %s", run.id, type(error).__name__)  # noqa: TRY400
                if not operation.attempt:  # not even announced
                    await self._settle(run, NOT_SAVED)

    async def _work(self, operation: Operation, run: Run) -> None:
        fault = self._faults.take(operation)
        async with operation.begin() as session:
            journal = RunJournal(operation, session, run, self._step_delay_s, fault)
            await journal.started()
            question, history = await self._conversation(run)
            answer = await ask(self._agent, question, history, journal)
            await journal.completed(answer)

    def _reason(self, error: BaseException) -> str:
        match error:
            case asyncio.CancelledError():
                return CANCELLED if self._open else INTERRUPTED
            case SQLAlchemyError() | OSError() | CommitcastError() | FaultInjected():
                return NOT_SAVED
            case _:
                return MODEL_FAILED

    async def _settle(self, run: Run, why: str) -> None:
        for attempt in range(_ATTEMPTS_TO_SETTLE):
            try:
                async with self._database.writing() as session:
                    await fail(session, run, OPEN_STATES, why)
            except RunEnded:
                return
            except SQLAlchemyError:
                await asyncio.sleep(2**attempt / 2)
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
