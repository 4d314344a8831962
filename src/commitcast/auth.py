"""Who a client is and what it may read: asked of the team's callables, denied by default."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from commitcast.users import known_user

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from commitcast.event import Position
    from commitcast.request import ConnectionRequest

    Authenticate = Callable[["ConnectionRequest"], str | Awaitable[str | None] | None]
    Authorize = Callable[..., bool | Awaitable[bool]]
    """Takes ``(user, stream)`` or ``(user, stream, position)``."""
    MayRead = Callable[[str, str, Position | None], bool | Awaitable[bool]]
    Operators = Callable[["ConnectionRequest"], bool | Awaitable[bool]]


_REFUSALS: Final = frozenset({401, 403, 404})
_POLICY_VIOLATION: Final = 1008
_OURS: Final = frozenset(
    {"cache-control", "connection", "content-length", "content-type", "transfer-encoding", "vary"}
)
_OURS_TOO: Final = "access-control-"
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


async def ask_user(authenticate: Authenticate | None, request: ConnectionRequest) -> str | None:
    """The user behind a request, or None. Without a callable there is none."""
    if authenticate is None:
        return None
    answer: object = authenticate(request)
    return known_user(await answer if inspect.isawaitable(answer) else answer)


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


def refusal(error: Exception) -> int | None:
    """The status that a callable answered by raising: 401, 403 or 404, as ``status_code``.

    That is how Starlette and FastAPI refuse (``HTTPException``), so a team's own functions can
    be used as they are; their ``WebSocketException`` refuses with code 1008. None for any
    other exception, which is a fault.
    """
    if getattr(error, "code", None) == _POLICY_VIOLATION:
        return 403
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) and status in _REFUSALS else None


def refusal_headers(error: Exception) -> list[tuple[bytes, bytes]]:
    """The headers that such an exception asks for, such as ``WWW-Authenticate``.

    Without those that every answer has already: a browser refuses two origins.
    """
    headers = getattr(error, "headers", None)
    if not isinstance(headers, Mapping):
        return []
    return [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in headers.items()
        if isinstance(name, str) and isinstance(value, str)
        and name.lower() not in _OURS
        and not name.lower().startswith(_OURS_TOO)
        and _NAME.fullmatch(name) and _VALUE.fullmatch(value)
    ]  # fmt: skip
