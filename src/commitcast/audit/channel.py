"""Who is sent to, and on whose behalf: what a send and a rollback are tied to."""

from __future__ import annotations

import asyncio
import weakref
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable, MutableMapping

    from commitcast.audit.callsite import Chain
    from commitcast.audit.queues import Handed
    from commitcast.audit.sessions import Note
    from commitcast.audit.work import Work


@dataclass(frozen=True, slots=True)
class Room:
    """To whom a socket.io server emits."""

    server: int
    namespace: str
    to: str | None
    """None: everybody in the namespace."""

    def holds(self, other: Hashable | None) -> bool:
        """Whether who is in the other is in this one as well, as far as their names say."""
        if not isinstance(other, Room) or self.to is not None:
            return False
        return (self.server, self.namespace) == (other.server, other.namespace)


class Channel:
    """Where messages go: a connection, or what another library or function sends to."""

    __slots__ = ("answered", "closed", "key", "produced", "scope", "streamed")

    def __init__(
        self, scope: MutableMapping[str, Any] | None = None, key: Hashable | None = None
    ) -> None:
        self.scope = scope
        self.key = key
        self.closed = False
        """The client is gone, or was cut off."""
        self.answered = False
        """Its response is complete, so that what fails after it is not seen by the client."""
        self.streamed = False
        """Its response judges what it sends, so that it is not judged again on its way."""
        self.produced = False
        """FastAPI makes its events in a task beside the response, and they are judged there."""

    def tells(self, other: Channel) -> bool:
        """Whether who reads the other also sees what is sent here."""
        if self is other:
            return True
        if self.key is None or self.key == other.key:
            return self.key is not None
        return isinstance(self.key, Room) and self.key.holds(other.key)


class Unit:
    """One request; of a WebSocket, what follows from one message received."""

    __slots__ = ("_task", "channel", "noticed_at", "over", "refused_at")

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        task = current_task()
        self._task = None if task is None else weakref.ref(task)
        self.over = False
        self.refused_at: float | None = None
        """When its response said that it failed, or it raised."""
        self.noticed_at: float | None = None
        """When a notice last left in it."""

    def task(self) -> asyncio.Task[Any] | None:
        """In which it is served, as long as that runs."""
        return None if self._task is None else self._task()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where and with what a send was called, if that is not where it runs."""

    chain: Chain
    works: tuple[Work, ...]
    notes: tuple[tuple[Note, int], ...]
    """Sessions that had changes to flush, and in which of their transactions."""
    committed_at: float | None
    """When a COMMIT had just returned there."""
    handed: Handed | None = None
    """What came out of a queue there."""


current_unit: ContextVar[Unit | None] = ContextVar("commitcast_unit", default=None)
origin: ContextVar[Origin | None] = ContextVar("commitcast_origin", default=None)
sent_at: ContextVar[float] = ContextVar("commitcast_sent_at", default=0.0)
"""When something was last sent in this context, or its request began."""
inside_send: ContextVar[bool] = ContextVar("commitcast_inside_send", default=False)
"""Within a send that is judged as a whole, such as a decorated function."""


def current_task() -> asyncio.Task[Any] | None:
    """The running task; None in a thread without an event loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
