"""One campaign of stops: two loaded servers on one database, and one is stopped again and again.

SIGSTOP takes a process away without ending it: it holds its locks, its connections and its work,
and after SIGCONT it goes on as if nothing had happened. It is stopped for less than its lease,
for about that, and for longer. On PostgreSQL the other node then takes it for dead and settles
its operations, and what the stopped one commits after that must fail; on SQLite, where the
operating system says who lives, nobody may take it for dead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import IO, TYPE_CHECKING, Final

from commitcast.chaos import evidence
from commitcast.chaos.process import LOAD_SERVER, ServerProcess
from commitcast.chaos.trial import ENDS_S, LEASE_S, UP_S, Trial
from commitcast.chaos.waits import all_unless, either, until, within

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from commitcast.chaos.report import Report

_SERVERS: Final = 2
_WRITERS: Final = 4  # of each
_RUNNING_S: Final = 2 * LEASE_S
"""A node judges only when it has run for a lease itself."""
_STOPPED_S: Final = ((0.0, LEASE_S), (0.8 * LEASE_S, 1.5 * LEASE_S), (1.5 * LEASE_S, 3 * LEASE_S))
_COMMITS: Final = 100
_AFTER_S: Final = (0.0, 0.0005, 0.004)
_AIMED_S: Final = 10.0
_SHOT_S: Final = _RUNNING_S + _AIMED_S + 10.0
_LAST_LOAD_S: Final = 1.5 * LEASE_S
_SURELY_DEAD_STOPS: Final = 20


class StopCampaign(Trial):
    """Stops one of two servers `stops` times; see `Trial` for the rest."""

    def __init__(
        self,
        url: str,
        directory: Path,
        *,
        stops: int,
        seed: int,
        deliver: bool = True,
        program: Sequence[str] = LOAD_SERVER,
        progress: Callable[[Report], None] = lambda _report: None,
    ) -> None:
        super().__init__(
            url, directory, seed=seed, servers=_SERVERS, deliver=deliver, program=program,
            limit_s=ENDS_S + _SHOT_S * stops, progress=progress,
        )  # fmt: skip
        self._stops = stops
        self._options = replace(self._options, writers=_WRITERS)

    async def _lives(self, engine: AsyncEngine, stderr: IO[bytes]) -> None:
        servers = [
            ServerProcess(replace(self._options, port=port), number, stderr)
            for number, port in enumerate(self._ports)
        ]
        try:
            for server in servers:
                await within(UP_S, either(server.up, server.ended))
            subscribed = [reader.subscribed for reader in self._audience.readers]
            await all_unless(servers[0].ended, subscribed, UP_S)
            for server in servers:
                server.order("go")

            async def both_known() -> bool:
                return await self._alive(engine) == len(servers)

            if not await until(UP_S, both_known):
                self.report.errors.append(f"the nodes did not join; {self._stderr()}")
            for _ in range(self._stops):
                if any(server.ended.is_set() for server in servers):
                    self.report.errors.append(f"a server ended by itself; {self._stderr()}")
                    break
                await self._stop(engine, self._rng.choice(servers))
                self._progress(self.report)
            await within(_LAST_LOAD_S, either(*(server.ended for server in servers)))
            await self._rest(engine, servers)
        finally:
            for server in servers:
                await server.terminate()
                self._keep(server)

    async def _stop(self, engine: AsyncEngine, server: ServerProcess) -> None:
        """Stop at an instant that the seed chose, for a time that it chose."""
        await within(self._rng.uniform(0, _RUNNING_S), server.ended.wait())
        if self._rng.random() < 0.5:  # noqa: PLR2004 - half
            self.report.stops_around_commit += 1
            server.halt_at_commit(
                self._rng.randint(1, _COMMITS), self._rng.choice(_AFTER_S) * self._rng.random()
            )
            await within(_AIMED_S, either(server.halted, server.ended))
        if not server.halted.is_set():
            server.halt()
        stopped_s = self._rng.uniform(*self._rng.choice(_STOPPED_S))
        try:
            await within(stopped_s, server.ended.wait())
            self.report.stops += 1
            self.report.stops_past_lease += stopped_s > LEASE_S
            self.report.taken_for_dead += await self._alive(engine) < _SERVERS
        finally:
            server.resume()

    async def _alive(self, engine: AsyncEngine) -> int:
        return sum(node.alive for node in await evidence.nodes(engine, self._users))

    def _tested(self) -> bool:
        report = self.report
        declared = report.taken_for_dead > 0 and report.settled_by_others > 0
        surely = report.database == "postgresql" and report.stops >= _SURELY_DEAD_STOPS
        return super()._tested() and report.stops_past_lease > 0 and (declared or not surely)
