"""What requests carry, checked: JSON bodies and the idempotency key."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from commitcast.demo import chat, names
from commitcast.demo.faults import Fault  # noqa: TC001  (pydantic reads it)
from commitcast.demo.problem import Problem

if TYPE_CHECKING:
    from starlette.requests import Request

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BREAKS_OR_TURNS = re.compile("[\n\t\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Line breaks, and what turns the direction of the text around it."""
_KEY = re.compile(r"[\x20-\x7e]{1,200}")


def _printable(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("control characters are not allowed")
    if not any(unicodedata.category(character)[0] in "LNPS" for character in text):
        raise ValueError("there is nothing in it that can be seen")
    return text


def _one_line(title: str) -> str:
    if _BREAKS_OR_TURNS.search(title):
        raise ValueError("it must be one line, without marks that turn its direction")
    return title


def _not_the_agent(name: str) -> str:
    if names.shape(name) == names.shape(chat.AGENT):
        raise ValueError("that name belongs to the agent; choose another")
    return name


_Text = StringConstraints(strip_whitespace=True, min_length=1)
Name = Annotated[str, _Text, AfterValidator(names.readable), AfterValidator(_not_the_agent)]


class LoginBody(BaseModel):
    """POST /api/login."""

    name: Name


class ThreadBody(BaseModel):
    """POST /api/threads; members are names or user ids, the creator is one anyway."""

    title: Annotated[
        str, _Text, StringConstraints(max_length=120), AfterValidator(_printable),
        AfterValidator(_one_line),
    ]  # fmt: skip
    members: Annotated[list[Name], Field(max_length=chat.MAX_MEMBERS)] = []


class MessageBody(BaseModel):
    """POST /api/threads/{id}/messages."""

    text: Annotated[str, _Text, StringConstraints(max_length=4000), AfterValidator(_printable)]


class BreakBody(BaseModel):
    """POST /api/break; without `operation` it is the next, whichever that is."""

    fault: Fault
    operation: Literal["message", "answer"] | None = None


def idempotency_key(request: Request) -> str | None:
    """The ``Idempotency-Key`` of a request, if it has one; raises Problem 400.

    draft-ietf-httpapi-idempotency-key-header writes it as a quoted string (RFC 8941), most
    clients write it bare: both are the same key.
    """
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    key = given[0].strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':  # noqa: PLR2004 - both of the quotes
        key = re.sub(r'\\(["\\])', r"\1", key[1:-1])
    if len(given) > 1 or not _KEY.fullmatch(key):
        raise Problem(
            400, "Bad Idempotency-Key",
            "Send one Idempotency-Key of 1 to 200 printable ASCII characters, such as a UUID.",
        )  # fmt: skip
    return key
