"""What must hold, asked of the database on a timer: proof that does not rest on what was recorded.

- ``invariant.undelivered``: no event waits for a ``deliver`` callable for longer than
  ``invariants_stale_s``. Relays that were closed in good order by everybody are not looked at.
- ``invariant.heads``: of no stream that is read on this node the log has had more than this node
  has seen, without any progress, for two polls or more and in two checks in a row.
- ``invariant.overdue``: no operation is open for more than the lease after its deadline.
- ``invariant.notices``: of the newest attempts that were rolled back, each that had streams to tell
  has its notice in their log. Where it may have been trimmed or erased since, nothing is claimed.

Each breach is a broken step of its pair of layers. Each that holds is a good one, but only where the
window has no other steps of the pair: what happened is not to be diluted by what did not. Times are the
database's own. All answers are bounded, whatever the tables hold; the look for undelivered events takes
longer with each stream (100,000: 30 ms in PostgreSQL).
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import orjson
from sqlalchemy import Float, and_, cast, false, func, literal_column, or_, select

from commitcast.attempt import Outcome
from commitcast.clock import DatabaseClock
from commitcast.erasure import ERASED_TYPE
from commitcast.health import HealthLevel
from commitcast.notification import NOTIFICATION_TYPE, notice_id
from commitcast.score import LayerPair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy.ext.asyncio import AsyncConnection

    from commitcast.delivery import Delivery
    from commitcast.health import CoordinationHealthMonitor
    from commitcast.settings import Settings

_logger = logging.getLogger("commitcast")
UNDELIVERED: Final = "invariant.undelivered"
HEADS: Final = "invariant.heads"
OVERDUE: Final = "invariant.overdue"
NOTICES: Final = "invariant.notices"
_ALL: Final = (UNDELIVERED, HEADS, OVERDUE, NOTICES)

_STREAMS_AT_ONCE: Final = 500
_UNDELIVERED_AT_MOST: Final = 1_000
_BROKEN_AT_MOST: Final = 100
_NEWEST_OPERATIONS: Final = 2_000
_NEWEST_ROLLED_BACK: Final = 100
_NEWEST_EVENTS: Final = 200
"""Events from the end of a stream among which a notice is looked for."""
_ORDER_S: Final = 30.0
"""By how much the times of events may be out of the order of their offsets."""


@dataclass(frozen=True, slots=True)
class Invariants:
    """What the database said. None stands for what was not asked, or could not be."""

    checked_at: datetime
    """UTC, by this node's clock."""
    oldest_undelivered_s: float | None = None
    """Age of the oldest event that a ``deliver`` callable has not been given; 0 if none waits."""
    streams_behind: int | None = None
    """Streams read here of which this node lacks events, without progress since the last check."""
    operations_overdue: int | None = None
    """Open operations, of any node, past their deadline by more than the lease; 100 at most."""
    notices_unsent: int | None = None
    """Attempts rolled back, of any node, whose notice is not in the log."""
    error: str | None = None
    """The class of the error, where the database could not be asked."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON may hold it."""
        return {
            "checked_at": self.checked_at.isoformat(timespec="milliseconds"),
            "oldest_undelivered_s": self.oldest_undelivered_s,
            "streams_behind": self.streams_behind,
            "operations_overdue": self.operations_overdue,
            "notices_unsent": self.notices_unsent,
            "error": self.error,
        }


class Prover:
    """Asks the database, on a connection of those that delivery reads with."""

    def __init__(
        self,
        delivery: Delivery,
        health: CoordinationHealthMonitor,
        settings: Settings,
        *,
        relay: str | None,
        with_operations: bool,
        keep: Callable[[Invariants], None],
    ) -> None:
        self._delivery = delivery
        self._log = delivery.log
        self._tables = delivery.log.tables
        self._postgresql = delivery.log.dialect.name == "postgresql"
        self._clock = DatabaseClock(delivery.log.dialect)
        self._health = health
        self._settings = settings
        self._relay = relay
        self._with_operations = with_operations
        self._keep = keep
        self._behind: dict[str, tuple[tuple[str, int], float]] = {}
        """Streams that were behind at the last look: where this node was, and since when."""

    async def run(self, every_s: float) -> None:
        """Look, for ever."""
        while True:
            await asyncio.sleep(every_s * random.uniform(0.9, 1.1))
            await self.look()

    async def look(self) -> Invariants:
        """Ask, record, and compare scores with the limits of alerts."""
        at = datetime.now(UTC)
        try:
            async with self._delivery.reading() as conn:
                proven = await self._ask(conn, at)
        except Exception as error:  # noqa: BLE001 - drivers raise errors of their own on connect
            _logger.warning("commitcast: invariants are not known: %s", type(error).__name__)
            proven = Invariants(at, error=type(error).__name__)
        self._keep(proven)
        _check(self._health)
        return proven

    async def _ask(self, conn: AsyncConnection, at: datetime) -> Invariants:
        waiting = await self._undelivered(conn)
        behind = await self._streams_behind(conn)
        overdue = await self._overdue(conn) if self._with_operations else None
        unsent = await self._unsent(conn) if self._with_operations else None
        # Only when all is known, so that a check that failed half way leaves nothing behind.
        if waiting:
            limit_s = self._settings.invariants_stale_s
            stale = [
                f"relay {name}: an event has waited for {age_s:.0f} s"
                for name, age_s in waiting.items()
                if age_s > limit_s
            ]
            self._record(UNDELIVERED, LayerPair.DATABASE_SOCKET, stale)
        if self._delivery.places():
            missing = ["the log has more of a stream than this node has seen"] * behind
            self._record(HEADS, LayerPair.DATABASE_SOCKET, missing)
        if overdue is not None and unsent is not None:
            self._record(OVERDUE, LayerPair.ROLLBACK_NOTIFICATION, overdue)
            self._record(NOTICES, LayerPair.ROLLBACK_NOTIFICATION, unsent)
        return Invariants(
            at,
            oldest_undelivered_s=max(waiting.values(), default=None),
            streams_behind=behind,
            operations_overdue=None if overdue is None else len(overdue),
            notices_unsent=None if unsent is None else len(unsent),
        )

    def _record(self, name: str, layers: LayerPair, breaches: Iterable[str]) -> None:
        found = list(breaches)[:_BROKEN_AT_MOST]
        for detail in found:
            self._health.track_coordination_event(name, layers, None, detail=detail)
        if not found and not self._health.has_steps(layers, besides=_ALL):
            self._health.track_coordination_event(name, layers, 0.0)

    # --- delivery -------------------------------------------------------------------------

    async def _undelivered(self, conn: AsyncConnection) -> dict[str, float]:
        """How old the oldest event is that each relay has still to deliver, in seconds."""
        t = self._tables
        relays, streams, deliveries, events = t.relays, t.streams, t.deliveries, t.events
        wanted: Any = relays.c.owner.is_not(None)
        if self._relay is not None:
            wanted = or_(wanted, relays.c.name == self._relay)
        names = list(await conn.scalars(select(relays.c.name).where(wanted).limit(20)))
        found: dict[str, float] = {}
        for name in names:
            delivered = func.coalesce(deliveries.c.delivered, 0)
            waiting = (
                select(
                    streams.c.id.label("id"), streams.c.tail.label("tail"),
                    delivered.label("delivered"),
                )
                .select_from(
                    streams.outerjoin(
                        deliveries,
                        and_(deliveries.c.stream_id == streams.c.id, deliveries.c.relay == name),
                    )
                )
                .where(streams.c.head > delivered)
                .limit(_UNDELIVERED_AT_MOST)
                .subquery()
            )  # fmt: skip
            larger = func.greatest if self._postgresql else func.max
            first = select(func.min(events.c.created_at)).select_from(
                waiting.join(
                    events,
                    and_(
                        events.c.stream_id == waiting.c.id,
                        events.c.offset == larger(waiting.c.delivered + 1, waiting.c.tail),
                    ),
                )
            )
            age_s = await conn.scalar(select(self._age_s(first.scalar_subquery())))
            found[name] = max(float(age_s or 0.0), 0.0)
        return found

    def _age_s(self, moment: Any) -> Any:
        if self._postgresql:
            return cast(func.extract("epoch", self._clock.now() - moment), Float)
        days = func.julianday(self._clock.now()) - func.julianday(moment)
        return days * literal_column("86400.0", Float)

    async def _streams_behind(self, conn: AsyncConnection) -> int:
        names = list(self._delivery.places())
        heads = {}
        for start in range(0, len(names), _STREAMS_AT_ONCE):
            heads.update(await self._log.heads(conn, names[start : start + _STREAMS_AT_ONCE]))
        places = self._delivery.places()
        before, self._behind, now = self._behind, {}, self._health.clock()
        for name, head in heads.items():
            epoch, edge = places.get(name, (None, 0))
            if epoch is not None and (epoch != head.epoch or head.head > edge):
                place, since = before.get(name, (None, now))
                self._behind[name] = (epoch, edge), since if place == (epoch, edge) else now
        # A look that somebody asked for may come just after another: what is behind by a moment.
        longest_s = 2 * self._settings.poll_interval_s
        return sum(now - since >= longest_s for _, since in self._behind.values())

    # --- operations -----------------------------------------------------------------------

    async def _overdue(self, conn: AsyncConnection) -> list[str]:
        operations, outcomes = self._tables.operations, self._tables.outcomes
        decided = select(outcomes.c.outcome).where(
            outcomes.c.operation_id == operations.c.id, outcomes.c.attempt == operations.c.attempt
        )
        rows = await conn.execute(
            select(operations.c.name)
            .where(
                operations.c.settled == false(),
                operations.c.deadline < self._clock.later(-self._settings.lease_s),
                ~decided.exists(),
            )
            .limit(_BROKEN_AT_MOST)
        )
        return [f"operation {row.name} is open past its deadline" for row in rows]

    async def _unsent(self, conn: AsyncConnection) -> list[str]:
        operations, outcomes = self._tables.operations, self._tables.outcomes
        newest = (
            select(
                operations.c.id, operations.c.attempt, operations.c.name, operations.c.streams,
                operations.c.announced_at,
            )
            .order_by(operations.c.announced_at.desc())
            .limit(_NEWEST_OPERATIONS)
            .subquery()
        )  # fmt: skip
        rows = await conn.execute(
            select(newest, outcomes.c.decided_at)
            .select_from(
                newest.join(
                    outcomes,
                    and_(
                        outcomes.c.operation_id == newest.c.id,
                        outcomes.c.attempt == newest.c.attempt,
                    ),
                )
            )
            .where(outcomes.c.outcome == Outcome.ROLLED_BACK.value)
            .order_by(newest.c.announced_at.desc())
            .limit(_NEWEST_ROLLED_BACK)
        )
        attempts = [
            (row.name, notice_id(row.id, row.attempt), _moment(row.decided_at), stream)
            for row in rows
            for stream in orjson.loads(row.streams)
        ]
        ends = await self._ends(conn, list(dict.fromkeys(stream for *_, stream in attempts)))
        return [
            f"operation {name}: its rollback notification is not in the log"
            for name, notice, decided_at, stream in attempts
            if stream in ends and ends[stream].lacks(notice, decided_at)
        ]

    async def _ends(self, conn: AsyncConnection, names: list[str]) -> dict[str, _End]:
        """The newest events of some streams, those of them that there are."""
        streams, events = self._tables.streams, self._tables.events
        found: dict[str, _End] = {}
        wanted = streams.c.name.in_(names[:_STREAMS_AT_ONCE])
        larger = func.greatest if self._postgresql else func.max
        first = larger(streams.c.head - (_NEWEST_EVENTS - 1), streams.c.tail)
        this = and_(events.c.stream_id == streams.c.id, events.c.offset == first)
        oldest = select(streams.c.name, events.c.created_at).select_from(streams.join(events, this))
        for row in await conn.execute(oldest.where(wanted)):
            found[row.name] = _End(_moment(row.created_at), set())
        after = events.c.offset > streams.c.head - _NEWEST_EVENTS
        recent = streams.join(events, and_(events.c.stream_id == streams.c.id, after))
        notices = select(streams.c.name, events.c.event_id).select_from(recent)
        kinds = events.c.type.in_((NOTIFICATION_TYPE, ERASED_TYPE))
        for row in await conn.execute(notices.where(wanted, kinds)):
            if row.name in found:
                found[row.name].notices.add(row.event_id)
        return found


@dataclass(frozen=True, slots=True)
class _End:
    """The newest events of one stream; `oldest` is when the first of them was emitted."""

    oldest: datetime
    notices: set[str]

    def lacks(self, notice: str, decided_at: datetime) -> bool:
        """Whether a notice of that time would be among these events, and is not."""
        return notice not in self.notices and self.oldest < decided_at - timedelta(seconds=_ORDER_S)


def _moment(value: Any) -> datetime:
    found = datetime.fromisoformat(value) if isinstance(value, str) else value
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


async def watch(health: CoordinationHealthMonitor, every_s: float) -> None:
    """Compare scores with the limits of alerts, for ever, also while nothing happens."""
    while True:
        await asyncio.sleep(every_s)
        if health.level is not HealthLevel.OFF:
            _check(health)


def _check(health: CoordinationHealthMonitor) -> None:
    """Whatever a monitor of the team's own raises: the next check comes."""
    try:
        health.check()
    except Exception as error:
        _logger.exception("commitcast: scores were not compared: %s", type(error).__name__)
