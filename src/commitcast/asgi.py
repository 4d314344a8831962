"""The ASGI app: SSE, health checks and what operators read, mountable in Starlette and FastAPI.

Deny by default: without ``authenticate`` nobody is known, without ``authorize`` nothing is
readable, without ``operators`` nobody is an operator. Errors are problem details (RFC 9457) and never hold an exception's text.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from commitcast.answers import answer, json, nothing, problem
from commitcast.auth import ask_access, ask_operator, ask_user, refusal, refusal_headers
from commitcast.errors import InvalidEvent, SubscriptionClosed
from commitcast.event import Position, check_stream
from commitcast.origin import Origins
from commitcast.protocols import sse
from commitcast.request import ConnectionRequest, excess

if TYPE_CHECKING:
    from collections.abc import Collection, MutableMapping

    from commitcast.auth import Authenticate, Authorize, Operators
    from commitcast.coordinator import Coordinator
    from commitcast.metrics import Exposition
    from commitcast.protocols.sse import Receive, Send

    Scope = MutableMapping[str, Any]

_logger = logging.getLogger("commitcast")
_LOST: Final = Position("lost", 0)
"""Stands for a position that cannot be read; no stream has it, so it is not recovered."""
_UNAUTHENTICATED: Final = 401
_BROKEN_PAUSE: Final = 10
"""How many times the usual pause a browser waits while the team's callables raise."""
_REFUSED: Final = {
    401: ("Not authenticated", "sign in, then connect again"),
    403: ("Not allowed", "you may not read this"),
    404: ("Not found", "there is no such thing for you here"),
}


class RealtimeApp:
    """What `Coordinator.asgi` returns."""

    def __init__(
        self,
        coordinator: Coordinator,
        *,
        authenticate: Authenticate | None,
        authorize: Authorize | None,
        allowed_origins: Collection[str],
        operators: Operators | None,
    ) -> None:
        self._coordinator = coordinator
        self._authenticate = authenticate
        self._authorize = authorize
        self._origins = Origins(allowed_origins)
        self._operators = operators
        self._connections: Counter[str] = Counter()
        self._exposition: Exposition | None = None

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return self._connections.total()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 4404, "reason": "use GET …/sse"})
            return
        if scope["type"] != "http":
            return
        if (refused := excess(scope)) is not None:
            await problem(send, *refused)
            return
        request = ConnectionRequest(scope)
        path = request.route
        if scope["method"] == "OPTIONS" and path == "/sse" and request.origin is not None:
            await self._preflight(request, send)
        elif scope["method"] not in {"GET", "HEAD"}:
            await problem(send, 405, "Method not allowed", "use GET", headers=[(b"allow", b"GET")])
        elif path == "/livez":
            await json(send, 200, {"status": "live"})
        elif path == "/readyz":
            checks = self._coordinator.readiness()
            ready = all(checks.values())
            body = {"status": "ready" if ready else "not ready", "checks": checks}
            await json(send, 200 if ready else 503, body)
        elif path == "/sse":
            await self._sse(request, receive, send)
        elif path in {"/health", "/metrics"}:
            await self._for_operators(path, request, send)
        else:
            await problem(
                send, 404, "Not found",
                f"nothing is at {scope['path'][:200]!r}; under {scope.get('root_path')!r}, where "
                "this app is mounted, there are /sse?stream=NAME, /livez and /readyz, and /health "
                "and /metrics for operators",
            )  # fmt: skip

    async def _preflight(self, request: ConnectionRequest, send: Send) -> None:
        if self._origins.named(request):
            await nothing(send, self._origins.preflight(request))
        else:
            await self._foreign(request, send)

    async def _foreign(self, request: ConnectionRequest, send: Send) -> None:
        await problem(
            send, 403, "Origin not allowed",
            "pages of this origin may not connect; add it to allowed_origins",
            headers=self._origins.headers(request),
        )  # fmt: skip

    async def _for_operators(self, path: str, request: ConnectionRequest, send: Send) -> None:
        if self._operators is None:
            await problem(
                send, 403, "Not for everybody",
                "say who may read this: coordinator.asgi(operators=…), a function that takes the "
                "request and returns True for an operator",
            )  # fmt: skip
            return
        try:
            allowed = await ask_operator(self._operators, request)
        except Exception as error:  # noqa: BLE001 - whatever the team's callable raises
            await self._raised(request, send, [], "operators", error)
            return
        if not allowed:
            await problem(send, 403, "Not for everybody", "this is for operators")
        elif path == "/health":
            await json(send, 200, self._coordinator.health_report())
        else:
            await self._metrics(request, send)

    async def _metrics(self, request: ConnectionRequest, send: Send) -> None:
        if self._exposition is None:
            try:
                from commitcast.metrics import Exposition
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] != "prometheus_client":
                    raise
                await problem(
                    send, 501, "Not installed",
                    "metrics need an extra: pip install 'commitcast[metrics]'",
                )  # fmt: skip
                return
            self._exposition = Exposition(self._coordinator)
        text, content_type = self._exposition.text(request.headers.get("accept", ""))
        await answer(send, 200, text, content_type.encode("latin-1"))

    async def _sse(  # noqa: PLR0911 - one return for each reason to refuse
        self, request: ConnectionRequest, receive: Receive, send: Send
    ) -> None:
        if not self._origins.admit(request):
            await self._foreign(request, send)
            return
        cors = self._origins.headers(request)
        try:
            user = await ask_user(self._authenticate, request)
        except Exception as error:  # noqa: BLE001 - whatever the team's callable raises
            await self._raised(request, send, cors, "authenticate", error)
            return
        if user is None:
            await problem(
                send, 401, "Not authenticated", "sign in, then connect again",
                headers=[(b"www-authenticate", b"Bearer"), *cors],
            )  # fmt: skip
            return
        try:
            stream, after = _wanted(request)
        except InvalidEvent as error:
            await problem(send, 400, "Bad stream or cursor", str(error), headers=cors)
            return
        try:
            allowed = await ask_access(self._authorize, user, stream)
        except Exception as error:  # noqa: BLE001 - whatever the team's callable raises
            await self._raised(request, send, cors, "authorize", error)
            return
        if not allowed:
            await problem(
                send, 403, "Stream not allowed", "you may not read this stream", headers=cors
            )
            return
        settings = self._coordinator.settings
        full = (
            self.connections >= settings.max_connections
            or self._connections[user] >= settings.max_connections_per_user
        )
        if full or not self._coordinator.accepting:
            await self._later(request, send, cors)
            return
        if request.scope["method"] == "HEAD":
            headers = [*sse.HEADERS, *cors]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        self._connections[user] += 1
        try:
            await self._stream(request, receive, send, user, stream, after, cors)
        finally:
            self._connections[user] -= 1
            if not self._connections[user]:
                del self._connections[user]

    async def _stream(
        self,
        request: ConnectionRequest,
        receive: Receive,
        send: Send,
        user: str,
        stream: str,
        after: Position | str | None,
        cors: list[tuple[bytes, bytes]],
    ) -> None:
        async def may_read() -> bool:
            try:
                return await ask_access(self._authorize, user, stream)
            except Exception as error:
                if refusal(error) is not None:
                    return False
                # neither yes nor no: the client may come back with its position and ask again
                _logger.exception("commitcast: authorize raised")
                raise SubscriptionClosed(stream, None, "authorize raised") from error

        async def authorized() -> bool:
            # the session behind the connection may have ended as well
            try:
                if await ask_user(self._authenticate, request) != user:
                    return False
            except Exception as error:
                if refusal(error) is not None:
                    return False
                _logger.exception("commitcast: authenticate raised")
                raise SubscriptionClosed(stream, None, "authenticate raised") from error
            return await may_read()

        subscription = self._coordinator.subscribe(stream, after=after, authorize=may_read)
        await sse.serve(
            subscription,
            receive,
            send,
            self._coordinator.settings,
            authorized=authorized,
            headers=cors,
        )

    async def _raised(
        self,
        request: ConnectionRequest,
        send: Send,
        cors: list[tuple[bytes, bytes]],
        name: str,
        error: Exception,
    ) -> None:
        """The team's callable raised: no stream, and not a word of the exception's text."""
        if (status := refusal(error)) is not None:
            headers = [*refusal_headers(error), *cors]
            if status == _UNAUTHENTICATED and not any(n == b"www-authenticate" for n, _ in headers):
                headers.append((b"www-authenticate", b"Bearer"))
            await problem(send, status, *_REFUSED[status], headers=headers)
            return
        _logger.error("commitcast: %s raised", name, exc_info=error)
        if _is_event_source(request):
            pause_ms = self._coordinator.settings.retry_ms * _BROKEN_PAUSE
            await sse.serve_later(send, pause_ms, cors)
            return
        await problem(
            send, 500, "Internal server error", "it was logged; try again later", headers=cors
        )

    async def _later(
        self, request: ConnectionRequest, send: Send, cors: list[tuple[bytes, bytes]]
    ) -> None:
        retry_ms = self._coordinator.settings.retry_ms
        if _is_event_source(request):
            await sse.serve_later(send, retry_ms, cors)
            return
        seconds = str(max(1, round(retry_ms * 2 / 1000))).encode()
        await problem(
            send, 503, "Try again later", "this node takes no more connections now",
            headers=[(b"retry-after", seconds), *cors],
        )  # fmt: skip


def _is_event_source(request: ConnectionRequest) -> bool:
    """Whether the client gives up for good on any status but 200, as a browser's EventSource."""
    return "text/event-stream" in request.headers.get("accept", "")


def _wanted(request: ConnectionRequest) -> tuple[str, Position | str | None]:
    names = request.query.get("stream", [])
    if len(names) != 1:
        raise InvalidEvent("give one stream: ?stream=NAME; open one connection for each")
    stream = check_stream(names[0])
    last_id = request.headers.get("last-event-id")
    if last_id:
        # the browser resends what it was sent; if that is no position, it has none
        try:
            return stream, Position.parse(last_id)
        except InvalidEvent:
            return stream, _LOST
    cursors = request.query.get("cursor", [])
    if not cursors:
        return stream, None
    if len(cursors) > 1:
        raise InvalidEvent("give one cursor")
    return stream, cursors[0] if cursors[0] == "earliest" else Position.parse(cursors[0])
