"""The ASGI app: SSE, health checks and what operators read, mountable in Starlette and FastAPI.

Deny by default: without ``authenticate`` nobody is known, without ``authorize`` nothing is
readable, without ``operators`` nobody is an operator. Errors are problem details (RFC 9457) and never hold an exception's text.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Any, Final

from commitcast.access import Access, log_unanswered
from commitcast.admission import DRAINING, Refusal
from commitcast.answers import answer, json, nothing, problem
from commitcast.auth import ask_operator, refusal, refusal_headers, sees_position
from commitcast.errors import InvalidEvent, NotRunning, SubscriptionClosed
from commitcast.event import Position, check_stream
from commitcast.origin import Origins
from commitcast.protocols import sse
from commitcast.question import ClientLeft, NoAnswer, answer_to
from commitcast.request import ConnectionRequest, excess
from commitcast.subscription import AccessDenied

if TYPE_CHECKING:
    from collections.abc import Collection, MutableMapping

    from commitcast.auth import Authenticate, Authorize, Operators
    from commitcast.coordinator import Coordinator
    from commitcast.metrics import Exposition
    from commitcast.protocols.sse import Receive, Send

    Scope = MutableMapping[str, Any]

_ASKED_BY_MANY: Final = Refusal(503, "Try again later", "too many wait for an answer to this")
_NO_ANSWER: Final = Refusal(
    503, "Try again later", "it took too long to find out what you may read"
)
_NOT_ALLOWED: Final = (
    "you may not read this stream, or not from this position; without a cursor you are asked for "
    "what comes from now on alone"
)
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
        self._may_read = sees_position(authorize)
        self._origins = Origins(allowed_origins)
        self._operators = operators
        self._exposition: Exposition | None = None

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
            await self._for_operators(path, request, receive, send)
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

    async def _for_operators(
        self, path: str, request: ConnectionRequest, receive: Receive, send: Send
    ) -> None:
        if self._operators is None:
            await problem(
                send, 403, "Not for everybody",
                "say who may read this: coordinator.asgi(operators=…), a function that takes the "
                "request and returns True for an operator",
            )  # fmt: skip
            return
        admission = self._coordinator.admission
        if not admission.may_inquire:
            await self._later(request, send, [], _ASKED_BY_MANY)
            return
        gone = asyncio.ensure_future(sse.client_left(receive))
        try:
            allowed = await answer_to(
                ask_operator(self._operators, request),
                limit_s=self._coordinator.settings.access_limit_s,
                gone=gone,
                hold=admission.hold_inquiry,
            )
        except ClientLeft:
            return
        except Exception as error:  # noqa: BLE001 - whatever the team's callable raises
            await self._raised(request, send, [], "operators", error)
            return
        finally:
            gone.cancel()
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

    async def _sse(self, request: ConnectionRequest, receive: Receive, send: Send) -> None:
        if not self._origins.admit(request):
            await self._foreign(request, send)
            return
        cors = self._origins.headers(request)
        coordinator = self._coordinator
        place = coordinator.admission.enter() if coordinator.accepting else DRAINING
        if isinstance(place, Refusal):
            await self._later(request, send, cors, place)
            return
        gone = asyncio.ensure_future(sse.client_left(receive))
        access = Access(
            self._authenticate, self._may_read, request,
            place=place, gone=gone, limit_s=coordinator.settings.access_limit_s,
        )  # fmt: skip
        try:
            await self._counted(access, send, cors)
        except ClientLeft:
            pass
        finally:
            gone.cancel()
            place.leave()

    async def _counted(self, access: Access, send: Send, cors: list[tuple[bytes, bytes]]) -> None:
        request = access.request
        try:
            user = await access.user()
        except Exception as error:  # noqa: BLE001 - whatever the team's callable raises
            await self._raised(request, send, cors, "authenticate", error)
            return
        if user is None:
            await problem(
                send, 401, "Not authenticated", "sign in, then connect again",
                headers=[(b"www-authenticate", b"Bearer"), *cors],
            )  # fmt: skip
            return
        if (refused := access.place.take_for(user)) is not None:
            await self._later(request, send, cors, refused)
            return
        try:
            stream, after = _wanted(request)
        except InvalidEvent as error:
            await problem(send, 400, "Bad stream or cursor", str(error), headers=cors)
            return
        try:
            await self._read(access, user, stream, after, send, cors)
        except NotRunning:  # it was, when the client came
            await self._later(request, send, cors, DRAINING)

    async def _read(
        self,
        access: Access,
        user: str,
        stream: str,
        after: Position | str | None,
        send: Send,
        cors: list[tuple[bytes, bytes]],
    ) -> None:
        request, served = access.request, False

        def position() -> Position | None:
            place = subscription.reading_from
            return None if place == _LOST else place  # nothing of the past will be sent

        async def may_read() -> bool:
            ask = access.may_read_on if served else access.may_read
            return await ask(user, stream, position())

        async def authorized() -> bool:
            return await access.still(user, stream, position())

        subscription = self._coordinator.subscribe(stream, after=after, authorize=may_read)
        with contextlib.closing(subscription):
            try:
                await subscription.enter()
            except AccessDenied:
                await problem(send, 403, "Stream not allowed", _NOT_ALLOWED, headers=cors)
                return
            except SubscriptionClosed:
                await self._later(request, send, cors, DRAINING)
                return
            except Exception as error:  # noqa: BLE001 - whatever the team's callable raises
                await self._raised(request, send, cors, "authorize", error)
                return
            if request.scope["method"] == "HEAD":
                headers = [*sse.HEADERS, *cors]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": b""})
                return
            served = True
            await sse.serve(
                subscription, send, self._coordinator.settings,
                place=access.place, gone=access.gone, authorized=authorized, headers=cors,
            )  # fmt: skip

    async def _raised(
        self,
        request: ConnectionRequest,
        send: Send,
        cors: list[tuple[bytes, bytes]],
        name: str,
        error: Exception,
    ) -> None:
        """The team's callable gave no answer: no stream, and not a word of why to the client."""
        if isinstance(error, ClientLeft):
            return
        if (status := refusal(error)) is not None:
            headers = [*refusal_headers(error), *cors]
            if status == _UNAUTHENTICATED and not any(n == b"www-authenticate" for n, _ in headers):
                headers.append((b"www-authenticate", b"Bearer"))
            await problem(send, status, *_REFUSED[status], headers=headers)
            return
        log_unanswered(name, error)
        if isinstance(error, NoAnswer):
            await self._later(request, send, cors, _NO_ANSWER)
            return
        if _is_event_source(request):
            pause_ms = self._coordinator.settings.retry_ms * _BROKEN_PAUSE
            await sse.serve_later(send, pause_ms, cors)
            return
        await problem(
            send, 500, "Internal server error", "it was logged; try again later", headers=cors
        )

    async def _later(
        self,
        request: ConnectionRequest,
        send: Send,
        cors: list[tuple[bytes, bytes]],
        refused: Refusal,
    ) -> None:
        retry_ms = self._coordinator.settings.retry_ms
        if _is_event_source(request):
            pause_ms = max(retry_ms, math.ceil(refused.retry_after_s * 1000))
            await sse.serve_later(send, pause_ms, cors)
            return
        seconds = max(1, round(retry_ms * 2 / 1000), math.ceil(refused.retry_after_s))
        await problem(
            send, refused.status, refused.title, refused.detail,
            headers=[(b"retry-after", str(seconds).encode()), *cors],
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
