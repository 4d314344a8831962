"""The reaper: settles what nobody works on any more, so that every failure is told (G6).

It looks at this node's attempts that no task holds (a settling that was given up, an announcement
whose COMMIT was lost) and at those of others whose node is dead or whose deadline has passed. It
contends for their outcome like anybody else, so it can be wrong about a death without harm: a
transaction that commits first has won.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final

from commitcast.notification import ABANDONED, DEADLINE_PASSED, NODE_DIED

if TYPE_CHECKING:
    from collections.abc import Callable

    from commitcast.attempt import Attempt
    from commitcast.node import Node
    from commitcast.notification import Failure
    from commitcast.outcome import Outcomes
    from commitcast.writer import Writer

_logger = logging.getLogger("commitcast")
_AT_ONCE: Final = 2000
_LOOK_EVERY_S: Final = 1.0


class Reaper:
    """One for each node; `is_live` says which attempts a task of this node still holds."""

    def __init__(
        self,
        writer: Writer,
        outcomes: Outcomes,
        node: Node,
        is_live: Callable[[Attempt], bool],
        settle: Callable[[Attempt, Failure], bool],
    ) -> None:
        self._writer = writer
        self._outcomes = outcomes
        self._node = node
        self._is_live = is_live
        self._settle = settle

    async def run(self) -> None:
        """Look, for ever."""
        every_s = min(_LOOK_EVERY_S, self._node.beat_s)
        while True:
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001 - drivers raise their own on connect
                _logger.warning("commitcast: the reaper waits: %s", type(error).__name__)
            await asyncio.sleep(every_s * random.uniform(0.8, 1.2))

    async def look(self) -> int:
        """Declare deaths, then start to settle what was left; returns how many attempts."""
        await self._node.declare_deaths()
        await self._mark()
        left = [a for a in await self._unsettled(own=True) if a.orphan or not self._is_live(a)]
        left += await self._unsettled(own=False)
        for attempt in left:
            if not self._settle(attempt, _why(attempt)):
                break  # the next look goes on
        return len(left)

    async def _unsettled(self, *, own: bool) -> list[Attempt]:
        node = self._node.current.id
        return await self._writer.read(
            lambda conn: self._outcomes.unsettled(conn, node, own=own, limit=_AT_ONCE)
        )

    async def _mark(self) -> None:
        node = self._node.current.id
        # asked first, so that an idle SQLite database is not locked each second
        if await self._writer.read(lambda conn: self._outcomes.to_be_marked(conn, node)):
            await self._writer.run(lambda conn: self._outcomes.mark_settled(conn, node))
        nodes = self._node.nodes
        if gone := await self._writer.read(nodes.forgettable):
            await self._writer.run(lambda conn: nodes.forget(conn, gone))


def _why(attempt: Attempt) -> Failure:
    if attempt.node_dead:
        return NODE_DIED
    return DEADLINE_PASSED if attempt.overdue else ABANDONED
