"""The relay's lease: one node of those that share a relay name hands events over at a time."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, literal, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from commitcast.schema import Tables

_logger = logging.getLogger("commitcast")


class Lease:
    """Taken and renewed in the database; `taken` is called when it becomes this node's."""

    def __init__(
        self,
        engine: AsyncEngine,
        tables: Tables,
        *,
        name: str,
        lease_s: float,
        taken: Callable[[], None],
    ) -> None:
        self.owner = uuid.uuid4().hex
        self._engine = engine
        self._tables = tables
        self._name = name
        self._lease_s = lease_s
        self._taken = taken
        self._owned_until = 0.0
        self._not_before = 0.0

    @property
    def is_ours(self) -> bool:
        """Whether this node may hand over."""
        return time.monotonic() < self._owned_until

    def lose(self) -> None:
        """Another node has it, as the database said."""
        self._owned_until = 0.0

    async def give_up(self) -> None:
        """Let another node have it, for two leases at least."""
        self._not_before = time.monotonic() + 2 * self._lease_s
        self.lose()
        await self.release()

    async def run(self) -> None:
        """Renew, for ever."""
        while True:
            try:
                await self.renew()
            except Exception as error:  # noqa: BLE001 - drivers raise their own on connect
                _logger.warning("commitcast: relay lease: %s", type(error).__name__)
            await asyncio.sleep(self._lease_s / 4 * random.uniform(0.9, 1.1))

    async def renew(self) -> None:
        """Take it, or keep it."""
        asked = time.monotonic()
        if asked >= self._not_before and await self._acquire():
            if not self.is_ours:
                self._taken()
            self._owned_until = asked + self._lease_s * 0.8
        else:
            self._owned_until = 0.0

    async def _acquire(self) -> bool:
        relays = self._tables.relays
        async with self._engine.begin() as conn:
            now, until = await self._clock(conn)
            insert = insert_into(conn, relays).values(
                name=self._name, owner=self.owner, leased_until=until
            )
            # not rowcount, which drivers keep for UPDATE and DELETE only
            first = insert.on_conflict_do_nothing().returning(relays.c.name)
            if await conn.scalar(first) is not None:
                await self._start_from_here(conn)
                return True
            taken = await conn.execute(
                update(relays)
                .where(
                    relays.c.name == self._name,
                    or_(
                        relays.c.owner == self.owner,
                        relays.c.owner.is_(None),
                        relays.c.leased_until < now,
                    ),
                )
                .values(owner=self.owner, leased_until=until)
            )
            return bool(taken.rowcount == 1)

    async def release(self) -> None:
        """Let go of it, if it is ours."""
        relays = self._tables.relays
        try:
            async with asyncio.timeout(2), self._engine.begin() as conn:
                await conn.execute(
                    update(relays)
                    .where(relays.c.name == self._name, relays.c.owner == self.owner)
                    .values(owner=None)
                )
        except Exception as error:  # noqa: BLE001 - drivers raise their own on connect
            _logger.info("commitcast: relay lease runs out by itself: %s", type(error).__name__)

    async def _start_from_here(self, conn: AsyncConnection) -> None:
        """A new relay begins with what is committed after it: the past was never its own."""
        streams, deliveries = self._tables.streams, self._tables.deliveries
        await conn.execute(
            deliveries.insert().from_select(
                ["relay", "stream_id", "delivered"],
                select(literal(self._name), streams.c.id, streams.c.head),
            )
        )

    async def _clock(self, conn: AsyncConnection) -> tuple[Any, Any]:
        lease = timedelta(seconds=self._lease_s)
        if conn.dialect.name == "sqlite":  # one machine, one clock
            now = datetime.now(UTC)
            return now.isoformat(), (now + lease).isoformat()
        moment = (await conn.execute(select(func.clock_timestamp()))).scalar_one()
        return moment, moment + lease


def insert_into(conn: AsyncConnection, table: Any) -> Any:
    """An INSERT that knows ON CONFLICT."""
    dialect: Any = sqlite if conn.dialect.name == "sqlite" else postgresql
    return dialect.insert(table)
