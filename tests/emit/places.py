"""Where the tests of the commit side run: one application on each driver, sync and async."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from sqlalchemy import Connection, Engine, String, create_engine, delete, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool
from sqlalchemy.util import greenlet_spawn

from commitcast import Coordinator, Event, emit
from commitcast.migrations import migrate
from commitcast.schema import Naming, Tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

SYNC_DRIVERS = {"postgresql": "postgresql+psycopg", "sqlite": "sqlite+pysqlite"}
DRIVERS = ["postgresql+asyncpg", "postgresql+psycopg", "sqlite+aiosqlite", "sqlite+pysqlite"]


class Base(DeclarativeBase):
    """The tables of the application under test."""


class Note(Base):
    """A row of the team's own, beside which an event is sent."""

    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(100), unique=True)


@dataclass(frozen=True)
class Place:
    """A migrated database of one kind, and a way to see what it holds without any of our hooks."""

    url: URL

    @property
    def kind(self) -> str:
        return self.url.get_backend_name()

    @functools.cached_property
    def observer(self) -> Engine:
        return create_engine(self.url.set(drivername=SYNC_DRIVERS[self.kind]), poolclass=NullPool)

    @functools.cached_property
    def tables(self) -> Tables:
        return Tables(Naming.of(self.kind))

    def create(self) -> None:
        with self.observer.connect() as conn:
            migrate(conn)
            Base.metadata.create_all(conn)
            conn.commit()

    def clean(self) -> None:
        with self.observer.begin() as conn:
            conn.execute(delete(Note))
            conn.execute(delete(self.tables.events))
            conn.execute(delete(self.tables.streams))

    def log(self) -> list[tuple[str, int, str, Any]]:
        """(stream, offset, type, data) of every event that committed, stream by stream."""
        streams, events = self.tables.streams, self.tables.events
        query = (
            select(streams.c.name, events.c.offset, events.c.type, events.c.data)
            .join(events, events.c.stream_id == streams.c.id)
            .order_by(streams.c.name, events.c.offset)
        )
        with self.observer.connect() as conn:
            return [(s, o, t, orjson.loads(d)) for s, o, t, d in conn.execute(query)]

    def sent(self) -> list[str]:
        """The types of the events in the log, for tests that need no more."""
        return [kind for _, _, kind, _ in self.log()]

    def heads(self) -> dict[str, int]:
        streams = self.tables.streams
        with self.observer.connect() as conn:
            return dict(map(tuple, conn.execute(select(streams.c.name, streams.c.head))))

    def notes(self) -> list[str]:
        with self.observer.connect() as conn:
            return list(conn.scalars(select(Note.text).order_by(Note.id)))


@dataclass
class App:
    """An application on one driver: an engine with a coordinator."""

    place: Place
    driver: str
    engine: Engine
    async_engine: AsyncEngine | None
    coordinator: Coordinator

    @property
    def postgresql(self) -> bool:
        return self.place.kind == "postgresql"

    def sent(self) -> list[str]:
        return self.place.sent()

    def notes(self) -> list[str]:
        return self.place.notes()

    def works(self, session: Session) -> None:
        """The session is usable: what it commits next is sent."""
        before = self.sent()
        session.add(Note(text="afterwards"))
        emit(session, "zz:afterwards", Event("afterwards"))
        session.commit()
        assert self.sent() == [*before, "afterwards"]
        assert "afterwards" in self.notes()


def everywhere(body: Callable[..., None]) -> Callable[..., Any]:
    """Run a sync test body on each driver; on async ones in SQLAlchemy's greenlet."""

    @pytest.mark.anyio
    @functools.wraps(body)
    async def test(app: App, **fixtures: Any) -> None:
        if app.async_engine is None:
            body(app, **fixtures)
        else:
            await greenlet_spawn(body, app, **fixtures)

    found: Callable[..., Any] = test
    return found


def note(conn: Connection, text: str) -> None:
    """Insert a note with Core."""
    conn.execute(insert(Note).values(text=text))
