"""A commit in a loop, thread or process in which the coordinator does not run."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from commitcast import Coordinator, sqlite
from commitcast.errors import NotRunning
from commitcast.node import FileLocks
from conftest import _create

from .live import say

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import URL


@pytest.mark.filterwarnings("ignore")  # what the loop that was left in disorder leaves behind
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_g10_no_commit_fails_because_the_loop_of_delivery_is_closed(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    url: Any = f"sqlite+aiosqlite:///{tmp_path}/app.db"
    if kind == "postgresql":
        server: URL = request.getfixturevalue("postgresql_template")
        _create(server, "other_loop", "template_commitcast")
        url = server.set(drivername="postgresql+asyncpg", database="other_loop")
    engine = create_async_engine(url, poolclass=NullPool)
    if kind == "sqlite":
        sqlite.configure(engine)
    coordinator = Coordinator(engine, drain_on_signals=False)

    async def start() -> None:
        await coordinator.migrate()
        await coordinator.__aenter__()

    asyncio.run(start())  # and never left
    asyncio.run(say(engine, "thread:7", 1))
    asyncio.run(say(engine, "thread:7", 2))
    assert caplog.text.count("is closed, and the coordinator was not left") == 1
    assert coordinator.readiness()["running"] is False
    with pytest.raises(NotRunning, match="enter it again"):
        coordinator.subscribe("thread:7")

    thread = threading.Thread(target=lambda: asyncio.run(say(engine, "thread:7", 3)))
    thread.start()
    thread.join()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            asyncio.run(say(engine, "thread:7", 4))
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0

    async def again() -> list[int]:
        async with coordinator, coordinator.subscribe("thread:7", after="earliest") as found:
            await say(engine, "thread:7", 5)
            numbers = [(await anext(found)).data["n"] for _ in range(5)]
        await coordinator.erase(stream="thread:7")
        return numbers

    assert asyncio.run(again()) == [1, 2, 3, 4, 5]
    coordinator.detach()


def test_g6_a_forked_child_does_not_keep_the_lock_of_its_parents_node(tmp_path: Path) -> None:
    url = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db").url
    parent = os.fork()
    if parent == 0:
        locks = FileLocks(url)
        locks.hold("node")
        child = os.fork()
        if child == 0:
            signal.pause()
        (tmp_path / "child").write_text(str(child))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    child = int((tmp_path / "child").read_text())
    try:
        until = time.monotonic() + 5  # the child may just have been born
        while not (dead := FileLocks(url).is_dead("node")) and time.monotonic() < until:
            time.sleep(0.01)
        assert dead
    finally:
        os.kill(child, signal.SIGKILL)
