"""Refusals as problem details (RFC 9457): what was wrong, where, and what to do."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import ClientDisconnect
from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.requests import Request

_logger = logging.getLogger("commitcast.demo")

MAX_BODY_BYTES = 64 * 1024
MAX_BODY_SECONDS = 10.0

Body = TypeVar("Body", bound=BaseModel)


class Problem(Exception):
    """A request that is refused, or failed; `more` are extension members (RFC 9457, 3.2)."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        *,
        errors: list[dict[str, str]] | None = None,
        headers: dict[str, str] | None = None,
        more: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.title, self.detail = status, title, detail
        self.errors, self.headers, self.more = errors, headers, more

    def response(self) -> Response:
        """The problem as an HTTP response."""
        body: dict[str, Any] = {
            "type": "about:blank", "title": self.title, "status": self.status, "detail": self.detail,
        }  # fmt: skip
        if self.errors:
            body["errors"] = self.errors
        body.update(self.more or {})
        return Response(
            orjson.dumps(body), self.status, self.headers, media_type="application/problem+json"
        )


async def on_problem(_request: Request, problem: Exception) -> Response:
    """Starlette's handler for Problem."""
    if not isinstance(problem, Problem):
        raise problem
    return problem.response()


async def on_http_error(_request: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such path, method not allowed) in the same form."""
    status = getattr(error, "status_code", 500)
    detail = {
        404: "There is nothing at this address.",
        405: "This address does not take that method.",
    }.get(status, "The request was refused.")
    title = str(getattr(error, "detail", "Refused"))
    return Problem(status, title, detail, headers=getattr(error, "headers", None)).response()


async def on_database_error(_request: Request, error: Exception) -> Response:
    """The database failed: nothing of the request was saved, and that is all that is told."""
    if not isinstance(error, (SQLAlchemyError, OSError)):  # drivers raise OSError on connect
        raise error
    _logger.error("a request failed in the database: %s", type(error).__name__)
    return Problem(
        503, "Database not available", "Nothing was saved. Try again in a moment.",
        headers={"Retry-After": "2"},
    ).response()  # fmt: skip


async def _received(request: Request) -> bytes:
    received = bytearray()
    try:
        async for chunk in request.stream():
            received += chunk
            if len(received) > MAX_BODY_BYTES:
                raise Problem(
                    413, "Body too large", f"The body may have at most {MAX_BODY_BYTES} bytes."
                )
    except ClientDisconnect:
        raise Problem(400, "Body not whole", "The connection ended within the body.") from None
    return bytes(received)


async def read_body(request: Request, model: type[Body]) -> Body:
    """The request's JSON body, checked; raises Problem with the place of each error."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        # a page of another site cannot send this type without asking first (CORS preflight)
        raise Problem(415, "Not JSON", "Send the body as Content-Type: application/json.")
    try:
        async with asyncio.timeout(MAX_BODY_SECONDS):
            received = await _received(request)
    except TimeoutError:
        raise Problem(
            408, "Body too slow", f"The body must be here within {MAX_BODY_SECONDS:g} seconds."
        ) from None
    try:
        return model.model_validate_json(received)
    except ValidationError as error:
        errors = [
            {"pointer": "#/" + "/".join(str(part) for part in one["loc"]), "detail": one["msg"]}
            for one in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        first = errors[0]
        raise Problem(
            422, "Invalid request", f"{first['pointer']}: {first['detail']}. Correct it and send again.",
            errors=errors,
        ) from None  # fmt: skip
