"""``python -m commitcast.bench.server PROGRAM``: serves one program on a free loopback port.

The port is written to standard output once clients can connect. The database's URL comes in
the environment, where a password is not seen by other users of the machine.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

import uvicorn

from commitcast.bench.database import bench_engine
from commitcast.bench.programs import application

if TYPE_CHECKING:
    import socket

URL_VARIABLE: Final = "COMMITCAST_BENCH_DATABASE_URL"


class _Announcing(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            print(port, flush=True)  # noqa: T201 - the parent reads it


def main(program: str, database_url: str) -> None:
    """Serve until SIGTERM."""
    config = uvicorn.Config(
        application(program, bench_engine(database_url)),
        host="127.0.0.1",
        port=0,
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        lifespan="on",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    _Announcing(config).run()


if __name__ == "__main__":
    main(sys.argv[1], os.environ[URL_VARIABLE])
