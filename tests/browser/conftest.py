"""A headless Chromium, and the demo's server as a process that can be killed."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser
    from sqlalchemy import URL

    from .people import Person

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class DemoServer:
    """`commitcast demo` as a child process; started again, it listens where it did before."""

    def __init__(self, url: URL, *, step_delay_ms: int) -> None:
        self._url = url.render_as_string(hide_password=False)
        self._step_delay_ms = step_delay_ms
        self._process: asyncio.subprocess.Process | None = None
        self.address = ""
        self._port = 0

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "commitcast", "demo", "--no-browser",
            "--port", str(self._port), "--database-url", self._url,
            "--step-delay-ms", str(self._step_delay_ms),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        line = (await asyncio.wait_for(self._process.stdout.readline(), 90)).decode()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found, f"the server said {line!r}"
        self.address, self._port = found.group(), int(found.group(1))

    async def end(self, how: signal.Signals) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(how)
        await asyncio.wait_for(self._process.communicate(), 60)

    async def restart(self, how: signal.Signals, *, step_delay_ms: int) -> None:
        await self.end(how)
        self._step_delay_ms = step_delay_ms
        await self.start()


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine: these tests drive one")
    playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    async with playwright.async_playwright() as running:
        browser = await running.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture
def step_delay_ms() -> int:
    """Long enough that a reload falls in the middle of an answer."""
    return 400


@pytest.fixture
async def server(database: Any, step_delay_ms: int) -> AsyncIterator[DemoServer]:
    """A running demo whose agent takes long enough to be interrupted."""
    running = DemoServer(database.url, step_delay_ms=step_delay_ms)
    await running.start()
    yield running
    await running.end(signal.SIGTERM)


@pytest.fixture
async def ada(browser: Browser) -> Person:
    return await _person(browser, "Ada")


@pytest.fixture
async def grace(browser: Browser) -> Person:
    return await _person(browser, "Grace")


async def _person(browser: Browser, name: str) -> Person:
    from .people import Person

    context = await browser.new_context()
    person = Person(await context.new_page(), name)
    person.page.on("pageerror", lambda error: person.complaints.append(str(error)))
    return person
