"""G1 where a session's transaction may be on several engines: one commit may fail after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import ForeignKey, create_engine, event, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from commitcast import Coordinator, Event, emit, sqlite
from commitcast.errors import InvalidEvent, NotAttached, SeveralEngines
from commitcast.testing import capture

from .places import SYNC_DRIVERS, App, Base, Note, everywhere

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine


class Elsewhere(DeclarativeBase):
    """The tables of another engine."""


class Owner(Elsewhere):
    __tablename__ = "owners"

    id: Mapped[int] = mapped_column(primary_key=True)


class Order(Elsewhere):
    """Its COMMIT fails where its owner is missing: a deferred constraint."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[int] = mapped_column(
        ForeignKey("owners.id", deferrable=True, initially="DEFERRED")
    )


@pytest.fixture
def other(app: App, tmp_path: Path) -> Iterator[Engine]:
    """Another engine of the same kind, sync, without a coordinator; empty tables."""
    if app.postgresql:
        engine = create_engine(app.place.url.set(drivername=SYNC_DRIVERS["postgresql"]))
    else:
        engine = create_engine(f"sqlite:///{tmp_path}/other.db")
        sqlite.configure(engine)
    Elsewhere.metadata.drop_all(engine)
    Elsewhere.metadata.create_all(engine)
    yield engine
    Elsewhere.metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def replica(app: App) -> Iterator[Engine]:
    """An engine that reads the same database, without a coordinator."""
    engine = create_engine(app.place.url.set(drivername=SYNC_DRIVERS[app.place.kind]))
    yield engine.execution_options(commitcast_read_only=True)
    engine.dispose()


def orders(engine: Engine) -> int:
    with engine.connect() as conn:
        return conn.scalar(select(func.count()).select_from(Order)) or 0


@everywhere
@pytest.mark.parametrize("joins", ["before_emit", "in_the_commits_flush"])
@pytest.mark.parametrize("coordinated", [False, True])
def test_g1_an_engine_that_has_written_beside_the_events_is_refused_before_any_commit(
    app: App, other: Engine, joins: str, coordinated: bool
) -> None:
    """In whatever order the session would commit them, which changes from run to run."""
    second = Coordinator(other) if coordinated else None
    alone = coordinated and joins == "before_emit"  # then the event is the other engine's
    for row in [True] if alone else [False, True]:
        for _ in range(4):
            with Session(app.engine, binds={Elsewhere: other}) as session:
                session.add(Order(owner=7))
                if joins == "before_emit":
                    session.flush()
                if row:
                    session.add(Note(text="one"))
                emit(session, "thread:7", Event("ordered"))
                with pytest.raises(SeveralEngines, match="one may fail"):
                    session.commit()
                session.rollback()
                assert app.sent() == app.notes() == []
                assert orders(other) == 0
    with Session(app.engine) as session:
        app.works(session)
    if second is not None:
        second.detach()


@everywhere
@pytest.mark.parametrize("emits", ["mapper", "connection", "commit_listener"])
def test_g1_emits_made_in_the_commit_itself_are_looked_at_too(
    app: App, other: Engine, emits: str
) -> None:
    def on_insert(_mapper: object, conn: Any, _target: object) -> None:
        emit(conn, "thread:7", Event("noted"))

    def on_commit(conn: Any) -> None:
        emit(conn, "thread:7", Event("noted"))

    with Session(app.engine, binds={Elsewhere: other}) as session:
        session.add_all([Note(text="one"), Order(owner=7)])
        if emits == "mapper":
            event.listen(Note, "after_insert", on_insert)
        elif emits == "connection":
            emit(session.connection(), "thread:7", Event("noted"))
        else:
            event.listen(session.connection(), "commit", on_commit)
        try:
            with pytest.raises((SeveralEngines, IntegrityError)):
                session.commit()
        finally:
            if emits == "mapper":
                event.remove(Note, "after_insert", on_insert)
        session.rollback()
    assert app.sent() == app.notes() == []


@everywhere
def test_g1_a_session_joined_to_a_connection_that_joins_another_engine_is_refused(
    app: App, other: Engine
) -> None:
    with app.engine.connect() as conn:
        outer = conn.begin()
        with Session(conn, binds={Elsewhere: other}) as session:
            session.add(Note(text="one"))
            emit(session, "thread:7", Event("noted"))
            session.add(Order(owner=7))
            with pytest.raises(SeveralEngines):
                session.commit()
            session.rollback()
        if outer.is_active:
            outer.commit()
    assert app.sent() == app.notes() == []
    assert orders(other) == 0


@everywhere
def test_g1_events_on_two_engines_are_refused(app: App, other: Engine) -> None:
    second = Coordinator(other)
    with Session(app.engine, binds={Elsewhere: other}) as session:
        session.add(Note(text="one"))
        session.add(Order(owner=7))
        session.flush()
        emit(session.connection(), "thread:7", Event("noted"))
        emit(session.connection(bind_arguments={"bind": other}), "thread:7", Event("ordered"))
        with pytest.raises(SeveralEngines):
            session.commit()
        session.rollback()
    assert app.sent() == app.notes() == []
    second.detach()


# --- sessions that choose their engine ------------------------------------------------------


def routing(writer: Engine, reader: Engine) -> type[Session]:
    class Routing(Session):
        """Reads on one engine, writes on the other (as SQLAlchemy's documentation has it)."""

        def get_bind(self, *_: Any, clause: Any = None, bind: Any = None, **__: Any) -> Any:
            if bind is not None:
                return bind
            return writer if self._flushing or (clause is not None and clause.is_dml) else reader

    return Routing


def sharded(writer: Engine) -> Session:
    return ShardedSession(
        shards={"eu": writer},
        shard_chooser=lambda *_, **__: "eu",
        identity_chooser=lambda *_, **__: ["eu"],
        execute_chooser=lambda _: ["eu"],
    )


@everywhere
@pytest.mark.parametrize("kind", ["routing", "sharded", "binds"])
@pytest.mark.parametrize("when", ["first", "after_a_read", "after_the_flush", "in_before_flush"])
def test_g1_an_event_goes_where_the_session_writes(
    app: App, replica: Engine, kind: str, when: str
) -> None:
    if kind == "routing":
        session = routing(app.engine, replica)()
    else:
        session = sharded(app.engine) if kind == "sharded" else Session(binds={Base: app.engine})
    with session:
        for name in ("a", "b"):
            if when == "in_before_flush":
                event.listen(
                    session, "before_flush",
                    lambda s, *_, n=name: emit(s, "thread:7", Event(n)), once=True,
                )  # fmt: skip
            if when == "after_a_read":
                session.scalars(select(Note)).all()
            if when in {"first", "after_a_read"}:
                emit(session, "thread:7", Event(name))
            session.add(Note(text=name))
            if when == "after_the_flush":
                session.flush()
                emit(session, "thread:7", Event(name))
            session.commit()
        assert app.sent() == app.notes() == ["a", "b"]
        emit(session, "thread:7", Event("gone"))
        session.add(Note(text="gone"))
        session.flush()
        session.rollback()
    assert app.sent() == app.notes() == ["a", "b"]


@everywhere
@pytest.mark.parametrize("kind", ["routing", "sharded", "binds"])
def test_g10_a_session_that_chooses_its_engine_has_the_limit_of_its_coordinator(
    app: App, replica: Engine, kind: str
) -> None:
    app.coordinator.detach()
    for limit, size, taken in ((100, 90, True), (100, 110, False), (200_000, 100_000, True)):
        coordinator = Coordinator(app.async_engine or app.engine, max_event_bytes=limit)
        if kind == "routing":
            session = routing(app.engine, replica)()
        else:
            session = (
                sharded(app.engine) if kind == "sharded" else Session(binds={Base: app.engine})
            )
        with session:
            session.add(Note(text=str(size)))
            if taken:
                emit(session, "thread:7", Event("sized", "x" * size))
                session.commit()
            else:
                with pytest.raises(InvalidEvent, match="max_event_bytes, which is 100"):
                    emit(session, "thread:7", Event("sized", "x" * size))
                    session.commit()
                session.rollback()
        coordinator.detach()
    assert app.notes() == ["90", "100000"]
    assert app.sent() == ["sized", "sized"]


@everywhere
@pytest.mark.parametrize("kind", ["routing", "sharded", "binds"])
def test_g3_an_event_of_a_session_that_writes_nowhere_fails_the_commit(
    app: App, replica: Engine, kind: str
) -> None:
    if kind == "routing":
        session = routing(app.engine, replica)()
    else:
        session = sharded(app.engine) if kind == "sharded" else Session(binds={Base: app.engine})
    with session:
        emit(session, "thread:7", Event("lost"))
        with pytest.raises(NotAttached, match="thread:7"):
            session.commit()
        session.rollback()
        session.add(Note(text="one"))
        emit(session, "thread:7", Event("one"))
        session.commit()
        assert app.sent() == ["one"]
        # A row by Core, on the coordinator's engine: the connection is there before the commit.
        session.execute(insert(Note).values(text="two"))
        emit(session, "thread:7", Event("two"))
        session.commit()
    assert app.sent() == app.notes() == ["one", "two"]


@everywhere
def test_g1_what_is_known_to_have_only_read_is_no_second_engine(app: App, replica: Engine) -> None:
    """PostgreSQL is asked; of SQLite it is known where the engine is declared to only read."""
    with Session(app.engine) as session:
        session.execute(select(Note), bind_arguments={"bind": replica})
        session.add(Note(text="one"))
        emit(session, "thread:7", Event("one"))
        session.commit()
        if app.postgresql:  # a lie is found
            session.execute(insert(Note).values(text="two"), bind_arguments={"bind": replica})
            session.add(Note(text="three"))
            emit(session, "thread:7", Event("two"))
            with pytest.raises(SeveralEngines, match="PostgreSQL is asked"):
                session.commit()
            session.rollback()
    assert app.sent() == app.notes() == ["one"]


@pytest.mark.anyio
@pytest.mark.parametrize("options", [{"stream_results": False}, {"isolation_level": "AUTOCOMMIT"}])
async def test_g1_an_async_session_that_reads_on_an_engine_made_of_the_writers(
    app: App, options: dict[str, Any]
) -> None:
    """Both have the coordinator; the event goes with the rows."""
    if app.async_engine is None or not app.postgresql:
        pytest.skip("an async session, on a database that takes two of its connections")
    reader = app.async_engine.execution_options(**options).sync_engine
    async with AsyncSession(sync_session_class=routing(app.engine, reader)) as session:
        for name in ("a", "b"):
            (await session.scalars(select(Note))).all()
            emit(session, "thread:7", Event(name))
            session.add(Note(text=name))
            await session.commit()
        (await session.scalars(select(Note))).all()
        emit(session, "thread:7", Event("gone"))
        session.add(Note(text="a"))
        with pytest.raises(IntegrityError):
            await session.commit()
        await session.rollback()
    assert app.sent() == app.notes() == ["a", "b"]


@everywhere
def test_captured_of_a_session_that_chooses_its_engine(app: App, replica: Engine) -> None:
    app.coordinator.detach()
    with routing(app.engine, replica)() as session, capture(session) as events:
        emit(session, "thread:7", Event("one"))
        session.commit()
        session.add(Note(text="one"))
        emit(session, "thread:7", Event("two"))
        session.commit()
    assert [e.type for e in events] == ["one", "two"]
    app.coordinator.attach(app.engine)


@everywhere
def test_two_phase_sessions_and_savepoints_without_events_are_left_alone(
    app: App, other: Engine
) -> None:
    if not app.postgresql:
        pytest.skip("SQLite has no two-phase commit")
    session = Session(app.engine, binds={Elsewhere: other}, twophase=True)
    with session:
        session.add_all([Note(text="one"), Owner(id=1)])
        session.flush()
        with session.begin_nested():
            session.add(Note(text="two"))
        session.rollback()
    assert app.notes() == []
