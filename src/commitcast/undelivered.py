"""Undelivered: which streams a relay has something to deliver of.

A hint names them, and then they alone are looked up, however many streams there are. What came
without a hint (another node's commit, SQL) is found by a look at all streams, once a poll
interval; with very many streams more seldom, so that looking takes a twentieth of the time.
"""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.ext.asyncio import AsyncEngine

    from commitcast.schema import Tables

_AT_ONCE: Final = 1000
_LOOK_SHARE: Final = 20
_MOST_NAMES: Final = 10_000
"""Most names that are kept; where more are given, all streams are looked at."""


class Undelivered:
    """For one relay; `engine` reads."""

    def __init__(
        self, engine: AsyncEngine, tables: Tables, relay: str, poll_interval_s: float
    ) -> None:
        self._engine = engine
        self._tables = tables
        self._relay = relay
        self._poll_interval_s = poll_interval_s
        self._named: dict[str, None] = {}
        """In the order in which they were named, so that none waits behind those named over again."""
        self._look_at = 0.0
        self._after_id = 0
        """The stream's id after which the look at all goes on; 0 is the first."""
        self._looked_s = 0.0
        self._named_last = False
        """Streams that never pause, and so are named over and over, keep no look away."""

    def name(self, streams: Collection[str]) -> None:
        """There may be something in these."""
        self._named.update(dict.fromkeys(streams))
        if len(self._named) > _MOST_NAMES:
            self.look_soon()

    def look_soon(self) -> None:
        """There may be something in any."""
        self._named.clear()
        self._look_at = 0.0

    def look_next_poll(self) -> None:
        """A look has failed, and what it was to find is not known any more."""
        self._look_at = time.monotonic() + self._poll_interval_s

    @property
    def look_at(self) -> float:
        """When all streams are to be looked at next, in seconds of the monotonic clock."""
        return self._look_at

    async def next(self) -> tuple[list[Any], set[str]] | None:
        """Some rows (id, name, delivered), and the names that were looked up; None for no more."""
        may_look = self._after_id or time.monotonic() >= self._look_at
        if may_look and (self._named_last or not self._named):
            self._named_last = False
            return await self._look(), set()
        if not self._named:
            return None
        self._named_last = True
        names = list(islice(self._named, _AT_ONCE))
        for name in names:
            del self._named[name]
        return await self._read(self._tables.streams.c.name.in_(names)), set(names)

    async def _look(self) -> list[Any]:
        began = time.monotonic()
        page = await self._read(self._tables.streams.c.id > self._after_id)
        now = time.monotonic()
        self._looked_s += now - began
        self._after_id = page[-1].id if len(page) == _AT_ONCE else 0
        if not self._after_id:
            self._look_at = now + max(self._poll_interval_s, _LOOK_SHARE * self._looked_s)
            self._looked_s = 0.0
        return page

    async def _read(self, wanted: Any) -> list[Any]:
        streams, deliveries = self._tables.streams, self._tables.deliveries
        delivered = func.coalesce(deliveries.c.delivered, 0)
        async with self._engine.connect() as conn:
            rows = await conn.execute(
                select(streams.c.id, streams.c.name, delivered.label("delivered"))
                .select_from(
                    streams.outerjoin(
                        deliveries,
                        (deliveries.c.stream_id == streams.c.id)
                        & (deliveries.c.relay == self._relay),
                    )
                )
                .where(streams.c.head > delivered, wanted)
                .order_by(streams.c.id)
                .limit(_AT_ONCE)
            )
            return list(rows)
