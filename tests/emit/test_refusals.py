"""What cannot be promised is refused, with a clear error, and the session stays usable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from sqlalchemy import create_engine, insert, text
from sqlalchemy.orm import Session

from commitcast import Coordinator, Event, emit, sqlite
from commitcast.errors import (
    AutocommitRefused,
    EmitRefused,
    InvalidEvent,
    IsolationRefused,
    NotAttached,
    NoTransaction,
    SeveralEngines,
    TwoPhaseRefused,
)

from .places import App, Base, Note, everywhere, note

if TYPE_CHECKING:
    from collections.abc import Callable

    from .places import Place

ONE = Event("one")


# --- AUTOCOMMIT ----------------------------------------------------------------------------


@everywhere
def test_g2_autocommit_as_an_option_of_the_engine_is_refused(app: App) -> None:
    engine = app.engine.execution_options(isolation_level="AUTOCOMMIT")
    with Session(engine) as session, pytest.raises(AutocommitRefused):
        emit(session, "thread:7", ONE)
    with Session(app.engine) as session:
        app.works(session)


@everywhere
def test_g2_autocommit_of_a_connection_is_refused(app: App) -> None:
    with app.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("SELECT 1"))
        with pytest.raises(AutocommitRefused):
            emit(conn, "thread:7", ONE)
    assert app.sent() == []


@everywhere
def test_g2_autocommit_of_a_sessions_connection_is_refused(app: App) -> None:
    with Session(app.engine) as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        with pytest.raises(AutocommitRefused):
            emit(session, "thread:7", ONE)
        session.rollback()
        app.works(session)


@everywhere
def test_g2_autocommit_set_after_the_emit_fails_the_commit(app: App) -> None:
    with Session(app.engine) as session:
        emit(session, "thread:7", ONE)
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        with pytest.raises(AutocommitRefused):
            session.commit()
        session.rollback()
        app.works(session)
    assert app.sent() == ["afterwards"]


def test_g2_an_engine_created_in_autocommit_is_refused(place_of: Callable[[str], Place]) -> None:
    for kind, driver in (("postgresql", "postgresql+psycopg"), ("sqlite", "sqlite+pysqlite")):
        place = place_of(kind)
        engine = create_engine(place.url.set(drivername=driver), isolation_level="AUTOCOMMIT")
        coordinator = Coordinator(engine)
        with Session(engine) as session:
            session.execute(text("SELECT 1"))
            with pytest.raises(AutocommitRefused):
                emit(session, "thread:7", ONE)
            session.rollback()
            emit(session, "thread:7", ONE)  # nobody can know it yet …
            with pytest.raises(AutocommitRefused):
                session.commit()  # … but here
            session.rollback()
        with engine.connect() as conn:
            conn.execute(text("SELECT 1"))
            with pytest.raises(AutocommitRefused):
                emit(conn, "thread:7", ONE)
        assert place.sent() == []
        coordinator.detach()
        engine.dispose()


# --- two-phase -----------------------------------------------------------------------------


@everywhere
def test_g2_two_phase_is_refused(app: App) -> None:
    with Session(app.engine, twophase=True) as session, pytest.raises(TwoPhaseRefused):
        emit(session, "thread:7", ONE)
    if app.postgresql:
        with app.engine.connect() as conn:
            transaction = conn.begin_twophase()
            with pytest.raises(TwoPhaseRefused):
                emit(conn, "thread:7", ONE)
            transaction.rollback()
    with Session(app.engine) as session:
        app.works(session)


# --- engines -------------------------------------------------------------------------------


@everywhere
def test_g3_an_engine_without_a_coordinator_is_refused(app: App) -> None:
    app.coordinator.detach()
    with Session(app.engine) as session:
        with pytest.raises(NotAttached, match="Coordinator"):
            emit(session, "thread:7", ONE)
        session.add(Note(text="one"))
        session.commit()
        assert app.notes() == ["one"]
        app.coordinator.attach(app.engine)
        app.works(session)


@everywhere
def test_g3_a_coordinator_that_left_before_the_commit_fails_it(app: App) -> None:
    with Session(app.engine) as session:
        session.add(Note(text="one"))
        emit(session, "thread:7", ONE)
        session.flush()
        app.coordinator.detach()
        with pytest.raises(NotAttached):
            session.commit()
        session.rollback()
        assert app.notes() == []
        app.coordinator.attach(app.engine)
        app.works(session)


@everywhere
def test_g3_an_engine_has_one_coordinator(app: App) -> None:
    with pytest.raises(ValueError, match="has a coordinator"):
        Coordinator(app.engine)
    with pytest.raises(ValueError, match="execution_options"):
        Coordinator(app.engine.execution_options(isolation_level="AUTOCOMMIT"))


@everywhere
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_g2_two_engines_in_one_transaction_are_refused(app: App, first: str) -> None:
    other = create_engine("sqlite://")
    Base.metadata.create_all(other)

    def write_there() -> None:
        session.execute(insert(Note).values(text="there"), bind_arguments={"bind": other})

    with Session(app.engine) as session:
        if first == "theirs":
            write_there()
        session.add(Note(text="one"))
        if first == "ours":
            emit(session, "thread:7", ONE)
        session.flush()
        if first == "theirs":
            emit(session, "thread:7", ONE)
        else:
            write_there()
        with pytest.raises(SeveralEngines):
            session.commit()
        session.rollback()
        assert app.notes() == app.sent() == []
        app.works(session)
    other.dispose()


@everywhere
def test_g2_two_connections_of_one_engine_are_refused(app: App) -> None:
    if not app.postgresql:
        pytest.skip("SQLite has one writer, so the second waits for the first in vain")
    other = app.engine.execution_options(stream_results=False)
    with Session(app.engine) as session:
        session.add(Note(text="one"))
        session.flush()
        session.execute(insert(Note).values(text="two"), bind_arguments={"bind": other})
        emit(session, "thread:7", ONE)
        with pytest.raises(SeveralEngines):
            session.commit()
        session.rollback()
        assert app.notes() == app.sent() == []
        app.works(session)


@everywhere
def test_g2_several_engines_without_an_emit_are_the_teams_own_affair(app: App) -> None:
    other = create_engine("sqlite://")
    with Session(app.engine) as session:
        session.add(Note(text="one"))
        session.flush()
        session.connection(bind_arguments={"bind": other})
        session.commit()
    other.dispose()
    assert app.notes() == ["one"]


@everywhere
def test_g1_engines_made_by_execution_options_are_served(app: App) -> None:
    after = app.engine.execution_options(stream_results=False)
    app.coordinator.detach()
    before = app.engine.execution_options(stream_results=False)
    app.coordinator.attach(app.engine)
    for name, engine in (("after", after), ("before", before)):
        with Session(engine) as session:
            emit(session, "thread:7", Event(name))
            savepoint = session.begin_nested()
            session.add(Note(text="gone"))
            session.flush()
            emit(session, "thread:7", Event("gone"))
            savepoint.rollback()
            session.commit()
        with engine.begin() as conn:
            emit(conn, "thread:7", Event(name))
            with conn.begin_nested():
                emit(conn, "thread:7", Event(name))
            second = conn.begin_nested()
            emit(conn, "thread:7", Event("gone"))
            second.rollback()
    assert app.sent() == ["after"] * 3 + ["before"] * 3


def test_g1_options_of_an_engine_without_any_listener_before(
    place_of: Callable[[str], Place],
) -> None:
    place = place_of("sqlite")
    engine = create_engine(place.url.set(drivername="sqlite+pysqlite"))
    optional = engine.execution_options(stream_results=False)
    coordinator = Coordinator(engine)
    sqlite.configure(engine)
    with Session(optional) as session:
        emit(session, "thread:7", ONE)
        session.commit()
    assert place.sent() == ["one"]
    coordinator.detach()
    engine.dispose()


# --- isolation -----------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_g4_isolation_above_read_committed_is_refused(app: App, level: str) -> None:
    if not app.postgresql:
        pytest.skip("SQLite has one writer at a time")
    with Session(app.engine.execution_options(isolation_level=level)) as session:
        with pytest.raises(IsolationRefused, match=level):
            emit(session, "thread:7", ONE)
        session.rollback()
    with Session(app.engine) as session:
        session.connection(execution_options={"isolation_level": level})
        with pytest.raises(IsolationRefused, match=level):
            emit(session, "thread:7", ONE)
        session.rollback()
        session.execute(text(f"SET TRANSACTION ISOLATION LEVEL {level}"))
        session.add(Note(text="one"))
        emit(session, "thread:7", ONE)
        with pytest.raises(IsolationRefused):
            session.commit()
        session.rollback()
        assert app.notes() == app.sent() == []
        app.works(session)


@everywhere
def test_g4_many_streams_above_read_committed_are_refused(app: App) -> None:
    if not app.postgresql:
        pytest.skip("SQLite has one writer at a time")
    with Session(app.engine) as session:
        session.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
        for i in range(3):
            emit(session, f"thread:{i}", ONE)
        with pytest.raises(IsolationRefused):
            session.commit()
        session.rollback()
        assert app.place.heads() == {}
        app.works(session)


# --- places and values ---------------------------------------------------------------------


@everywhere
def test_g2_a_connection_without_a_transaction_is_refused(app: App) -> None:
    with app.engine.connect() as conn:
        with pytest.raises(NoTransaction):
            emit(conn, "thread:7", ONE)
        note(conn, "one")
        emit(conn, "thread:7", ONE)
        conn.commit()
        with pytest.raises(NoTransaction):
            emit(conn, "thread:7", ONE)
    assert app.sent() == ["one"]
    with pytest.raises(TypeError, match="session or connection"):
        emit(app.engine, "thread:7", ONE)  # type: ignore[arg-type]


@everywhere
@pytest.mark.parametrize(
    ("stream", "event", "labels"),
    [
        ("", ONE, {}),
        ("-thread", ONE, {}),
        ("thread 7", ONE, {}),
        ("thread:7\n", ONE, {}),
        ("straße:7", ONE, {}),
        ("x" * 1031, ONE, {}),
        ("x" + "~20" * 1030, ONE, {}),
        (7, ONE, {}),
        (None, ONE, {}),
        ("thread:7", Event(""), {}),
        ("thread:7", Event("7up"), {}),
        ("thread:7", Event("has space"), {}),
        ("thread:7", Event("e\n"), {}),
        ("thread:7", Event("x" * 101), {}),
        ("thread:7", Event("commitcast.reset"), {}),
        ("thread:7", Event(cast("Any", None)), {}),
        ("thread:7", Event, {}),
        ("thread:7", None, {}),
        ("thread:7", "message.created", {}),
        ("thread:7", {"type": "message.created"}, {}),
        ("thread:7", Event("e", object()), {}),
        ("thread:7", Event("e", {"x": {1, 2}}), {}),
        ("thread:7", Event("e", b"bytes"), {}),
        ("thread:7", Event("e", {"x": "\ud800"}), {}),
        ("thread:7", Event("e", {"x": 2**64}), {}),
        ("thread:7", Event("e", "x" * 65_535), {}),
        ("thread:7", ONE, {"actor": ""}),
        ("thread:7", ONE, {"actor": "x" * 256}),
        ("thread:7", ONE, {"operation": "x" * 256}),
        ("thread:7", ONE, {"actor": "a\nb"}),
        ("thread:7", ONE, {"operation": 7}),
        ("thread:7", ONE, {"trace_parent": "x" * 56}),
        ("thread:7", ONE, {"trace_parent": 7}),
    ],
    ids=str,
)
def test_g2_what_cannot_be_sent_fails_before_anything_is_written(
    app: App, stream: str, event: object, labels: dict[str, str]
) -> None:
    with Session(app.engine) as session:
        session.add(Note(text="one"))
        with pytest.raises(InvalidEvent):
            emit(session, stream, event, **labels)
        session.commit()  # the rest of the transaction is not to blame
        assert app.notes() == ["one"]
        app.works(session)


def test_every_refusal_is_of_one_family() -> None:
    for error in (
        AutocommitRefused, IsolationRefused, NoTransaction, NotAttached, SeveralEngines,
        TwoPhaseRefused,
    ):  # fmt: skip
        assert issubclass(error, EmitRefused)
