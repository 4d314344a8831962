"""The program that is killed: writers and the SSE endpoint in one process, under load.

`python -m commitcast.chaos.server` is started by `process.ServerProcess`. Standard input
carries orders, a line each: ``go`` starts the writers, ``stop`` lets them finish; its end
means that the campaign is gone, and so the server goes too. Standard output carries marks:

``up``                the coordinator runs and the application is about to listen
``b``                 a ``commit()`` is about to be called
``w``                 the log has been written, and COMMIT is about to be sent
``c KEY KEY …``       a ``commit()`` returned; these rows must be there for ever
``r``                 a transaction was rolled back on purpose
``a ID ATTEMPT``      an operation was entered; it must have one outcome in the end
``o ID ATTEMPT SAID`` it was left, ``committed``, ``rolled_back`` or ``unknown``
``k ID RESULT``       it had committed before, with this result (JSON)
``stopped``           all writers have finished

Each mark is one write(2) of at most PIPE_BUF bytes, so a kill never leaves half of one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
from typing import TYPE_CHECKING, Final

import uvicorn
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.routing import Mount

from commitcast import Coordinator, Retention
from commitcast.chaos.announced import OperationWriter
from commitcast.chaos.workload import Writer
from commitcast.users import user_stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from commitcast import CommittedEvent
    from commitcast.request import ConnectionRequest

_RELAY_LEASE_S: Final = 1.0
"""Short, so that the relay of most lives takes over from one that was killed."""
_DRAIN_S: Final = 1.0
_SPARE: Final = 6  # connections, for those who read the log


class PipeMarks:
    """Marks on standard output, unbuffered: what was written before a kill can be read after."""

    def committing(self) -> None:
        """Mark ``b``."""
        self.write("b")

    def logged(self) -> None:
        """Mark ``w``."""
        self.write("w")

    def committed(self, keys: Sequence[str]) -> None:
        """Mark ``c``, with the keys."""
        self.write(f"c {' '.join(keys)}")

    def rolled_back(self) -> None:
        """Mark ``r``."""
        self.write("r")

    def announced(self, operation: str, attempt: int) -> None:
        """Mark ``a``."""
        self.write(f"a {operation} {attempt}")

    def said(self, operation: str, attempt: int, outcome: str) -> None:
        """Mark ``o``."""
        self.write(f"o {operation} {attempt} {outcome}")

    def answered(self, operation: str, result: object) -> None:
        """Mark ``k``."""
        self.write(f"k {operation} {json.dumps(result)}")

    def write(self, line: str) -> None:
        """Any mark, at once."""
        os.write(1, f"{line}\n".encode())


class FileSink:
    """A ``deliver`` callable: appends each frame to a file, as a socket layer would send it.

    It leaves out what others who use the database emit to streams of their own. A kill can cut a
    write at the end of a page, so each line begins with the bytes that are to follow, and each
    life with a new line (`evidence.delivered` reads it).
    """

    def __init__(self, path: str, streams: Iterable[str]) -> None:
        self._streams = frozenset(streams)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(self._file, b"\n")

    async def send(self, committed: CommittedEvent) -> None:
        """Append the frame as one line."""
        if committed.stream in self._streams:
            frame = committed.frame.encode()
            os.write(self._file, b"%d %b\n" % (len(frame), frame))


def who(request: ConnectionRequest) -> str | None:
    """Readers give their name as a bearer token."""
    return request.bearer


def may_read(_user: str, _stream: str) -> bool:
    """All readers may read all streams: isolation (G7) has its own tests."""
    return True


class LoadServer:
    """The application, its writers and their orders."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._marks = PipeMarks()
        self._go = asyncio.Event()
        self._stop = asyncio.Event()
        writers = options.writers + options.operation_writers
        self.engine = create_async_engine(options.database_url, pool_size=writers + _SPARE)
        if self.engine.dialect.name == "sqlite":
            from commitcast import sqlite

            sqlite.configure(self.engine)
        read = [*options.streams, *map(user_stream, options.users)]
        sink = None if options.sink is None else FileSink(options.sink, read).send
        self.coordinator = Coordinator(
            self.engine,
            deliver=sink,
            relay_name=options.streams[0],  # of this campaign alone
            relay_lease_s=_RELAY_LEASE_S,
            lease_s=options.lease_s,
            drain_s=_DRAIN_S,
            retention=Retention(every_s=0),  # others' events in the database are not ours to trim
            max_operations_per_user=10_000,  # a few users do the work of many
            max_operations_per_user_per_minute=10_000_000,
        )
        # After the coordinator's own listener, which writes the log.
        event.listen(self.engine.sync_engine, "commit", lambda _connection: self._marks.logged())

    def app(self) -> Starlette:
        """One ASGI application, as a team would write it."""
        realtime = self.coordinator.asgi(authenticate=who, authorize=may_read)
        return Starlette(routes=[Mount("/realtime", app=realtime)], lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        async with self.coordinator:
            orders = asyncio.create_task(self._obey())
            writing = asyncio.create_task(self._write())
            self._marks.write("up")
            yield
            self._stop.set()
            orders.cancel()
            writing.cancel()
            await asyncio.wait({orders, writing})
        await self.engine.dispose()

    async def _obey(self) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        orders = {"go": self._go, "stop": self._stop}
        async for line in reader:
            orders[line.decode().strip()].set()
        os.kill(os.getpid(), signal.SIGTERM)

    async def _write(self) -> None:
        await self._go.wait()
        writers = [
            *(self._writer(f"{number}") for number in range(self._options.writers)),
            *(
                self._writer(f"o{n}", operations=True)
                for n in range(self._options.operation_writers)
            ),
        ]
        try:
            async with asyncio.TaskGroup() as group:
                for writer in writers:
                    group.create_task(writer.run(self._stop))
        except* Exception as errors:
            for error in errors.exceptions:
                self._marks.write(f"error {json.dumps(repr(error)[:2000])}")
            raise
        self._marks.write("stopped")

    def _writer(self, number: str, *, operations: bool = False) -> Writer:
        options = self._options
        name = f"{options.life}.{number}"
        rng = random.Random(f"{options.seed}.{name}")
        if not operations:
            return Writer(self.engine, options.streams, name, rng, self._marks)
        return OperationWriter(
            self.engine, options.streams, name, rng, self._marks,
            coordinator=self.coordinator, users=options.users,
        )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until told to stop, or killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--life", type=int, required=True)
    parser.add_argument("--writers", type=int, required=True)
    parser.add_argument("--operation-writers", type=int, required=True)
    parser.add_argument("--streams", type=lambda text: text.split(","), required=True)
    parser.add_argument("--users", type=lambda text: text.split(","), required=True)
    parser.add_argument("--lease-s", type=float, required=True)
    parser.add_argument("--sink")
    options = parser.parse_args(arguments)

    async def serve() -> None:
        server = LoadServer(options)
        config = uvicorn.Config(
            server.app(),
            host="127.0.0.1",
            port=options.port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=5,
        )
        await uvicorn.Server(config).serve()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
