"""`commitcast demo` says what is wrong in one line and never with a traceback."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import typer

from commitcast.demo import command, supervisor

if TYPE_CHECKING:
    from pathlib import Path


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "commitcast", "demo", "--no-browser", *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--database-url", "nonsense"], "not a database URL"),
        (["--database-url", "mysql://host/db"], "SQLite and PostgreSQL"),
        (["--database-url", "sqlite://"], "name a file"),
        (["--database-url", "sqlite:////no/such/folder/chat.db"], "cannot use the database"),
        (["--database-url", "postgresql://u:hidden@127.0.0.1:1/x"], "cannot use the database"),
        (["--model", "nonsense"], "Unknown model"),
        (["--host", "256.1.1.1"], "cannot listen on 256.1.1.1"),
        (["--allow-host", "http://chat.example/"], "without scheme and port"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    if "--database-url" not in arguments:
        arguments = [*arguments, "--database-url", f"sqlite:///{tmp_path}/chat.db"]
    done = _run("--port", "0", *arguments)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "hidden" not in done.stderr


def test_a_port_in_use_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = _run("--port", port, "--database-url", f"sqlite:///{tmp_path}/chat.db")
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


class _Listener:
    """Stands for a socket that other machines reach, which no test opens."""

    def __init__(self, address: str) -> None:
        self._address = address

    def fileno(self) -> int:
        return 7

    def getsockname(self) -> tuple[str, int]:
        return self._address, 8000


@pytest.mark.parametrize(
    ("host", "address", "reached", "shown", "hosts"),
    [
        ("127.0.0.1", "127.0.0.1", False, "http://127.0.0.1:8000/", ["chat.example", "127.0.0.1"]),
        ("::1", "::1", False, "http://[::1]:8000/", ["chat.example", "::1"]),
        ("0.0.0.0", "0.0.0.0", True, "http://127.0.0.1:8000/", ["chat.example"]),
        ("::", "::", True, "http://[::1]:8000/", ["chat.example"]),
        ("me.lan", "192.0.2.7", True, "http://me.lan:8000/", ["chat.example", "me.lan"]),
    ],
)
def test_who_lets_other_machines_in_is_warned(
    host: str, address: str, reached: bool, shown: str, hosts: list[str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    started: list[supervisor.WorkerOptions] = []

    async def supervise(options: supervisor.WorkerOptions, _listener: object) -> int:
        started.append(options)
        return 0

    monkeypatch.setattr(command, "_listen", lambda *_: _Listener(address))
    monkeypatch.setattr(supervisor, "supervise", supervise)
    with pytest.raises(typer.Exit):
        command.demo(host=host, allow_host=["chat.example"], no_browser=True)
    said = capsys.readouterr().err
    assert ("warning" in said and "There are no passwords" in said) is reached
    assert (started[0].address, started[0].hosts) == (shown, hosts)
