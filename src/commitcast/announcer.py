"""Announcements: what is written before the work begins, many operations in one transaction.

While one transaction is under way the operations that come meanwhile gather, and go together in
the next. So under load an announcement costs a share of one insert and one fsync.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from commitcast.errors import NotRunning
from commitcast.outlast import end

if TYPE_CHECKING:
    from commitcast.attempt import Announcement, Attempt
    from commitcast.outcome import Outcomes
    from commitcast.writer import Writer

_AT_ONCE: Final = 500
_GATHER_S: Final = 0.001
"""How long more are waited for, while more than one at a time come."""


class Announcer:
    """Announces for one node."""

    def __init__(self, writer: Writer, outcomes: Outcomes) -> None:
        self._writer = writer
        self._outcomes = outcomes
        self._waiting: list[tuple[Announcement, asyncio.Future[int | Attempt]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._crowded = False
        self._loop = asyncio.get_running_loop()

    def announce(self, wanted: Announcement) -> asyncio.Future[int | Attempt]:
        """See `Outcomes.announce`; the future must not be cancelled, since the row may be written.

        It raises what the database did; then the row may or may not be there. Raises `NotRunning`
        in another event loop.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            raise NotRunning(
                "the coordinator was entered in another event loop, which may be closed; enter an "
                "operation in the loop in which the coordinator runs (enter it again in this one)"
            )
        answer: asyncio.Future[int | Attempt] = loop.create_future()
        self._waiting.append((wanted, answer))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        return answer

    async def close(self) -> None:
        """Stop; whoever still waits is told."""
        if self._writing is not None:
            await end([self._writing])
        for _, answer in self._waiting:
            answer.set_exception(ConnectionError("the node stops"))
        self._waiting = []

    async def _write(self) -> None:
        while self._waiting:
            if self._crowded:
                await asyncio.sleep(_GATHER_S)
            batch, self._waiting = self._waiting[:_AT_ONCE], self._waiting[_AT_ONCE:]
            self._crowded = len(batch) > 1
            wanted = [announcement for announcement, _ in batch]
            try:
                answers = await self._writer.each(
                    lambda conn, wanted=wanted: self._outcomes.announce(conn, wanted)  # type: ignore[misc]
                )
            except BaseException as error:
                for _, answer in batch:
                    answer.set_exception(
                        error if isinstance(error, Exception) else ConnectionError("the node stops")
                    )
                if not isinstance(error, Exception):
                    raise
            else:
                for (_, answer), one in zip(batch, answers, strict=True):
                    answer.set_result(one)
        self._writing = None
