"""Posting a message: one operation, whose outcome is the answer to the request."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from commitcast.attempt import Outcome
from commitcast.demo import chat
from commitcast.demo.faults import MESSAGE
from commitcast.demo.problem import Problem
from commitcast.errors import (
    AlreadyCommitted,
    CommitcastError,
    IdempotencyConflict,
    InProgress,
    OperationError,
    TooManyOperations,
)

if TYPE_CHECKING:
    from commitcast import Coordinator
    from commitcast.demo.answers import Answers
    from commitcast.demo.faults import Faults
    from commitcast.operation import Operation

_logger = logging.getLogger("commitcast.demo")

NOT_SAVED: Final = "Your message did not get into the thread. You can send it again."
_NOT_KNOWN: Final = "The database cannot be asked whether it was saved. You will be told here."


@dataclass(frozen=True, slots=True)
class Posted:
    """What a request is answered with; `replayed` if an earlier one had done it."""

    body: dict[str, Any]
    replayed: bool = False


class Posting:
    """Takes messages; the run that will answer one begins when it has committed."""

    def __init__(self, coordinator: Coordinator, answers: Answers, faults: Faults) -> None:
        self._coordinator, self._answers, self._faults = coordinator, answers, faults

    async def post(self, user_id: str, thread_id: str, text: str, key: str | None) -> Posted:
        """Save a member's message, once for each `key` of theirs.

        Raises Problem: 409 while the same key is being worked on, 422 for a key that came with
        another message before (both as draft-ietf-httpapi-idempotency-key-header asks),
        and for what failed 409, 500 or 503 with the operation's id and attempt.
        """
        operation = self._coordinator.operation(
            MESSAGE, user=user_id, stream=chat.thread_stream(thread_id), id=key,
            request={"thread_id": thread_id, "text": text}, user_message=NOT_SAVED,
        )  # fmt: skip
        work = asyncio.ensure_future(self._save(operation, thread_id, text))
        try:
            return Posted(await work)
        except AlreadyCommitted as before:
            return Posted(before.result, replayed=True)
        except InProgress:
            raise Problem(
                409, "In progress", "The same message is being saved; ask again in a moment.",
                headers={"Retry-After": "1"}, more={"operation_id": operation.id},
            ) from None  # fmt: skip
        except IdempotencyConflict:
            raise Problem(
                422, "Key used before",
                "This Idempotency-Key came with another message before; send a new key.",
                more={"operation_id": operation.id},
            ) from None  # fmt: skip
        except TooManyOperations as error:
            raise Problem(
                429, "Too many at once", "You are sending faster than messages are taken.",
                headers={"Retry-After": str(math.ceil(error.retry_after_s))},
            ) from None  # fmt: skip
        except asyncio.CancelledError as error:
            me = asyncio.current_task()
            if not work.cancelled() or me is None or me.cancelling():
                raise
            failure: BaseException = error
        except Exception as error:
            if not operation.attempt:
                raise  # nothing was announced, so nothing was begun
            failure = error
        if operation.outcome is Outcome.COMMITTED:
            return Posted(operation.result)
        raise _problem(operation, failure)

    async def _save(self, operation: Operation, thread_id: str, text: str) -> dict[str, Any]:
        async with operation:
            fault = self._faults.take(operation)
            async with operation.begin() as session:
                run = await chat.post_message(
                    session, operation.actor or "", thread_id, text, operation.id
                )
                run.operation_id = self._answers.operation(run).id
                operation.after_commit(lambda: self._answers.begin(run))
                body = operation.result = {
                    "operation_id": operation.id, "run_id": run.id, "message_id": run.message_id,
                }  # fmt: skip
                await session.flush()
                await fault.in_the_middle()
                await fault.before_commit(session)
        return body


def _problem(operation: Operation, error: BaseException) -> Problem:
    """What the sender is told; of the exception nothing but what kind of failure it is."""
    _logger.error("%r failed: %s", operation, type(error).__name__)
    more: dict[str, Any] = {"operation_id": operation.id, "attempt": operation.attempt}
    if operation.outcome is None:
        return Problem(
            503, "Not known yet", _NOT_KNOWN, headers={"Retry-After": "2"},
            more={**more, "outcome": "open"},
        )  # fmt: skip
    more |= {"outcome": str(operation.outcome), "user_message": NOT_SAVED}
    match error:
        case Problem():
            return Problem(
                error.status, error.title, error.detail, errors=error.errors,
                headers=error.headers, more=more,
            )  # fmt: skip
        case IntegrityError():
            return Problem(409, "Refused by the database", NOT_SAVED, more=more)
        case SQLAlchemyError() | OperationError() | OSError() | asyncio.CancelledError():
            return Problem(503, "Not saved", NOT_SAVED, headers={"Retry-After": "1"}, more=more)
        case CommitcastError() | _:
            return Problem(500, "Not saved", NOT_SAVED, more=more)
