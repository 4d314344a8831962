"""Who a client is and what it may read: asked of the team's callables, denied by default."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from commitcast.users import known_user

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    Authenticate = Callable[["ConnectionRequest"], str | Awaitable[str | None] | None]
    Authorize = Callable[[str, str], bool | Awaitable[bool]]
    Operators = Callable[["ConnectionRequest"], bool | Awaitable[bool]]


@dataclass(frozen=True)
class ConnectionRequest:
    """What a client sent when it connected, for ``authenticate`` to look at."""

    scope: Mapping[str, Any]
    """The ASGI scope."""

    @cached_property
    def headers(self) -> dict[str, str]:
        """Request headers by lower-case name; a repeated one is joined with commas."""
        found: dict[str, str] = {}
        for raw_name, raw_value in self.scope.get("headers", ()):
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            joiner = "; " if name == "cookie" else ", "
            found[name] = f"{found[name]}{joiner}{value}" if name in found else value
        return found

    @cached_property
    def cookies(self) -> dict[str, str]:
        """Cookies by name (RFC 6265); none if the header cannot be read."""
        try:
            parsed = SimpleCookie(self.headers.get("cookie", ""))
        except CookieError:
            return {}
        return {name: morsel.value for name, morsel in parsed.items()}

    @cached_property
    def query(self) -> dict[str, list[str]]:
        """Query parameters, each with all its values; none if there are more than 50."""
        text = self.scope.get("query_string", b"").decode("latin-1")
        try:
            return parse_qs(text, keep_blank_values=True, max_num_fields=50)
        except ValueError:
            return {}

    @property
    def bearer(self) -> str | None:
        """The token of ``Authorization: Bearer`` (RFC 6750), if one was sent."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() or None if scheme.lower() == "bearer" else None

    @property
    def origin(self) -> str | None:
        """The Origin header: the site whose page opened the connection."""
        return self.headers.get("origin")

    def origin_allowed(self, allowed: Collection[str]) -> bool:
        """Whether the request comes from no page, from this site's own, or from one `allowed`."""
        origin = self.origin
        if origin is None or origin in allowed:
            return True
        return bool(origin != "null" and urlsplit(origin).netloc == self.headers.get("host"))


async def ask_user(authenticate: Authenticate | None, request: ConnectionRequest) -> str | None:
    """The user behind a request, or None. Without a callable there is none."""
    if authenticate is None:
        return None
    answer: object = authenticate(request)
    return known_user(await answer if inspect.isawaitable(answer) else answer)


async def ask_access(authorize: Authorize | None, user: str, stream: str) -> bool:
    """Whether `user` may read `stream`: only if the callable answers exactly True."""
    if authorize is None:
        return False
    answer = authorize(user, stream)
    return (await answer if inspect.isawaitable(answer) else answer) is True


async def ask_operator(operators: Operators, request: ConnectionRequest) -> bool:
    """Whether a request comes from an operator: only if the callable answers exactly True."""
    answer = operators(request)
    return (await answer if inspect.isawaitable(answer) else answer) is True
