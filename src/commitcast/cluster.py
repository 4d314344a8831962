"""The database cluster behind a connection: a part of every epoch, and the primary or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from commitcast.errors import LogError, StandbyRefused
from commitcast.notification import Failure

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

_KNOWN: Final = "commitcast.cluster"
_NOT_ALLOWED: Final = "42501"
_SYSTEM = func.pg_control_system().table_valued("system_identifier")
_QUESTION = select(func.pg_is_in_recovery(), _SYSTEM.c.system_identifier)


def cluster_of(conn: Connection) -> str:
    """What tells the cluster from a copy made by ``initdb`` and a restore.

    Asked once for each database connection (``Connection.info``).

    Raises:
        StandbyRefused: the server follows another.
        LogError: the role may not ask.
    """
    if conn.dialect.name != "postgresql":
        return "sqlite"
    known = conn.info.get(_KNOWN)
    if known is None:
        try:
            standby, identifier = conn.execute(_QUESTION).one()
        except DBAPIError as error:
            if Failure.of(error).sqlstate != _NOT_ALLOWED:
                raise
            raise LogError(
                "this role may not ask which database cluster it is connected to, so a copy of the "
                "database could not be told from the original: GRANT EXECUTE ON FUNCTION "
                "pg_control_system() TO the role"
            ) from error
        if standby:
            raise StandbyRefused(
                f"{conn.engine.url!r} is a standby (pg_is_in_recovery), which is behind and "
                "cannot be written: give the primary, as engine and as reader="
            )
        known = conn.info[_KNOWN] = str(identifier)
    return str(known)
