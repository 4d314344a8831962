"""The server is killed by its pid, when and only when the campaign says so."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from commitcast.chaos.process import ServerDied, ServerOptions, ServerProcess
from commitcast.chaos.record import Answer, Said

MARKS = """
import os, sys, time
def mark(line): os.write(1, f"{line}\\n".encode())
mark("up")
assert sys.stdin.readline() == "go\\n"
for number in range(3):
    mark("b")
    mark(f"c k{number}a k{number}b")
mark("a op 1")
mark("o op 1 committed")
mark('k op {"row": 1}')
mark("r")
mark('error "broken"')
mark("stopped")
assert sys.stdin.readline() == "stop\\n"
"""
FOREVER = """
import os, time
while True:
    os.write(1, b"b\\n")
    time.sleep(0.01)
"""
COUNTING = """
import os, sys
for number, line in enumerate(sys.stdin):
    os.write(1, f"c {number}\\n".encode())
"""


@asynccontextmanager
async def process(source: str, tmp_path: Path) -> AsyncIterator[ServerProcess]:
    program = (sys.executable, "-c", source)
    options = ServerOptions("sqlite://", 1, 1, 1, ["s"], None, program)
    with (tmp_path / "stderr").open("wb") as stderr:
        server = ServerProcess(options, 0, stderr)
        try:
            async with asyncio.timeout(20):
                yield server
        finally:
            await server.terminate()


@pytest.mark.anyio
async def test_marks_are_counted_and_a_server_that_ends_by_itself_is_told(tmp_path: Path) -> None:
    async with process(MARKS, tmp_path) as server:
        await server.up.wait()
        server.order("go")
        await server.stopped.wait()
        server.order("stop")
        with pytest.raises(ServerDied, match="status 0"):
            await server.end()
        assert server.acknowledged == ["k0a", "k0b", "k1a", "k1b", "k2a", "k2b"]
        assert (server.commits, server.rollbacks, server.errors) == (3, 1, ["broken"])
        assert server.announced == [("op", 1)]
        assert server.said == [Said("op", 1, "committed")]
        assert server.answers == [Answer("op", '{"row": 1}')]


@pytest.mark.anyio
async def test_kill_at_a_commit_needs_no_further_order(tmp_path: Path) -> None:
    async with process(FOREVER, tmp_path) as server:
        server.kill_at_commit(3, 0.001)
        await server.end()
        assert server.killed


@pytest.mark.anyio
async def test_kill_ends_it_at_once(tmp_path: Path) -> None:
    async with process(FOREVER, tmp_path) as server:
        server.kill()
        await server.end()


@pytest.mark.anyio
async def test_halted_process_does_nothing_until_it_is_resumed(tmp_path: Path) -> None:
    async with process(COUNTING, tmp_path) as server:

        async def counted(number: int) -> None:
            while server.commits < number:  # noqa: ASYNC110 - a thread counts
                await asyncio.sleep(0.01)

        server.order("go")
        await counted(1)
        server.halt_at_commit(1, 0)
        server.order("go")
        await server.halted.wait()
        await counted(2)
        server.order("go")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(counted(3), 0.5)
        server.resume()
        await counted(3)
        assert not server.halted.is_set()
