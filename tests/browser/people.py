"""People at browsers of their own, and what they see."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx
from playwright.async_api import expect

if TYPE_CHECKING:
    from playwright.async_api import Locator, Page

    from .conftest import DemoServer

PATIENCE_MS = 90_000


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

    async def arms(self, fault: str, where: str = "message") -> None:
        if await self.page.locator("#break").is_hidden():
            await self.page.get_by_role("button", name="Break it").click()
        await self.page.locator(f"#break-in label:has(input[value={where}])").click()
        button = self.page.locator(f"#faults button[data-fault={fault}]")
        await button.click()
        await expect(button).to_have_attribute("aria-pressed", "true", timeout=PATIENCE_MS)

    async def sees_not_saved(self) -> Locator:
        """One message that was taken back, with one notice; returns it."""
        failed = self.page.locator(".sent[data-state=failed]")
        await expect(failed).to_have_count(1, timeout=PATIENCE_MS)
        await expect(self.page.locator(".notice")).to_have_count(1)
        return failed

    async def sees_operations(self, outcome: str, count: int, name: str = "message") -> None:
        """So many pills of that outcome in the strip."""
        pills = self.page.locator(f"#operations li[data-outcome={outcome}]:has-text('{name}')")
        await expect(pills).to_have_count(count, timeout=PATIENCE_MS)

    async def sees_in_step(self, *pairs: str) -> None:
        """The score strip has those pairs of layers."""
        for pair in pairs:
            shown = self.page.locator(f"#health li[data-pair={pair}] b")
            await expect(shown).to_have_text(re.compile(r"\d+"), timeout=PATIENCE_MS)

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


async def both_in_one_thread(server: DemoServer, ada: Person, grace: Person) -> None:
    """Sign both in and open one thread for both."""
    await ada.sign_in(server.address)
    await grace.sign_in(server.address)
    await ada.make_thread("Space", "Grace")
    await expect(grace.page.locator("#title")).to_have_text("Space", timeout=PATIENCE_MS)
    await grace.sees_connection("live")


async def stored_in(server: DemoServer) -> list[tuple[str, str]]:
    """What the database holds, asked through the API by a member."""
    async with httpx.AsyncClient(base_url=server.address) as client:
        token = (await client.post("/api/login", json={"name": "Ada"})).json()["token"]
        headers = {"Authorization": f"Bearer {token}"}
        thread = (await client.get("/api/threads", headers=headers)).json()[0]["id"]
        found = await client.get(f"/api/threads/{thread}/messages", headers=headers)
        return [(message["id"], message["text"]) for message in found.json()]


async def both_see_what_is_stored(server: DemoServer, *people: Person) -> list[str]:
    stored = await stored_in(server)
    for person in people:
        await expect(person.page.locator("#messages .message")).to_have_count(
            len(stored), timeout=PATIENCE_MS
        )
        assert await person.shown() == stored
        assert person.complaints == []
    return [text for _, text in stored]
