"""Which hosts the demo answers for.

A page of any site can make its own host name point to 127.0.0.1 (DNS rebinding): for the browser
this server is then that site, and its scripts may read what it answers. What gives it away is the
``Host`` header, so a request for a host nobody named is refused before anything else is done.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final

from starlette.websockets import WebSocketClose

from commitcast.demo.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")
_HOST: Final = re.compile(r"(?P<name>\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(?::[0-9]{1,5})?")


def host_name(text: str) -> str:
    """A host's name or address in the one form in which it is compared.

    Raises ValueError for what is not a host, such as a URL or a name with a port.
    """
    lower = text.strip().lower().rstrip(".")
    try:
        address = ipaddress.ip_address(lower.removeprefix("[").removesuffix("]"))
    except ValueError:
        if not re.fullmatch(r"[a-z0-9._-]{1,253}", lower):
            raise ValueError(
                f"{text!r} is not a host: give a name or an address, without scheme and port"
            ) from None
        return lower
    return f"[{address}]" if address.version == 6 else str(address)  # noqa: PLR2004 - IPv6


def _asked_for(scope: Scope) -> str | None:
    """The host of a request; None without exactly one that can be read."""
    given = [value for name, value in scope["headers"] if name == b"host"]
    found = _HOST.fullmatch(given[0].decode("latin-1").lower()) if len(given) == 1 else None
    try:
        return host_name(found["name"]) if found else None
    except ValueError:
        return None


class KnownHosts:
    """Plain ASGI middleware: passes on what is for loopback or for one of `hosts`."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()) -> None:
        self._app = app
        self._hosts = frozenset(map(host_name, (*LOOPBACK, *hosts)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it: 421 for another host, 400 for none."""
        if scope["type"] == "lifespan" or (host := _asked_for(scope)) in self._hosts:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
        elif host is None:
            problem = Problem(400, "No host", "Send one Host header, with a name or an address.")
            await problem.response()(scope, receive, send)
        else:
            problem = Problem(
                421, "Another host",
                f"This server does not answer for {host}. "
                f"If it should, start it with: commitcast demo --allow-host {host.strip('[]')}",
            )  # fmt: skip
            await problem.response()(scope, receive, send)
