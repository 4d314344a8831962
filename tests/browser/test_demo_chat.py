"""Two people, one thread, one agent, in a real browser: nothing is lost, nothing twice."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from playwright.async_api import expect

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = pytest.mark.anyio

QUESTION = "Which planet is the hottest?"
ANSWER = "Venus"
PATIENCE_MS = 30_000
INTERRUPTED = "interrupted"


@dataclass
class Person:
    """Someone at a browser of their own; `complaints` is what the page's console said."""

    page: Page
    name: str
    complaints: list[str] = field(default_factory=list)

    async def sign_in(self, address: str) -> None:
        await self.page.goto(address)
        await self.page.get_by_label("Your name").fill(self.name)
        await self.page.get_by_role("button", name="Sign in").click()
        await expect(self.page.locator("#me")).to_have_text(self.name)

    async def make_thread(self, title: str, members: str) -> None:
        await self.page.get_by_role("button", name="New thread").click()
        await self.page.get_by_label("Title").fill(title)
        await self.page.get_by_label("Members besides you").fill(members)
        await self.page.get_by_role("button", name="Create").click()
        await self.sees_connection("live")

    async def ask(self, text: str) -> None:
        await self.page.locator("#text").fill(text)
        await self.page.get_by_role("button", name="Send").click()

    async def sees_connection(self, *words: str) -> None:
        state = "|".join(words)
        await self.page.wait_for_function(
            "words => words.split('|').includes(document.querySelector('#connection').dataset.state)",
            arg=state, timeout=PATIENCE_MS,
        )  # fmt: skip

    async def sees_run(self, state: str, count: int = 1) -> None:
        runs = self.page.locator(f".run[data-state={state}]")
        await expect(runs).to_have_count(count, timeout=PATIENCE_MS)

    async def sees_a_tool_at_work(self) -> None:
        """The middle of an answer: a step is shown, the answer is not there."""
        await self.page.locator(".run[data-state=running] .step .name").first.wait_for(
            timeout=PATIENCE_MS
        )

    async def shown(self) -> list[tuple[str | None, str]]:
        """The messages on the page: id and text, in order."""
        items = await self.page.locator("#messages .message").all()
        return [
            (await item.get_attribute("data-id"), await item.locator(".text").inner_text())
            for item in items
        ]


@pytest.fixture
async def ada(browser: Browser) -> Person:
    return await _person(browser, "Ada")


@pytest.fixture
async def grace(browser: Browser) -> Person:
    return await _person(browser, "Grace")


async def _person(browser: Browser, name: str) -> Person:
    context = await browser.new_context()
    person = Person(await context.new_page(), name)
    person.page.on("pageerror", lambda error: person.complaints.append(str(error)))
    return person


async def _both_in_one_thread(server: Any, ada: Person, grace: Person) -> None:
    await ada.sign_in(server.address)
    await grace.sign_in(server.address)
    await ada.make_thread("Space", "Grace")
    await expect(grace.page.locator("#title")).to_have_text("Space", timeout=PATIENCE_MS)
    await grace.sees_connection("live")


async def _stored(server: Any) -> list[tuple[str, str]]:
    """What the database holds, asked through the API by a member."""
    async with httpx.AsyncClient(base_url=server.address) as client:
        token = (await client.post("/api/login", json={"name": "Ada"})).json()["token"]
        headers = {"Authorization": f"Bearer {token}"}
        thread = (await client.get("/api/threads", headers=headers)).json()[0]["id"]
        found = await client.get(f"/api/threads/{thread}/messages", headers=headers)
        return [(message["id"], message["text"]) for message in found.json()]


async def _both_see_what_is_stored(server: Any, *people: Person) -> list[str]:
    stored = await _stored(server)
    for person in people:
        await expect(person.page.locator("#messages .message")).to_have_count(
            len(stored), timeout=PATIENCE_MS
        )
        assert await person.shown() == stored
        assert person.complaints == []
    return [text for _, text in stored]


async def test_two_people_see_one_answer_step_by_step(
    server: Any, ada: Person, grace: Person
) -> None:
    await _both_in_one_thread(server, ada, grace)
    await ada.ask(QUESTION)
    for person in (ada, grace):
        await person.sees_a_tool_at_work()
    for person in (ada, grace):
        await person.sees_run("completed")
        sql = await person.page.locator(".run .step pre").text_content()
        assert sql is not None
        assert sql.startswith("SELECT name, temperature_c")
    texts = await _both_see_what_is_stored(server, ada, grace)
    assert texts[0] == QUESTION
    assert ANSWER in texts[1]
    assert len(texts) == 2


async def test_a_reload_in_the_middle_of_an_answer_loses_and_doubles_nothing(
    server: Any, ada: Person, grace: Person
) -> None:
    await _both_in_one_thread(server, ada, grace)
    await ada.ask(QUESTION)
    await ada.sees_a_tool_at_work()
    await ada.page.reload()
    await ada.sees_a_tool_at_work()  # the steps so far are there again, and the run goes on
    for person in (ada, grace):
        await person.sees_run("completed")
    texts = await _both_see_what_is_stored(server, ada, grace)
    assert len(texts) == 2
    assert ANSWER in texts[1]


# a stopped server waits a few seconds for open connections: the answer must take longer than that
@pytest.mark.parametrize("step_delay_ms", [1_500])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
async def test_a_restart_in_the_middle_of_an_answer_is_told_and_loses_nothing(
    server: Any, ada: Person, grace: Person, how: signal.Signals
) -> None:
    await _both_in_one_thread(server, ada, grace)
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
    texts = await _both_see_what_is_stored(server, ada, grace)
    assert texts[:2] == [QUESTION, "How many elements are liquid?"]
    assert "2 elements" in texts[2]
    assert len(texts) == 3


async def test_text_from_people_is_never_html(server: Any, ada: Person, grace: Person) -> None:
    await _both_in_one_thread(server, ada, grace)
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
    await _both_in_one_thread(server, ada, grace)
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
    assert len(await _both_see_what_is_stored(server, ada, grace)) == 2
