"""The chat over HTTP: rows, events and runs agree, and each is for its members only."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from sqlalchemy import text

pytestmark = pytest.mark.anyio

HOTTEST = "Which planet is the hottest?"


async def test_an_answer_comes_as_committed_steps_in_order(demo: Any) -> None:
    ada = await demo.person("Ada")
    thread = await ada.make_thread("Space", "Grace")
    grace = await demo.person("Grace")
    async with grace.stream(f"thread:{thread}") as stream:
        accepted = await ada.ask(thread, HOTTEST)
        assert set(accepted) == {"operation_id", "run_id", "message_id"}
        events = await stream.until("agent_completed")
    (answer,) = [run["operation_id"] for run in await ada.runs(thread)]
    assert answer != accepted["operation_id"]  # the message is one operation, its answer another
    kinds = [event["type"] for event in events]
    assert [kind for kind in kinds if kind != "agent_thinking"] == [
        "message.created",
        "agent_started",
        "tool_executing",
        "tool_completed",
        "tool_executing",
        "tool_completed",
        "message.created",
        "agent_completed",
    ]
    assert "agent_thinking" in kinds
    assert [event["offset"] for event in events] == list(range(1, len(events) + 1))
    for event in events:
        assert event["id"]
        assert event["time"]
        assert event["operation"] == (accepted["operation_id"] if event is events[0] else answer)
        assert event["data"]["user_id"] == ada.user_id
        assert event["data"]["thread_id"] == thread
        assert event["data"]["run_id"] == accepted["run_id"]
    messages = await grace.messages(thread)
    assert [(one["author"], one["id"]) for one in messages] == [
        ("Ada", accepted["message_id"]),
        ("agent", events[-1]["data"]["message_id"]),
    ]
    assert messages[1]["text"].startswith("Venus")
    (run,) = await ada.runs(thread)
    assert run["state"] == "completed"
    assert [step["kind"] for step in run["steps"]].count("tool") == 2


async def test_a_step_is_in_the_database_when_its_event_arrives(demo: Any, database: Any) -> None:
    ada = await demo.person("Ada")
    thread = await ada.make_thread("Space")
    async with ada.stream(f"thread:{thread}") as stream:
        await ada.ask(thread, HOTTEST)
        await stream.until("tool_executing")
        (run,) = await ada.runs(thread)
        assert any(step["kind"] == "tool" for step in run["steps"])
        await stream.until("agent_completed")
    async with database.engine().connect() as connection:
        state = await connection.scalar(text("SELECT state FROM demo_runs"))
    assert state == "completed"


async def test_many_questions_at_once_are_all_answered_in_one_order(demo: Any) -> None:
    ada, grace = await demo.person("Ada"), await demo.person("Grace")
    thread = await ada.make_thread("Space", "Grace")
    async with ada.stream(f"thread:{thread}") as stream:
        asked = [person.ask(thread, HOTTEST) for person in (ada, grace) for _ in range(5)]
        await asyncio.gather(*asked)
        events: list[Any] = []
        while sum(event["type"] == "agent_completed" for event in events) < 10:
            events += await stream.until("agent_completed")
    shown = [event["data"]["id"] for event in events if event["type"] == "message.created"]
    stored = await ada.messages(thread)
    assert shown == [message["id"] for message in stored]
    assert [message["number"] for message in stored] == list(range(1, 21))


async def test_a_new_thread_is_told_to_each_member(demo: Any) -> None:
    ada, grace = await demo.person("Ada"), await demo.person("Grace")
    async with grace.stream(f"user:{grace.user_id}") as stream:
        thread = await ada.make_thread("Space", grace.user_id, "New Person")
        (event,) = await stream.until("thread.created")
    assert event["data"]["id"] == thread
    assert {one["name"] for one in event["data"]["members"]} == {"Ada", "Grace", "New Person"}
    assert [one["id"] for one in (await grace.http.get("/api/threads")).json()] == [thread]


async def _broken(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    raise RuntimeError("secret inside")


async def test_a_model_that_fails_ends_its_run_and_says_so(stopped_demo: Any) -> None:
    async with stopped_demo.served(model=FunctionModel(_broken)) as demo:
        ada = await demo.person("Ada")
        thread = await ada.make_thread("Space")
        async with ada.stream(f"thread:{thread}") as stream:
            await ada.ask(thread, HOTTEST)
            events = await stream.until("agent_failed")
        assert "secret" not in str(events)
        (run,) = await ada.runs(thread)
        assert run["state"] == "failed"
        assert run["error"] == events[-1]["data"]["error"]
        assert len(await ada.messages(thread)) == 1


async def test_any_pydantic_ai_model_can_answer(stopped_demo: Any) -> None:
    async def other(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[TextPart("Forty-two.")])

    async with stopped_demo.served(model=FunctionModel(other)) as demo:
        ada = await demo.person("Ada")
        thread = await ada.make_thread("Space")
        async with ada.stream(f"thread:{thread}") as stream:
            await ada.ask(thread, HOTTEST)
            await stream.until("agent_completed")
        assert (await ada.messages(thread))[1]["text"] == "Forty-two."


async def test_what_a_stopped_server_left_open_is_failed_once_and_sign_in_lasts(
    stopped_demo: Any,
) -> None:
    async with stopped_demo.served(step_delay_ms=60_000) as demo:
        ada = await demo.person("Ada")
        thread = await ada.make_thread("Space")
        async with ada.stream(f"thread:{thread}") as stream:
            await ada.ask(thread, HOTTEST)
            await stream.until("agent_started")
        token = ada.http.headers["Authorization"]
    async with stopped_demo.served() as demo:
        again = demo.anyone()
        again.http.headers["Authorization"] = token
        (run,) = await again.runs(thread)
        assert run["state"] == "failed"
        assert "interrupted" in run["error"]
        async with again.stream(f"thread:{thread}", cursor="earliest") as stream:
            events = await stream.until("agent_failed")
            await again.ask(thread, HOTTEST)
            events += await stream.until("agent_completed")
        assert [event["type"] for event in events].count("agent_failed") == 1
