"""Events and positions: the values that the log holds and clients receive.

An event is encoded once, as the exact JSON text that goes on the wire; whatever cannot be
encoded fails at `emit`, before anything is written.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, cast, runtime_checkable
from uuid import UUID

import orjson

from commitcast.encoding import fields_of, one_line, to_json
from commitcast.errors import InvalidEvent
from commitcast.telemetry import CoordinationEventType

if TYPE_CHECKING:
    from collections.abc import Callable

    from commitcast.telemetry import Span

DEFAULT_MAX_EVENT_BYTES: Final = 64 * 1024
"""Largest encoded event data, in bytes, unless the coordinator is given another limit."""

NEW_EPOCH: Final = "new"
"""The epoch of a stream that has no events yet; its only position is ``new:0``."""

_STREAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+=~-]*")
_ESCAPE = re.compile(r"~[0-9A-F]{2}")
_LONGEST_STREAM: Final = 1030
"""Characters, an escape of `commitcast.users` counted as one: so the stream of the longest id is
taken, and PostgreSQL's index, which compresses, takes all (2,704 bytes)."""
_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9._:-]{0,99}")
_EPOCH = re.compile(r"[a-z0-9]{1,32}")
_LONGEST_ID: Final = 255
_RESERVED: Final = "commitcast."
_RESERVED_TYPES: Final = frozenset(CoordinationEventType)
_MAX_OFFSET: Final = 2**63 - 1
_MAX_DIGITS: Final = len(str(_MAX_OFFSET))


@runtime_checkable
class TypedEvent(Protocol):
    """A pydantic model or dataclass with a ``type``: the event's type; other fields its data."""

    @property
    def type(self) -> str:
        """The event's type, such as ``message.created``."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event by name: a `type` such as ``message.created`` and JSON-encodable `data`."""

    type: str
    data: Any = field(default_factory=dict)


@dataclass(frozen=True, slots=True, order=False)
class Position:
    """A reader's place in one stream: everything up to `offset` of `epoch` has been seen."""

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read ``epoch:offset``; raises `InvalidEvent` for anything else."""
        epoch, colon, offset = text.partition(":")
        if (
            not colon
            or not _EPOCH.fullmatch(epoch)
            or not (offset.isascii() and offset.isdigit() and len(offset) <= _MAX_DIGITS)
            or int(offset) > _MAX_OFFSET
        ):
            raise InvalidEvent(
                f"{text[:80]!r} is not a position; give it as it was received, epoch:offset"
            )
        return cls(epoch, int(offset))


@dataclass(frozen=True, slots=True)
class EncodedEvent:
    """An event ready for the log: validated, with its data as JSON text."""

    id: str
    stream: str
    type: str
    data_json: str
    actor: str | None = None
    operation: str | None = None
    trace_parent: str | None = None


class CommittedEvent:
    """An event as the log holds it: committed, and with its position.

    `frame` is the JSON text that goes on the wire, the same for every reader.
    """

    __slots__ = (
        "_frame",
        "actor",
        "committed_at",
        "data_json",
        "delivery",
        "encodings",
        "epoch",
        "id",
        "offset",
        "operation",
        "stream",
        "time",
        "trace_parent",
        "type",
    )

    def __init__(  # noqa: PLR0913 - one row of the log has that many columns
        self,
        *,
        stream: str,
        epoch: str,
        offset: int,
        id: str,  # noqa: A002 - the wire's word
        type: str,  # noqa: A002 - the wire's word
        time: str,
        data_json: str,
        actor: str | None = None,
        operation: str | None = None,
        trace_parent: str | None = None,
    ) -> None:
        self.stream = stream
        self.epoch = epoch
        self.offset = offset
        self.id = id
        self.type = type
        self.time = time
        self.data_json = data_json
        self.actor = actor
        self.operation = operation
        self.trace_parent = trace_parent
        """The W3C ``traceparent`` of its commit, or of its emit; never on the wire."""
        self.delivery: Span | None = None
        """Where deliveries are traced: the one of this node, until the first reader has it."""
        self.encodings: dict[str, bytes] = {}
        """What protocols made of the frame, so that each makes it once for all its readers."""
        self.committed_at: float | None = None
        """When its COMMIT was seen to return, in seconds of the health monitor's clock; None for
        what was read from the log, and where steps are not timed."""
        self._frame: str | None = None

    @property
    def data(self) -> Any:
        """The event's data, parsed anew at each access."""
        return orjson.loads(self.data_json)

    @property
    def position(self) -> Position:
        """The place of a reader that has seen this event."""
        return Position(self.epoch, self.offset)

    @property
    def frame(self) -> str:
        """The JSON object that clients receive, encoded once."""
        if self._frame is None:
            head = {
                "type": self.type,
                "id": self.id,
                "stream": self.stream,
                "offset": self.offset,
                "epoch": self.epoch,
                "time": self.time,
            }
            if self.actor is not None:
                head["actor"] = self.actor
            if self.operation is not None:
                head["operation"] = self.operation
            # SQL's own emit and older versions wrote data that is not on one line.
            self._frame = one_line(f'{orjson.dumps(head).decode()[:-1]},"data":{self.data_json}}}')
        return self._frame

    def delivered(self) -> None:
        """A reader has it, or none ever will: its delivery on this node is over."""
        if self.delivery is not None:
            self.delivery.end()
            self.delivery = None

    @property
    def size_bytes(self) -> int:
        """About what the event costs in memory, for bounds."""
        return len(self.data_json) * 2 + 600

    def __repr__(self) -> str:
        return f"<CommittedEvent {self.stream} {self.epoch}:{self.offset} {self.type}>"


def check_stream(name: object) -> str:
    """Return a valid stream name; raises `InvalidEvent` for any other value."""
    if (
        not isinstance(name, str)
        or not _STREAM.fullmatch(name)
        or (len(name) > _LONGEST_STREAM and len(_ESCAPE.sub("~", name)) > _LONGEST_STREAM)
    ):
        raise InvalidEvent(
            f"{_shown(name)} is not a stream name: 1 to 1,030 of A-Z a-z 0-9 . _ : / @ + = ~ -, "
            "beginning with a letter or digit, such as 'thread:7'; commitcast.user_stream(id) "
            "names the stream of any user"
        )
    return str.__str__(name)


def check_label(what: str, value: object, *, longest: int = _LONGEST_ID) -> str | None:
    """Return a valid name, label or trace parent, or None; raises `InvalidEvent` otherwise."""
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= longest or not value.isprintable():
        raise InvalidEvent(
            f"{what} must be a printable string of 1 to {longest} characters, not {_shown(value)}"
        )
    return str.__str__(value)  # a subclass of str is a driver's to make something else of


def check_id(what: str, value: object) -> str:
    """Return the text of an id of the application's: a user's, a key, an operation's.

    It may have 1 to 255 printable characters. An int or a UUID, of whatever driver, is taken by
    its text. Raises `InvalidEvent` for anything else.
    """
    text = value
    if isinstance(value, UUID) or (isinstance(value, int) and not isinstance(value, bool)):
        text = int.__repr__(value) if isinstance(value, int) else str(value)
    found = check_label(what, text)
    if found is None:
        raise InvalidEvent(f"{what} must be an id, not None")
    return found


def check_type(name: object) -> str:
    """Return a valid event type; raises `InvalidEvent` for any other value."""
    if not isinstance(name, str) or not _TYPE.fullmatch(name):
        raise InvalidEvent(
            f"{_shown(name)} is not an event type: 1 to 100 of A-Z a-z 0-9 . _ : -, beginning "
            "with a letter, such as 'message.created'"
        )
    if name.startswith(_RESERVED) or name in _RESERVED_TYPES:
        raise InvalidEvent(
            f"{name!r} is a type that only Commitcast sends, as all that begin with {_RESERVED!r}"
        )
    return str.__str__(name)


def encode(
    stream: str,
    event: object,
    *,
    max_bytes: int = DEFAULT_MAX_EVENT_BYTES,
    actor: str | None = None,
    operation: str | None = None,
    trace_parent: str | None = None,
) -> EncodedEvent:
    """Validate and encode one event for `stream`; raises `InvalidEvent`, writes nothing.

    Data may hold what JSON holds, and datetime, date, time, timedelta (ISO 8601), UUID, enums,
    dataclasses, pydantic models, mappings, named tuples and rows of a query (these become
    objects), of these classes or of subclasses; see `commitcast.encoding`. A Decimal becomes a
    JSON string, so that no digit is lost (RFC 8259, section 6). NaN and infinities, which JSON
    has no word for, become null, as in JavaScript.
    """
    name, data = _type_and_data(event)
    encoded = to_json(data, f"the data of {name!r} for stream {stream!r}")
    check_size(name, stream, len(encoded), max_bytes)
    return EncodedEvent(
        id=os.urandom(16).hex(),
        stream=stream,
        type=name,
        data_json=encoded.decode(),
        actor=actor,
        operation=operation,
        trace_parent=trace_parent,
    )


def check_size(name: str, stream: str, size_bytes: int, max_bytes: int) -> None:
    """Raise `InvalidEvent` for data that is too large."""
    if size_bytes > max_bytes:
        raise InvalidEvent(
            f"the data of {name!r} for stream {stream!r} takes {size_bytes} bytes, more than "
            f"max_event_bytes, which is {max_bytes}; store the content and send its id"
        )


def resolve(
    stream: str, make: Callable[[], object], *, max_bytes: int, **labels: str | None
) -> EncodedEvent:
    """Encode what `make` returns, at commit, when the ids of new rows are known."""
    event = make()
    if callable(event) or hasattr(event, "__await__"):
        if hasattr(event, "close"):
            event.close()
        raise InvalidEvent(
            f"the callable emitted to {stream!r} returned {_shown(event)}, not an event; it must "
            "be a plain function that returns one"
        )
    return encode(stream, event, max_bytes=max_bytes, **labels)


def _type_and_data(event: object) -> tuple[str, Any]:
    if isinstance(event, Event):
        return check_type(event.type), event.data
    if isinstance(event, TypedEvent) and not isinstance(event, type):
        dump = getattr(event, "model_dump", None)
        if dump is not None:
            try:
                return check_type(event.type), dump(mode="json", exclude={"type"})
            except InvalidEvent:
                raise
            except Exception as error:
                raise InvalidEvent(f"{type(event).__name__} cannot be encoded: {error}") from error
        name, given = event.type, cast("Any", event)
        if dataclasses.is_dataclass(given):
            try:
                data = fields_of(given)
            except TypeError as error:
                raise InvalidEvent(f"{type(event).__name__} cannot be encoded: {error}") from error
            data.pop("type", None)
            return check_type(name), data
    raise InvalidEvent(
        f"{_shown(event)} is not an event: give an Event, a pydantic model or dataclass with a "
        "`type`, or a function that returns one"
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."  # noqa: PLR2004 - one line of a message
