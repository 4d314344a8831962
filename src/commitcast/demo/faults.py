"""Faults that a person may arm for their next operation, to see what comes of it.

One for each user, in memory: a worker that is killed has forgotten them when it is back, so that
it is killed once.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from commitcast.demo.problem import Problem
from commitcast.demo.tables import BrokenPromise, new_id

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from commitcast.demo.connections import Connections
    from commitcast.operation import Operation

ANSWER: Final = "answer"
MESSAGE: Final = "message"
_MOST_ARMED: Final = 1_000


class Fault(StrEnum):
    """What can be made to go wrong."""

    FAIL_BEFORE_COMMIT = "fail_before_commit"
    FAIL_AT_COMMIT = "fail_at_commit"
    FAIL_AFTER_AGENT = "fail_after_agent"
    CANCEL = "cancel"
    CUT_SOCKET = "cut_socket"
    KILL_WORKER = "kill_worker"


EXPLAINED: Final = {
    Fault.FAIL_BEFORE_COMMIT: "The work raises when its rows are written but not committed.",
    Fault.FAIL_AT_COMMIT: "COMMIT itself fails: a deferred constraint is broken.",
    Fault.FAIL_AFTER_AGENT: "The agent has answered, then saving its answer fails.",
    Fault.CANCEL: "The task that does the work is cancelled in the middle.",
    Fault.CUT_SOCKET: "Your live connections are cut at the moment of the commit.",
    Fault.KILL_WORKER: "The server process kills itself (SIGKILL) in the middle.",
}


@dataclass(frozen=True, slots=True)
class Armed:
    """What waits to happen; `operation` is the name of the one it waits for, None for any."""

    fault: Fault
    operation: str | None


class FaultInjected(Exception):
    """Raised by an operation because somebody asked for it."""


class Injection:
    """What goes wrong in one operation: at most one thing, once."""

    def __init__(self, fault: Fault | None = None) -> None:
        self._fault = fault
        self._armed = fault is not None

    async def in_the_middle(self) -> None:
        """Called where work is done that has not committed."""
        if not self._armed:
            return
        if self._fault is Fault.CANCEL:
            self._armed = False
            task = asyncio.current_task()
            if task is not None:
                task.cancel()
            await asyncio.sleep(0)
        elif self._fault is Fault.KILL_WORKER:
            os.kill(os.getpid(), signal.SIGKILL)

    async def before_commit(self, session: AsyncSession) -> None:
        """Called when all that the operation does is done, but its commit."""
        match self._fault:
            case Fault.FAIL_BEFORE_COMMIT | Fault.FAIL_AFTER_AGENT:
                raise FaultInjected(self._fault)
            case Fault.FAIL_AT_COMMIT:
                session.add(BrokenPromise(user_id=new_id()))
                await session.flush()
            case _:
                return


class Faults:
    """Who has armed what. `supervised` says that somebody starts a killed worker again."""

    def __init__(self, connections: Connections, *, supervised: bool) -> None:
        self._connections = connections
        self._supervised = supervised
        self._armed: OrderedDict[str, Armed] = OrderedDict()

    def may_arm(self, fault: Fault) -> bool:
        """Whether this server can have that fault."""
        return self._supervised or fault is not Fault.KILL_WORKER

    def arm(self, user: str, fault: Fault, operation: str | None = None) -> None:
        """Have `fault` happen in the user's next operation, instead of what was armed before.

        With `operation` in the next of that name.
        """
        if not self.may_arm(fault):
            raise Problem(
                409, "Nobody would start it again",
                "This server runs without its parent process; start it with `commitcast demo`.",
            )  # fmt: skip
        self._armed[user] = Armed(fault, ANSWER if fault is Fault.FAIL_AFTER_AGENT else operation)
        self._armed.move_to_end(user)
        while len(self._armed) > _MOST_ARMED:
            self._armed.popitem(last=False)

    def disarm(self, user: str) -> None:
        """Have nothing happen."""
        self._armed.pop(user, None)

    def armed(self, user: str) -> Armed | None:
        """What waits for the user's next operation."""
        return self._armed.get(user)

    def take(self, operation: Operation) -> Injection:
        """What is to happen in an operation that was entered; it is armed no more."""
        user = operation.actor or ""
        armed = self._armed.get(user)
        if armed is None or armed.operation not in {None, operation.name}:
            return Injection()
        self.disarm(user)
        if armed.fault is Fault.CUT_SOCKET:
            operation.after_commit(lambda: self._connections.cut(user))
        return Injection(armed.fault)
