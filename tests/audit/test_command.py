"""`commitcast audit`: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from commitcast.audit.command import audit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

PATIENCE_S = 60

APP = """
from contextlib import asynccontextmanager

from sqlalchemy import Column, Integer, MetaData, String, Table, insert
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

engine = create_async_engine("sqlite+aiosqlite:///notes.db")
notes = Table("notes", MetaData(), Column("id", Integer, primary_key=True), Column("text", String))


async def wrong(websocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        if text == "bye":
            return await websocket.close()
        async with engine.begin() as conn:
            await conn.execute(insert(notes).values(text=text))
            await websocket.send_json({"type": "note.saved"})  # here


async def right(websocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        async with engine.begin() as conn:
            await conn.execute(insert(notes).values(text=text))
        await websocket.send_json({"type": "note.saved"})


@asynccontextmanager
async def lifespan(app):
    async with engine.begin() as conn:
        await conn.run_sync(notes.metadata.create_all)
    yield
    await engine.dispose()


@asynccontextmanager
async def broken_lifespan(app):
    raise RuntimeError("no database")
    yield


print("the app prints")
routes = [WebSocketRoute("/wrong", wrong), WebSocketRoute("/right", right)]
app = Starlette(routes=routes, lifespan=lifespan)
broken = Starlette(lifespan=broken_lifespan)
number = 7


def make():
    return app
"""
LINE = next(n for n, text in enumerate(APP.splitlines(), 1) if "# here" in text)

DRIVE = """
from websockets.asyncio.client import connect
from websockets.sync.client import connect as connect_sync


async def wrong(url):
    async with connect(url.replace("http", "ws") + "/wrong") as socket:
        for text in "abc":
            await socket.send(text)
            await socket.recv()


def right(url):
    with connect_sync(url.replace("http", "ws") + "/right") as socket:
        socket.send("a")
        socket.recv()


async def fails(url):
    await wrong(url)
    raise ValueError("the traffic broke")


def nothing(url):
    pass


def ignore_all(shadow):
    shadow.configure(ignore=lambda message: True)
"""

TESTS = """
from starlette.testclient import TestClient

from {name}_app import app


def test_a_note_is_saved():
    with TestClient(app) as client, client.websocket_connect("/wrong") as websocket:
        websocket.send_text("a")
        assert websocket.receive_json() == {{"type": "note.saved"}}
        websocket.send_text("bye")  # so that the commit is not cut off by the end of the test
        assert websocket.receive()["type"] == "websocket.close"
"""


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A team's modules in the working directory, with names of their own."""
    found = tmp_path.name.replace("-", "_")
    (tmp_path / f"{found}_app.py").write_text(APP)
    (tmp_path / f"{found}_drive.py").write_text(DRIVE)
    (tmp_path / f"test_{found}.py").write_text(TESTS.format(name=found))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield found
    for module in (f"{found}_app", f"{found}_drive"):
        sys.modules.pop(module, None)


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(audit)
    found: Any = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    result: Result = found
    return result


def command(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "commitcast", "audit", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it printed; kills it if it does not end, for leaving its block waits for it."""
    try:
        return process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def test_json_is_all_that_is_on_stdout_and_names_the_line(name: str) -> None:
    with command(f"{name}_app:app", "--port=0", f"--drive={name}_drive:wrong", "--json") as process:
        out, err = ended(process)
    assert process.returncode == 1, err
    found = json.loads(out)
    assert (found["sends"], found["transactions"], found["rollbacks"]) == (3, 3, 0)
    assert found["breaches"] == {"sent_before_commit": 3}
    (finding,) = found["findings"]
    assert finding["worst_ms"] > 0
    assert {key: finding[key] for key in finding if key != "worst_ms"} == {
        "kind": "sent_before_commit", "file": f"{name}_app.py", "line": LINE, "function": "wrong",
        "count": 3, "event_types": ["note.saved"], "through": [],
    }  # fmt: skip
    assert found["by_pair"]["transaction_boundary"]["broken"] == 3
    assert "the app prints" in err


def test_the_text_says_line_kind_count_and_what_to_do(name: str) -> None:
    done = run(f"{name}_app:app", "--port=0", f"--drive={name}_drive:wrong")
    assert done.exit_code == 1
    assert f"{name}_app.py:{LINE} in wrong  sent_before_commit  3 times  note.saved" in done.stdout
    assert "Score 0 of 100: 3 sends, 3 transactions" in done.stdout
    assert "sent_before_commit: Send after the commit" in done.stdout


def test_a_right_app_exits_with_0_also_made_by_a_factory_and_driven_by_a_sync_function(
    name: str,
) -> None:
    done = run(
        f"{name}_app:make", "--factory", "--port=0", f"--drive={name}_drive:right",
        "--fail-under=50",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "Nothing was found" in done.stdout


def test_fail_under_is_the_score_below_which_the_exit_code_is_1(name: str) -> None:
    done = run(f"{name}_app:app", "--port=0", f"--drive={name}_drive:wrong", "--fail-under=0")
    assert done.exit_code == 0


@pytest.mark.parametrize("how", ["--for=0.1", "--drive={}_drive:nothing"])
def test_no_send_is_not_a_score_of_100_but_an_exit_code_of_its_own(name: str, how: str) -> None:
    done = run(f"{name}_app:app", "--port=0", how.format(name))
    assert done.exit_code == 3
    assert "No send was seen" in done.output
    assert "Score" not in done.output


def test_config_is_given_the_shadow(name: str) -> None:
    done = run(
        f"{name}_app:app", "--port=0", f"--drive={name}_drive:wrong",
        f"--config={name}_drive:ignore_all",
    )  # fmt: skip
    assert done.exit_code == 3, done.output


def test_traffic_that_raises_is_wrong_use_and_what_was_seen_is_shown(name: str) -> None:
    done = run(f"{name}_app:app", "--port=0", f"--drive={name}_drive:fails")
    assert done.exit_code == 2
    assert f"{name}_app.py:{LINE}" in done.stdout
    assert "the traffic broke" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{}_app",), "is not of the form module:name"),
        (("no_such_module_anywhere:app",), "there is no module no_such_module_anywhere"),
        (("{}_app:missing",), "has no 'missing'"),
        (("{}_app:number",), "is not an ASGI app but int"),
        (("{}_app:make",), "add --factory"),
        (("{}_app:app", "--factory"), "leave --factory away"),
        (("{}_app:app", "--drive={}_drive:missing"), "--drive"),
        (("{}_app:app", "--config={}_app:number"), "no function of one argument"),
        (("{}_app:app", "--", "-q"), "add --tests"),
        (("{}_app:broken", "--port=0"), "the app did not start"),
        (("no_such_module_anywhere:app", "--tests"), "there is no module"),
    ],
)
def test_wrong_use_is_said_in_one_line_with_exit_code_2(
    name: str, arguments: tuple[str, ...], said: str
) -> None:
    done = run(*(argument.format(name) for argument in arguments))
    assert done.exit_code == 2
    (line,) = (x for x in done.stderr.splitlines() if x.startswith("commitcast audit: "))
    assert said in line


def test_a_port_that_is_taken_is_wrong_use(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run(f"{name}_app:app", f"--port={taken.getsockname()[1]}")
    assert done.exit_code == 2
    assert "choose another --host or --port" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals are sent to a child process")
def test_ctrl_c_ends_the_audit_with_its_report(name: str) -> None:
    with command(f"{name}_app:app", "--port=0") as process:
        assert process.stderr is not None
        assert "serving on http://127.0.0.1:" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = ended(process)
    assert process.returncode == 3, err
    assert "No send was seen" in out
    assert "Traceback" not in err


def test_tests_are_run_with_the_plugin_and_pytests_arguments(name: str) -> None:
    with command(
        f"{name}_app:app",
        "--tests",
        "--json",
        "--",
        "-q",
        f"test_{name}.py",
        "-p",
        "no:cacheprovider",
    ) as process:
        out, err = ended(process)
    assert process.returncode == 1, err
    (finding,) = json.loads(out)["findings"]
    assert (finding["file"], finding["line"], finding["count"]) == (f"{name}_app.py", LINE, 1)
    assert "1 passed" in err
