"""One campaign: many lives of a loaded server, each ended by kill -9, and one that is let be.

Readers stay through all lives. The instants of the kills are drawn from a seed: half around
a commit or the beginning or end of an operation (up to 4 ms after commit() was called, its
COMMIT was sent, or it returned), most others at any time while running, some while the server
starts and recovers. Some lives are longer than the lease of a node, so that it settles what
those before it left.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Final

from commitcast.chaos.process import LOAD_SERVER, ServerDied, ServerProcess
from commitcast.chaos.trial import ENDS_S, LEASE_S, UP_S, Trial
from commitcast.chaos.waits import all_unless, either, within

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from commitcast.chaos.report import Report

_MOST_KILLS: Final = 4
"""Times the kills that were asked for, until an event has crossed one."""
_SHOT_S: Final = 15.0
_SURELY_SETTLED_KILLS: Final = 50
_STARTING_S: Final = 1.0
_RUNNING_S: Final = 0.8
_LONG_S: Final = (LEASE_S, 3 * LEASE_S)
_COMMITS: Final = 100
_AFTER_S: Final = (0.0, 0.0005, 0.004)
_LAST_LOAD_S: Final = 0.5
_MAX_ERRORS: Final = 5


class Campaign(Trial):
    """Kills a server `kills` times; see `Trial` for the rest.

    Goes on after that, within a bound, until some event was between its commit and its reader
    when the server was killed: which kill catches one is chance, and without one nothing was
    put to the test.
    """

    def __init__(
        self,
        url: str,
        directory: Path,
        *,
        kills: int,
        seed: int,
        deliver: bool = True,
        program: Sequence[str] = LOAD_SERVER,
        progress: Callable[[Report], None] = lambda _report: None,
    ) -> None:
        super().__init__(
            url, directory, seed=seed, servers=1, deliver=deliver, program=program,
            limit_s=ENDS_S + _SHOT_S * _MOST_KILLS * kills, progress=progress,
        )  # fmt: skip
        self._kills = kills

    async def _lives(self, engine: AsyncEngine, stderr: IO[bytes]) -> None:
        life, most = 0, _MOST_KILLS * self._kills
        while life < self._kills or (life < most and not self._audience.across()):
            await self._life(life, stderr)
            life += 1
            if len(self.report.errors) >= _MAX_ERRORS:
                break
        await self._last_life(life, engine, stderr)

    async def _life(self, life: int, stderr: IO[bytes]) -> None:
        server = await self._start(life, stderr)
        try:
            await self._shoot(server, life)
            await server.end()
            self.report.kills += 1
        except ServerDied as died:
            self.report.errors.append(f"life {life}: {died}; {self._stderr()}")
        finally:
            await server.terminate()
            self._keep(server)
        self._progress(self.report)

    async def _start(self, life: int, stderr: IO[bytes]) -> ServerProcess:
        server = ServerProcess(self._options, life, stderr)
        readers = self._audience.readers
        for reader in readers:
            reader.life = life
        if life == 0:
            await all_unless(server.ended, [reader.subscribed for reader in readers], UP_S)
        server.order("go")
        return server

    async def _shoot(self, server: ServerProcess, life: int) -> None:
        """Kill at an instant that the seed chose, whatever the server is doing then."""
        aim = self._rng.random()
        if aim < 0.1 and life > 0:  # noqa: PLR2004 - one in ten
            self.report.kills_while_starting += 1
            await within(self._rng.uniform(0, _STARTING_S), server.ended.wait())
        elif not await within(UP_S, either(server.up, server.ended)):
            self.report.errors.append(f"life {life}: not up after {UP_S} s; {self._stderr()}")
        elif aim < 0.25:  # noqa: PLR2004 - one in seven
            await within(self._rng.uniform(*_LONG_S), server.ended.wait())
        elif aim < 0.55:  # noqa: PLR2004 - half of the others
            await within(self._rng.uniform(0, _RUNNING_S), server.ended.wait())
        else:
            self.report.kills_around_commit += 1
            server.kill_at_commit(
                self._rng.randint(1, _COMMITS), self._rng.choice(_AFTER_S) * self._rng.random()
            )
            await within(UP_S, server.ended.wait())
        if not server.ended.is_set():
            server.kill()

    async def _last_life(self, life: int, engine: AsyncEngine, stderr: IO[bytes]) -> None:
        server = await self._start(life, stderr)
        await within(UP_S, either(server.up, server.ended))
        await within(_LAST_LOAD_S, server.ended.wait())
        try:
            await self._rest(engine, [server])
        finally:
            await server.terminate()
            self._keep(server)

    def _tested(self) -> bool:
        report = self.report
        crossed = report.reconnects > 0 and report.received_across_a_kill > 0
        # whether a life was killed in an operation is chance too; a long run must have had some
        surely = report.kills >= _SURELY_SETTLED_KILLS
        return super()._tested() and crossed and (report.settled_by_others > 0 or not surely)
