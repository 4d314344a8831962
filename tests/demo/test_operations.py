"""Messages and answers are operations: sent again they happen once, and each is its user's own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from sqlalchemy import text

pytestmark = pytest.mark.anyio

HOTTEST = "Which planet is the hottest?"
KEY = "6f4c1c1e-3a0b-4f0e-9d35-0f8d2f2f5a11"


def _problem(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return dict(answer.json())


async def test_a_message_sent_again_with_its_key_is_there_once(demo: Any, told: Any) -> None:
    ada = await demo.person("Ada")
    thread = await ada.make_thread("Space")
    async with ada.stream(f"thread:{thread}") as stream:
        first = await ada.post(thread, HOTTEST, KEY)
        assert first.status_code == 202
        assert "Idempotency-Replayed" not in first.headers
        await stream.until("agent_completed")
    for key in (KEY, f'"{KEY}"'):  # bare, and as the draft's quoted string
        again = await ada.post(thread, HOTTEST, key)
        assert (again.status_code, again.json()) == (202, first.json())
        assert again.headers["Idempotency-Replayed"] == "true"
    assert len(await ada.runs(thread)) == 1
    assert len(await ada.messages(thread)) == 2
    assert await told.rollbacks(first.json()["operation_id"]) == []


async def test_sent_many_times_at_once_it_is_there_once(demo: Any) -> None:
    ada = await demo.person("Ada")
    thread = await ada.make_thread("Space")
    async with ada.stream(f"thread:{thread}") as stream:
        answers = await asyncio.gather(*(ada.post(thread, HOTTEST, KEY) for _ in range(8)))
        await stream.until("agent_completed")
    taken = [answer.json() for answer in answers if answer.status_code == 202]
    assert taken
    assert all(one == taken[0] for one in taken)
    for answer in answers:
        if answer.status_code != 202:
            _problem(answer, 409)
            assert int(answer.headers["Retry-After"]) >= 1
    assert len(await ada.messages(thread)) == 2
    assert len(await ada.runs(thread)) == 1


async def test_a_key_with_another_message_is_refused(demo: Any) -> None:
    ada = await demo.person("Ada")
    thread, other = await ada.make_thread("Space"), await ada.make_thread("Other")
    assert (await ada.post(thread, HOTTEST, KEY)).status_code == 202
    _problem(await ada.post(thread, "Something else", KEY), 422)
    _problem(await ada.post(other, HOTTEST, KEY), 422)
    assert await ada.messages(other) == []


async def test_g7_a_key_belongs_to_its_user(demo: Any) -> None:
    ada, grace = await demo.person("Ada"), await demo.person("Grace")
    thread = await ada.make_thread("Space", "Grace")
    hers, other = await ada.post(thread, HOTTEST, KEY), await grace.post(thread, HOTTEST, KEY)
    assert hers.status_code == other.status_code == 202
    assert hers.json()["message_id"] != other.json()["message_id"]
    assert hers.json()["operation_id"] != other.json()["operation_id"]
    assert "Idempotency-Replayed" not in other.headers


@pytest.mark.parametrize("key", ["", "x" * 201, "tab\there", "h\xe9", '""'])
async def test_a_key_that_is_none_is_refused(demo: Any, key: str) -> None:
    ada = await demo.person("Ada")
    thread = await ada.make_thread("Space")
    answer = await ada.http.post(
        f"/api/threads/{thread}/messages",
        json={"text": HOTTEST},
        headers=[("Idempotency-Key", key.encode("latin-1"))],
    )
    _problem(answer, 400)
    two = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    _problem(
        await ada.http.post(f"/api/threads/{thread}/messages", json={"text": HOTTEST}, headers=two),
        400,
    )
    assert await ada.messages(thread) == []
    assert await ada.operations() == []


async def test_operations_say_what_became_of_them(demo: Any) -> None:
    ada = await demo.person("Ada")
    thread = await ada.make_thread("Space")
    async with ada.stream(f"thread:{thread}") as stream:
        accepted = (await ada.post(thread, HOTTEST, KEY)).json()
        message = await ada.operation(accepted["operation_id"])
        await stream.until("agent_completed")
    (run,) = await ada.runs(thread)
    answer = await ada.settled(run["operation_id"], "committed")
    for shown, name in ((message, "message"), (answer, "answer")):
        assert shown["name"] == name
        assert shown["attempt"] == 1
        assert shown["outcome"] == "committed"
        assert "T" in shown["announced_at"]
        assert shown["announced_at"] <= shown["decided_at"]
        assert "user_message" not in shown
    assert message["result"] == accepted
    assert message["idempotency_key"] == KEY
    assert answer["result"]["run_id"] == accepted["run_id"]
    assert [one["name"] for one in await ada.operations()] == ["answer", "message"]


async def test_g7_an_operation_is_shown_to_its_user_alone(demo: Any) -> None:
    ada, grace = await demo.person("Ada"), await demo.person("Grace")
    thread = await ada.make_thread("Space", "Grace")
    async with grace.stream(f"thread:{thread}") as stream:
        accepted = await ada.ask(thread, HOTTEST)
        await stream.until("agent_completed")
    (run,) = await grace.runs(thread)
    unknown = _problem(await grace.http.get(f"/api/operations/{'0' * 32}"), 404)
    for odd in ("%00", "x", "0" * 31, "%F0%9F%8C%8D"):
        assert _problem(await ada.http.get(f"/api/operations/{odd}"), 404) == unknown
    for operation in (accepted["operation_id"], run["operation_id"]):
        assert _problem(await grace.http.get(f"/api/operations/{operation}"), 404) == unknown
        assert (await ada.http.get(f"/api/operations/{operation}")).status_code == 200
    assert await grace.operations() == []
    _problem(await demo.anyone().http.get(f"/api/operations/{accepted['operation_id']}"), 401)
    _problem(await demo.anyone().http.get("/api/operations"), 401)


async def test_who_is_not_in_a_thread_announces_nothing_in_it(demo: Any) -> None:
    ada, eve = await demo.person("Ada"), await demo.person("Eve")
    thread = await ada.make_thread("Space")
    await eve.arm("fail_before_commit")
    _problem(await eve.post(thread, HOTTEST, KEY), 404)
    assert await eve.operations() == []
    async with ada.stream(f"thread:{thread}", cursor="earliest") as stream:
        await ada.ask(thread, HOTTEST)
        events = await stream.until("agent_completed")
    assert "transaction_rolled_back" not in [event["type"] for event in events]


async def _held(database: Any, engine: Any) -> bool:
    """Whether somebody's transaction is idle, or keeps a writer out."""
    async with engine.begin() as connection:
        if database.kind == "sqlite":  # BEGIN IMMEDIATE, which waits for any other writer
            await connection.execute(text("DELETE FROM demo_broken_promises"))
            return False
        idle = await connection.scalar(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND state LIKE 'idle in transaction%'"
            )
        )
        return bool(idle)


async def test_no_transaction_is_open_while_the_model_works(
    stopped_demo: Any, database: Any
) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        asked.set()
        await answer.wait()
        return ModelResponse(parts=[TextPart("At last.")])

    async with stopped_demo.served(model=FunctionModel(slow)) as demo:
        ada = await demo.person("Ada")
        thread = await ada.make_thread("Space")
        async with ada.stream(f"thread:{thread}") as stream:
            await ada.ask(thread, HOTTEST)
            await asyncio.wait_for(asked.wait(), 30)
            await stream.until("agent_thinking")  # it was announced and has shown a step
            engine = database.engine()
            async with asyncio.timeout(30):
                # what Commitcast does beside it is short, and a database gives no signal
                while await _held(database, engine):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            (run,) = await ada.runs(thread)
            assert (await ada.operation(run["operation_id"]))["outcome"] == "open"
            answer.set()
            await stream.until("agent_completed")


async def test_what_had_not_begun_is_answered_by_the_next_server(stopped_demo: Any) -> None:
    async with stopped_demo.served(step_delay_ms=60_000) as demo:
        ada = await demo.person("Ada")
        thread = await ada.make_thread("Space")
        token = ada.http.headers["Authorization"]
        async with ada.stream(f"thread:{thread}") as stream:
            for number in range(9):  # one more than the agent answers at once
                await ada.ask(thread, f"{HOTTEST} {number}")
            for _ in range(8):
                await stream.until("agent_started")
    async with stopped_demo.served() as demo:
        again = demo.anyone()
        again.http.headers["Authorization"] = token
        async with again.stream(f"thread:{thread}", cursor="earliest") as stream:
            await stream.until("agent_completed")
        states = [run["state"] for run in await again.runs(thread)]
        assert sorted(states) == ["completed", *["failed"] * 8]
