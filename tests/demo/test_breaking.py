"""Each fault that can be armed: what it breaks is told exactly once, and nothing of it is left."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from commitcast.demo.connections import Connections
from commitcast.demo.faults import Fault, Faults

pytestmark = pytest.mark.anyio

HOTTEST = "Which planet is the hottest?"
KEY = "6f4c1c1e-3a0b-4f0e-9d35-0f8d2f2f5a11"
FAULTS = {
    "fail_before_commit",
    "fail_at_commit",
    "fail_after_agent",
    "cancel",
    "cut_socket",
    "kill_worker",
}


async def test_what_can_be_broken_is_listed_with_what_is_armed(demo: Any) -> None:
    ada, grace = await demo.person("Ada"), await demo.person("Grace")
    await ada.arm("cancel")
    await ada.arm("fail_at_commit")  # one at a time: the last
    hers = (await ada.http.get("/api/break")).json()
    assert hers["armed"] == "fail_at_commit"
    assert {one["fault"] for one in hers["faults"]} == FAULTS
    assert all(one["does"] and "\n" not in one["does"] for one in hers["faults"])
    assert (await grace.http.get("/api/break")).json()["armed"] is None
    assert (await ada.http.delete("/api/break")).json() == {"armed": None}
    assert (await ada.http.get("/api/break")).json()["armed"] is None


@pytest.mark.parametrize(
    "body",
    [
        {"fault": "everything"},
        {"fault": None},
        {},
        {"fault": 7},
        {"fault": "cancel", "operation": "x"},
    ],
)
async def test_an_unknown_fault_is_refused(demo: Any, body: Any) -> None:
    ada = await demo.person("Ada")
    answer = await ada.http.post("/api/break", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["pointer"] in {"#/fault", "#/operation"}
    assert (await ada.http.get("/api/break")).json()["armed"] is None


async def test_nobody_unknown_breaks_anything(demo: Any) -> None:
    nobody = demo.anyone().http
    assert (await nobody.get("/api/break")).status_code == 401
    assert (await nobody.post("/api/break", json={"fault": "cancel"})).status_code == 401
    assert (await nobody.delete("/api/break")).status_code == 401


async def test_g10_what_is_armed_is_bounded() -> None:
    faults = Faults(Connections(), supervised=True)
    for number in range(5_000):
        faults.arm(f"user {number}", Fault.CANCEL)
    armed = [number for number in range(5_000) if faults.armed(f"user {number}")]
    assert armed == list(range(4_000, 5_000))


async def test_a_server_that_nobody_would_start_again_is_not_killed(demo: Any) -> None:
    ada = await demo.person("Ada")
    answer = await ada.http.post("/api/break", json={"fault": "kill_worker"})
    assert answer.status_code == 409
    faults = {one["fault"]: one for one in (await ada.http.get("/api/break")).json()["faults"]}
    assert not faults["kill_worker"]["available"]


@pytest.mark.parametrize(
    ("fault", "status"), [("fail_before_commit", 500), ("fail_at_commit", 409), ("cancel", 503)]
)
async def test_g6_a_message_that_fails_is_told_once_and_is_not_there(
    demo: Any, told: Any, fault: str, status: int
) -> None:
    ada, grace = await demo.person("Ada"), await demo.person("Grace")
    thread = await ada.make_thread("Space", "Grace")
    async with (
        ada.stream(f"user:{ada.user_id}") as own,
        grace.stream(f"thread:{thread}") as shared,
    ):
        await ada.arm(fault)
        answer = await ada.post(thread, HOTTEST, KEY)
        problem = answer.json()
        assert (answer.status_code, problem["status"]) == (status, status)
        assert answer.headers["content-type"] == "application/problem+json"
        notices = [(await stream.until("transaction_rolled_back"))[-1] for stream in (own, shared)]
    assert notices[0]["id"] == notices[1]["id"]
    for notice in notices:
        assert notice["data"]["operation_id"] == problem["operation_id"]
        assert notice["data"]["attempt"] == problem["attempt"] == 1
        assert notice["data"]["user_message"] == problem["user_message"]
        assert notice["data"]["retract"] == []  # nobody was shown anything of it
    text = json.dumps([problem, notices]).lower()
    assert not any(word in text for word in ("injected", "integrity", "sql", "cancelled"))
    shown = await ada.operation(problem["operation_id"])
    assert (shown["outcome"], shown["attempt"]) == ("rolled_back", 1)
    assert shown["user_message"] == problem["user_message"]
    assert shown["result"] is None
    assert await ada.messages(thread) == []
    assert await ada.runs(thread) == []

    # the fault was for one operation: the same key again is the next attempt, and commits
    async with grace.stream(f"thread:{thread}") as shared:
        again = await ada.post(thread, HOTTEST, KEY)
        assert again.status_code == 202
        assert again.json()["operation_id"] == problem["operation_id"]
        await shared.until("agent_completed")
    shown = await ada.operation(problem["operation_id"])
    assert (shown["outcome"], shown["attempt"]) == ("committed", 2)
    assert [message["text"] for message in await ada.messages(thread)][:1] == [HOTTEST]
    assert await told.rollbacks(problem["operation_id"]) == sorted(
        [f"thread:{thread}", f"user:{ada.user_id}"]
    )


@pytest.mark.parametrize("fault", ["fail_after_agent", "fail_at_commit", "cancel"])
async def test_g6_an_answer_that_fails_takes_back_its_steps(
    stopped_demo: Any, told: Any, fault: str
) -> None:
    async with stopped_demo.served() as demo:
        ada, grace = await demo.person("Ada"), await demo.person("Grace")
        thread = await ada.make_thread("Space", "Grace")
        async with (
            grace.stream(f"thread:{thread}") as shared,
            grace.stream(f"thread:{thread}") as runs,
        ):
            if fault == "fail_after_agent":
                await ada.arm(fault)  # of a message there is nothing to fail then
            else:
                await ada.arm(fault, operation="answer")
            accepted = await ada.ask(thread, HOTTEST)
            events = await shared.until("transaction_rolled_back")
            failed = (await runs.until("agent_failed"))[-1]
        (run,) = await ada.runs(thread)
        notice = events[-1]["data"]
        assert notice["operation_id"] == run["operation_id"]
        assert notice["failed_operation"] == "answer"
        assert notice["retract"] == [f"thread:{thread}"]
        shown = [one for one in events if one["operation"] == run["operation_id"]]
        assert "tool_executing" in [one["type"] for one in shown]
        assert "agent_completed" not in [one["type"] for one in shown]
        assert failed["data"]["run_id"] == run["run_id"] == accepted["run_id"]
        assert run["state"] == "failed"
        assert run["error"] == failed["data"]["error"]
        assert run["steps"] == []
        assert run["steps_taken_back"] > 0
        operation = await ada.operation(run["operation_id"])
        assert operation["outcome"] == "rolled_back"
        assert operation["steps_taken_back"] == run["steps_taken_back"]
        assert [one["text"] for one in await ada.messages(thread)] == [HOTTEST]
        assert (await ada.operation(accepted["operation_id"]))["outcome"] == "committed"
        async with grace.stream(f"thread:{thread}") as shared:
            await ada.ask(thread, HOTTEST)
            await shared.until("agent_completed")
        assert await told.rollbacks(run["operation_id"]) == sorted(
            [f"thread:{thread}", f"user:{ada.user_id}"]
        )
        assert await told.rollbacks(accepted["operation_id"]) == []


async def test_a_cut_socket_resumes_and_gets_what_committed_once(demo: Any, told: Any) -> None:
    ada, grace = await demo.person("Ada"), await demo.person("Grace")
    thread = await ada.make_thread("Space", "Grace")
    seen: list[dict[str, Any]] = []
    async with grace.stream(f"thread:{thread}") as unharmed:
        await ada.arm("cut_socket")
        with pytest.raises((httpx.RemoteProtocolError, EOFError)):
            async with ada.stream(f"thread:{thread}", cursor="earliest") as stream:
                accepted = await ada.ask(thread, HOTTEST)
                async with asyncio.timeout(60):
                    while True:
                        name, frame = await stream.next()
                        assert name == ""
                        seen.append(frame)
        others = await unharmed.until("agent_completed")
    cursor = f"{seen[-1]['epoch']}:{seen[-1]['offset']}" if seen else "earliest"
    async with ada.stream(f"thread:{thread}", cursor=cursor) as stream:
        seen += await stream.until("agent_completed")
    assert [event["id"] for event in seen] == [event["id"] for event in others]
    assert (await ada.operation(accepted["operation_id"]))["outcome"] == "committed"
    assert await told.rollbacks(accepted["operation_id"]) == []
