"""A client as a browser's EventSource is one, over a real socket, that writes down what it saw.

Follows the WHATWG HTML standard, section 9.2 (server-sent events): a message counts only when
its blank line has arrived, which also is when the last event id moves; on a lost connection
it connects again and sends that id as ``Last-Event-ID``. Two departures, both harsher on the
server: it waits 10 to 100 ms instead of seconds, and it goes on after a refusal.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

import h11

from commitcast.chaos.record import (
    Connected,
    Observation,
    ReaderRecord,
    Received,
    Refused,
    Told,
)

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Iterator

_READ_BYTES: Final = 65_536
_RETRY_S: Final = (0.01, 0.1)
_OK: Final = 200


class SseParser:
    """Turns bytes of a ``text/event-stream`` into messages; what a kill cut off is dropped."""

    def __init__(self, last_event_id: str) -> None:
        self.last_event_id = last_event_id
        self._rest = b""
        self._id = last_event_id
        self._event = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[tuple[str, str]]:
        """Each complete message in turn, as (event name, data); `last_event_id` is then its id."""
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            text = line.removesuffix(b"\r").decode()
            if text:
                self._field(text)
                continue
            event, data = self._event, "\n".join(self._data)
            empty = not self._data
            self.last_event_id = self._id
            self._event, self._data = "", []
            if not empty:
                yield event, data

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value


class Reader:
    """One client of one stream. `run` until cancelled; `record` is what it saw.

    With `leaves_s`, it also drops its own connection at random, after up to that many seconds.
    """

    def __init__(
        self,
        name: str,
        stream: str,
        address: tuple[str, int],
        rng: random.Random,
        *,
        cursor: str | None = None,
        leaves_s: float | None = None,
    ) -> None:
        self.name = name
        self.stream = stream
        self.offset = 0
        self.connections = 0
        self.received = 0
        self.across = 0
        """Events of an earlier server life than the connection that brought them."""
        self.life = 0
        """The server life that is now running; whoever starts servers keeps it up to date."""
        self.leaves = leaves_s is not None
        self.may_connect = asyncio.Event()
        """Cleared, the reader stays away after its connection was lost."""
        self.may_connect.set()
        self._address = address
        self._rng = rng
        self._query = {"stream": stream} | ({} if cursor is None else {"cursor": cursor})
        self._cursor = cursor
        self._leaves_s = leaves_s
        self._last_event_id = ""
        self._observations: list[Observation] = []
        self._moved = asyncio.Event()
        self._subscribed = asyncio.Event()

    @property
    def record(self) -> ReaderRecord:
        """What was seen until now."""
        return ReaderRecord(self.name, self.stream, tuple(self._observations))

    async def subscribed(self) -> None:
        """Wait until the server has said ``commitcast.subscribed`` for the first time."""
        await self._subscribed.wait()

    async def reached(self, offset: int) -> None:
        """Wait until the event at `offset`, or a later one, has arrived."""
        while self.offset < offset:
            self._moved.clear()
            await self._moved.wait()

    async def run(self) -> None:
        """Connect, read, lose the connection, connect again; for ever."""
        while True:
            await self.may_connect.wait()
            with contextlib.suppress(OSError, TimeoutError, h11.RemoteProtocolError):
                stay_s = self._leaves_s and self._rng.uniform(0, self._leaves_s)
                async with asyncio.timeout(stay_s):
                    await self._connection()
            await asyncio.sleep(self._rng.uniform(*_RETRY_S))

    async def _connection(self) -> None:
        source, sink = await asyncio.open_connection(*self._address)
        try:
            http = h11.Connection(h11.CLIENT)
            sink.write(http.send(self._request()) or b"")
            sink.write(http.send(h11.EndOfMessage()) or b"")
            parser = SseParser(self._last_event_id)
            async for chunk in self._body(http, source):
                for event, data in parser.feed(chunk):
                    self._last_event_id = parser.last_event_id
                    self._observe(event, data)
                self._last_event_id = parser.last_event_id
        finally:
            sink.transport.abort()

    def _request(self) -> h11.Request:
        headers = [
            ("Host", f"{self._address[0]}:{self._address[1]}"),
            ("Accept", "text/event-stream"),
            ("Authorization", f"Bearer {self.name}"),
        ]
        if self._last_event_id:
            headers.append(("Last-Event-ID", self._last_event_id))
        target = f"/realtime/sse?{urlencode(self._query, quote_via=quote)}"
        return h11.Request(method="GET", target=target, headers=headers)

    async def _body(
        self, http: h11.Connection, source: asyncio.StreamReader
    ) -> AsyncIterator[bytes]:
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await source.read(_READ_BYTES))
            elif isinstance(event, h11.Response):
                if event.status_code != _OK:
                    self._observations.append(Refused(event.status_code))
                    return
                self.connections += 1
                self._observations.append(Connected(self._last_event_id or self._cursor))
            elif isinstance(event, h11.Data):
                yield bytes(event.data)
            else:
                return

    def _observe(self, event: str, data: str) -> None:
        if event == "":
            self._observations.append(Received(self._last_event_id, data))
            frame = json.loads(data)
            self.offset = max(self.offset, frame["offset"])
            life = frame["data"].get("key", "").partition(".")[0]  # a notification has none
            self.across += life.isdigit() and int(life) < self.life
            self.received += 1
            self._moved.set()
        elif event in {"commitcast.subscribed", "commitcast.reset"}:
            told = json.loads(data)
            self._observations.append(
                Told(
                    told["epoch"],
                    told["offset"],
                    told["recovered"],
                    reset=event == "commitcast.reset",
                )
            )
            self._subscribed.set()
