"""What is not saved is taken back on the page, told once, and can be sent again without doubling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from playwright.async_api import expect

from .people import PATIENCE_MS, both_in_one_thread, both_see_what_is_stored, stored_in

if TYPE_CHECKING:
    from .people import Person

pytestmark = pytest.mark.anyio

QUESTION = "Which planet is the hottest?"


@pytest.fixture
def step_delay_ms() -> int:
    return 20


async def test_g6_a_message_that_fails_is_taken_back_once_and_retry_saves_it(
    server: Any, ada: Person, grace: Person
) -> None:
    await both_in_one_thread(server, ada, grace)
    await ada.arms("fail_before_commit")
    await ada.ask(QUESTION)
    failed = await ada.sees_not_saved()
    assert "Not saved — Your message did not get into the thread" in await failed.inner_text()
    await ada.sees_operations("rolled_back", 1)  # told by the answer, both streams, and once
    await ada.sees_not_saved()
    assert await stored_in(server) == []
    assert await grace.page.locator("#messages .message, .notice").count() == 0

    await ada.page.reload()  # it is still there to be sent again
    failed = await ada.sees_not_saved()
    await failed.get_by_role("button", name="Retry").click()
    for person in (ada, grace):
        await person.sees_run("completed")
    await expect(ada.page.locator("#outbox > *")).to_have_count(0, timeout=PATIENCE_MS)
    await ada.sees_operations("rolled_back", 1)
    await ada.sees_operations("committed", 1)
    await expect(ada.page.locator("#operations li:has-text('attempt 2')")).to_have_count(1)
    texts = await both_see_what_is_stored(server, ada, grace)
    assert (texts[0], len(texts)) == (QUESTION, 2)


async def test_g6_a_killed_server_comes_back_and_what_it_lost_is_taken_back_once(
    server: Any, ada: Person, grace: Person
) -> None:
    await both_in_one_thread(server, ada, grace)
    await ada.arms("kill_worker")
    await ada.ask(QUESTION)
    for person in (ada, grace):
        await person.sees_connection("reconnecting")
    failed = await ada.sees_not_saved()
    for person in (ada, grace):
        await person.sees_connection("live", "recovered")
    await ada.sees_operations("rolled_back", 1)
    await ada.sees_not_saved()
    assert await stored_in(server) == []
    await failed.get_by_role("button", name="Retry").click()
    for person in (ada, grace):
        await person.sees_run("completed")
    await ada.sees_operations("rolled_back", 1)
    texts = await both_see_what_is_stored(server, ada, grace)
    assert (texts[0], len(texts)) == (QUESTION, 2)


async def test_steps_of_an_answer_that_was_not_saved_are_taken_back_from_everybody(
    server: Any, ada: Person, grace: Person
) -> None:
    await both_in_one_thread(server, ada, grace)
    await ada.arms("fail_after_agent", "answer")
    await ada.ask(QUESTION)
    for person in (ada, grace):
        await person.sees_run("failed")
        await expect(person.page.locator(".run .step")).to_have_count(0, timeout=PATIENCE_MS)
        assert "taken back" in await person.page.locator(".run .what").inner_text()
    await ada.sees_operations("rolled_back", 1, "answer")
    await ada.sees_operations("committed", 1, "message")
    await ada.sees_in_step("transaction_boundary", "database_socket", "rollback_notification")
    assert await grace.page.locator("#operations li").count() == 0  # they are Ada's own
    await ada.page.reload()
    await ada.sees_run("failed")
    assert await ada.page.locator(".run .step").count() == 0
    assert await both_see_what_is_stored(server, ada, grace) == [QUESTION]


async def test_a_message_that_the_network_sends_twice_is_shown_once(
    server: Any, ada: Person, grace: Person
) -> None:
    await both_in_one_thread(server, ada, grace)
    replayed: list[bool] = []

    async def twice_and_never_answered(route: Any) -> None:
        if route.request.method != "POST":
            await route.continue_()
            return
        first, second = await route.fetch(), await route.fetch()
        assert await first.json() == await second.json()
        replayed.append(second.headers.get("idempotency-replayed") == "true")
        await route.abort()

    await ada.page.route("**/messages", twice_and_never_answered)
    await ada.ask(QUESTION)
    for person in (ada, grace):
        await person.sees_run("completed")
    await expect(ada.page.locator("#outbox > *")).to_have_count(0, timeout=PATIENCE_MS)
    texts = await both_see_what_is_stored(server, ada, grace)
    assert (texts[0], len(texts)) == (QUESTION, 2)
    assert replayed == [True]
    await ada.sees_operations("committed", 1, "message")


async def test_g5_a_page_whose_connections_are_cut_at_the_commit_shows_it_once(
    server: Any, ada: Person, grace: Person
) -> None:
    await both_in_one_thread(server, ada, grace)
    await ada.arms("cut_socket")
    await ada.ask(QUESTION)
    await ada.sees_connection("recovered")
    for person in (ada, grace):
        await person.sees_run("completed")
    texts = await both_see_what_is_stored(server, ada, grace)
    assert (texts[0], len(texts)) == (QUESTION, 2)
    await expect(ada.page.locator("#outbox > *, .notice")).to_have_count(0, timeout=PATIENCE_MS)
    await ada.sees_operations("rolled_back", 0)
