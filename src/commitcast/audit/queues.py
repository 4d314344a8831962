"""What is put into a queue in one task and sent by another, which may have run all the time.

A queue hands over the very object that was put into it, so that a send is tied to what its message
was put beside if that object is in a variable of a function that sends.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from commitcast.audit import callsite
from commitcast.audit.channel import Channel
from commitcast.audit.message import of_payload, of_stream
from commitcast.audit.work import MOST_HELD, Outcome, Send

if TYPE_CHECKING:
    from types import CodeType

    from commitcast.audit.work import Work

MOST_HANDED: Final = 1_000
_LONGEST_S: Final = 60.0
_DEEPEST: Final = 4


@dataclass(slots=True, eq=False)
class Handed(Send):
    """Something that was put into a queue; it learns, as a send does, how what was open then ended."""

    item: object = None
    works: tuple[Work, ...] = ()
    followers: list[Send] = field(default_factory=list)
    """Sends that were made of it before it was known."""
    timed: bool = False
    """The first send after a commit has been made of it."""

    @property
    def outcome(self) -> Outcome:
        """How it ended, when it has."""
        if self.rolled_back:
            return Outcome.ROLLED_BACK
        return Outcome.NOTHING if self.committed_at is None else Outcome.COMMITTED

    def follow(self, send: Send, *, lines: bool) -> None:
        """A send is made of it; its lines are those of the put, if `lines`."""
        if not self.waiting and not self.rolled_back:
            if self.committed_at is not None and not self.timed:
                self.timed = True
                send.since = self.committed_at
            return
        send.held = True
        if lines:
            send.chain = self.chain
        if not self.waiting:
            send.rolled_back = send.late = True
            send.cause = self.cause
        elif len(self.followers) < MOST_HELD:
            send.waiting += 1
            self.followers.append(send)
        else:
            self.followers[-1].count += 1


class Queues:
    """What was put into queues lately, beside something that had not ended or just had."""

    def __init__(self) -> None:
        self._handed: dict[int, Handed] = {}

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._handed)

    def put(self, handed: Handed) -> None:
        """Keep it until its object is put again, others push it out, or a minute has passed."""
        self._handed.pop(id(handed.item), None)
        for key, old in list(self._handed.items()):
            if len(self._handed) < MOST_HANDED and handed.at - old.at < _LONGEST_S:
                break
            del self._handed[key]
        self._handed[id(handed.item)] = handed

    def again(self, item: object, works: tuple[Work, ...]) -> bool:
        """Whether it is put beside the same once more, as for each of several clients."""
        known = self._handed.get(id(item))
        return known is not None and known.waiting > 0 and known.works == works

    def forget(self, item: object) -> None:
        """It is put beside nothing."""
        self._handed.pop(id(item), None)

    def clear(self) -> None:
        """Forget all."""
        self._handed.clear()

    def held(self, generator: Any = None) -> Handed | None:
        """The innermost one that a function on the stack, or a generator that waits, has."""
        if not self._handed:
            return None
        return callsite.first_local(self._known, generator)

    def _known(self, value: object, code: CodeType) -> Handed | None:
        found = self._handed.get(id(value))
        if found is None or found.item is not value:
            return None
        # Who has put it has it too, and may send something else.
        return None if any(code is putting for putting, _ in found.chain) else found


def new(item: object, at: float) -> Handed:
    """One that waits for nothing yet."""
    return Handed("", Channel(), None, at, item=item)


def may_be_sent(item: object) -> bool:
    """Whether it is like a message, and not one of those objects of which there is only one."""
    if not item or isinstance(item, int | float | type | enum.Enum):
        return False
    if isinstance(item, str | bytes | Mapping | list | tuple):
        return True
    own = getattr(item, "__dict__", {})
    kind = type(item)
    return (
        hasattr(kind, "__dataclass_fields__")
        or hasattr(kind, "model_dump")
        or "_sa_instance_state" in own
        or "data" in own  # as events of SSE libraries have
    )


def tells(value: Any, item: object) -> bool:
    """Whether a message's value can be of what was put: if that is a text, it has to have it.

    Equal texts in a program are often one object.
    """
    if not isinstance(item, str | bytes):
        return True
    return (
        _has(value, item, _DEEPEST)
        or of_payload(item).value == value
        or any(event.value == value for event in of_stream(item))
    )


def _has(value: Any, text: str | bytes, depth: int) -> bool:
    if isinstance(value, str | bytes):
        return isinstance(value, type(text)) and text in value  # type: ignore[operator]
    if depth == 0:
        return False
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return False
    return any(_has(each, text, depth - 1) for each in value)
