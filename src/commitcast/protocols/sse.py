"""Server-Sent Events (WHATWG HTML, section 9.2): a browser's EventSource needs no SDK.

- ``id:`` is the position, ``epoch:offset``; the browser sends it back as ``Last-Event-ID``.
- Events are unnamed messages whose data is the event's frame, so ``onmessage`` has them all.
- ``commitcast.subscribed`` comes first on each connection, ``commitcast.reset`` when the place
  was lost later; both say ``recovered``, and false means: reload the state.
- ``commitcast.closed`` says why the server ends a connection that it will not take up again.
- ``commitcast.unavailable`` is all that a client gets for which there is no place now.
- There is no block without data: published clients hand it over as an empty message. So
  ``retry:`` is a line of the first block, and a keep-alive is a comment without a blank line.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import orjson

from commitcast.errors import SubscriptionClosed
from commitcast.subscription import AccessDenied, Reset

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from commitcast.admission import Place
    from commitcast.event import CommittedEvent, Position
    from commitcast.settings import Settings
    from commitcast.subscription import Subscription

    Receive = Callable[[], Awaitable[Any]]
    Send = Callable[[Any], Awaitable[None]]

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
)
"""No cache, no recoding, no buffering by nginx, and no guessing of another type."""

_KEEP_ALIVE = b": keep-alive\n"


def encode_event(event: CommittedEvent) -> bytes:
    """One event as it goes on the wire; made once and shared by all its readers."""
    encoded = event.encodings.get("sse")
    if encoded is None:
        encoded = f"id: {event.epoch}:{event.offset}\ndata: {event.frame}\n\n".encode()
        event.encodings["sse"] = encoded
    return encoded


def encode_place(name: str, stream: str, position: Position, *, recovered: bool) -> bytes:
    """A ``commitcast.subscribed`` or ``commitcast.reset`` message."""
    data = orjson.dumps(
        {
            "stream": stream,
            "epoch": position.epoch,
            "offset": position.offset,
            "recovered": recovered,
        }
    ).decode()
    return f"event: commitcast.{name}\nid: {position}\ndata: {data}\n\n".encode()


def encode_closed(reason: str) -> bytes:
    """A ``commitcast.closed`` message."""
    return (
        f"event: commitcast.closed\ndata: {orjson.dumps({'reason': reason}).decode()}\n\n".encode()
    )


def encode_retry(retry_ms: int) -> bytes:
    """How long the browser is to wait before it connects again: jittered, against herds.

    A line that belongs to the block which follows it.
    """
    return f"retry: {random.randint(retry_ms, retry_ms * 3)}\n".encode()


def encode_unavailable(retry_ms: int) -> bytes:
    """A ``commitcast.unavailable`` message, and the pause before the browser tries again."""
    return encode_retry(retry_ms) + b"event: commitcast.unavailable\ndata: {}\n\n"


async def serve_later(send: Send, retry_ms: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Send a browser away for a while.

    An EventSource gives up for good on any status but 200, so it is told when to come back.
    The message has a name and data, so that no client takes it for an event or an empty one.
    """
    await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, *headers]})
    await send({"type": "http.response.body", "body": encode_unavailable(retry_ms)})


async def serve(
    subscription: Subscription,
    send: Send,
    settings: Settings,
    *,
    place: Place,
    gone: asyncio.Future[None],
    authorized: Callable[[], Awaitable[bool]],
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Send `subscription` to one client until either side ends it.

    Events are taken only as fast as the client reads, so a slow one holds no memory but one
    chunk; a write that takes longer than the deadline ends the subscription, and the client
    resumes from the last id it read (G10). `gone` is done when the server reports that the client
    has left. Until then a client that does not read keeps its `place`: it has the socket.
    """

    def left(_gone: asyncio.Future[None]) -> None:
        subscription.close("the client left")

    async def write(body: bytes) -> None:
        async with asyncio.timeout(settings.write_deadline_s):
            await _sent(send, {"type": "http.response.body", "body": body, "more_body": True})

    gone.add_done_callback(left)
    patience_s = settings.write_deadline_s
    try:
        await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, *headers]})
        try:
            await write(encode_retry(settings.retry_ms))
            await _serve(subscription, write, settings, authorized)
        except SubscriptionClosed:
            pass
        except AccessDenied:
            await write(encode_closed("forbidden"))
    except TimeoutError:
        patience_s = 0.0  # it does not read
    except OSError:
        return  # it is gone
    finally:
        gone.remove_done_callback(left)
        subscription.close()
    await _end(send, place, gone, patience_s)


async def _sent(send: Send, message: dict[str, Any]) -> None:
    """Send; a server that says its transport is closed (uvloop) says that the client is gone."""
    try:
        await send(message)
    except RuntimeError as error:
        if "closed" not in str(error):
            raise
        raise ConnectionError(str(error)) from error


async def _end(send: Send, place: Place, gone: asyncio.Future[None], patience_s: float) -> None:
    """End the response; where the client does not read, as soon as it does, or has left."""
    ending = asyncio.ensure_future(_sent(send, {"type": "http.response.body", "body": b""}))
    try:
        done, _ = await asyncio.wait(
            {ending, gone}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            await place.stall(ending, gone)
    finally:
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)


async def _serve(
    subscription: Subscription,
    write: Callable[[bytes], Awaitable[None]],
    settings: Settings,
    authorized: Callable[[], Awaitable[bool]],
) -> None:
    batch: list[CommittedEvent] | Reset | None
    pending: asyncio.Future[Any] = asyncio.ensure_future(subscription.start())
    ended = asyncio.ensure_future(subscription.wait_closed())
    clock = asyncio.get_running_loop().time
    ask_at = clock() + settings.keep_alive_s
    until = clock() + settings.max_connection_s * random.uniform(0.8, 1.0)
    try:
        while True:
            await asyncio.wait(
                {pending, ended},
                timeout=max(0.0, ask_at - clock()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if clock() >= ask_at:  # a stream that is never idle is asked about as well
                if clock() >= until:
                    raise SubscriptionClosed(
                        subscription.stream, subscription.position, "served for long enough"
                    )
                subscription.allowed = await authorized()
                if not subscription.allowed:
                    raise AccessDenied(f"the reader may not read {subscription.stream!r}")
                ask_at = clock() + settings.keep_alive_s
                if not pending.done():
                    await write(_KEEP_ALIVE)
            if not pending.done():
                if ended.done():  # also while the database is away
                    raise SubscriptionClosed(
                        subscription.stream, subscription.position, ended.result()
                    )
                continue
            batch = pending.result()
            if batch is None:
                await write(_subscribed(subscription))
            elif isinstance(batch, Reset):
                await write(encode_place("reset", batch.stream, batch.position, recovered=False))
            else:
                await write(b"".join([encode_event(event) for event in batch]))
                subscription.frame_written(*batch)
            pending = asyncio.ensure_future(subscription.next_batch())
    finally:
        pending.cancel()
        ended.cancel()
        await asyncio.gather(pending, ended, return_exceptions=True)


def _subscribed(subscription: Subscription) -> bytes:
    position = subscription.position
    if position is None:  # pragma: no cover - set by start
        raise SubscriptionClosed(subscription.stream, None, "not started")
    subscription.reset_told()
    return encode_place(
        "subscribed", subscription.stream, position, recovered=subscription.recovered
    )


async def client_left(receive: Receive) -> None:
    """Wait until the server reports that the connection is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
