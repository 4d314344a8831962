"""Attempts: the values that operations and outcomes are told in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import orjson

from commitcast.event import to_json

if TYPE_CHECKING:
    from commitcast.event import CommittedEvent
    from commitcast.notification import RollbackNotification


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


def request_hash(request: object) -> str | None:
    """What a request is compared by; raises `InvalidEvent` for what is not JSON."""
    if request is None:
        return None
    text = to_json(request, "request=", options=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(text, digest_size=16).hexdigest()
