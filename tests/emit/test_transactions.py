"""G1 and G2 at the commit: what leaves, what does not, by the kind of transaction."""

from __future__ import annotations

import pytest
from sqlalchemy import event as sa_event
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from commitcast import Event, emit
from commitcast.errors import InvalidEvent, NoTransaction

from .places import App, Note, everywhere, note


def say(target: object, kind: str, stream: str = "thread:7") -> None:
    emit(target, stream, Event(kind))  # type: ignore[arg-type]


# --- sessions ------------------------------------------------------------------------------


@everywhere
def test_g1_nothing_is_in_the_log_before_the_commit(app: App) -> None:
    with Session(app.engine) as session:
        session.add(Note(text="one"))
        session.flush()
        say(session, "one")
        assert app.sent() == []
        session.commit()
    assert app.sent() == ["one"]


@everywhere
def test_g2_a_rollback_sends_nothing(app: App) -> None:
    with Session(app.engine) as session:
        session.add(Note(text="one"))
        say(session, "one")
        session.flush()
        say(session, "two")
        session.rollback()
        assert app.sent() == app.notes() == []
        app.works(session)


@everywhere
def test_g2_a_session_closed_without_a_commit_sends_nothing(app: App) -> None:
    with Session(app.engine) as session:
        say(session, "without.sql")
        session.close()
        session.add(Note(text="one"))
        session.flush()
        say(session, "with.sql")
        session.close()
        app.works(session)
    assert app.sent() == ["afterwards"]


@everywhere
def test_g1_a_session_that_only_emits_sends_at_its_commit(app: App) -> None:
    with Session(app.engine) as session:
        say(session, "one")
        session.commit()
        say(session, "two")
        session.commit()
        session.commit()
    assert app.sent() == ["one", "two"]


@everywhere
def test_g1_each_commit_of_a_session_sends_its_own_emits(app: App) -> None:
    with Session(app.engine) as session:
        for round_ in "abc":
            say(session, f"{round_}.before")
            session.add(Note(text=round_))
            session.flush()
            say(session, f"{round_}.after")
            if round_ == "b":
                session.rollback()
            else:
                session.commit()
    assert app.sent() == ["a.before", "a.after", "c.before", "c.after"]
    assert app.notes() == ["a", "c"]


@everywhere
def test_g1_begin_as_a_block_sends_at_its_end(app: App) -> None:
    with Session(app.engine) as session:
        with session.begin():
            say(session, "one")
        with pytest.raises(ZeroDivisionError), session.begin():
            session.add(Note(text="two"))
            say(session, "two")
            session.flush()
            raise ZeroDivisionError
        with session.begin():
            say(session, "three")
            session.add(Note(text="three"))
    assert app.sent() == ["one", "three"]


@everywhere
def test_g1_a_scoped_session_is_a_session(app: App) -> None:
    scoped = scoped_session(sessionmaker(app.engine), scopefunc=lambda: 1)
    say(scoped, "one")
    scoped.commit()
    say(scoped, "two")
    scoped.remove()
    assert app.sent() == ["one"]


@everywhere
def test_g4_emits_from_after_flush_and_before_commit_leave_with_the_commit(app: App) -> None:
    with Session(app.engine) as session:

        @sa_event.listens_for(session, "after_flush")
        def tell(flushing: Session, _context: object) -> None:
            for new in flushing.new:
                say(flushing, f"flushed.{new.text}")

        @sa_event.listens_for(session, "before_commit")
        def last(committing: Session) -> None:
            say(committing, "last")

        session.add(Note(text="one"))
        session.commit()
        session.commit()
    assert app.sent() == ["last", "flushed.one", "last"]


@everywhere
def test_g4_many_streams_and_events_keep_the_order_of_their_emits(app: App) -> None:
    with Session(app.engine) as session:
        for i in range(60):
            emit(session, f"s:{i % 7}", Event("e", {"i": i}))
            if i == 30:
                session.add(Note(text="now there is a connection"))
                session.flush()
        emit(session.connection(), "s:0", Event("e", {"i": 60}))
        emit(session, "s:0", Event("e", {"i": 61}))
        session.commit()
    by_stream: dict[str, list[tuple[int, int]]] = {}
    for stream, offset, _, data in app.place.log():
        by_stream.setdefault(stream, []).append((offset, data["i"]))
    assert len(by_stream) == 7
    for stream, found in by_stream.items():
        number = int(stream[2:])
        expected = [i for i in range(60) if i % 7 == number] + ([60, 61] if number == 0 else [])
        assert found == list(enumerate(expected, 1))


@everywhere
def test_g1_a_function_is_called_when_ids_are_known(app: App) -> None:
    with Session(app.engine) as session:
        made = Note(text="one")
        session.add(made)
        emit(session, "thread:7", lambda: Event("note.created", {"id": made.id}))
        session.commit()
        [(_, _, _, data)] = app.place.log()
        assert data == {"id": session.scalars(select(Note.id)).one()}


@everywhere
def test_g2_a_function_that_fails_fails_the_commit(app: App) -> None:
    with Session(app.engine) as session:
        for bad, error in (
            (lambda: 1 / 0, ZeroDivisionError),
            (lambda: None, InvalidEvent),
            (lambda: Event("bad type"), InvalidEvent),
            (lambda: Event("e", {"x": "y" * 70_000}), InvalidEvent),
        ):
            session.add(Note(text="one"))
            emit(session, "thread:7", bad)
            with pytest.raises(error):
                session.commit()
            session.rollback()
            assert app.notes() == app.sent() == []
        app.works(session)


@everywhere
def test_g2_an_async_function_is_refused(app: App) -> None:
    async def event() -> Event:
        return Event("one")

    with Session(app.engine) as session:
        session.add(Note(text="one"))
        emit(session, "thread:7", event)
        with pytest.raises(InvalidEvent, match="plain function"):
            session.commit()
        session.rollback()
        assert app.notes() == []
        app.works(session)


# --- savepoints ----------------------------------------------------------------------------


@everywhere
def test_g2_released_savepoint_is_not_a_commit(app: App) -> None:
    with Session(app.engine) as session:
        with session.begin_nested():
            session.add(Note(text="inner"))
            say(session, "inner")
        assert app.sent() == []
        session.rollback()
        assert app.sent() == []
        app.works(session)


@everywhere
def test_g2_a_savepoint_rolled_back_takes_its_emits_along(app: App) -> None:
    with Session(app.engine) as session:
        say(session, "before")
        savepoint = session.begin_nested()
        session.add(Note(text="inner"))
        session.flush()
        say(session, "inner")
        savepoint.rollback()
        say(session, "after")
        session.add(Note(text="after"))
        session.commit()
    assert app.sent() == ["before", "after"]
    assert app.notes() == ["after"]


@everywhere
def test_g2_a_savepoint_without_sql_takes_its_emits_along(app: App) -> None:
    with Session(app.engine) as session:
        say(session, "before")
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            say(session, "inner")
            raise ZeroDivisionError
        with session.begin_nested():
            say(session, "kept")
        session.commit()
    assert app.sent() == ["before", "kept"]


@everywhere
@pytest.mark.parametrize("sql", [True, False])
def test_g2_savepoints_at_any_depth(app: App, sql: bool) -> None:
    with Session(app.engine) as session:

        def step(name: str) -> None:
            say(session, name)
            if sql:
                session.add(Note(text=name))
                session.flush()

        step("a")
        one = session.begin_nested()
        step("b")
        two = session.begin_nested()
        step("c")
        three = session.begin_nested()
        step("d")
        three.commit()
        step("e")
        two.rollback()  # c, d (released inside it) and e go
        step("f")
        four = session.begin_nested()
        step("g")
        four.commit()
        one.commit()
        five = session.begin_nested()
        step("h")
        session.begin_nested()
        step("i")
        five.rollback()  # the outer one, with the inner still open
        step("j")
        session.commit()
    assert app.sent() == ["a", "b", "f", "g", "j"]
    if sql:
        assert app.notes() == app.sent()


@everywhere
def test_g2_a_savepoint_released_then_its_outer_rolled_back(app: App) -> None:
    with Session(app.engine) as session:
        outer = session.begin_nested()
        with session.begin_nested():
            session.add(Note(text="inner"))
            say(session, "inner")
        outer.rollback()
        say(session, "after")
        session.commit()
    assert app.sent() == ["after"]
    assert app.notes() == []


@everywhere
def test_g2_savepoints_in_the_second_transaction_of_a_connection(app: App) -> None:
    with app.engine.connect() as conn:
        for round_ in "abc":
            note(conn, round_)
            with conn.begin_nested():
                say(conn, f"{round_}.kept")
            inner = conn.begin_nested()
            say(conn, f"{round_}.gone")
            inner.rollback()
            conn.commit()
    assert app.sent() == ["a.kept", "b.kept", "c.kept"]


@everywhere
def test_g1_a_block_that_ends_with_a_savepoint_still_open_sends(app: App) -> None:
    with Session(app.engine) as session:
        with session.begin():
            session.begin_nested()
            say(session, "inner")
        assert app.sent() == ["inner"]
        say(session, "again")
        session.begin_nested()
        say(session, "again.inner")
        session.commit()
    assert app.sent() == ["inner", "again", "again.inner"]


@everywhere
def test_g2_a_failed_flush_in_a_savepoint_leaves_the_rest(app: App) -> None:
    with Session(app.engine) as session:
        session.add(Note(text="one"))
        say(session, "one")
        session.flush()
        with pytest.raises(IntegrityError), session.begin_nested():
            session.add(Note(text="one"))
            say(session, "double")
            session.flush()
        say(session, "two")
        session.commit()
    assert app.sent() == ["one", "two"]
    assert app.notes() == ["one"]


@everywhere
def test_g2_a_failed_flush_sends_nothing(app: App) -> None:
    with Session(app.engine) as session:
        session.add_all([Note(text="one"), Note(text="one")])
        say(session, "one")
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()
        assert app.sent() == app.notes() == []
        app.works(session)


@everywhere
def test_g2_a_savepoint_of_the_connection_under_a_session(app: App) -> None:
    with Session(app.engine) as session:
        say(session, "before")
        inner = session.connection().begin_nested()
        say(session, "inner")
        inner.rollback()
        say(session, "after")
        session.commit()
    assert app.sent() == ["before", "after"]


# --- connections ---------------------------------------------------------------------------


@everywhere
def test_g1_a_connection_sends_at_its_commit(app: App) -> None:
    with app.engine.connect() as conn:
        note(conn, "one")
        say(conn, "one")
        assert app.sent() == []
        conn.commit()
        assert app.sent() == ["one"]
        note(conn, "two")
        say(conn, "two")
        conn.rollback()
        with conn.begin():
            say(conn, "three")
    with app.engine.begin() as conn:
        say(conn, "four")
    assert app.sent() == ["one", "three", "four"]


@everywhere
def test_g2_savepoints_of_a_connection(app: App) -> None:
    with app.engine.begin() as conn:
        say(conn, "a")
        outer = conn.begin_nested()
        say(conn, "b")
        inner = conn.begin_nested()
        say(conn, "c")
        inner.commit()
        say(conn, "d")
        outer.rollback()
        say(conn, "e")
        third = conn.begin_nested()
        say(conn, "f")
        third.rollback()
        fourth = conn.begin_nested()
        say(conn, "g")
        fourth.commit()
    assert app.sent() == ["a", "e", "g"]


@everywhere
def test_g2_what_a_connection_left_behind_is_not_sent_by_its_next_user(app: App) -> None:
    with app.engine.connect() as conn:
        note(conn, "left")
        say(conn, "left")
    with app.engine.connect() as conn:
        note(conn, "next")
        conn.commit()
    assert app.sent() == []
    assert app.notes() == ["next"]


@everywhere
def test_g2_what_a_failed_commit_had_written_is_not_committed_by_the_next(app: App) -> None:
    with app.engine.connect() as conn:
        note(conn, "refused")
        say(conn, "refused")
        emit(conn, "thread:7", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            conn.commit()
        with pytest.raises(InvalidRequestError):
            conn.commit()
        conn.rollback()
        note(conn, "next")
        say(conn, "next")
        conn.commit()
    assert app.sent() == ["next"]
    assert app.notes() == ["next"]


@everywhere
def test_g2_an_invalidated_connection_sends_nothing(app: App) -> None:
    with app.engine.connect() as conn:
        note(conn, "one")
        say(conn, "one")
        conn.invalidate()
        with pytest.raises(InvalidRequestError):
            conn.commit()
        conn.rollback()
        note(conn, "two")
        say(conn, "two")
        conn.commit()
    assert app.sent() == app.notes() == ["two"]


@everywhere
def test_g2_an_invalidated_session_sends_nothing(app: App) -> None:
    with Session(app.engine) as session:
        session.add(Note(text="one"))
        say(session, "one")
        session.flush()
        session.invalidate()
        assert app.sent() == app.notes() == []
        app.works(session)


@pytest.mark.filterwarnings("ignore:transaction already deassociated")
@everywhere
def test_g1_the_commit_of_the_connection_under_a_session_is_one(app: App) -> None:
    with Session(app.engine) as session:
        session.add(Note(text="one"))
        session.flush()
        say(session, "one")
        session.connection().commit()
        assert app.sent() == app.notes() == ["one"]
        session.rollback()
        app.works(session)


@everywhere
def test_g2_a_commit_refused_by_the_database_sends_nothing(app: App) -> None:
    """An error that the caller caught: PostgreSQL has given the transaction up, SQLite has not."""
    with app.engine.connect() as conn:
        note(conn, "one")
        say(conn, "one")
        with pytest.raises(IntegrityError):
            note(conn, "one")
        if app.postgresql:
            with pytest.raises(Exception, match="transaction is aborted"):
                conn.commit()
            conn.rollback()
            assert app.sent() == app.notes() == []
        else:
            conn.commit()
            assert app.sent() == app.notes() == ["one"]
        note(conn, "two")
        say(conn, "two")
        conn.commit()
        assert app.sent()[-1] == "two"


# --- sessions joined to an outer transaction -----------------------------------------------

MODES = ["conditional_savepoint", "rollback_only", "control_fully", "create_savepoint"]


@everywhere
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("sql", [False, True])
def test_g2_the_commit_of_a_joined_session_is_no_commit(
    app: App, mode: str, nested: bool, sql: bool
) -> None:
    """…but where the session is given full control of the transaction (control_fully)."""
    with app.engine.connect() as conn:
        outer = conn.begin()
        savepoint = conn.begin_nested() if nested else None
        with Session(conn, join_transaction_mode=mode) as session:  # type: ignore[arg-type]
            if sql:
                session.add(Note(text="joined"))
            say(session, "joined")
            session.commit()
            if mode == "control_fully" and savepoint is None:
                assert app.sent() == ["joined"]
                return
            assert app.sent() == []
        if savepoint is not None and savepoint.is_active:
            savepoint.commit()
        outer.commit()
    assert app.sent() == ["joined"]


@everywhere
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sql", [False, True])
def test_g2_the_outer_rollback_takes_a_joined_session_along(app: App, mode: str, sql: bool) -> None:
    with app.engine.connect() as conn:
        conn.begin()
        savepoint = conn.begin_nested()
        with Session(conn, join_transaction_mode=mode) as session:  # type: ignore[arg-type]
            if sql:
                session.add(Note(text="joined"))
            say(session, "joined")
            session.commit()
        if savepoint.is_active:
            savepoint.rollback()
            say(conn, "after")
            conn.commit()
            assert app.sent() == ["after"]
        else:
            conn.rollback()
            assert app.sent() == []
        assert app.notes() == []


@everywhere
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ending", ["rollback", "close"])
@pytest.mark.parametrize("sql", ["before", "after", "none"])
def test_g2_a_joined_session_sends_what_it_saves_and_nothing_else(
    app: App, mode: str, ending: str, sql: str
) -> None:
    """Whatever a mode does to the rows, the event goes the same way."""
    with app.engine.connect() as conn:
        outer = conn.begin()
        note(conn, "outer")
        say(conn, "outer")
        with Session(conn, join_transaction_mode=mode) as session:  # type: ignore[arg-type]
            if sql == "before":
                session.add(Note(text="joined"))
                session.flush()
            say(session, "joined")
            if sql == "after":
                session.add(Note(text="joined"))
                session.flush()
            getattr(session, ending)()
        if outer.is_active:
            outer.commit()
    if sql != "none":
        assert app.sent() == app.notes()
    else:
        assert "joined" not in app.sent()


@everywhere
def test_g2_a_joined_session_goes_on_after_its_own_rollback(app: App) -> None:
    with app.engine.connect() as conn:
        outer = conn.begin()
        with Session(conn, join_transaction_mode="create_savepoint") as session:
            for name in ("a", "b", "c"):
                say(session, name)
                session.add(Note(text=name))
                session.flush()
                say(session, f"{name}.2")
                session.rollback() if name == "b" else session.commit()
        outer.commit()
    assert app.sent() == ["a", "a.2", "c", "c.2"]
    assert app.notes() == ["a", "c"]


@everywhere
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ended", ["rollback", "commit"])
def test_g3_a_joined_session_whose_transaction_was_ended_outside_takes_no_event(
    app: App, mode: str, ended: str
) -> None:
    """SQLAlchemy goes on in another transaction, of which the session's own end is no end."""
    with app.engine.connect() as conn:
        conn.begin()
        with Session(conn, join_transaction_mode=mode) as session:  # type: ignore[arg-type]
            session.execute(select(Note))
            getattr(conn, ended)()
            with pytest.raises(NoTransaction):
                say(session, "lost")
            conn.begin()
            with pytest.raises(NoTransaction, match="behind the session's back"):
                say(session, "lost")
            conn.rollback()
    assert app.sent() == []


@everywhere
@pytest.mark.parametrize("mode", MODES)
def test_g2_a_savepoint_of_a_joined_session_that_is_closed(app: App, mode: str) -> None:
    """Closing tells no listener of sessions; the savepoint opens after the emit, with the SQL."""
    with app.engine.connect() as conn:
        outer = conn.begin()
        with Session(conn, join_transaction_mode=mode) as session:  # type: ignore[arg-type]
            session.add(Note(text="before"))
            session.flush()
            say(session, "before")
            session.begin_nested()
            say(session, "inner")
            session.add(Note(text="inner"))
            session.flush()
        if outer.is_active:
            outer.commit()
    assert app.sent() == app.notes()
    assert "inner" not in app.sent()
