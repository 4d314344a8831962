"""An ASGI app's sends: WebSocket messages and the events of ``text/event-stream`` responses."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from commitcast.audit import callsite
from commitcast.audit.channel import Channel, Unit, current_unit, sent_at
from commitcast.audit.message import of_payload, of_stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from commitcast.audit.judge import Judge
    from commitcast.audit.work import Send

    Message: TypeAlias = MutableMapping[str, Any]
    Scope: TypeAlias = MutableMapping[str, Any]
    Receive: TypeAlias = Callable[[], Awaitable[Message]]
    Sender: TypeAlias = Callable[[Message], Awaitable[None]]
    App: TypeAlias = Callable[[Scope, Receive, Sender], Awaitable[None]]

CHANNEL: Final = "commitcast.audit.channel"
"""The key of a scope under which its channel is, so that an app inside an app is judged once."""
_NO_FAILURES: Final = frozenset({1000, 1001, 1005})
_STARTS: Final = frozenset({"http.response.start", "websocket.http.response.start"})
_FAILED: Final = 400
_NEAR: Final = 10
_LONGEST_ANSWER: Final = 1 << 16


async def serve(judge: Judge, app: App, scope: Scope, receive: Receive, send: Sender) -> None:
    """Run an app on one connection, and have its sends judged."""
    if scope["type"] not in {"http", "websocket"} or CHANNEL in scope:
        await app(scope, receive, send)
        return
    channel = scope[CHANNEL] = Channel(scope)
    connection = Connection(judge, channel, receive, send)
    token = current_unit.set(connection.unit)
    sent_at.set(judge.clock())
    try:
        await app(scope, connection.receive, connection.send)
    except Exception:
        judge.guarded(connection.failed)()
        raise
    finally:
        connection.over()
        try:
            current_unit.reset(token)
        except ValueError:  # the app was closed in another context than it was begun in
            current_unit.set(None)


callsite.boundary(serve)


class Connection:
    """What goes through one connection."""

    def __init__(self, judge: Judge, channel: Channel, receive: Receive, send: Sender) -> None:
        self._judge = judge
        self._channel = channel
        self._receive = receive
        self._send = send
        self._stream = Stream(judge, channel)
        self._json = False
        """What follows is the beginning of a JSON answer."""
        self.unit = Unit(channel)

    async def receive(self) -> Message:
        """A message from the client: with one of a WebSocket, something new begins."""
        websocket = self._channel.scope is not None and self._channel.scope["type"] == "websocket"
        if websocket:
            self._judge.guarded(self._judge.rollbacks.unit_over)(self.unit)
        message = await self._receive()
        if message["type"] in {"websocket.disconnect", "http.disconnect"}:
            self._gone()
        if websocket:
            self.unit = Unit(self._channel)
            current_unit.set(self.unit)
            sent_at.set(self._judge.clock())
        return message

    async def send(self, message: Message) -> None:
        """A message to the client."""
        sends = self._judge.guarded(self._look)(message) or []
        try:
            await deliver(self._judge, sends, self._send, message)
        except OSError:  # what ASGI says of a client that has left
            self._gone()
            raise

    def _look(self, message: Message) -> list[Send]:
        kind = message["type"]
        judge = self._judge
        if kind == "websocket.send":
            if _from_engineio():
                return []
            payload = message.get("text")
            payload = message.get("bytes") if payload is None else payload
            send = judge.sending(of_payload(payload), self._channel)
            return [] if send is None else [send]
        if kind == "websocket.close":
            if message.get("code", 1000) not in _NO_FAILURES:
                judge.rollbacks.notice(self._channel, current_unit.get(), judge.clock())
        elif kind in _STARTS:
            self._json = _is_json(message)
            if message["status"] >= _FAILED:
                judge.rollbacks.refused(current_unit.get() or self.unit, judge.clock())
        elif kind == "http.response.body":
            if self._json:
                self._json = False
                judge.guarded(self._read)(message.get("body", b""))
            self._channel.answered = not message.get("more_body", False)
        if not self._channel.streamed:
            return self._stream.look(message)
        return []

    def _read(self, body: bytes) -> None:
        if len(body) <= _LONGEST_ANSWER:
            self._judge.answered(self._channel, (of_payload(body).value,))

    def _gone(self) -> None:
        if not self._channel.answered:
            self._judge.guarded(self._judge.rollbacks.gone)(self._channel)

    def failed(self) -> None:
        """The app has raised, so that the server cuts the connection off as failed."""
        rollbacks, at = self._judge.rollbacks, self._judge.clock()
        if not self._channel.answered:
            rollbacks.refused(self.unit, at)
            rollbacks.notice(self._channel, self.unit, at)

    def over(self) -> None:
        """The app has returned."""
        self._judge.guarded(self._judge.rollbacks.unit_over)(self.unit)


class Stream:
    """The body of one response."""

    def __init__(self, judge: Judge, channel: Channel) -> None:
        self._judge = judge
        self._channel = channel
        self._events = False

    def look(self, message: Message, generator: Any = None) -> list[Send]:
        """The events in a message of the response, which a generator may have made."""
        if message["type"] == "http.response.start":
            headers = {bytes(k).lower(): bytes(v) for k, v in message.get("headers", ())}
            self._events = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        elif message["type"] == "http.response.body" and self._events:
            found = [
                self._judge.sending(event, self._channel, generator)
                for event in of_stream(message.get("body", b""))
            ]
            return [send for send in found if send is not None]
        return []


def _is_json(message: Message) -> bool:
    headers = {bytes(k).lower(): bytes(v) for k, v in message.get("headers", ())}
    return b"json" in headers.get(b"content-type", b"") and b"content-encoding" not in headers


async def stream(
    judge: Judge, call: App, response: Any, scope: Scope, receive: Receive, send: Sender
) -> None:
    """Run a streaming response, whose generator waits at the line that sends."""
    channel = scope.get(CHANNEL)
    if channel is None or channel.streamed:
        await call(scope, receive, send)
        return
    body = Stream(judge, channel)
    channel.streamed = True

    def look(message: Message) -> list[Send]:
        if channel.produced:
            return []
        return body.look(message, response.body_iterator)

    async def judged(message: Message) -> None:
        await deliver(judge, judge.guarded(look)(message) or [], send, message)

    await call(scope, receive, judged)


def produced(judge: Judge, chunk: bytes) -> None:
    """FastAPI has made an event of what an endpoint's generator yielded."""
    unit = current_unit.get()
    if unit is None:
        return
    unit.channel.produced = True
    frame = inspect.currentframe()
    iterator = None
    for _ in range(_NEAR):
        if frame is None or iterator is not None:
            break
        iterator = frame.f_locals.get("sse_aiter")
        frame = frame.f_back
    for event in of_stream(chunk):
        send = judge.sending(event, unit.channel, iterator)
        if send is not None:
            judge.sent(send)


async def deliver(judge: Judge, sends: list[Send], send: Sender, message: Message) -> None:
    """Send, and say how that went."""
    try:
        await send(message)
    except BaseException:
        for each in sends:
            judge.failed(each)
        raise
    for each in sends:
        judge.guarded(judge.sent)(each)


def _from_engineio() -> bool:
    # What it sends was judged when it was emitted; it leaves from a task that all of a client's share.
    frame = inspect.currentframe()
    for _ in range(_NEAR):
        if frame is None:
            return False
        if str(frame.f_globals.get("__name__", "")).startswith("engineio."):
            return True
        frame = frame.f_back
    return False
