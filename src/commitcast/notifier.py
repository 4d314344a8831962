"""The notifier's contract: wake-up hints between nodes.

A hint says "this stream may have new events". Hints may be lost, doubled or late: the log is
the truth and polling is the fallback, so a notifier can delay an event but never lose one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


class Notifier(Protocol):
    """Carries hints; every method is called in the coordinator's event loop."""

    async def start(self, on_hint: Callable[[Collection[str]], None]) -> None:
        """Begin to listen; `on_hint` takes the names of streams, from any node."""

    def hint(self, streams: Collection[str]) -> None:
        """Tell the other nodes, without waiting and without raising."""

    async def close(self) -> None:
        """Stop listening."""


class InProcessNotifier:
    """Hints between coordinators of one process and one event loop that share this object."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Collection[str]], None]] = []

    def endpoint(self) -> Notifier:
        """One coordinator's end."""
        return _Endpoint(self._listeners)


class _Endpoint:
    def __init__(self, listeners: list[Callable[[Collection[str]], None]]) -> None:
        self._listeners = listeners
        self._own: Callable[[Collection[str]], None] | None = None

    async def start(self, on_hint: Callable[[Collection[str]], None]) -> None:
        self._own = on_hint
        self._listeners.append(on_hint)

    def hint(self, streams: Collection[str]) -> None:
        for listener in self._listeners:
            if listener is not self._own:
                listener(streams)

    async def close(self) -> None:
        if self._own is not None:
            self._listeners.remove(self._own)
            self._own = None
