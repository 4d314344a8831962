"""Attempts: the values that operations and outcomes are told in."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import orjson

from commitcast.encoding import plain, to_json
from commitcast.errors import InvalidEvent
from commitcast.event import check_id, check_label

if TYPE_CHECKING:
    from commitcast.event import CommittedEvent
    from commitcast.notification import RollbackNotification

_ID: Final = re.compile(r"[0-9a-f]{32}")


class Outcome(StrEnum):
    """How an attempt ended. Until it has an outcome it is open."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True, slots=True)
class Announcement:
    """What is written before the work begins."""

    id: str
    name: str
    node: str
    term: int
    deadline_s: float
    streams: tuple[str, ...]
    """Who is told of a rollback: the actor's own stream and those that something is shown on."""
    actor: str | None = None
    key: str | None = None
    request_hash: str | None = None
    user_message: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """An announced attempt, as the database has it."""

    id: str
    attempt: int
    name: str
    actor: str | None
    key: str | None
    request_hash: str | None
    node: str
    term: int
    announced_at: Any
    deadline: Any
    outcome: Outcome | None
    result_json: str | None
    error: str | None
    decided_at: Any
    node_dead: bool
    """Its node was declared dead, or has left."""
    overdue: bool
    """Its deadline has passed."""

    @property
    def orphan(self) -> bool:
        """Whether nobody can be working on it."""
        return self.node_dead or self.overdue


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an attempt ended, and what was written to tell it, if it was decided just now."""

    outcome: Outcome
    result_json: str | None = None
    notification: RollbackNotification | None = None
    events: tuple[CommittedEvent, ...] = ()


def operation_id(name: str, actor: str | None, key: str) -> str:
    """The id of an operation with a key: a key belongs to its actor (G7) and its name."""
    text = orjson.dumps([name, actor, key])
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def announced_id(name: str | None, key: object, of: object, actor: str | None) -> str:
    """The id of the operation that `name` and `key` of `actor` are, or that `of` is.

    Raises `InvalidEvent` for what cannot be one: a key in the place of an id would be answered
    with "there is none", and committed work be taken for lost.
    """
    by_key = name is not None and key is not None and of is None
    if not by_key and (of is None or name is not None or key is not None):
        raise InvalidEvent(
            "find an operation by what it was announced with, the name and id= (the key), or by "
            "operation_id=, which is the id that Operation.id and its events have"
        )
    if by_key:
        return operation_id(
            check_label("name", name, longest=100) or "", actor, check_id("id", key)
        )
    if not isinstance(of, str) or not _ID.fullmatch(of):
        raise InvalidEvent(
            "operation_id= takes what Operation.id is, 32 of 0-9 a-f; to find by the idempotency "
            "key, give the operation's name and id=KEY"
        )
    return of


def request_hash(request: object) -> str | None:
    """What a request is compared by; equal for equal JSON, whatever its classes.

    Raises `InvalidEvent` for what is not JSON.
    """
    if request is None:
        return None
    text = to_json(request, "request=", options=orjson.OPT_SORT_KEYS, convert=_comparable)
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _comparable(value: object) -> object:
    """One moment is one text: drivers give it in UTC, or in the time zone of their session."""
    if isinstance(value, datetime) and value.utcoffset() is not None:
        value = value.astimezone(UTC)
    return plain(value)
