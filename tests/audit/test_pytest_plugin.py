"""The pytest plugin: an app's tests, judged; and nothing at all where it is not asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ["pytester"]

APP = """
from sqlalchemy import Column, Integer, String, create_engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, declarative_base, sessionmaker
from sqlalchemy.pool import StaticPool
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
make_session = sessionmaker(engine)
Base = declarative_base()


class Note(Base):
    __tablename__ = "notes"
    id = Column(Integer, primary_key=True)
    text = Column(String, unique=True)


async def right(websocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        with make_session() as session:
            session.add(Note(text=text))
            try:
                session.commit()
            except IntegrityError:
                await websocket.send_json({"type": "note.failed"})
            else:
                await websocket.send_json({"type": "note.saved"})


async def wrong(websocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        with make_session.begin() as session:
            session.add(Note(text=text))
            await websocket.send_json({"type": "note.saved"})  # here


app = Starlette(routes=[WebSocketRoute("/right", right), WebSocketRoute("/wrong", wrong)])
"""
LINE = next(n for n, text in enumerate(APP.strip().splitlines(), 1) if "# here" in text)

CONFTEST = """
import pytest
from sqlalchemy import event
from starlette.testclient import TestClient

from notes_app import Base, Note, app, engine, make_session


@event.listens_for(engine, "connect")
def no_begin_of_the_driver(dbapi, _):
    dbapi.isolation_level = None


@event.listens_for(engine, "begin")
def begin(conn):
    conn.exec_driver_sql("BEGIN")


@pytest.fixture(scope="session", autouse=True)
def tables():
    Base.metadata.create_all(engine)
    yield
    engine.dispose()


@pytest.fixture(autouse=True)
def session(tables):
    # SQLAlchemy's documentation, "Joining a Session into an External Transaction"
    with engine.connect() as connection:
        transaction = connection.begin()
        make_session.configure(bind=connection, join_transaction_mode="create_savepoint")
        with make_session() as session:
            session.add(Note(text="there before"))
            session.commit()
            yield session
        transaction.rollback()
        make_session.configure(bind=engine, join_transaction_mode="conditional_savepoint")


@pytest.fixture
def client():
    with TestClient(app) as client:
        yield client
"""

RIGHT = """
from sqlalchemy import func, select
from notes_app import Note

def say(client, path, text):
    with client.websocket_connect(path) as websocket:
        websocket.send_text(text)
        return websocket.receive_json()["type"]

def test_saved(client, session):
    assert say(client, "/right", "a") == "note.saved"
    assert session.scalar(select(func.count()).select_from(Note)) == 2

def test_saved_again(client):
    assert say(client, "/right", "a") == "note.saved"

def test_failed(client):
    assert say(client, "/right", "there before") == "note.failed"

def test_what_a_test_adds_by_itself_is_nobody_elses_concern(session):
    session.add(Note(text="b"))
    session.flush()
"""

WRONG = """
def test_saved(client):
    with client.websocket_connect("/wrong") as websocket:
        websocket.send_text("a")
        assert websocket.receive_json() == {"type": "note.saved"}
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """A small app and its conftest."""
    pytester.makeini("[pytest]\nfilterwarnings = error\naddopts = --strict-config --strict-markers")
    pytester.makepyfile(notes_app=APP, conftest=CONFTEST)
    pytester.syspathinsert()
    return pytester


def report(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_right_code_scores_100_also_where_a_fixture_rolls_its_commits_back(
    suite: pytest.Pytester,
) -> None:
    suite.makepyfile(test_right=RIGHT)
    done = suite.runpytest_subprocess("--commitcast-audit", "--commitcast-json=found.json")
    done.assert_outcomes(passed=4)
    found = report(suite.path / "found.json")
    assert (found["findings"], found["score"], found["sends"]) == ([], 100.0, 3)
    done.stdout.fnmatch_lines(["*commitcast audit*", "Score 100 of 100: 3 sends*"])
    assert done.ret == pytest.ExitCode.OK


def test_wrong_code_is_named_and_fails_the_run(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_wrong=WRONG)
    done = suite.runpytest_subprocess("--commitcast-audit", "--commitcast-json=found.json")
    done.assert_outcomes(passed=1)
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    done.stdout.fnmatch_lines(
        [
            f"*notes_app.py:{LINE} in wrong  sent_before_commit  once  note.saved*",
            "Failed: --commitcast-fail-under=100",
        ]
    )
    (finding,) = report(suite.path / "found.json")["findings"]
    assert (finding["kind"], finding["line"]) == ("sent_before_commit", LINE)


def test_fail_under_and_config_are_obeyed(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_wrong=WRONG,
        audit_config="def configure(shadow):\n    shadow.configure(ignore=lambda m: True)\n",
    )
    done = suite.runpytest_inprocess("--commitcast-audit", "--commitcast-fail-under=0")
    assert done.ret == pytest.ExitCode.OK
    done = suite.runpytest_inprocess(
        "--commitcast-audit", "--commitcast-config=audit_config:configure"
    )
    done.stdout.fnmatch_lines(["No send was seen*"])
    assert done.ret == pytest.ExitCode.TESTS_FAILED


def test_a_config_that_is_not_there_is_a_usage_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_nothing(): pass")
    done = pytester.runpytest_inprocess("--commitcast-audit", "--commitcast-config=nowhere:f")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["ERROR: *there is no module nowhere*"])


def test_without_its_flag_it_watches_nothing_and_imports_no_judge(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing(pytestconfig):
            assert not pytestconfig.pluginmanager.has_plugin("commitcast-audit")
            judge = ("commitcast.audit.shadow", "commitcast.audit.judge", "starlette", "typer")
            assert [name for name in judge if name in sys.modules] == []
        """
    )
    done = pytester.runpytest_subprocess("-p", "no:anyio")
    done.assert_outcomes(passed=1)


def test_the_plugin_imports_where_only_the_base_and_pytest_are_installed() -> None:
    code = (
        "import sys\n"
        "for name in ('starlette', 'uvicorn', 'typer', 'greenlet', 'aiosqlite'):\n"
        "    sys.modules[name] = None\n"
        "import commitcast.audit.pytest_plugin\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
