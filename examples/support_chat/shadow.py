"""What the audit is told about the support chat: who a socket belongs to, and what may be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from .tables import Run

if TYPE_CHECKING:
    from commitcast.audit import Shadow


def configure(shadow: Shadow) -> None:
    """For ``commitcast audit --config support_chat.shadow:configure``."""
    shadow.watch_state(Run, told)


def told(message: Any) -> tuple[int, str] | None:
    """The run and the state that a message tells of."""
    if isinstance(message, dict) and message.get("type") == "run.status":
        return message["run"], message["status"]
    return None


def user_of(scope: Any) -> str | None:
    """Who a connection belongs to."""
    if scope["type"] == "websocket":
        return parse_qs(scope["query_string"].decode()).get("user", [None])[0]
    return dict(scope["headers"]).get(b"x-user", b"").decode() or None
