"""Who a client is and what it may read: asked of the team's callables, denied by default."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from commitcast.event import Position

    Authenticate = Callable[["ConnectionRequest"], str | Awaitable[str | None] | None]
    Authorize = Callable[..., bool | Awaitable[bool]]
    """Takes ``(user, stream)`` or ``(user, stream, position)``."""
    MayRead = Callable[[str, str, Position | None], bool | Awaitable[bool]]
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
    user = await answer if inspect.isawaitable(answer) else answer
    # an empty name or a mere yes or no is nobody's id
    return None if user is None or isinstance(user, bool) else str(user) or None


def sees_position(authorize: Authorize | None) -> MayRead | None:
    """`authorize` as it is called: a parameter named ``position`` is given, where it has one.

    Looked up once, when the app is made. Raises `ValueError` where it does not take a user and
    a stream.
    """
    if authorize is None:
        return None
    given: dict[str, Any] = {}
    try:
        signature = inspect.signature(authorize)
    except (TypeError, ValueError):  # some callables written in C have none
        signature = None
    if signature is not None:
        if "position" in signature.parameters:
            given["position"] = None
        try:
            signature.bind("user", "stream", **given)
        except TypeError as error:
            raise ValueError(
                f"authorize must take (user, stream) or (user, stream, position), not {signature}"
            ) from error
    if given:
        return lambda user, stream, position: authorize(user, stream, position=position)
    return lambda user, stream, _position: authorize(user, stream)


async def ask_access(
    may_read: MayRead | None, user: str, stream: str, position: Position | None
) -> bool:
    """Whether `user` may read `stream` after `position`: only if the answer is exactly True."""
    if may_read is None:
        return False
    answer = may_read(user, stream, position)
    return (await answer if inspect.isawaitable(answer) else answer) is True


async def ask_operator(operators: Operators, request: ConnectionRequest) -> bool:
    """Whether a request comes from an operator: only if the callable answers exactly True."""
    answer = operators(request)
    return (await answer if inspect.isawaitable(answer) else answer) is True
