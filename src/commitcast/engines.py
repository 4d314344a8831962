"""Sessions whose transaction may be on several engines: which one has their events.

Such a session commits its connections one after the other, in no order, so that one may be
committed and the next fail. Its events are written with one of these commits; where another of
them could fail, and take rows along that the events may be about, the session is refused before
the first (G1). What has only read may fail: nothing is lost with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import exc as sa_exc
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from commitcast.attachment import attachment_on
from commitcast.errors import NotAttached, SeveralEngines
from commitcast.pending import CAPTURE, buffer_of, buffer_on, carries, level_option
from commitcast.sqlite import READ_ONLY_OPTION

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

    from commitcast.pending import SessionState


def chooses_engine(session: Session) -> bool:
    """Whether it has a `get_bind` of its own, so that what it writes decides on which engine."""
    return type(session).get_bind is not Session.get_bind


def default_bind(session: Session) -> Engine | Connection | None:
    """What the session writes on if nothing says otherwise; None where it has no such engine."""
    try:
        return session.get_bind()
    except sa_exc.UnboundExecutionError:
        return None
    except Exception:
        if chooses_engine(session):  # the team's own code, which may need a mapper or a clause
            return None
        raise


def bring_connection(session: Session, state: SessionState) -> None:
    """Have the transaction begin where the session's events are written.

    Raises NotAttached where it writes on no engine that has a coordinator.
    """
    bind = default_bind(session)
    if bind is None or chooses_engine(session):
        session.flush()
        if not state.unbound and state.attached_connection() is not None:
            return
    if bind is not None and attachment_on(bind) is not None:
        session.connection(bind_arguments={"bind": bind})
    elif CAPTURE not in session.info:
        raise nowhere(state)


def nowhere(state: SessionState) -> NotAttached:
    """The error of a session that has events and writes on no engine that has a coordinator."""
    used = ", ".join(repr(conn.engine.url) for conn in state.connections()) or "no engine"
    streams = ", ".join(sorted({repr(made.stream) for made in state.unbound})) or "an operation"
    return NotAttached(
        f"the session's transaction has something for {streams}, and it is on {used}; none of its "
        "engines has a coordinator, so that no commit would send it. Write a row on the engine "
        "that has one, or emit on a connection of it"
    )


def refuse_several(state: SessionState) -> None:
    """Raise SeveralEngines where another commit than that of the events may fail."""
    conns = state.connections()
    if len(conns) == 1:
        return
    carriers = [conn for conn in conns if _has_pending(conn)]
    others = [c for c in conns if carriers and c is not carriers[0] and c.in_transaction()]
    written = [conn for conn in others if conn in carriers or not has_only_read(conn)]
    if not written:
        return
    carrier, other = carriers[0], written[0]
    together = attachment_on(carrier) is attachment_on(other) and carries(other)
    if len(written) == 1 and other not in carriers and together and has_only_read(carrier):
        _move(carrier, other)
        return
    raise SeveralEngines(
        f"the session's transaction has events on {carrier.engine.url!r} and may have written on "
        f"another connection, to {other.engine.url!r}: of two commits one may fail. Emit in a "
        "session of one engine. (If that engine only reads, say so: "
        f"engine.execution_options({READ_ONLY_OPTION}=True); PostgreSQL is asked.)"
    )


def _move(reader: Connection, writer: Connection) -> None:
    """The events go with the rows: what they were emitted on has turned out to only read."""
    read, written = buffer_of(reader), buffer_of(writer)
    written.emits.extend(read.emits)
    written.bound = written.bound or read.bound
    read.emits, read.bound = [], None


def has_only_read(conn: Connection) -> bool:
    """Whether the connection's transaction is known to have nothing that its commit could lose.

    PostgreSQL gives an id to a transaction that changes or locks a row. (It does not see what
    goes to another server through postgres_fdw or dblink.) SQLite has no transaction until
    something is written, where the driver begins it. Of others it is known if they are in
    AUTOCOMMIT or if their engine is declared to only read.
    """
    if conn.dialect.name == "postgresql":
        try:
            return bool(conn.scalar(select(func.txid_current_if_assigned().is_(None))))
        except sa_exc.DBAPIError:  # given up by the server, so that COMMIT is a ROLLBACK
            return False
    if conn.get_execution_options().get(READ_ONLY_OPTION) or level_option(conn) == "AUTOCOMMIT":
        return True
    if conn.dialect.name == "sqlite":
        found: Any = conn.connection.dbapi_connection
        return not getattr(conn.dialect.get_driver_connection(found), "in_transaction", True)
    return False


def _has_pending(conn: Connection) -> bool:
    buffer = buffer_on(conn)
    if buffer is None:
        return False
    buffer.look(conn)
    return bool(buffer.emits) or buffer.bound is not None
