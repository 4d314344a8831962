"""Who is connected: the connection manager of FastAPI's tutorial, by user."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from starlette.websockets import WebSocketDisconnect

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.websockets import WebSocket


class ConnectionManager:
    """The open sockets of each user."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._sockets: defaultdict[str, list[WebSocket]] = defaultdict(list)

    async def connect(self, user: str, socket: WebSocket) -> None:
        """Take a socket in."""
        await socket.accept()
        self._sockets[user].append(socket)

    def disconnect(self, user: str, socket: WebSocket) -> None:
        """Forget a socket; again does nothing."""
        if socket in self._sockets[user]:
            self._sockets[user].remove(socket)

    async def send(self, user: str, message: dict[str, Any]) -> None:
        """Send to all of a user's sockets; those that are gone are forgotten."""
        for socket in list(self._sockets[user]):
            try:
                await socket.send_json(message)
            except (WebSocketDisconnect, RuntimeError):
                self.disconnect(user, socket)

    async def broadcast(self, users: Iterable[str], message: dict[str, Any]) -> None:
        """Send to several users."""
        for user in users:
            await self.send(user, message)
