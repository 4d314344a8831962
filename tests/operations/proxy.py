"""A wire to PostgreSQL that goes wrong at one place: the COMMIT of one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import URL

_SOCKET = ".s.PGSQL.5432"
_BYTES = 65536


class Fault(Enum):
    """What happens to the COMMIT."""

    BEFORE = auto()
    """Cut before its bytes are sent on."""
    BETWEEN = auto()
    """Cut when half of them were."""
    AFTER = auto()
    """Cut when the server has answered, before the answer is sent back."""
    LATE = auto()
    """The client is cut; the bytes are sent on when `Proxy.release` is called."""
    HANG = auto()
    """As `LATE`, but nothing is cut: the client hears nothing."""


@dataclass
class Proxy:
    """In front of a server's socket. `fault` befalls the next COMMIT of a connection that has sent
    `marker`, `times` times; it is not seen by any other connection."""

    upstream: str
    marker: bytes
    fault: Fault
    times: int = 1
    at: bytes = b"COMMIT"
    """What it befalls, if not the COMMIT: a message in which this is."""
    struck: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the fault has happened."""
    _drops: bool = False
    _released: asyncio.Event = field(default_factory=asyncio.Event)
    _ends: set[asyncio.StreamWriter] = field(default_factory=set)

    def release(self) -> None:
        """Let go of what is held back."""
        self._released.set()

    async def connected(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        server, forth = await asyncio.open_unix_connection(self.upstream)
        self._ends |= {back, forth}
        wire = _Wire(self, server, forth, client, back)
        with contextlib.suppress(OSError):
            await asyncio.gather(wire.up(), wire.down())
        for end in (back, forth):
            end.transport.abort()
        self._ends -= {back, forth}

    def drop(self) -> None:
        """Never send on what is held back."""
        self._drops = True
        self._released.set()

    def close(self) -> None:
        """Cut everything."""
        self.release()
        for end in self._ends:
            end.transport.abort()


class _Wire:
    def __init__(
        self,
        proxy: Proxy,
        server: asyncio.StreamReader,
        forth: asyncio.StreamWriter,
        client: asyncio.StreamReader,
        back: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._server, self._forth, self._client, self._back = server, forth, client, back
        self._marked = False
        self._answer_is_kept = False

    async def up(self) -> None:
        """From the client to the server."""
        while data := await self._client.read(_BYTES):
            self._marked |= self._proxy.marker in data
            if self._marked and self._proxy.at in data and self._proxy.times > 0:
                self._proxy.times -= 1
                await self._strike(data)
                return
            self._forth.write(data)
            await self._forth.drain()
        self._forth.close()

    async def _strike(self, data: bytes) -> None:
        match self._proxy.fault:
            case Fault.BEFORE:
                self._forth.close()
            case Fault.BETWEEN:
                self._forth.write(data[: len(data) // 2])
                await self._forth.drain()
                self._forth.close()
            case Fault.AFTER:
                self._answer_is_kept = True
                self._forth.write(data)
                return  # the answer cuts
            case Fault.LATE:
                self._back.transport.abort()
                await self._hold(data)
                return
            case Fault.HANG:
                await self._hold(data)
                return
        self._back.transport.abort()
        self._proxy.struck.set()

    async def _hold(self, data: bytes) -> None:
        self._answer_is_kept = True
        self._proxy.struck.set()
        await self._proxy._released.wait()
        if self._proxy._drops:
            self._forth.close()
        else:
            self._forth.write(data)

    async def down(self) -> None:
        """From the server to the client."""
        while data := await self._server.read(_BYTES):
            if self._answer_is_kept:
                self._back.transport.abort()
                self._forth.close()
                self._proxy.struck.set()
                return
            self._back.write(data)
            await self._back.drain()
        self._back.close()


@contextlib.asynccontextmanager
async def proxied(
    url: URL, marker: bytes, fault: Fault, times: int = 1, at: bytes = b"COMMIT"
) -> AsyncIterator[tuple[Proxy, URL]]:
    """A proxy, and the URL by which the database is reached through it."""
    with tempfile.TemporaryDirectory(prefix="wire") as folder:
        proxy = Proxy(f"{url.query['host']}/{_SOCKET}", marker, fault, times, at)
        server = await asyncio.start_unix_server(proxy.connected, Path(folder) / _SOCKET)
        try:
            yield proxy, url.update_query_dict({"host": folder})
        finally:
            server.close()
            proxy.close()
