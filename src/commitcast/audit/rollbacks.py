"""Rollbacks that nobody has been told about yet.

Told means: each connection that was sent something during the work gets a notice; or, if none was,
the request failed visibly (status 400 or above, an exception) or any notice went out in it.
"""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from commitcast.audit.channel import Channel, Unit, current_task, current_unit

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from commitcast.audit.callsite import Chain

MOST_PENDING: Final = 1_000
_MOST_HERE: Final = 8


@dataclass(slots=True, eq=False, weakref_slot=True)
class Rollback:
    """Work with changes that was rolled back."""

    at: float
    began: float
    chain: Chain
    shown: list[Channel]
    """Connections that were sent something during it, and no notice yet."""
    was_shown: bool
    unit: Unit | None = field(default_factory=current_unit.get)
    task: weakref.ref[asyncio.Task[Any]] | None = None
    promised: bool = False
    """A notice was put into a queue, from which others send it."""

    def over(self) -> bool:
        """Whether nothing more can be told on its behalf."""
        if self.promised:
            return False
        task = None if self.task is None else self.task()
        own = self.unit is not None and task is not None and self.unit.task() is task
        if self.unit is None and self.task is None:
            return False
        unit_over = self.unit is None or self.unit.over
        return unit_over and (own or task is None or task.done())


_here: ContextVar[tuple[weakref.ref[Rollback], ...]] = ContextVar(
    "commitcast_rollbacks", default=()
)
"""Those of this context, or of the one that it was made from: a worker serves no request."""
_noticed_at: ContextVar[float] = ContextVar("commitcast_noticed_at", default=0.0)


def _of_here(rollback: Rollback) -> bool:
    return any(known() is rollback for known in _here.get())


def _told_before(rollback: Rollback) -> bool:
    unit = rollback.unit
    noticed_at = _noticed_at.get()
    if unit is not None:
        if unit.refused_at is not None:
            return True
        noticed_at = max(noticed_at, unit.noticed_at or 0.0)
    return noticed_at >= rollback.began


class Rollbacks:
    """Waits for each to be told."""

    def __init__(
        self,
        clock: Callable[[], float],
        told: Callable[[Rollback, float], None],
        untold: Callable[[Rollback], None],
    ) -> None:
        """Call `told` with how many ms later, or `untold`; neither if it was made good."""
        self._clock = clock
        self._told = told
        self._untold = untold
        self._pending: dict[Rollback, None] = {}
        self._unseen: dict[Rollback, None] = {}
        """Those of which nothing was shown, so that doing it again makes them good."""
        self._watched: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    def add(self, rollback: Rollback, task: asyncio.Task[Any] | None) -> None:
        """Begin to wait, unless it was told already; `task` is whose work it was."""
        if rollback.was_shown:
            if not rollback.shown:
                self._told(rollback, 0.0)
                return
        elif _told_before(rollback):
            self._told(rollback, 0.0)
            return
        if task is not None:
            rollback.task = weakref.ref(task)
            if task not in self._watched:
                self._watched.add(task)
                task.add_done_callback(self._task_over)
        _here.set((*_here.get()[1 - _MOST_HERE :], weakref.ref(rollback)))
        self._pending[rollback] = None
        if not rollback.was_shown:
            self._unseen[rollback] = None
        if len(self._pending) > MOST_PENDING:
            self._end(next(iter(self._pending)))

    def notice(self, channel: Channel, unit: Unit | None, at: float) -> None:
        """A notice leaves."""
        if unit is not None:
            unit.noticed_at = at
        _noticed_at.set(at)
        for rollback in list(self._pending):
            if rollback.was_shown:
                rollback.shown = [c for c in rollback.shown if not channel.tells(c)]
                done = not rollback.shown
            else:
                done = _of_here(rollback)
                if rollback.unit is not None and not done:
                    done = rollback.unit is unit or channel.tells(rollback.unit.channel)
            if done:
                self._tell(rollback, at)

    def promise(self, unit: Unit | None, at: float) -> None:
        """A notice is put into a queue: who was shown something gets it when it comes out."""
        if unit is not None:
            unit.noticed_at = at
        _noticed_at.set(at)
        for rollback in list(self._pending):
            if _of_here(rollback) or (unit is not None and rollback.unit is unit):
                if rollback.was_shown:
                    rollback.promised = True
                else:
                    self._tell(rollback, at)

    def refused(self, unit: Unit, at: float) -> None:
        """A request's own response says that it failed."""
        unit.refused_at = at
        for rollback in list(self._pending):
            if rollback.unit is not unit:
                continue
            if not rollback.was_shown:
                self._tell(rollback, at)

    def statement_succeeded(self) -> None:
        """What the same request or task does next made a rollback good that nobody had seen."""
        if not self._unseen:
            return
        unit, task = current_unit.get(), current_task()
        for rollback in list(self._unseen):
            same = rollback.unit is unit if unit is not None else _of_here(rollback)
            if not same and task is not None and rollback.task is not None:
                same = rollback.task() is task
            if same:
                self._drop(rollback)

    def gone(self, channel: Channel) -> None:
        """A client has left: there is nobody there to be told."""
        channel.closed = True
        for rollback in list(self._pending):
            unit = rollback.unit
            if not rollback.was_shown and unit is not None and unit.channel is channel:
                self._drop(rollback)
            elif channel in rollback.shown:
                rollback.shown.remove(channel)
                if not rollback.shown:
                    self._drop(rollback)

    def unit_over(self, unit: Unit) -> None:
        """A request has ended."""
        unit.over = True
        self._sweep()

    def finish(self) -> None:
        """Nothing more will be told."""
        for rollback in list(self._pending):
            self._end(rollback)

    @property
    def pending(self) -> int:
        """How many wait."""
        return len(self._pending)

    def _task_over(self, _task: object) -> None:
        self._sweep()

    def _sweep(self) -> None:
        for rollback in [r for r in list(self._pending) if r.over()]:
            self._end(rollback)

    def _tell(self, rollback: Rollback, at: float) -> None:
        if self._drop(rollback):
            self._told(rollback, max(0.0, (at - rollback.at) * 1_000))

    def _end(self, rollback: Rollback) -> None:
        if self._drop(rollback):
            self._untold(rollback)

    def _drop(self, rollback: Rollback) -> bool:
        found = rollback in self._pending
        self._pending.pop(rollback, None)
        self._unseen.pop(rollback, None)
        return found
