"""Cancelling a task at any step of the event loop that is taken for its work.

A step is what runs between two awaits. Counted are those of the task itself and of every task
that is started on its behalf: the announcing, the commit that is shielded, the settling.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

_counting: ContextVar[Cut | None] = ContextVar("counting", default=None)


@dataclass
class Cut:
    """Cancels a task when `at` steps were taken for it, and `again` steps later once more."""

    at: int
    again: int | None = None
    steps: int = 0
    cancelled: int = 0
    """How often the task was cancelled before it was done."""
    task: asyncio.Task[Any] | None = None

    def step(self) -> None:
        """A step was taken."""
        self.steps += 1
        if self.steps > self.at and self.cancelled == 0:
            self._cancel()
        elif self.cancelled == 1 and self.again is not None:
            self.again -= 1
            if self.again < 0:
                self._cancel()

    def _cancel(self) -> None:
        if self.task is not None and self.task.cancel():
            self.cancelled += 1

    async def run(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Run `work` in a task and cancel it; False if it was done before. Raises what it raised."""
        before = _counting.set(self)
        try:
            self.task = asyncio.get_running_loop().create_task(work)
        finally:
            _counting.reset(before)
        if self.at < 0:
            self._cancel()  # before its first step
        await asyncio.wait({self.task})
        if not self.task.cancelled():
            self.task.result()
        return self.cancelled > 0


class _Counted(Coroutine[Any, Any, Any]):
    """A coroutine whose steps are counted."""

    def __init__(self, inner: Coroutine[Any, Any, Any], cut: Cut) -> None:
        self._inner = inner
        self._cut = cut

    def send(self, value: Any) -> Any:
        try:
            return self._inner.send(value)
        finally:
            self._cut.step()

    def throw(self, *raised: Any) -> Any:
        try:
            return self._inner.throw(*raised)
        finally:
            self._cut.step()

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise NotImplementedError


@contextlib.contextmanager
def counted() -> Iterator[None]:
    """Count the steps of tasks that are started for a `Cut`."""
    loop = asyncio.get_running_loop()

    def factory(
        loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        cut = _counting.get()
        counted = work if cut is None else _Counted(work, cut)
        return asyncio.Task(counted, loop=loop, **options)

    before = loop.get_task_factory()
    loop.set_task_factory(factory)  # type: ignore[arg-type]
    try:
        yield
    finally:
        loop.set_task_factory(before)
