"""Methods of web libraries that are replaced while a judge is installed, and put back after."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import queue
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from commitcast.audit import wire
from commitcast.audit.channel import Channel, Origin, Room, inside_send, origin
from commitcast.audit.message import Message, of_arguments

if TYPE_CHECKING:
    from collections.abc import Callable

    from commitcast.audit.judge import Judge

_F = TypeVar("_F", bound="Callable[..., Any]")


class Patches:
    """What is replaced."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._replaced: list[tuple[Any, str, Any]] = []

    def apply(self) -> None:
        """Replace, in each library that is installed here."""
        judge = self._judge
        if starlette := _module("starlette.applications"):
            self._replace(starlette.Starlette, "__call__", _serving(judge))
            websocket = _module("starlette.websockets").WebSocket
            for name in ("send_text", "send_json", "send_bytes"):
                self._replace(websocket, name, _carrying(judge))
            self._replace(
                _module("starlette.responses").StreamingResponse, "__call__", _streaming(judge)
            )
        if sse := _module("sse_starlette.sse"):
            self._replace(sse.EventSourceResponse, "__call__", _streaming(judge))
        fastapi = _module("fastapi.routing")
        if hasattr(fastapi, "format_sse_event"):
            self._replace(fastapi, "format_sse_event", _producing(judge))
        self._replace(asyncio.Queue, "put_nowait", _putting(judge))
        self._replace(queue.Queue, "put", _putting(judge))
        if streams := _module("anyio.streams.memory"):
            self._replace(streams.MemoryObjectSendStream, "send_nowait", _putting(judge))
        if socketio := _module("socketio"):
            for server in (socketio.AsyncServer, socketio.Server):
                self._replace(server, "emit", _emitting(judge))
                if hasattr(server, "_trigger_event"):
                    self._replace(server, "_trigger_event", _answering(judge))

    def restore(self) -> None:
        """Put everything back."""
        while self._replaced:
            owner, name, original = self._replaced.pop()
            setattr(owner, name, original)

    def _replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        original = owner.__dict__[name]
        self._replaced.append((owner, name, original))
        setattr(owner, name, make(original))


def judged_sending(current: Callable[[], Judge | None], function: _F) -> _F:
    """The function, each of whose calls is a send while there is a judge."""
    key = f"{function.__module__}.{function.__qualname__}"

    def look(judge: Judge, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return judge.sending(of_arguments((*args, *kwargs.values())), Channel(key=key))

    if inspect.iscoroutinefunction(function):

        def call(*args: Any, **kwargs: Any) -> Any:
            judge = current()
            if judge is None:
                return function(*args, **kwargs)
            sending = _Sending(function(*args, **kwargs))
            return sending.carried(judge, lambda: look(judge, args, kwargs))

        return cast("_F", _Coroutine(function, call))

    @functools.wraps(function)
    def call_plain(*args: Any, **kwargs: Any) -> Any:
        judge = current()
        if judge is None:
            return function(*args, **kwargs)
        return _plainly(judge, lambda: look(judge, args, kwargs), function, args, kwargs)

    return cast("_F", call_plain)


def _serving(judge: Judge) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        @functools.wraps(original)
        async def __call__(self: Any, scope: Any, receive: Any, send: Any) -> None:  # noqa: N807
            await wire.serve(judge, functools.partial(original, self), scope, receive, send)

        return __call__

    return make


def _streaming(judge: Judge) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        @functools.wraps(original)
        async def __call__(self: Any, scope: Any, receive: Any, send: Any) -> None:  # noqa: N807
            call = functools.partial(original, self)
            await wire.stream(judge, call, self, scope, receive, send)

        return __call__

    return make


def _producing(judge: Judge) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            chunk = original(*args, **kwargs)
            judge.guarded(wire.produced)(judge, chunk)
            return chunk

        return call

    return make


def _putting(judge: Judge) -> Callable[[Any], Any]:
    look = judge.guarded(judge.handing)

    def make(original: Any) -> Any:
        @functools.wraps(original)
        def put(self: Any, item: Any, *args: Any, **kwargs: Any) -> Any:
            look(item)
            return original(self, item, *args, **kwargs)

        return put

    return make


def _carrying(judge: Judge) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            return _Sending(original(*args, **kwargs)).carried(judge)

        return _Coroutine(original, call)

    return make


def _emitting(judge: Judge) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        signature = inspect.signature(original)

        def look(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            event, data = given["event"], given.get("data")
            key = _room(given["self"], given.get("namespace"), given.get("to") or given.get("room"))
            value = {"type": event, "data": data}
            if isinstance(data, dict):
                value = {**data, "type": event}
            return judge.sending(Message(value, str(event)[:64]), Channel(key=key))

        if inspect.iscoroutinefunction(original):

            def call(*args: Any, **kwargs: Any) -> Any:
                sending = _Sending(original(*args, **kwargs))
                return sending.carried(judge, lambda: look(args, kwargs))

            return _Coroutine(original, call)

        @functools.wraps(original)
        def call_plain(*args: Any, **kwargs: Any) -> Any:
            return _plainly(judge, lambda: look(args, kwargs), original, args, kwargs)

        return call_plain

    return make


def _answering(judge: Judge) -> Callable[[Any], Any]:
    def look(server: Any, namespace: Any, args: tuple[Any, ...], answer: Any) -> None:
        if args:
            parts = answer if isinstance(answer, tuple) else (answer,)
            judge.answered(Channel(key=_room(server, namespace, args[0])), parts)

    def make(original: Any) -> Any:
        if inspect.iscoroutinefunction(original):

            @functools.wraps(original)
            async def trigger(self: Any, event: Any, namespace: Any, *args: Any) -> Any:
                answer = await original(self, event, namespace, *args)
                judge.guarded(look)(self, namespace, args, answer)
                return answer

            return trigger

        @functools.wraps(original)
        def trigger_plainly(self: Any, event: Any, namespace: Any, *args: Any) -> Any:
            answer = original(self, event, namespace, *args)
            judge.guarded(look)(self, namespace, args, answer)
            return answer

        return trigger_plainly

    return make


def _room(server: Any, namespace: Any, to: Any) -> Room:
    return Room(id(server), namespace or "/", None if to is None else str(to))


class _Sending:
    """A coroutine that sends, within one that carries where and beside what it was called."""

    def __init__(self, coroutine: Any) -> None:
        self._coroutine = coroutine

    def __del__(self) -> None:
        """Of two that are never begun, Python is to warn of the outer one only, as without it."""
        close = getattr(self._coroutine, "close", None)
        if close is not None:
            close()

    def carried(self, judge: Judge, look: Callable[[], Any] | None = None) -> Any:
        """The outer coroutine."""
        carried = self._carry(judge, _origin(judge), look)
        for name in ("__name__", "__qualname__"):
            if hasattr(self._coroutine, name):
                setattr(carried, name, getattr(self._coroutine, name))
        return carried

    async def _carry(
        self, judge: Judge, called: Origin | None, look: Callable[[], Any] | None
    ) -> Any:
        before = origin.set(called)
        inner = None
        try:
            send = judge.guarded(look)() if look is not None else None
            if look is not None:
                inner = inside_send.set(True)
            try:
                result = await self._coroutine
            except BaseException:
                if send is not None:
                    judge.failed(send)
                raise
        finally:
            if inner is not None:
                inside_send.reset(inner)
            origin.reset(before)
        if send is not None:
            judge.guarded(judge.sent)(send)
        return result


def _plainly(
    judge: Judge,
    look: Callable[[], Any],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    send = judge.guarded(look)()
    inner = inside_send.set(True)
    try:
        result = function(*args, **kwargs)
    except BaseException:
        if send is not None:
            judge.failed(send)
        raise
    finally:
        inside_send.reset(inner)
    if send is not None:
        judge.guarded(judge.sent)(send)
    return result


def _origin(judge: Judge) -> Origin | None:
    return judge.guarded(judge.caller)()


class _Coroutine:
    """A function that returns a coroutine, and says so to who asks (`inspect.iscoroutinefunction`).

    A background task is awaited or run in a thread by that answer. It looks like the original, and
    is called at once, so that the line that calls is known.
    """

    def __init__(self, original: Any, call: Callable[..., Any]) -> None:
        functools.update_wrapper(self, original)
        self._call = call
        self.__code__ = original.__code__
        self.__defaults__ = original.__defaults__
        self.__kwdefaults__ = original.__kwdefaults__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else MethodType(self, instance)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
