"""What the audit is told about the support chat: who a socket belongs to, and what may be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from .desk import STAFF
from .tables import Run

if TYPE_CHECKING:
    from commitcast.audit import Shadow


def configure(shadow: Shadow) -> None:
    """For ``commitcast audit --config support_chat.shadow:configure``."""
    shadow.configure(user_of=user_of, may_see=may_see)
    shadow.watch_state(Run, told)


def told(message: Any) -> tuple[int, str] | None:
    """The run and the state that a message tells of."""
    if isinstance(message, dict) and message.get("type") == "run.status":
        return message["run"], message["status"]
    return None


def user_of(scope: Any) -> str | None:
    """Who a connection belongs to."""
    if scope["type"] == "websocket":
        users = parse_qs(scope["query_string"].decode()).get("user", [])
        return users[0] if users else None
    name: bytes = dict(scope["headers"]).get(b"x-user", b"")
    return name.decode() or None


def may_see(user: str, message: Any) -> bool:
    """Whether a message is for a user: staff see all, customers nobody else's typing."""
    return user == STAFF or not (isinstance(message, dict) and message.get("type") == "typing")
