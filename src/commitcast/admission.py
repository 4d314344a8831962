"""Admission: who is connected to this node, and who is turned away.

A client is counted before anything is asked about it, and until nothing of it is left: not its
response, not a question to the team's callables that goes on without it, and not a socket whose
peer no longer reads. Nothing here grows with the number of clients that are connected.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from commitcast.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Collection

    from commitcast.settings import Settings

_INQUIRIES: Final = 100
"""Most requests that wait at one time for ``operators`` to answer."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a client is turned away, for as long as that lasts."""

    status: int
    """Of HTTP: 503 where there is no place, 429 where one user has come too often."""
    title: str
    detail: str
    retry_after_s: float = 0.0
    """Before that there is no use in trying again; 0 where nobody knows."""


DRAINING: Final = Refusal(503, "Try again later", "this node stops; another one takes over")
_FULL: Final = Refusal(503, "Try again later", "this node takes no more connections now")
_FULL_FOR_USER: Final = Refusal(
    503, "Try again later", "you have as many connections to this node as one user may have"
)


class Place:
    """One client's place. It is free again when all that holds it has ended."""

    __slots__ = ("_admission", "_holders", "_stalled", "_user")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._holders = 1
        self._stalled = False
        self._user: str | None = None

    def take_for(self, user: str) -> Refusal | None:
        """Count the client as one of `user` from now on, or say why not."""
        refusal = self._admission._admit(user)  # noqa: SLF001 - as below
        if refusal is None:
            self._user = user
        return refusal

    def hold(self, work: asyncio.Future[Any]) -> None:
        """Keep the place until `work` is done, too."""
        self._holders += 1
        work.add_done_callback(self._let_go)

    def leave(self) -> None:
        """The response has ended."""
        self._let_go(None)

    async def stall(self, *ends: asyncio.Future[Any]) -> None:
        """The client does not read: wait until one of `ends` is done, or the node drains.

        A server closes a connection once the rest was sent, so for a peer that never reads it
        keeps the socket for as long as the peer likes. The place is kept with it.
        """
        self._stalled = True
        await self._admission._wait_for(ends)  # noqa: SLF001 - one mechanism in two classes

    def _let_go(self, _work: asyncio.Future[Any] | None) -> None:
        self._holders -= 1
        if not self._holders:
            self._admission._release(self._user, stalled=self._stalled)  # noqa: SLF001 - as above


class Admission:
    """The places of one node, and how often each user comes."""

    def __init__(self, settings: Settings) -> None:
        self.connections = 0
        """Clients that have a place, in whatever state."""
        self.stalled = 0
        """Those of them that do not read, and are only waited for."""
        self._settings = settings
        self._users: dict[str, int] = {}
        self._pace = Pace(settings.max_connects_per_minute_per_user)
        self._inquiries = 0
        self.draining = False
        """No client is let in any more."""
        self._waits: set[asyncio.Future[None]] = set()

    @property
    def has_places(self) -> bool:
        """Whether one more client would be let in."""
        return self.connections < self._settings.max_connections

    def counts(self) -> dict[str, int]:
        """``connections``, and ``connections_stalled``: those that only keep their sockets."""
        return {"connections": self.connections, "connections_stalled": self.stalled}

    def enter(self) -> Place | Refusal:
        """A place for a client of whom nothing is known yet; `Place.leave` gives it back."""
        if not self.has_places:
            return _FULL
        self.connections += 1
        return Place(self)

    def connections_of(self, user: str) -> int:
        """How many places a user has."""
        return self._users.get(user, 0)

    def open(self) -> None:
        """The node runs."""
        self.draining = False

    def drain(self) -> None:
        """The node is about to stop, and waits no longer for clients that do not read."""
        self.draining = True
        for wait in self._waits:
            if not wait.done():
                wait.set_result(None)

    @property
    def may_inquire(self) -> bool:
        """Whether one more may be asked whether they are an operator; they need no place."""
        return self._inquiries < _INQUIRIES

    def hold_inquiry(self, work: asyncio.Future[Any]) -> None:
        """Count a question to ``operators`` until it has ended."""
        self._inquiries += 1
        work.add_done_callback(self._inquired)

    def _inquired(self, _work: asyncio.Future[Any]) -> None:
        self._inquiries -= 1

    async def _wait_for(self, ends: Collection[asyncio.Future[Any]]) -> None:
        self.stalled += 1
        if self.draining:
            return
        drained = asyncio.get_running_loop().create_future()
        self._waits.add(drained)
        try:
            await asyncio.wait({*ends, drained}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waits.discard(drained)

    def _admit(self, user: str) -> Refusal | None:
        wait_s = self._pace.come(user)
        if wait_s > 0:
            return Refusal(429, "Too many connections", "connect less often", wait_s)
        count = self._users.get(user, 0)
        if count >= self._settings.max_connections_per_user:
            return _FULL_FOR_USER
        self._users[user] = count + 1
        return None

    def _release(self, user: str | None, *, stalled: bool) -> None:
        self.connections -= 1
        self.stalled -= stalled
        if user is not None:
            self._users[user] -= 1
            if not self._users[user]:
                del self._users[user]
