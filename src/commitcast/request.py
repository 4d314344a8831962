"""What a client sent when it connected, read in time that grows with its size and no faster.

All of this happens before anybody is known: one anonymous request must not hold a node (G10).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_HEADER_LINES: Final = 100
"""Most header lines of one request."""
MAX_HEADER_BYTES: Final = 64 * 1024
"""Most bytes of all names and values of a request's headers."""
MAX_TARGET_BYTES: Final = 16 * 1024
"""Most bytes of a request's path and query."""
MAX_QUERY_FIELDS: Final = 50
"""Most parameters of a query."""

_ESCAPED = re.compile(r"\\(?:([0-3][0-7][0-7])|(.))")


@dataclass(frozen=True)
class ConnectionRequest:
    """What a client sent when it connected, for ``authenticate`` to look at."""

    scope: Mapping[str, Any]
    """The ASGI scope."""

    @cached_property
    def headers(self) -> dict[str, str]:
        """Request headers by lower-case name; a repeated one is joined with commas."""
        found: dict[str, list[str]] = {}
        for name, value in self.scope.get("headers", ()):
            found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        return {
            name: ("; " if name == "cookie" else ", ").join(values)
            for name, values in found.items()
        }

    @cached_property
    def cookies(self) -> dict[str, str]:
        """Cookies by name, read as browsers write them (RFC 6265, section 5.4).

        Whatever another application put into a cookie, the others are still there. Of two
        cookies with one name the first counts: a browser sends the one with the longer path
        first. A value in double quotes is unquoted, as Starlette does.
        """
        found: dict[str, str] = {}
        for pair in self.headers.get("cookie", "").split(";"):
            name, equals, value = pair.partition("=")
            name = name.strip(" \t")
            if equals and name and name not in found:
                found[name] = _unquoted(value.strip(" \t"))
        return found

    @cached_property
    def query(self) -> dict[str, list[str]]:
        """Query parameters, each with all its values; none if there are more than 50."""
        text = self.scope.get("query_string", b"").decode("latin-1")
        try:
            return parse_qs(text, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
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

    @cached_property
    def route(self) -> str | None:
        """What is asked of the app, such as ``/sse``; None where the path is not the app's.

        ``path`` should begin with ``root_path`` (ASGI, "HTTP connection scope"). Behind a proxy
        that strips a prefix it begins with the last part of it, and some frameworks strip all.
        """
        path: str = self.scope["path"].rstrip("/")
        before, slash, name = path.rpartition("/")
        mounted = (self.scope.get("root_path") or "").rstrip("/").endswith(before)
        return slash + name if mounted else None


def excess(scope: Mapping[str, Any]) -> tuple[int, str, str] | None:
    """The status, title and reason of a request that is too large to be looked at, or None."""
    headers = scope.get("headers", ())
    query = scope.get("query_string", b"")
    if len(headers) > MAX_HEADER_LINES:
        reason = f"{len(headers)} header lines; the most is {MAX_HEADER_LINES}"
        return 431, "Too many header lines", reason
    if (size := sum(len(name) + len(value) for name, value in headers)) > MAX_HEADER_BYTES:
        reason = f"{size} bytes of headers; the most is {MAX_HEADER_BYTES}: has a cookie grown?"
        return 431, "Headers too large", reason
    if (size := len(scope["path"]) + len(query)) > MAX_TARGET_BYTES:
        return 414, "Address too long", f"{size} bytes; the most is {MAX_TARGET_BYTES}"
    if (fields := query.count(b"&") + 1) > MAX_QUERY_FIELDS:
        reason = f"{fields} query parameters; the most is {MAX_QUERY_FIELDS}"
        return 400, "Too many query parameters", reason
    return None


def _unquoted(value: str) -> str:
    if len(value) < len('""') or value[0] != '"' or value[-1] != '"':
        return value
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)) if found[1] else found[2], value[1:-1])
