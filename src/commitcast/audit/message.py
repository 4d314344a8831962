"""What a send says: its value, its event type, and whether it tells of a failure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

UNNAMED: Final = "message"
"""The event type of a message that names none."""

_LONGEST_PARSED: Final = 1 << 20
_TYPE_KEYS: Final = ("type", "event", "event_type", "kind", "action")
_SAID_KEYS: Final = (*_TYPE_KEYS, "status", "state")
_ERROR_KEYS: Final = ("error", "errors")
_WENT_WELL_KEYS: Final = ("ok", "success")
_FIELDS: Final = frozenset({"data", "event", "id", "retry"})
_NAME: Final = re.compile(r"[A-Za-z_][\w.:/-]{0,63}")
_FAILURE: Final = re.compile(
    r"error|fail|roll(ed)?[ _.-]?back|reject|denied|abort|not[ _.-]?saved|exception", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One message: its JSON's value, or its text or bytes where it is no JSON."""

    value: Any
    event_type: str = UNNAMED


def of_payload(payload: Any) -> Message:
    """Of a frame's text or bytes."""
    value = _parsed(payload)
    return Message(value, type_of(value))


def of_stream(chunk: bytes | str) -> list[Message]:
    """Of a chunk of ``text/event-stream``: its events; comments and bare fields are none.

    What has no field at all, such as lines of JSON, is one message.
    """
    text = bytes(chunk).decode("utf-8", "replace") if not isinstance(chunk, str) else chunk
    found: list[Message] = []
    blocks = text.replace("\r\n", "\n").replace("\r", "\n").split("\n\n")
    for n, block in enumerate(blocks, 1):
        fields = [line.partition(":") for line in block.split("\n")]
        data = [v.removeprefix(" ") for name, _, v in fields if name == "data"]
        named = next((v.strip() for name, _, v in fields if name == "event"), None)
        # An event that has a name only may get its data in the next chunk, if it is not ended here.
        if data or (named and n < len(blocks)):
            value = _parsed("\n".join(data))
            found.append(Message(value, _name(named) or type_of(value)))
        elif block.strip() and not any(
            name in _FIELDS or (colon and not name) for name, colon, _ in fields
        ):
            found.append(of_payload(block.strip()))
    return found


def of_arguments(arguments: tuple[Any, ...]) -> Message:
    """Of a sending function's arguments: a record if there is one, else the last text."""
    texts: list[Any] = []
    for argument in arguments:
        if isinstance(argument, str | bytes):
            value = _parsed(argument)
            if isinstance(value, Mapping):
                return Message(value, type_of(value))
            texts.append(value)
        elif (record := _record(argument)) is not None:
            return Message(record, type_of(record))
    return Message(texts[-1] if texts else None)


def type_of(value: Any) -> str:
    """The event type that a message names; anything that is not a plain name is none."""
    if isinstance(value, Mapping):
        for key in _TYPE_KEYS:
            if name := _name(value.get(key)):
                return name
    return UNNAMED


def tells_failure(value: Any) -> bool:
    """Whether a message tells that something failed: the default of `Shadow`'s ``is_notice``.

    A record does whose type, event, kind, action, status or state says error, fail, rollback,
    rejected, denied, aborted or not saved, or that has something under ``error`` or ``errors``, or
    false under ``ok`` or ``success``; a text if it begins so.
    """
    if isinstance(value, Mapping):
        if any(value.get(key) is False for key in _WENT_WELL_KEYS):
            return True
        return any(bool(value.get(key)) for key in _ERROR_KEYS) or any(
            isinstance(said := value.get(key), str) and _FAILURE.search(said) is not None
            for key in _SAID_KEYS
        )
    return isinstance(value, str) and _FAILURE.match(value.lstrip()) is not None


def _parsed(payload: Any) -> Any:
    if isinstance(payload, bytes | bytearray | memoryview):
        payload = bytes(payload)
    elif not isinstance(payload, str):
        return payload
    if len(payload) <= _LONGEST_PARSED and payload[:1] in {"{", "[", b"{", b"["}:
        try:
            return orjson.loads(payload)
        except orjson.JSONDecodeError:
            pass
    return payload


def _record(argument: Any) -> Mapping[str, Any] | None:
    if isinstance(argument, Mapping):
        return argument
    if dataclasses.is_dataclass(argument) and not isinstance(argument, type):
        return {f.name: getattr(argument, f.name, None) for f in dataclasses.fields(argument)}
    if callable(dump := getattr(argument, "model_dump", None)) and not isinstance(argument, type):
        dumped = dump()
        return dumped if isinstance(dumped, Mapping) else None
    return None


def _name(said: Any) -> str | None:
    return said if isinstance(said, str) and _NAME.fullmatch(said) else None
