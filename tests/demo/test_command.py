"""`commitcast demo` says what is wrong in one line and never with a traceback."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

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
