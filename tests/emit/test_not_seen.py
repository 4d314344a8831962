"""What began before the coordinator: taken in, or refused; never lost, never sent by mistake."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event as sa_event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from commitcast import Event, emit
from commitcast.connections import ENGINE_LISTENERS

from .places import App, Note, everywhere, note

if TYPE_CHECKING:
    from collections.abc import Callable

    from .places import Place


def say(target: object, kind: str) -> None:
    emit(target, "thread:7", Event(kind))  # type: ignore[arg-type]


def never_attached(app: App) -> None:
    """The engine is as if it had not had a coordinator yet."""
    app.coordinator.detach()
    for name, listener in ENGINE_LISTENERS:
        sa_event.remove(app.engine, name, listener)


@everywhere
@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_g2_savepoints_of_a_connection_that_is_older_than_the_coordinator(
    app: App, before: int, ending: str
) -> None:
    never_attached(app)
    with app.engine.connect() as conn:
        for _ in range(before):
            getattr(conn.begin_nested(), ending)()
        app.coordinator.attach(app.engine)
        note(conn, "outer")
        say(conn, "outer")
        savepoint = conn.begin_nested()
        note(conn, "gone")
        say(conn, "gone")
        savepoint.rollback()
        with conn.begin_nested():
            note(conn, "kept")
            say(conn, "kept")
        conn.commit()
    assert app.sent() == app.notes() == ["outer", "kept"]


@everywhere
@pytest.mark.parametrize("inner", ["none", "released", "rolled_back"])
def test_g2_a_savepoint_that_is_older_than_the_coordinator_takes_its_emits_along(
    app: App, inner: str
) -> None:
    never_attached(app)
    with app.engine.connect() as conn:
        note(conn, "outer")
        oldest = conn.begin_nested()
        old = conn.begin_nested()
        note(conn, "old")
        app.coordinator.attach(app.engine)
        say(conn, "old")
        if inner != "none":
            nested = conn.begin_nested()
            note(conn, "inner")
            say(conn, "inner")
            nested.commit() if inner == "released" else nested.rollback()
        old.commit()
        oldest.rollback()  # of which nothing was seen
        note(conn, "after")
        say(conn, "after")
        conn.commit()
    assert app.notes() == ["outer", "after"]
    assert app.sent() == ["after"]


@pytest.mark.filterwarnings("ignore:nested transaction already deassociated")
@everywhere
def test_g2_savepoints_that_end_in_another_order_than_they_began(app: App) -> None:
    with app.engine.connect() as conn:
        note(conn, "a")
        say(conn, "a")
        outer = conn.begin_nested()
        note(conn, "b")
        say(conn, "b")
        conn.begin_nested()
        note(conn, "c")
        say(conn, "c")
        outer.rollback()  # with the inner one still open
        note(conn, "d")
        say(conn, "d")
        third = conn.begin_nested()
        note(conn, "e")
        say(conn, "e")
        third.commit()
        conn.commit()
    assert app.sent() == app.notes() == ["a", "d", "e"]


@everywhere
def test_g2_a_savepoint_that_could_not_begin_is_none(app: App) -> None:
    if not app.postgresql:
        pytest.skip("SQLite goes on after an error")
    with app.engine.connect() as conn:
        note(conn, "a")
        say(conn, "a")
        outer = conn.begin_nested()
        say(conn, "b")
        with pytest.raises(DBAPIError):
            note(conn, "a")
        with pytest.raises(DBAPIError):
            conn.begin_nested()  # the transaction is aborted
        outer.rollback()
        with conn.begin_nested():
            say(conn, "c")
        conn.commit()
    assert app.sent() == ["a", "c"]


_OLDER: str = """
import asyncio, sys
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn
from commitcast import Coordinator, Event, emit
from commitcast.errors import TransactionNotSeen
from commitcast.testing import capture

def work(engine, whole):
    session = Session(engine)
    session.execute(text("SELECT 1"))                    # its transaction is open …
    Coordinator(whole)                                   # … when the first coordinator is made
    session.execute(text("INSERT INTO notes (text) VALUES ('refused')"))
    try:
        emit(session, "thread:7", Event("refused"))
        sys.exit("taken")
    except TransactionNotSeen as error:
        assert "commit or roll back" in str(error)
    session.rollback()
    session.execute(text("INSERT INTO notes (text) VALUES ('one')"))
    emit(session, "thread:7", Event("one"))              # the next one was seen to begin
    session.commit()
    session.close()
    late = Session(engine)
    late.begin_nested()
    emit(late, "thread:7", Event("two"))
    late.commit()
    late.close()

async def main(url):
    engine = create_async_engine(url)
    await greenlet_spawn(work, engine.sync_engine, engine)
    await engine.dispose()

url, is_async = sys.argv[1], sys.argv[2] == "async"
if is_async:
    asyncio.run(main(url))
else:
    engine = create_engine(url)
    work(engine, engine)
"""


@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "postgresql+psycopg", "sqlite+pysqlite"])
def test_g3_a_session_that_is_older_than_the_first_coordinator_is_refused(
    place_of: Callable[[str], Place], driver: str
) -> None:
    place = place_of(driver.split("+", maxsplit=1)[0])
    url = place.url.set(drivername=driver).render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-c", _OLDER, url, "async" if driver.endswith("asyncpg") else "sync"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert place.sent() == ["one", "two"]
    assert place.notes() == ["one"]


@everywhere
def test_g1_an_engine_that_is_attached_in_the_middle_of_a_transaction(app: App) -> None:
    app.coordinator.detach()
    with Session(app.engine) as session:
        session.add(Note(text="one"))
        session.flush()
        app.coordinator.attach(app.engine)
        say(session, "one")
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            say(session, "gone")
            session.add(Note(text="gone"))
            session.flush()
            raise ZeroDivisionError
        session.commit()
    assert app.sent() == app.notes() == ["one"]
