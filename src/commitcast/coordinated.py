"""Coordinated work: a function of a session, done as one operation; rows, events, outcome, result."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from commitcast.errors import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.ext.asyncio import AsyncSession

    from commitcast.operation import Operation


def refuse_later(*, agent_state_updates: Sequence[object], cache: Sequence[object]) -> None:
    """Raise `OperationError` for what another version will take."""
    if agent_state_updates or cache:
        raise OperationError(
            None,
            "agent_state_updates and cache are not in this version of Commitcast: write the "
            "agent's state in db_operation, and drop the cache's keys in op.after_commit",
        )


async def execute(
    operation: Operation,
    work: Callable[[AsyncSession], Any],
    events: Sequence[object] | Callable[[Any], Sequence[object]],
    result: Callable[[Any], object] | None,
) -> Any:
    """Enter `operation`, do `work` in its transaction, emit `events`; returns what `work` did.

    Where there may be a retry, what it is answered with is stored: what `result` makes of what
    `work` did, or that itself. If it cannot be stored, nothing commits: a retry that is answered
    with less than the first call had would pass for a success that it was not.
    """
    async with operation:
        async with operation.begin() as session:
            done = work(session)
            returned = await done if inspect.isawaitable(done) else done
            for event in events(returned) if callable(events) else events:
                match event:
                    case (str(stream), inner):
                        operation.emit(inner, stream=stream)
                    case _:
                        operation.emit(event)
            if result is not None:
                operation.result = lambda: result(returned)
            elif operation.announcement.key is not None:
                operation.result = lambda: returned
        return returned
