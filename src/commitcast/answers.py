"""Answers that are not streams: JSON, and problem details (RFC 9457) where something was refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Collection

    from commitcast.protocols.sse import Send

_ALWAYS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
"""No cache keeps an answer, and no browser takes it for another type than it says."""


async def problem(
    send: Send,
    status: int,
    title: str,
    detail: str,
    *,
    headers: Collection[tuple[bytes, bytes]] = (),
) -> None:
    """Problem details (RFC 9457)."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    await json(send, status, body, b"application/problem+json", headers)


async def json(
    send: Send,
    status: int,
    body: object,
    content_type: bytes = b"application/json",
    headers: Collection[tuple[bytes, bytes]] = (),
) -> None:
    """What `body` is as JSON."""
    await answer(send, status, orjson.dumps(body), content_type, headers)


async def answer(
    send: Send,
    status: int,
    body: bytes,
    content_type: bytes,
    headers: Collection[tuple[bytes, bytes]] = (),
) -> None:
    """The whole response, which no cache keeps; a server leaves the body of a HEAD out."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", content_type),
                (b"content-length", str(len(body)).encode()),
                *_ALWAYS,
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def nothing(send: Send, headers: Collection[tuple[bytes, bytes]]) -> None:
    """204: a yes without a body, and so without a length (RFC 9110, section 8.6)."""
    await send({"type": "http.response.start", "status": 204, "headers": [*_ALWAYS, *headers]})
    await send({"type": "http.response.body", "body": b""})
