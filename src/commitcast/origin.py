"""Origins (RFC 6454): whose pages may connect, and what their browsers are told (Fetch, CORS).

A page of this site's own may, and one that the team named. A client that is no page says no
origin, and is asked for its credentials like everybody.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

    from commitcast.request import ConnectionRequest

_ORIGIN = re.compile(
    r"([a-z][a-z0-9+.-]*)://"
    r"(\[[0-9a-f:.]+\]|[a-z0-9._~!$&'()*+,;=%-]*)"
    r"(?::([0-9]{1,5}))?",
    re.IGNORECASE,
)
_PORTS: Final = {"http": 80, "https": 443}
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_PREFLIGHT_S: Final = 600


def normal(origin: str) -> str | None:
    """An origin in one spelling: lower case, without the port that its scheme has anyway.

    None for what is no origin.
    """
    if origin == "null":
        return origin
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        return None
    scheme, host, port = found[1].lower(), found[2].lower(), found[3]
    if port is None or int(port) == _PORTS.get(scheme):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{int(port)}"


class Origins:
    """The origins whose pages may connect beside the site's own."""

    def __init__(self, allowed: Collection[str]) -> None:
        if isinstance(allowed, str):
            raise ValueError(  # noqa: TRY004 - the value is wrong, of whatever type
                f"allowed_origins must be a collection such as [{allowed!r}], not a string"
            )
        self._allowed: set[str] = set()
        for origin in allowed:
            found = normal(origin)
            if found is None:
                raise ValueError(
                    f"allowed_origins has {origin!r}: name each origin as a browser sends it, "
                    "scheme://host or scheme://host:port, without a path and without wildcards"
                )
            self._allowed.add(found)

    def named(self, request: ConnectionRequest) -> bool:
        """Whether the request comes from a page of an origin that the team named."""
        return request.origin is not None and normal(request.origin) in self._allowed

    def admit(self, request: ConnectionRequest) -> bool:
        """Whether the request comes from no page, from this site's own, or from one named."""
        return request.origin is None or self.named(request) or _own(request)

    def headers(self, request: ConnectionRequest) -> list[tuple[bytes, bytes]]:
        """What an answer says about origins: which page may read it, and that they differ."""
        vary = (b"vary", b"origin")
        if not self.named(request):
            return [vary]
        return [
            vary,
            (b"access-control-allow-origin", (request.origin or "").encode("latin-1")),
            (b"access-control-allow-credentials", b"true"),
            (b"access-control-expose-headers", b"retry-after"),
        ]

    def preflight(self, request: ConnectionRequest) -> list[tuple[bytes, bytes]]:
        """The answer to a browser that asks whether a page may send these headers.

        A page that is trusted with its user's cookies may send any header: ``Authorization``,
        ``Last-Event-ID``, and those that libraries add for caching and tracing.
        """
        asked = request.headers.get("access-control-request-headers", "").split(",")
        wanted = [name.strip() for name in asked if _HEADER.fullmatch(name.strip())]
        return [
            *self.headers(request),
            (b"access-control-allow-methods", b"GET, HEAD"),
            (b"access-control-allow-headers", ", ".join(wanted).encode("latin-1")),
            (b"access-control-max-age", str(_PREFLIGHT_S).encode()),
        ]


def _own(request: ConnectionRequest) -> bool:
    host = request.headers.get("host")
    if not host:
        return False
    scheme = request.scope.get("scheme", "http")
    # Behind a proxy that ends TLS a server says http, unless it is told. A page that came by
    # https is no less ours; one that came by http, which anyone on the way may have written, is.
    schemes = ("http", "https") if scheme == "http" else (scheme,)
    return normal(request.origin or "") in [
        own for own in (normal(f"{scheme}://{host}") for scheme in schemes) if own is not None
    ]
