"""The campaign's reader keeps its position as a browser does, or it would hide losses."""

import asyncio
import contextlib
import itertools
import json
import random
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commitcast.chaos.reader import Reader, SseParser
from commitcast.chaos.record import Connected, Received, Refused, Told


def message(offset: int) -> str:
    frame = json.dumps({"offset": offset, "data": {"key": f"0.0.{offset}", "text": "é😀"}})
    return f"id: e0:{offset}\ndata: {frame}\n\n"


def subscribed(offset: int) -> str:
    told = {"stream": "s", "epoch": "e0", "offset": offset, "recovered": True}
    return f"event: commitcast.subscribed\nid: e0:{offset}\ndata: {json.dumps(told)}\n\n"


TEXT = ("retry: 50\n\n: keep-alive\n\n" + subscribed(0) + message(1) + message(2)).encode()


@given(st.lists(st.integers(0, len(TEXT))))
def test_messages_are_the_same_in_whatever_pieces_they_arrive(places: list[int]) -> None:
    parser = SseParser("")
    cuts = [0, *sorted(places), len(TEXT)]
    messages = [m for a, b in itertools.pairwise(cuts) for m in parser.feed(TEXT[a:b])]
    assert messages == list(SseParser("").feed(TEXT))
    assert [event for event, _ in messages] == ["commitcast.subscribed", "", ""]


@given(st.integers(0, len(TEXT)))
def test_position_moves_only_with_a_whole_message(cut: int) -> None:
    parser = SseParser("e0:before")
    messages = list(parser.feed(TEXT[:cut]))
    assert parser.last_event_id == ["e0:before", "e0:0", "e0:1", "e0:2"][len(messages)]


class OneServer:
    """Answers each connection with the next of `answers`, then cuts it; keeps the requests."""

    def __init__(self, answers: list[bytes]) -> None:
        self.requests: list[str] = []
        self._answers = answers
        self.done = asyncio.Event()

    async def answer(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        request = await source.readuntil(b"\r\n\r\n")
        if self._answers:
            self.requests.append(request.decode())
            sink.write(self._answers.pop(0))
            await sink.drain()
        else:
            self.done.set()
        sink.close()


def chunked(text: str) -> bytes:
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    body = text.encode()
    return head.encode() + f"{len(body):x}\r\n".encode() + body + b"\r\n"


@contextlib.asynccontextmanager
async def reading(
    answers: list[bytes], cursor: str | None
) -> AsyncIterator[tuple[Reader, OneServer]]:
    fake = OneServer(answers)
    server = await asyncio.start_server(fake.answer, "127.0.0.1", 0)
    async with server:
        address = server.sockets[0].getsockname()
        reader = Reader("r", "s", address, random.Random(1), cursor=cursor)
        task = asyncio.create_task(reader.run())
        try:
            yield reader, fake
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.mark.anyio
async def test_reader_resumes_after_the_last_whole_message() -> None:
    half = message(2)[:-1]
    refusal = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    answers = [
        chunked(subscribed(0) + message(1) + half),
        refusal,
        chunked(subscribed(1) + message(2) + message(3)),
    ]
    async with reading(answers, "new:0") as (reader, fake), asyncio.timeout(10):
        await reader.subscribed()
        await reader.reached(3)
        await fake.done.wait()
    assert all("cursor=new%3A0" in request for request in fake.requests)
    asked = ["Last-Event-ID: e0:1" in request for request in fake.requests]
    assert asked == [False, True, True]
    observations = reader.record.observations
    assert [one for one in observations if not isinstance(one, Received)] == [
        Connected("new:0"),
        Told("e0", 0, recovered=True),
        Refused(503),
        Connected("e0:1"),
        Told("e0", 1, recovered=True),
    ]
    seen = [one.position for one in observations if isinstance(one, Received)]
    assert seen == ["e0:1", "e0:2", "e0:3"]
    assert reader.connections == 2


@pytest.mark.anyio
async def test_reader_counts_what_came_across_a_kill() -> None:
    async with reading([chunked(subscribed(0) + message(1))], None) as (reader, _):
        reader.life = 1
        await asyncio.wait_for(reader.reached(1), 10)
    assert reader.across == 1
