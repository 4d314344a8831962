"""How a node learns that something was erased, by whichever node or script."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from commitcast.schema import Tables

READ_DEADLINE_S: Final = 15.0
"""A read that takes longer is given up: its connection may lead nowhere any more."""


class Erasures:
    """Looks whether this node may still have in memory what was erased."""

    def __init__(self, tables: Tables) -> None:
        self._query = select(tables.installation.c.erasures)
        self._seen: int | None = None
        self._until = 0.0

    async def look(self, conn: AsyncConnection) -> bool:
        """Whether to drop what is in memory: also for as long as a page that is older may arrive."""
        now, count = time.monotonic(), await conn.scalar(self._query)
        if self._seen not in {None, count}:
            self._until = now + READ_DEADLINE_S
        self._seen = count
        return now < self._until
