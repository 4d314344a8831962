from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import commitcast

ROOT = Path(__file__).parents[2]

WITHOUT_EXTRAS = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {
            "aiosqlite", "alembic", "asyncpg", "fastapi", "greenlet", "psycopg", "pydantic",
            "pydantic_ai", "starlette", "typer", "uvicorn",
        }:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_package_imports_with_sqlalchemy_and_orjson_alone() -> None:
    done = run("import commitcast, commitcast.testing; print(commitcast.emit.__name__)")
    assert (done.returncode, done.stdout) == (0, "emit\n"), done.stderr


def test_a_sync_engine_can_emit_without_any_extra() -> None:
    done = run(
        "import sqlalchemy, commitcast\n"
        "engine = sqlalchemy.create_engine('sqlite://')\n"
        "coordinator = commitcast.Coordinator(engine)\n"
        "with engine.begin() as conn:\n"
        "    commitcast.emit(conn, 'thread:7', commitcast.Event('message.created', {}))\n"
        "    conn.rollback()\n"
    )
    assert done.returncode == 0, done.stderr


def test_the_command_line_without_its_extra_says_in_one_line_what_to_install() -> None:
    done = run("from commitcast.cli import main; main()")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "commitcast[cli]" in done.stderr


def test_the_package_is_typed_and_every_public_name_is_there() -> None:
    assert (Path(commitcast.__file__).parent / "py.typed").exists()
    assert [name for name in commitcast.__all__ if not hasattr(commitcast, name)] == []


def test_the_base_dependencies_are_sqlalchemy_and_orjson() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [re.split(r"[^a-z]", d)[0] for d in project["dependencies"]] == ["sqlalchemy", "orjson"]


def test_the_lock_names_no_host_and_has_a_hash_for_everything() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    pinned = re.findall(r"^([a-z0-9._-]+)(?:\[.*\])?==", lock, re.MULTILINE)
    assert {"sqlalchemy", "orjson", "asyncpg", "pytest"} <= set(pinned)
    assert len(re.findall(r"^\S.*\\\n    --hash=sha256:", lock, re.MULTILINE)) == len(pinned)
