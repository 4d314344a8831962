"""What Commitcast writes for itself ends after a limit, with an error that says what it waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from commitcast.writer import Writer

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from conftest import Database

pytestmark = pytest.mark.anyio


async def test_a_wait_for_the_writer_that_somebody_else_is_names_the_cause(
    database: Database,
) -> None:
    engine = database.engine()
    streams = database.coordinator(engine).tables.streams

    def write(conn: Connection) -> None:
        if conn.dialect.name == "postgresql":
            conn.execute(text("SET LOCAL lock_timeout = 0"))
        conn.execute(streams.delete())

    writer = Writer(engine)
    cause = "a lock did not answer"
    async with engine.connect() as other:
        if database.kind == "postgresql":
            await other.execute(text("LOCK TABLE commitcast.streams"))
        else:
            await other.execute(streams.delete())
            cause = "SQLite has one writer, and another transaction has it open: end it sooner"
        with pytest.raises(TimeoutError, match=rf"within 0.2 s: .*{cause}"):
            await writer.run(write, limit_s=0.2)
        await other.rollback()
    await writer.run(write)
    await writer.close()
