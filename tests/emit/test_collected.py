"""G10: what nobody holds any more is collected, whatever its emits refer to."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from commitcast import Coordinator, Event, emit, sqlite
from commitcast.emit import bind

from .places import SYNC_DRIVERS, Note, note

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from sqlalchemy import Connection, Engine

    from commitcast.log import Decision, Log

    from .places import Place


@pytest.fixture
def engine(place: Place) -> Iterator[Engine]:
    """With room for one connection, which the next user has to get."""
    engine = create_engine(
        place.url.set(drivername=SYNC_DRIVERS[place.kind]),
        poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=1,
    )  # fmt: skip
    if place.kind == "sqlite":
        sqlite.configure(engine, busy_timeout_s=1)
    Coordinator(engine)  # which the engine keeps
    yield engine
    engine.dispose()


class Service:
    """Has a session, and what it emits refers to it."""

    def __init__(self, engine: Engine) -> None:
        self.session = Session(engine)

    def name(self) -> str:
        return f"{self.session.is_active}"

    def saved(self) -> Event:
        return Event("saved", {"by": self.name()})


def unbound(service: Service) -> None:
    emit(service.session, "thread:7", service.saved)


def flushed(service: Service) -> None:
    service.session.add(Note(text="gone"))
    service.session.flush()
    emit(service.session, "thread:7", service.saved)


def in_a_savepoint(service: Service) -> None:
    service.session.begin_nested()
    flushed(service)


def on_the_connection(service: Service) -> None:
    flushed(service)
    emit(service.session.connection(), "thread:7", service.saved)


def rolled_back(service: Service) -> None:
    flushed(service)
    service.session.rollback()
    flushed(service)


def failed(service: Service) -> None:
    flushed(service)
    emit(service.session, "thread:7", lambda: 1 / len(service.name()[:0]))
    with pytest.raises(ZeroDivisionError):
        service.session.commit()


@pytest.mark.parametrize(
    "work", [unbound, flushed, in_a_savepoint, on_the_connection, rolled_back, failed]
)
def test_g10_a_session_that_nobody_closes_gives_its_connection_back(
    place: Place, engine: Engine, work: Callable[[Service], None]
) -> None:
    for _ in range(3):  # the second would wait for the first's connection, and its write lock
        service = Service(engine)
        work(service)
        gone = weakref.ref(service.session)
        del service
        gc.collect()
        assert gone() is None
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert place.notes() == place.sent() == []


class Tie:
    """An operation's tie to what it is bound to (`commitcast.log.Binding`)."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn

    def write(self, conn: Connection, log: Log, streams: Collection[str]) -> Decision | None:
        """Nothing is decided."""

    def committed(self) -> None:
        """Nothing follows."""


@pytest.mark.parametrize("ending", ["commit", "none"])
def test_g10_a_connection_that_an_operation_was_bound_to(engine: Engine, ending: str) -> None:
    conn = engine.connect()
    conn.begin()
    note(conn, "one")
    bind(conn, Tie(conn))
    emit(conn, "thread:7", lambda of=conn: Event("one", {"closed": of.closed}))
    if ending == "commit":
        conn.commit()
    gone: Any = weakref.ref(conn)
    del conn
    gc.collect()
    assert gone() is None
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_g10_an_engine_and_its_coordinator(place: Place) -> None:
    engine = create_engine(place.url.set(drivername=SYNC_DRIVERS[place.kind]))
    coordinator = Coordinator(engine)
    with engine.begin() as conn:
        note(conn, "one")
        emit(conn, "thread:7", Event("one"))
    gone: list[Any] = [weakref.ref(x) for x in (engine, engine.dialect, coordinator)]
    engine.dispose()
    del engine, coordinator, conn
    gc.collect()
    assert [ref() for ref in gone] == [None, None, None]
