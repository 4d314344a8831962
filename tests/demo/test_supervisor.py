"""`commitcast demo` as a real process whose server kills itself, and what its users hear of it."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL, no sockets to hand on"),
]

HOTTEST = "Which planet is the hottest?"
KEY = "6f4c1c1e-3a0b-4f0e-9d35-0f8d2f2f5a11"


@pytest.fixture
async def process(database: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "commitcast", "demo", "--no-browser", "--port", "0",
        "--database-url", database.url.render_as_string(hide_password=False),
        "--step-delay-ms", "50",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    yield running
    if running.returncode is None:
        running.terminate()
    await asyncio.wait_for(running.communicate(), 90)


@pytest.fixture
async def demo(process: asyncio.subprocess.Process, stopped_demo: Any) -> AsyncIterator[Any]:
    """The same people as in the other tests, at the address of the real process."""
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 120)).decode()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, f"the server said {line!r}"
    async with stopped_demo.at(found.group()) as people:
        yield people


async def test_g6_a_worker_killed_in_a_message_comes_back_and_tells_it_once(
    process: asyncio.subprocess.Process, demo: Any, told: Any
) -> None:
    ada = await demo.person("Ada")
    thread = await ada.make_thread("Space", "Grace")
    await ada.arm("kill_worker")
    with pytest.raises(httpx.TransportError):
        await ada.post(thread, HOTTEST, KEY)
    # the port stays: who comes now waits until the next worker is there
    told_on = (f"user:{ada.user_id}", f"thread:{thread}")
    notices = [(await ada.hears(name, "transaction_rolled_back"))[-1] for name in told_on]
    assert notices[0]["id"] == notices[1]["id"]
    operation = notices[0]["operation"]
    shown = await ada.operation(operation)
    assert (shown["outcome"], shown["idempotency_key"]) == ("rolled_back", KEY)
    assert await ada.messages(thread) == []
    assert (await ada.http.get("/api/break")).json()["armed"] is None  # it is killed once

    async with ada.stream(f"thread:{thread}") as shared:
        again = await ada.post(thread, HOTTEST, KEY)
        assert (again.status_code, again.json()["operation_id"]) == (202, operation)
        await shared.until("agent_completed")
    assert (await ada.operation(operation))["attempt"] == 2
    assert await told.rollbacks(operation) == sorted([f"thread:{thread}", f"user:{ada.user_id}"])
    assert process.returncode is None


async def test_g6_a_worker_killed_in_an_answer_takes_back_what_it_had_shown(
    process: asyncio.subprocess.Process, demo: Any, told: Any
) -> None:
    ada = await demo.person("Ada")
    thread = await ada.make_thread("Space")
    await ada.arm("kill_worker", operation="answer")
    accepted = await ada.ask(thread, HOTTEST)
    events = await ada.hears(f"thread:{thread}", "transaction_rolled_back")
    (run,) = await ada.runs(thread)
    assert events[-1]["operation"] == run["operation_id"]
    assert events[-1]["data"]["retract"] == [f"thread:{thread}"]
    assert "tool_executing" in [event["type"] for event in events]
    failed = (await ada.hears(f"thread:{thread}", "agent_failed"))[-1]
    assert (run["state"], run["error"]) == ("failed", failed["data"]["error"])
    assert [message["text"] for message in await ada.messages(thread)] == [HOTTEST]
    async with ada.stream(f"thread:{thread}") as stream:
        await ada.ask(thread, HOTTEST)
        await stream.until("agent_completed")
    assert await told.rollbacks(run["operation_id"]) == sorted(
        [f"thread:{thread}", f"user:{ada.user_id}"]
    )
    assert await told.rollbacks(accepted["operation_id"]) == []


@pytest.mark.parametrize("database_kind", ["sqlite"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_the_worker_ends_with_its_parent(
    process: asyncio.subprocess.Process, demo: Any, how: signal.Signals
) -> None:
    await demo.person("Ada")
    process.send_signal(how)
    # the worker holds the other ends of these pipes, so that they end when both have ended
    _, complaints = await asyncio.wait_for(process.communicate(), 60)
    assert b"Traceback" not in complaints
    assert process.returncode == (-how if how is signal.SIGKILL else 0)
    with pytest.raises(httpx.ConnectError):
        await demo.person("Ada")
