"""One campaign: many lives of a loaded server, each ended by kill -9, and one that is let be.

Readers stay through all lives. The instants of the kills are drawn from a seed: half around
a commit (up to 4 ms after it was called, its COMMIT was sent, or it returned), most others at any time while running,
some while the server starts and recovers. At the end the load stops, all readers read up to
the head of their stream, newcomers read everything from the beginning, and the checker
compares. No wait is without a limit.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager
from typing import IO, TYPE_CHECKING, Any, Final

from sqlalchemy.ext.asyncio import create_async_engine

from commitcast import Coordinator
from commitcast.chaos import evidence
from commitcast.chaos.checker import check
from commitcast.chaos.process import (
    LOAD_SERVER,
    ServerDied,
    ServerOptions,
    ServerProcess,
    free_port,
)
from commitcast.chaos.reader import Reader
from commitcast.chaos.record import History, ReaderRecord, SinkRecord
from commitcast.chaos.report import Report

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

STREAMS: Final = 6
WRITERS: Final = 8
_MOST_KILLS: Final = 4
"""Times the kills that were asked for, until an event has crossed one."""
_BEGINNING: Final = "new:0"
_UP_S: Final = 30.0
_STARTING_S: Final = 1.0
_RUNNING_S: Final = 0.8
_COMMITS: Final = 100
_AFTER_S: Final = (0.0, 0.0005, 0.004)
_CATCH_UP_S: Final = 30.0
_LEAVES_S: Final = 1.5
_LAST_LOAD_S: Final = 0.5
_MAX_ERRORS: Final = 5


class Campaign:
    """Runs once. `progress` is called with the report after each kill.

    Goes on after `kills`, within a bound, until some event was between its commit and its reader
    when the server was killed: which kill catches one is chance, and without one nothing was
    put to the test.

    `program` is the command line of a server that takes the options of `server.main`.
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
        self._url = url
        self._kills = kills
        self._rng = random.Random(seed)
        run = f"{self._rng.getrandbits(32):08x}{time.time_ns():x}"
        self._streams = [f"chaos:{run}:{number}" for number in range(STREAMS)]
        self._sink = directory / "delivered" if deliver else None
        self._options = ServerOptions(
            url, free_port(), seed, WRITERS, self._streams, self._sink, program
        )
        self._stderr_path = directory / "stderr"
        self._progress = progress
        self._acknowledged: set[str] = set()
        self._readers: list[Reader] = []
        self._records: list[ReaderRecord] = []
        self.report = Report(url.partition("+")[0].partition(":")[0], seed)

    async def run(self) -> Report:
        """The whole campaign; raises TimeoutError only if its own limits do not hold."""
        began = time.monotonic()
        engine = create_async_engine(self._url)
        coordinator = Coordinator(engine)
        try:
            async with asyncio.timeout(120 + 15 * _MOST_KILLS * self._kills):
                await coordinator.migrate()
                await evidence.prepare(engine)
                with self._stderr_path.open("wb") as stderr:
                    await self._lives(engine, stderr)
                for stream in self._streams:
                    await coordinator.erase(stream=stream)
                await evidence.remove(engine)
        finally:
            coordinator.detach()
            await engine.dispose()
        self.report.seconds = round(time.monotonic() - began, 1)
        return self.report

    async def _lives(self, engine: AsyncEngine, stderr: IO[bytes]) -> None:
        async with self._reading(self._first_readers()):
            life = 0
            while life < self._kills or (life < _MOST_KILLS * self._kills and not self._across()):
                await self._life(life, stderr)
                life += 1
                if len(self.report.errors) >= _MAX_ERRORS:
                    break
            await self._last_life(life, engine, stderr)
        await self._judge(engine)

    # --- one life -------------------------------------------------------------------------

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
            self._settle(server)
        self._progress(self.report)

    async def _start(self, life: int, stderr: IO[bytes]) -> ServerProcess:
        server = ServerProcess(self._options, life, stderr)
        for reader in self._readers:
            reader.life = life
        if life == 0:
            await _first(server.ended, [reader.subscribed for reader in self._readers])
        server.order("go")
        return server

    async def _shoot(self, server: ServerProcess, life: int) -> None:
        """Kill at an instant that the seed chose, whatever the server is doing then."""
        aim = self._rng.random()
        if aim < 0.1 and life > 0:  # noqa: PLR2004 - one in ten
            self.report.kills_while_starting += 1
            await _within(self._rng.uniform(0, _STARTING_S), server.ended.wait())
        elif not await _within(_UP_S, _either(server.up, server.ended)):
            self.report.errors.append(f"life {life}: not up after {_UP_S} s; {self._stderr()}")
        elif aim < 0.55:  # noqa: PLR2004 - half of the others
            await _within(self._rng.uniform(0, _RUNNING_S), server.ended.wait())
        else:
            self.report.kills_around_commit += 1
            server.kill_at_commit(
                self._rng.randint(1, _COMMITS), self._rng.choice(_AFTER_S) * self._rng.random()
            )
            await _within(_UP_S, server.ended.wait())
        if not server.ended.is_set():
            server.kill()

    async def _last_life(self, life: int, engine: AsyncEngine, stderr: IO[bytes]) -> None:
        steady = [reader for reader in self._readers if not reader.leaves]
        leaving = [reader for reader in self._readers if reader.leaves]
        for reader in leaving:
            reader.may_connect.clear()
        server = await self._start(life, stderr)
        await _within(_UP_S, _either(server.up, server.ended))
        await _within(_LAST_LOAD_S, server.ended.wait())
        server.order("stop")
        if not await _within(_CATCH_UP_S, _either(server.stopped, server.ended)):
            self.report.errors.append(f"the writers did not stop; {self._stderr()}")
        heads = await evidence.heads(engine, self._streams)
        # First those who hear of events only as they happen: who comes wakes up the others.
        await self._catch_up(steady, heads)
        for reader in leaving:
            reader.may_connect.set()
        newcomers = [self._reader(f"newcomer {s}", s, cursor=_BEGINNING) for s in self._streams]
        async with self._reading(newcomers):
            await self._catch_up([*leaving, *newcomers], heads)
            if self._sink is not None:
                await _within(_CATCH_UP_S, _delivered(self._sink, sum(heads.values())))
        status = await server.terminate()
        if status not in {0, -15}:
            self.report.errors.append(f"SIGTERM ended with status {status}; {self._stderr()}")
        self._settle(server)

    async def _catch_up(self, readers: Sequence[Reader], heads: Mapping[str, int]) -> None:
        """Wait, within limits, until all are at their head; what is missing, the checker says."""
        waits = (reader.reached(heads.get(reader.stream, 0)) for reader in readers)
        await _within(_CATCH_UP_S, asyncio.gather(*waits))
        self._records += [reader.record for reader in readers]

    def _across(self) -> int:
        """Events that were committed before a kill and received after it, so far."""
        return sum(reader.across for reader in self._readers)

    def _settle(self, server: ServerProcess) -> None:
        self._acknowledged.update(server.acknowledged)
        self.report.commits += server.commits
        self.report.rollbacks += server.rollbacks
        self.report.errors += server.errors

    def _stderr(self) -> str:
        return f"its last words: {self._stderr_path.read_text(errors='replace')[-2000:]}"

    # --- readers --------------------------------------------------------------------------

    def _first_readers(self) -> list[Reader]:
        """Three of each stream: with and without a first position, and one that comes and goes."""
        readers = []
        for stream in self._streams:
            readers += [
                self._reader(f"steady {stream}", stream, cursor=_BEGINNING),
                self._reader(f"from now {stream}", stream),
                self._reader(f"leaving {stream}", stream, cursor=_BEGINNING, leaves_s=_LEAVES_S),
            ]
        return readers

    def _reader(
        self, name: str, stream: str, *, cursor: str | None = None, leaves_s: float | None = None
    ) -> Reader:
        address = ("127.0.0.1", self._options.port)
        rng = random.Random(self._rng.getrandbits(64))
        return Reader(name, stream, address, rng, cursor=cursor, leaves_s=leaves_s)

    @asynccontextmanager
    async def _reading(self, readers: Sequence[Reader]) -> AsyncIterator[None]:
        self._readers += readers
        tasks = [asyncio.create_task(reader.run()) for reader in readers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if not isinstance(result, asyncio.CancelledError):
                    self.report.errors.append(f"a reader failed: {result!r}")

    # --- verdict --------------------------------------------------------------------------

    async def _judge(self, engine: AsyncEngine) -> None:
        found = await evidence.read(engine, self._streams)
        sinks = []
        if self._sink is not None:
            sinks.append(SinkRecord("deliver", _lines(self._sink)))
        history = History(
            log=found.log,
            heads=found.heads,
            tails=found.tails,
            rows=found.rows,
            acknowledged=frozenset(self._acknowledged),
            readers=self._records,
            sinks=sinks,
        )
        report = self.report
        report.events = len(found.log)
        report.readers = len(self._records)
        report.reconnects = sum(max(0, reader.connections - 1) for reader in self._readers)
        report.received = sum(reader.received for reader in self._readers)
        report.received_across_a_kill = self._across()
        report.delivered = sum(len(sink.frames) for sink in sinks)
        report.violations = check(history)
        if not report.events or not report.reconnects or not report.received_across_a_kill:
            report.errors.append("nothing was put to the test: no event crossed a kill")


async def _within(limit_s: float, wait: Awaitable[Any]) -> bool:
    """Whether `wait` ended within `limit_s` seconds."""
    try:
        await asyncio.wait_for(wait, limit_s)
    except TimeoutError:
        return False
    return True


async def _either(*events: asyncio.Event) -> None:
    """Wait until one of the events is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _first(ended: asyncio.Event, waits: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Wait for all `waits`, but no longer than `_UP_S`, nor for a server that has ended."""
    subscribed = asyncio.Event()

    async def all_of_them() -> None:
        await asyncio.gather(*(wait() for wait in waits))
        subscribed.set()

    waiting = asyncio.create_task(all_of_them())
    await _within(_UP_S, _either(subscribed, ended))
    waiting.cancel()


async def _delivered(sink: Path, events: int) -> None:
    """Wait until the sink's file holds that many different events; a file gives no signal."""
    while len(set(_lines(sink))) < events:  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.2)


def _lines(file: Path) -> list[str]:
    """The whole lines of `file`."""
    return file.read_text().split("\n")[:-1] if file.exists() else []
