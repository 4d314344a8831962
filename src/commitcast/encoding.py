"""Encoding: the JSON text of what an event, a result or a request holds.

What is promised, for the value itself, for what is in it at any depth, and for keys:

- A value's own class does not matter: what a driver or library made of str, int, float, dict,
  list, tuple, datetime, date, time, timedelta, UUID, Decimal, Enum, a dataclass or a pydantic
  model is encoded as that would be.
- What has names becomes an object: named tuples, rows of a query, any mapping.
- Nothing is lost in silence: two keys that become the same text are refused.
- The text has no character at which a reader of lines may break it (see `one_line`).

The fast way is one call of orjson. Whatever that refuses is walked once in Python, which takes
the rest (keys that are no text, a time with a zone), or says where in the value the fault is.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

import orjson

from commitcast.errors import InvalidEvent

Convert = Callable[[Any], object]
"""Takes a value that JSON has no word for, gives one that is nearer to it; else raises TypeError."""

# orjson itself writes the time 00:00:00.010000 as 00:00:00.10000, and takes its option for all.
_OPTIONS: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_LINE_BREAKS: Final = ("\x85", "\u2028", "\u2029")
_DEEPEST: Final = 254  # orjson's own limit
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1
_SHOWN: Final = 80
_SCALARS: Final = (str, int, float, type(None))


def plain(value: Any) -> object:
    """What stands for `value` in JSON, one step nearer to it; raises TypeError for what has none."""
    if type(value) is datetime:  # the one that is common
        return _as_text(value)
    for kinds, make in _KINDS:
        if isinstance(value, kinds):
            return make(value)
    if not isinstance(value, type):
        found = _with_names(value)
        if found is not None:
            return found
    raise TypeError(f"{_kind(value)} is not JSON; make it text, a number, a list or a dict")


def fields_of(value: Any) -> dict[str, Any]:
    """A dataclass as an object: its fields, but those that begin with an underscore.

    Raises TypeError for a mapped one whose fields are not all loaded: to read them would run SQL.
    """
    fields = (field.name for field in dataclasses.fields(value))
    names = [name for name in fields if not name.startswith("_")]
    state = getattr(value, "_sa_instance_state", None)  # SQLAlchemy's own
    if state is not None and state.has_identity:
        for name in names:
            if name in state.unloaded:
                raise TypeError(f"{_kind(value)}.{name} is not loaded; load it, or give the others")
    return {name: getattr(value, name) for name in names}


def to_json(value: object, what: str, *, options: int = 0, convert: Convert = plain) -> bytes:
    """Encode `value`; raises `InvalidEvent` that begins with `what` it was and says where.

    Args:
        value: see the head of this file.
        what: what it is to the caller, for the error.
        options: more of orjson's, such as ``OPT_SORT_KEYS``.
        convert: what is asked of values that JSON has no word for.
    """
    try:
        encoded = orjson.dumps(value, default=convert, option=_OPTIONS | options)
    except (TypeError, ValueError, RecursionError):
        try:
            tree = _Walk(convert).tree(value, "", 0)
            encoded = orjson.dumps(tree, option=_OPTIONS | options)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidEvent(f"{what} cannot be encoded as JSON: {error}") from error
    return encoded if encoded.isascii() else one_line(encoded.decode()).encode()


def one_line(json: str) -> str:
    """The same JSON with U+0085, U+2028 and U+2029 escaped.

    JSON allows them in a string as they are (RFC 8259), and line breaks in Server-Sent Events are
    LF and CR alone; but published clients split lines where `str.splitlines` does.
    """
    if not json.isascii():
        for character in _LINE_BREAKS:
            json = json.replace(character, f"\\u{ord(character):04x}")
    return json


class _Walk:
    """Makes of a value one that holds nothing but JSON's own types."""

    def __init__(self, convert: Convert) -> None:
        self._convert = convert

    def tree(self, value: Any, where: str, depth: int) -> object:
        """`where` is its place in the whole, such as ``.items[3]``."""
        if depth > _DEEPEST:
            raise ValueError(f"it is more than {_DEEPEST} deep, or holds itself")
        if isinstance(value, Enum):  # before str and int, which it may be as well
            return self.tree(value.value, where, depth + 1)
        if isinstance(value, _SCALARS):
            return _scalar(value, where)
        if isinstance(value, dict):
            return self._object(value, where, depth)
        if isinstance(value, list) or type(value) is tuple:
            return [self.tree(v, f"{where}[{i}]", depth + 1) for i, v in enumerate(value)]
        try:
            nearer = self._convert(value)
        except Exception as error:
            raise ValueError(f"{_at(where)}{error}") from error
        return self.tree(nearer, where, depth + 1)

    def _object(self, value: dict[Any, Any], where: str, depth: int) -> dict[str, object]:
        made: dict[str, object] = {}
        for key, inner in value.items():
            name = self._key(key, where)
            if name in made:
                raise ValueError(
                    f"{_at(where)}two keys become {_shown(name)}, so that one would be lost"
                )
            made[name] = self.tree(inner, f"{where}.{name}", depth + 1)
        return made

    def _key(self, key: object, where: str) -> str:
        found = self.tree(key, f"{where}(key)", 0)
        if not isinstance(found, _SCALARS):
            raise TypeError(f"{_at(where)}a key is a {_kind(key)}; give text or a number")
        return found if isinstance(found, str) else orjson.dumps(found).decode()


def _with_names(value: Any) -> object:
    """A dataclass, a model, a row, a named tuple or a mapping as an object; a tuple as a list."""
    if dataclasses.is_dataclass(value):
        return fields_of(value)
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    names = getattr(value, "_fields", None)
    if isinstance(names, tuple) and isinstance(value, Sequence):
        return _object_of(names, value)
    keys = getattr(value, "keys", None)
    if callable(keys):  # as `dict` takes it: asyncpg's Record and sqlite3's Row are no Mapping
        names = tuple(keys())
        return _object_of(names, [value[name] for name in names])
    return list(value) if isinstance(value, tuple) else None


def _object_of(names: Sequence[Any], values: Sequence[Any]) -> dict[Any, Any]:
    made = dict(zip(names, values, strict=True))
    if len(made) != len(names):
        raise TypeError("two columns have one name, so that one would be lost; label them")
    return made


def _moment(value: datetime) -> str:
    """RFC 3339, as orjson writes it: in its own time zone, Z for UTC; without one if it has none."""
    offset = value.utcoffset()
    zone = None if offset is None else timezone(offset)
    exact = datetime(
        value.year, value.month, value.day, value.hour, value.minute, value.second,
        value.microsecond, zone,
    )  # fmt: skip
    return _as_text(exact)


def _as_text(value: datetime) -> str:
    return orjson.dumps(value, option=orjson.OPT_UTC_Z)[1:-1].decode()


def _duration(value: timedelta) -> str:
    """ISO 8601: days, hours, minutes and seconds; before a negative one stands a minus sign."""
    microseconds = abs(value) // timedelta(microseconds=1)
    seconds, fraction = divmod(microseconds, 1_000_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    exact = f"{seconds}.{fraction:06d}".rstrip("0") if fraction else str(seconds)
    parts = [(hours, "H"), (minutes, "M"), (exact if exact != "0" else "", "S")]
    of_day = "".join(f"{amount}{unit}" for amount, unit in parts if amount)
    if not days and not of_day:
        return "PT0S"
    sign = "-" if value < timedelta(0) else ""
    return f"{sign}P{f'{days}D' if days else ''}{f'T{of_day}' if of_day else ''}"


def _scalar(value: Any, where: str) -> object:
    if isinstance(value, int) and not _SMALLEST <= value <= _LARGEST:
        raise ValueError(f"{_at(where)}an integer over 64 bits; give it as text")
    if isinstance(value, float):
        return float(value)
    if not isinstance(value, str):
        return value
    try:
        str.encode(value)
    except UnicodeEncodeError as error:
        raise ValueError(f"{_at(where)}half of a surrogate pair is no text") from error
    return str.__str__(value)


def _at(where: str) -> str:
    return f"at {_shown(where)}: " if where else ""


def _kind(value: object) -> str:
    kind = value if isinstance(value, type) else type(value)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def _shown(text: str) -> str:
    clean = text.encode(errors="backslashreplace").decode()
    return clean if len(clean) <= _SHOWN else f"{clean[: _SHOWN - 3]}..."


def _refuse(why: str) -> Convert:
    def refuse(_value: object) -> object:
        raise TypeError(why)

    return refuse


_KINDS: Final[tuple[tuple[Any, Convert], ...]] = (
    (UUID, str),
    (datetime, _moment),  # before date, which it is as well
    (Decimal, str),
    (date, date.isoformat),
    (time, lambda value: time.isoformat(value).replace("+00:00", "Z")),
    (timedelta, _duration),
    (Enum, lambda value: value.value),
    ((set, frozenset), _refuse("a set has no order; make it a sorted list")),
    ((bytes, bytearray, memoryview), _refuse("bytes are no text; decode them, or use base64")),
    (numbers.Integral, int),
    (numbers.Rational, _refuse("a fraction is not JSON; make it a float or text")),
    (numbers.Real, float),
)
