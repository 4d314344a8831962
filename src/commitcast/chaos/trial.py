"""What every campaign has in common: its streams and users, its end, and the verdict.

At the end the load stops, every operation gets its outcome, all readers read up to the head of
their stream, newcomers read everything from the beginning, and the checker compares. No wait is
without a limit.
"""

from __future__ import annotations

import abc
import asyncio
import random
import time
from collections import Counter
from typing import IO, TYPE_CHECKING, Final

from sqlalchemy.ext.asyncio import create_async_engine

from commitcast import Coordinator
from commitcast.chaos import evidence
from commitcast.chaos.audience import Audience
from commitcast.chaos.checker import check
from commitcast.chaos.process import ServerOptions, ServerProcess, free_port
from commitcast.chaos.record import Answer, History, NodeRow, OperationsRecord, Said, SinkRecord
from commitcast.chaos.report import Report
from commitcast.chaos.waits import either, until, within
from commitcast.notification import NODE_DIED, NOTIFICATION_TYPE
from commitcast.users import user_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

STREAMS: Final = 6
USERS: Final = 3
WRITERS: Final = 8
OPERATION_WRITERS: Final = 4
LEASE_S: Final = 1.0
UP_S: Final = 30.0
ENDS_S: Final = 180.0
"""What a campaign takes at most besides its shots."""
_STOP_S: Final = 30.0
_SETTLED_S: Final = LEASE_S + 15.0
"""Generous: a campaign shares its machine. What is open then stays open."""
_DELIVERED_S: Final = 30.0


class Trial(abc.ABC):
    """Runs once. `progress` is called with the report after each shot.

    `program` is the command line of a server that takes the options of `server.main`; so many
    `servers` run at the end.
    """

    def __init__(
        self,
        url: str,
        directory: Path,
        *,
        seed: int,
        servers: int,
        limit_s: float,
        deliver: bool,
        program: Sequence[str],
        progress: Callable[[Report], None],
    ) -> None:
        self._url = url
        self._limit_s = limit_s
        self._rng = random.Random(seed)
        run = f"{self._rng.getrandbits(32):08x}{time.time_ns():x}"
        self._users = [f"chaos:{run}:{number}" for number in range(USERS)]
        streams = [f"chaos:{run}:{number}" for number in range(STREAMS)]
        self._streams = [*streams, *map(user_stream, self._users)]
        self._sink = directory / "delivered" if deliver else None
        self._ports = [free_port() for _ in range(servers)]
        self._options = ServerOptions(
            url, self._ports[0], seed, WRITERS, streams, self._sink, program,
            OPERATION_WRITERS, self._users, LEASE_S,
        )  # fmt: skip
        self._stderr_path = directory / "stderr"
        self._progress = progress
        self._acknowledged: set[str] = set()
        self._announced: set[tuple[str, int]] = set()
        self._said: list[Said] = []
        self._answers: list[Answer] = []
        self._nodes: Sequence[NodeRow] = ()
        self.report = Report(url.partition("+")[0].partition(":")[0], seed)
        self._audience = Audience(self._streams, self._ports, self._rng, self.report.errors)

    async def run(self) -> Report:
        """The whole campaign; raises TimeoutError only if its own limits do not hold."""
        began = time.monotonic()
        engine = create_async_engine(self._url)
        coordinator = Coordinator(engine)
        try:
            async with asyncio.timeout(self._limit_s):
                await coordinator.migrate()
                await evidence.prepare(engine)
                with self._stderr_path.open("wb") as stderr:
                    async with self._audience.reading(self._audience.first()):
                        await self._lives(engine, stderr)
                await self._judge(engine)
                for stream in self._streams:
                    await coordinator.erase(stream=stream)
                await evidence.remove(engine, self._users)
        finally:
            coordinator.detach()
            await engine.dispose()
        self.report.seconds = round(time.monotonic() - began, 1)
        return self.report

    @abc.abstractmethod
    async def _lives(self, engine: AsyncEngine, stderr: IO[bytes]) -> None:
        """Start servers, put them to the test, and end with `_rest`."""

    # --- the end --------------------------------------------------------------------------

    async def _rest(self, engine: AsyncEngine, servers: Sequence[ServerProcess]) -> None:
        """Stop the load of the `servers` that are left, let all catch up, and end them."""
        self._audience.send_away()
        for server in servers:
            server.order("stop")
        for server in servers:
            if not await within(_STOP_S, either(server.stopped, server.ended)):
                self.report.errors.append(f"the writers did not stop; {self._stderr()}")

        async def all_settled() -> bool:
            self._nodes = await evidence.nodes(engine, self._users)
            alive = sum(node.alive for node in self._nodes)
            return alive <= len(servers) and not await evidence.unsettled(engine, self._users)

        await until(_SETTLED_S, all_settled)
        heads = await evidence.heads(engine, self._streams)
        async with self._audience.catching_up(heads):
            await self._all_delivered(sum(heads.values()))
        for server in servers:
            status = await server.terminate()
            if status not in {0, -15}:
                self.report.errors.append(f"SIGTERM ended with status {status}; {self._stderr()}")

    async def _all_delivered(self, events: int) -> None:
        sink = self._sink
        if sink is None:
            return

        async def all_of_them() -> bool:
            return len(set(evidence.delivered(sink))) >= events

        await until(_DELIVERED_S, all_of_them)

    def _keep(self, server: ServerProcess) -> None:
        """Keep what a server said; call it when it has ended."""
        self._acknowledged.update(server.acknowledged)
        self._announced.update(server.announced)
        self._said += server.said
        self._answers += server.answers
        self.report.commits += server.commits
        self.report.rollbacks += server.rollbacks
        self.report.errors += server.errors

    def _stderr(self) -> str:
        return f"its last words: {self._stderr_path.read_text(errors='replace')[-2000:]}"

    # --- verdict --------------------------------------------------------------------------

    async def _judge(self, engine: AsyncEngine) -> None:
        found = await evidence.read(engine, self._streams, self._users)
        sinks = []
        if self._sink is not None:
            sinks.append(SinkRecord("deliver", evidence.delivered(self._sink)))
        operations = OperationsRecord(
            attempts=found.attempts,
            outcomes=found.outcomes,
            work=found.work,
            nodes=self._nodes,
            announced=frozenset(self._announced),
            said=self._said,
            answers=self._answers,
            living=len(self._ports),
            nobody_died=self.report.database == "sqlite" and self.report.stops > 0,
        )
        history = History(
            log=found.log,
            heads=found.heads,
            tails=found.tails,
            rows=found.rows,
            acknowledged=frozenset(self._acknowledged),
            readers=self._audience.records,
            sinks=sinks,
            operations=operations,
        )
        self._count(history)
        self.report.violations = check(history)
        if not self._tested():
            self.report.errors.append("nothing was put to the test")

    def _count(self, history: History) -> None:
        report, readers = self.report, self._audience.readers
        report.events = len(history.log)
        report.readers = len(self._audience.records)
        report.reconnects = sum(max(0, reader.connections - 1) for reader in readers)
        report.received = sum(reader.received for reader in readers)
        report.received_across_a_kill = self._audience.across()
        report.delivered = sum(len(sink.frames) for sink in history.sinks)
        ends = Counter(outcome.outcome for outcome in history.operations.outcomes)
        report.operations = len(history.operations.attempts)
        report.retries = sum(attempt.attempt > 1 for attempt in history.operations.attempts)
        report.committed, report.rolled_back = ends["committed"], ends["rolled_back"]
        report.settled_by_others = sum(
            outcome.error == str(NODE_DIED) for outcome in history.operations.outcomes
        )
        report.answered_again = len(history.operations.answers)
        report.notifications = sum(event.type == NOTIFICATION_TYPE for event in history.log)

    def _tested(self) -> bool:
        """Whether enough happened for a verdict."""
        report = self.report
        return report.events > 0 and report.committed > 0 and report.rolled_back > 0
