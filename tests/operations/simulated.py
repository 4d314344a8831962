"""A world that a test steps through: one database, one clock, and the library's own coroutines.

`Node` and `Reaper` do all that they ask of the database through a writer. Here that writer parks
them at each request, so that the test decides what is done next, whether it fails, and whether
the one who asked hears of it. Nothing runs by itself and nothing waits.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    Column,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    cast,
    create_engine,
    extract,
    func,
    literal_column,
    make_url,
    select,
    true,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from commitcast.log import Log
from commitcast.migrations import migrate
from commitcast.prepared import Prepared
from commitcast.schema import Naming, Tables

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterator

    from sqlalchemy import URL
    from sqlalchemy.engine import Connection, Engine, RootTransaction

START: Final = 1000.0
LOCK_NOT_AVAILABLE: Final = "55P03"


class Failed(ConnectionError):
    """The database did not do it, or nobody heard that it did."""


class ModelClock:
    """The database's time, as the test sets it (`commitcast.clock.Clock`)."""

    def __init__(self, *, postgresql: bool) -> None:
        self._postgresql = postgresql

    def now(self) -> Any:
        return self.later(literal_column("0.0", Float))

    def later(self, seconds: Any) -> Any:
        if self._postgresql:
            setting = func.current_setting(literal_column("'model.now'", String))
            return func.to_timestamp(cast(setting, Float) + seconds)
        return func.model_later(seconds, type_=String)


class Store:
    """A migrated database in which one connection does everything, one thing after the other."""

    def __init__(self, url: URL | None = None) -> None:
        self.now = START
        self._engine: Engine = (
            create_engine("sqlite://", poolclass=StaticPool) if url is None else create_engine(url)
        )
        dialect = self._engine.dialect
        self.postgresql = dialect.name == "postgresql"
        self.dialect = dialect
        self.clock = ModelClock(postgresql=self.postgresql)
        self.tables = Tables(Naming.of(dialect.name))
        self.work = Table(
            "work",
            MetaData(),
            Column("operation", String(32), primary_key=True),
            Column("attempt", Integer, primary_key=True),
            Column("kind", String(20), primary_key=True),
        )
        """What the business transactions write."""
        self.log = Log(self.tables, dialect)
        self._conn = self._engine.connect()
        migrate(self._conn)
        with self._conn.begin():
            self.work.create(self._conn)
        if not self.postgresql:
            driver: Any = self._conn.connection.driver_connection
            driver.create_function("model_later", 1, lambda s: f"{self.now + s:014.4f}")
        self._looks = {
            name: Prepared(query, dialect)
            for name, query in (
                ("operations", self._operations()),
                ("outcomes", select(*self.tables.outcomes.c["operation_id", "attempt", "outcome"])),
                ("nodes", self._nodes()),
                ("events", self._events()),
                ("rows", select(self.work)),
            )
        }
        used = (
            self.tables.events, self.tables.streams, self.tables.operations, self.tables.outcomes,
            self.tables.nodes, self.work,
        )  # fmt: skip
        self._emptied = [Prepared(table.delete(), dialect) for table in used]
        now = cast(bindparam("moment", type_=Float), String)
        self._set_up = select(
            func.set_config(literal_column("'model.now'"), now, true()),
            func.set_config(literal_column("'lock_timeout'"), literal_column("'10ms'"), true()),
        )

    @property
    def now(self) -> float:
        """The time, as exact as the tables keep it: a deadline is reached in both or in neither."""
        return self._now

    @now.setter
    def now(self, moment: float) -> None:
        self._now = round(moment, 4)

    def close(self) -> None:
        self._conn.close()
        self._engine.dispose()

    def empty(self) -> None:
        """As after the migration."""
        with self._conn.begin():
            for delete in self._emptied:
                delete.run(self._conn, {})
        self.now = START

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Raises `Failed` where it would have to wait for another's lock."""
        try:
            with self._conn.begin():
                if self.postgresql:
                    self._conn.execute(self._set_up, {"moment": self.now})
                yield self._conn
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                raise
            raise Failed("another has the lock") from error

    def begin_another(self) -> RootTransaction:
        """A transaction beside all the others (PostgreSQL); closing its connection ends it."""
        conn = self._engine.connect()
        transaction = conn.begin()
        conn.execute(self._set_up, {"moment": self.now})
        return transaction

    def look(self) -> dict[str, list[Any]]:
        """Everything that is committed, as plain tuples."""
        with self._conn.begin():
            return {name: list(query.all(self._conn, {})) for name, query in self._looks.items()}

    def _seconds(self, column: Any) -> Any:
        if self.postgresql:
            return cast(extract("epoch", column), Float)
        return cast(column, Float)

    def _operations(self) -> Any:
        c = self.tables.operations.c
        return select(
            c.id, c.attempt, c.node, c.term, self._seconds(c.deadline), c.request_hash, c.settled
        )

    def _nodes(self) -> Any:
        c = self.tables.nodes.c
        return select(c.id, c.term, self._seconds(c.heartbeat))

    def _events(self) -> Any:
        streams, events = self.tables.streams, self.tables.events
        c = events.c
        return (
            select(
                streams.c.name, c.offset, c.event_id, c.type, c.operation, c.data, streams.c.head
            )
            .join(streams, streams.c.id == c.stream_id)
            .order_by(c.stream_id, c.offset)
        )


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One transaction, or one look, that a coroutine waits for."""

    work: Callable[[Connection], Any]
    limit_s: float
    writes: bool = True

    def __await__(self) -> Generator[Request, Any, Any]:
        return (yield self)


class Channel:
    """What a node has in place of `commitcast.writer.Writer`: each request parks who made it."""

    def __init__(self) -> None:
        # Nodes are judged by their leases here, whatever the database (on SQLite: by file locks).
        self.engine = SimpleNamespace(url=make_url("postgresql://"))

    async def run(
        self,
        work: Callable[[Connection], Any],
        *,
        bounded: bool = True,  # noqa: ARG002 - there are no locks to wait for
        limit_s: float = 15.0,
    ) -> Any:
        return await Request(work, limit_s)

    async def read(self, look: Callable[[Connection], Any], *, limit_s: float = 15.0) -> Any:
        return await Request(look, limit_s, writes=False)


class Task:
    """A coroutine of the library, parked at a request or at an answer that it has not heard yet."""

    def __init__(self, kind: str, coroutine: Coroutine[Any, Any, Any], now: float) -> None:
        self.kind = kind
        self.result: Any = None
        self.over = False
        self.request: Request | None = None
        self.asked_at = now
        self._coroutine = coroutine
        self._answer: tuple[Any, BaseException | None] | None = None
        self._go_on(None, None, now)

    @property
    def is_answered(self) -> bool:
        return self._answer is not None

    def answer(self, value: Any, error: BaseException | None = None) -> None:
        """Put the answer where `hear` finds it."""
        self._answer = (value, error)

    def hear(self, now: float) -> None:
        """Go on to the next request, or to the end."""
        if self._answer is not None:
            (value, error), self._answer = self._answer, None
            self._go_on(value, error, now)

    def kill(self) -> None:
        self.over = True
        self._coroutine.close()

    def _go_on(self, value: Any, error: BaseException | None, now: float) -> None:
        self.asked_at = now
        try:
            if error is None:
                self.request = self._coroutine.send(value)
            else:
                self.request = self._coroutine.throw(error)
        except StopIteration as end:
            self.over, self.request, self.result = True, None, end.value
        except (OSError, TimeoutError):  # the loops of a node log it and go on
            self.over, self.request = True, None
