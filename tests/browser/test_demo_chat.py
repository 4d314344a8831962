"""Two people, one thread, one agent, in a real browser: nothing is lost, nothing twice."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import pytest

from .people import both_in_one_thread, both_see_what_is_stored

if TYPE_CHECKING:
    from .people import Person

pytestmark = pytest.mark.anyio

QUESTION = "Which planet is the hottest?"
ANSWER = "Venus"
INTERRUPTED = "interrupted"


async def test_two_people_see_one_answer_step_by_step(
    server: Any, ada: Person, grace: Person
) -> None:
    await both_in_one_thread(server, ada, grace)
    await ada.ask(QUESTION)
    for person in (ada, grace):
        await person.sees_a_tool_at_work()
    for person in (ada, grace):
        await person.sees_run("completed")
        sql = await person.page.locator(".run .step pre").text_content()
        assert sql is not None
        assert sql.startswith("SELECT name, temperature_c")
    texts = await both_see_what_is_stored(server, ada, grace)
    assert texts[0] == QUESTION
    assert ANSWER in texts[1]
    assert len(texts) == 2


async def test_a_reload_in_the_middle_of_an_answer_loses_and_doubles_nothing(
    server: Any, ada: Person, grace: Person
) -> None:
    await both_in_one_thread(server, ada, grace)
    await ada.ask(QUESTION)
    await ada.sees_a_tool_at_work()
    await ada.page.reload()
    await ada.sees_a_tool_at_work()  # the steps so far are there again, and the run goes on
    for person in (ada, grace):
        await person.sees_run("completed")
    texts = await both_see_what_is_stored(server, ada, grace)
    assert len(texts) == 2
    assert ANSWER in texts[1]


# a stopped server waits a few seconds for open connections: the answer must take longer than that
@pytest.mark.parametrize("step_delay_ms", [1_500])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
async def test_a_restart_in_the_middle_of_an_answer_is_told_and_loses_nothing(
    server: Any, ada: Person, grace: Person, how: signal.Signals
) -> None:
    await both_in_one_thread(server, ada, grace)
    await ada.ask(QUESTION)
    for person in (ada, grace):
        await person.sees_a_tool_at_work()
    await server.restart(how, step_delay_ms=20)
    for person in (ada, grace):
        await person.sees_connection("live", "recovered")
        await person.sees_run("failed")
        assert INTERRUPTED in await person.page.locator(".run .what").inner_text()
    await grace.ask("How many elements are liquid?")
    for person in (ada, grace):
        await person.sees_run("completed")
    texts = await both_see_what_is_stored(server, ada, grace)
    assert texts[:2] == [QUESTION, "How many elements are liquid?"]
    assert "2 elements" in texts[2]
    assert len(texts) == 3


async def test_text_from_people_is_never_html(server: Any, ada: Person, grace: Person) -> None:
    await both_in_one_thread(server, ada, grace)
    attack = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"
    await ada.ask(attack)
    for person in (ada, grace):
        await person.sees_run("completed")
        assert (await person.shown())[0][1] == attack
        assert await person.page.locator("#messages img, #messages .text b").count() == 0
        assert await person.page.title() != "owned"


async def test_an_event_that_the_history_holds_as_well_is_shown_once(
    server: Any, ada: Person, grace: Person
) -> None:
    await both_in_one_thread(server, ada, grace)
    asked, answered = asyncio.Event(), asyncio.Event()

    async def hold(route: Any) -> None:
        asked.set()
        await answered.wait()
        await route.continue_()

    await grace.page.route("**/messages", hold)
    await grace.page.reload()
    async with asyncio.timeout(30):
        await asked.wait()  # Grace's stream is open, her history is not there
    await ada.ask(QUESTION)
    await ada.sees_run("completed")
    answered.set()
    await grace.sees_run("completed")
    assert len(await both_see_what_is_stored(server, ada, grace)) == 2
