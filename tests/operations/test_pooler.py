"""PgBouncer in transaction mode between the application and PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from commitcast import Coordinator, Event, emit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import URL

    from commitcast import CommittedEvent
    from conftest import Database

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="pgbouncer is not installed"),
]
PATIENCE_S = 30.0
ASYNCPG: dict[str, Any] = {
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": lambda: f"__asyncpg_{uuid.uuid4()}__",
}
DRIVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncpg": ("postgresql+asyncpg", {"pool_size": 8, "connect_args": ASYNCPG}),
    "asyncpg, no pool": (
        "postgresql+asyncpg", {"poolclass": NullPool, "connect_args": ASYNCPG},
    ),
    "psycopg": (
        "postgresql+psycopg", {"pool_size": 8, "connect_args": {"prepare_threshold": None}},
    ),
}  # fmt: skip


@pytest.fixture
def database_kind() -> str:
    return "postgresql"


@pytest.fixture
async def pooled(database: Database) -> AsyncIterator[URL]:
    """The database behind a pooler that has three connections to it."""
    folder = Path(tempfile.mkdtemp(prefix="pgb-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "users.txt").write_text('"postgres" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={database.url.query['host']} user=postgres\n[pgbouncer]\n"
        f"listen_addr=127.0.0.1\nlisten_port={port}\nauth_type=any\npool_mode=transaction\n"
        f"default_pool_size=3\nmax_client_conn=200\nunix_socket_dir=\n"
        "ignore_startup_parameters=extra_float_digits\n"
    )
    user: Any = {}
    if os.geteuid() == 0:  # it refuses to run as root, and only the server's user sees its socket
        owner = Path(str(database.url.query["host"])).stat().st_uid  # noqa: ASYNC240
        user = {"user": owner}
        for name in ("", "users.txt", "pgbouncer.ini"):
            os.chown(folder / name, owner, -1)
    pgbouncer = shutil.which("pgbouncer")
    assert pgbouncer is not None
    process = subprocess.Popen(  # noqa: ASYNC220 - it takes no time to begin
        [pgbouncer, folder / "pgbouncer.ini"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user,
    )  # fmt: skip
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    assert process.poll() is None, "pgbouncer has ended"
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    break
        yield database.url.set(host="127.0.0.1", port=port, query={})
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_g6_operations_emits_and_deliver_work_through_a_pooler_in_transaction_mode(
    pooled: URL, driver: str
) -> None:
    name, options = DRIVERS[driver]
    engine = create_async_engine(pooled.set(drivername=name), **options)
    delivered: list[int] = []
    all_delivered = asyncio.Event()

    async def deliver(event: CommittedEvent) -> None:
        if event.stream == "thread:7":  # the notifications' stream is delivered as well
            delivered.append(event.offset)
        if event.offset == 48:
            all_delivered.set()

    coordinator = Coordinator(
        engine, deliver=deliver, drain_on_signals=False, poll_interval_s=0.05,
        invariants_every_s=0.1, lease_s=2, relay_lease_s=2,
    )  # fmt: skip

    async def work(i: int) -> None:
        for j in range(6):
            if j % 2:
                async with (
                    coordinator.operation("answer", user=f"u{i}", stream="thread:7") as op,
                    op.begin(),
                ):
                    op.emit(Event("said", {"i": i, "j": j}))
            else:
                async with AsyncSession(engine) as session:
                    emit(session, "thread:7", Event("said", {"i": i, "j": j}))
                    await session.commit()

    got: list[int] = []

    async def read() -> None:
        async for event in coordinator.subscribe("thread:7", after="earliest"):
            got.append(event.offset)
            if len(got) == 48:
                return

    async with coordinator, asyncio.timeout(PATIENCE_S):
        reading = asyncio.create_task(read())
        await asyncio.gather(*(work(i) for i in range(8)))
        await reading
        await all_delivered.wait()
    assert list(dict.fromkeys(delivered)) == got == list(range(1, 49))
    coordinator.detach()
    await engine.dispose()
