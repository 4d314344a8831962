"""G3 for emits made when the transaction is about to end: they are sent, or they raise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from commitcast import Event, emit
from commitcast.errors import EmitRefused, NoTransaction
from commitcast.testing import capture

from .places import App, Note, everywhere, note

if TYPE_CHECKING:
    from sqlalchemy import Connection


def nested(target: Any, depth: int) -> Any:
    """A function that emits another, so many deep."""

    def function() -> Event:
        if depth:
            emit(target, "thread:7", nested(target, depth - 1))
        return Event(f"depth.{depth}")

    return function


@everywhere
@pytest.mark.parametrize("place", ["session", "connection"])
def test_g3_what_an_emits_function_emits_leaves_with_the_commit(app: App, place: str) -> None:
    if place == "session":
        with Session(app.engine) as session, capture(session) as events:
            session.add(Note(text="one"))
            emit(session, "thread:7", nested(session, 3))
            session.commit()
        assert [e.type for e in events] == app.sent()
    else:
        with app.engine.connect() as conn:
            note(conn, "one")
            emit(conn, "thread:7", nested(conn, 3))
            conn.commit()
    assert app.sent() == ["depth.3", "depth.2", "depth.1", "depth.0"]


@everywhere
def test_g2_functions_that_emit_functions_for_ever_fail_the_commit(app: App) -> None:
    with Session(app.engine) as session:
        session.add(Note(text="one"))
        emit(session, "thread:7", nested(session, 1_000_000))
        with pytest.raises(EmitRefused, match="100 deep"):
            session.commit()
        session.rollback()
        assert app.sent() == app.notes() == []
        app.works(session)


@everywhere
@pytest.mark.parametrize("place", ["session", "connection"])
@pytest.mark.parametrize("first", [True, False])
def test_g3_a_commit_listener_after_ours_may_emit(app: App, place: str, first: bool) -> None:
    def on_commit(conn: Connection) -> None:
        emit(conn if place == "connection" else session, "thread:7", Event("late"))
        emit(conn, "thread:8", lambda: Event("later"))

    with Session(app.engine) as session:
        event.listen(app.engine, "commit", on_commit)
        session.add(Note(text="one"))
        if first:
            emit(session, "thread:7", Event("first"))
        session.commit()
        assert app.sent() == (["first"] if first else []) + ["late", "later"]
        session.add(Note(text="one"))
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()
        event.remove(app.engine, "commit", on_commit)
        assert app.notes() == ["one"]
        app.works(session)


@everywhere
def test_g2_an_emit_at_our_own_statement_fails_the_commit(app: App) -> None:
    def on_statement(conn: Connection, _cursor: Any, text: str, *_: Any) -> None:
        if "notes" not in text:  # the only one of ours that listeners hear of: the cluster's name
            emit(conn, "thread:7", Event("statement"))

    if not app.postgresql:
        pytest.skip("on SQLite no listener hears of our statements")
    event.listen(app.engine, "before_cursor_execute", on_statement)
    with app.engine.connect() as conn:
        note(conn, "one")
        emit(conn, "thread:7", Event("one"))
        with pytest.raises(NoTransaction, match="being written"):
            conn.commit()
        conn.rollback()
        event.remove(app.engine, "before_cursor_execute", on_statement)
        note(conn, "two")
        emit(conn, "thread:7", Event("two"))
        conn.commit()
    assert app.sent() == app.notes() == ["two"]


@everywhere
@pytest.mark.parametrize("sql", [True, False])
def test_g3_an_emit_in_after_commit_says_that_the_commit_is_over(app: App, sql: bool) -> None:
    with Session(app.engine) as session:

        @event.listens_for(session, "after_commit", once=True)
        def late(committed: Session) -> None:
            with pytest.raises(NoTransaction, match="after_commit"):
                emit(committed, "thread:7", Event("late"))

        session.begin()
        if sql:
            session.add(Note(text="one"))
        session.commit()
        assert app.notes() == (["one"] if sql else [])
        app.works(session)


@everywhere
@pytest.mark.parametrize("sql", [True, False])
@pytest.mark.parametrize("savepoint", [True, False])
def test_g3_an_emit_in_after_rollback_is_refused(app: App, sql: bool, savepoint: bool) -> None:
    refused: list[bool] = []
    with Session(app.engine) as session:

        @event.listens_for(session, "after_rollback")
        def late(rolled_back: Session) -> None:
            with pytest.raises(NoTransaction, match="rolled back"):
                emit(rolled_back, "thread:7", Event("late"))
            refused.append(True)

        transaction = session.begin_nested() if savepoint else session.begin()
        if sql:
            session.add(Note(text="one"))
            session.flush()
        transaction.rollback()
        assert refused == [True]
        app.works(session)
    assert app.sent() == ["afterwards"]


@everywhere
def test_g3_an_emit_in_after_soft_rollback_belongs_to_the_next_transaction(app: App) -> None:
    with Session(app.engine) as session:

        @event.listens_for(session, "after_soft_rollback", once=True)
        def late(rolled_back: Session, _previous: object) -> None:
            emit(rolled_back, "thread:7", Event("next"))

        session.add(Note(text="one"))
        session.flush()
        session.rollback()
        assert app.sent() == []
        session.commit()
    assert app.sent() == ["next"]
    assert app.notes() == []


@everywhere
@pytest.mark.parametrize("hook", ["before_flush", "after_flush", "after_flush_postexec"])
def test_g3_emits_of_flush_events_leave_with_the_commit(app: App, hook: str) -> None:
    with Session(app.engine) as session:
        event.listen(
            session, hook, lambda flushing, *_: emit(flushing, "thread:7", Event(hook)), once=True
        )
        session.add(Note(text="one"))
        session.commit()
    assert app.sent() == [hook]
    assert app.notes() == ["one"]


@everywhere
def test_g2_what_a_commit_before_had_written_is_not_told_as_rolled_back(app: App) -> None:
    told: list[tuple[str, ...]] = []
    app.coordinator.on_rollback(told.append)
    with app.engine.connect() as conn:
        emit_in(conn, "one")
        conn.commit()
        note(conn, "two")
        conn.rollback()
        with Session(conn) as session:
            session.execute(select(Note))
            session.rollback()
    assert told == []
    assert app.sent() == ["one"]


def emit_in(conn: Connection, kind: str) -> None:
    note(conn, kind)
    emit(conn, "thread:7", Event(kind))
