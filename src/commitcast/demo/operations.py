"""What a user may see of operations: their own, with what became of each."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import orjson
from sqlalchemy import select

from commitcast.attempt import Outcome
from commitcast.demo.answers import NOT_KEPT
from commitcast.demo.faults import ANSWER, MESSAGE
from commitcast.demo.posting import NOT_SAVED
from commitcast.demo.problem import Problem
from commitcast.demo.tables import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from commitcast import Coordinator
    from commitcast.attempt import Attempt
    from commitcast.demo.database import Database

_ID: Final = re.compile(r"[0-9a-f]{32}")
_NEWEST: Final = 30
_STATES: Final = ("open", "unknown", "committed", "rolled_back")
_USER_MESSAGES: Final = {MESSAGE: NOT_SAVED, ANSWER: NOT_KEPT}


class OwnOperations:
    """Asked by one user at a time (G7: nobody learns of another's, not even that there is one)."""

    def __init__(self, coordinator: Coordinator, database: Database) -> None:
        self._coordinator, self._database = coordinator, database

    async def find(self, operation_id: str, user_id: str) -> dict[str, Any]:
        """The newest attempt at an operation of the user's; raises Problem 404."""
        found = None
        if _ID.fullmatch(operation_id):
            found = await self._coordinator.find_operation(operation_id=operation_id, user=user_id)
        if found is None:
            raise Problem(
                404, "No such operation",
                "You have no operation of this id; see GET /api/operations.",
            )  # fmt: skip
        return (await self._shown([found]))[0]

    async def newest(self, user_id: str) -> list[dict[str, Any]]:
        """The user's newest attempts, newest first."""
        found = [
            attempt
            for state in _STATES
            for attempt in await self._coordinator.operations(state, user=user_id, limit=_NEWEST)
        ]
        # one that ends between two of the questions is there once, with its outcome
        by_attempt = {(one.id, one.attempt): one for one in found}
        newest = sorted(by_attempt.values(), key=lambda one: _iso(one.announced_at), reverse=True)
        return await self._shown(newest[:_NEWEST])

    async def _shown(self, attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
        async with self._database.reading() as session:
            rows = await session.execute(
                select(Run.operation_id, Run.steps).where(
                    Run.operation_id.in_([one.id for one in attempts])
                )
            )
            steps = {row.operation_id: len(row.steps) for row in rows}
        return [_shown(one, steps.get(one.id, 0)) for one in attempts]


def _shown(attempt: Attempt, steps: int) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": attempt.id,
        "attempt": attempt.attempt,
        "name": attempt.name,
        "outcome": "open" if attempt.outcome is None else str(attempt.outcome),
        "result": None if attempt.result_json is None else orjson.loads(attempt.result_json),
        "announced_at": _iso(attempt.announced_at),
        "decided_at": None if attempt.decided_at is None else _iso(attempt.decided_at),
        "idempotency_key": attempt.key if attempt.name == MESSAGE else None,
    }
    if attempt.outcome is Outcome.ROLLED_BACK:
        shown["user_message"] = _USER_MESSAGES.get(attempt.name, NOT_SAVED)
        shown["steps_taken_back"] = steps
    return shown


def _iso(moment: datetime | str) -> str:
    """A time of Commitcast's tables, which are text on SQLite, as ISO 8601 in UTC."""
    if isinstance(moment, str):
        return moment
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
