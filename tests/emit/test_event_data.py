"""What an event may hold, and how it arrives."""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal

import pydantic
import pytest
from sqlalchemy.orm import Session

from commitcast import Event, emit
from commitcast.errors import InvalidEvent
from commitcast.event import encode

from .places import App, everywhere


class Colour(enum.Enum):
    RED = "red"


class Author(pydantic.BaseModel):
    name: str
    born: date


class MessageCreated(pydantic.BaseModel):
    type: Literal["message.created"] = "message.created"
    id: uuid.UUID
    price: Decimal
    at: datetime
    author: Author
    tags: frozenset[str] = frozenset()


@dataclass
class Part:
    amount: Decimal
    colour: Colour


@dataclass
class OrderPlaced:
    id: int
    parts: list[Part] = field(default_factory=list)
    author: Author | None = None
    type: str = "order.placed"


ID = uuid.UUID("12345678-1234-5678-1234-567812345678")
NOON = datetime(2026, 1, 2, 12, 0, 0, 123456, tzinfo=timezone.utc)  # noqa: UP017 - as teams write it
AUTHOR = Author(name="Ünal 🦊", born=date(1990, 5, 6))

CASES: list[tuple[object, str, Any]] = [
    (
        MessageCreated(id=ID, price=Decimal("10.10"), at=NOON, author=AUTHOR),
        "message.created",
        {
            "id": str(ID),
            "price": "10.10",
            "at": "2026-01-02T12:00:00.123456Z",
            "author": {"name": "Ünal 🦊", "born": "1990-05-06"},
            "tags": [],
        },
    ),
    (
        OrderPlaced(1, [Part(Decimal("0.1"), Colour.RED)], AUTHOR),
        "order.placed",
        {
            "id": 1,
            "parts": [{"amount": "0.1", "colour": "red"}],
            "author": {"name": "Ünal 🦊", "born": "1990-05-06"},
        },
    ),
    (Event("e", {"m": AUTHOR}), "e", {"m": {"name": "Ünal 🦊", "born": "1990-05-06"}}),
    (
        Event(
            "e",
            {
                "aware": NOON,
                "elsewhere": datetime(2026, 1, 2, 12, tzinfo=timezone(timedelta(hours=2))),
                "naive": datetime(2026, 1, 2, 12),  # noqa: DTZ001 - naive on purpose
                "date": date(2026, 1, 2),
                "time": time(1, 2, 3),
                "uuid": ID,
                "decimal": Decimal("1E+3"),
                "enum": Colour.RED,
                "tuple": (1, None, True, 1.5),
                3: "a key that is a number",
            },
        ),
        "e",
        {
            "aware": "2026-01-02T12:00:00.123456Z",
            "elsewhere": "2026-01-02T12:00:00+02:00",
            "naive": "2026-01-02T12:00:00",
            "date": "2026-01-02",
            "time": "01:02:03",
            "uuid": str(ID),
            "decimal": "1E+3",
            "enum": "red",
            "tuple": [1, None, True, 1.5],
            "3": "a key that is a number",
        },
    ),
    (Event("e", {"text": "\x00 \x01 \u2028 \\u0000 \" ' % %s :x {} $1 ?"}), "e", None),
    (Event("e", {"text": "日本語 🇩🇪 e\u0301 \u202e"}), "e", None),
    (Event("e", []), "e", []),
    (Event("e", None), "e", None),
    (Event("e", 2**63), "e", 2**63),
    (Event("e"), "e", {}),
]


@everywhere
def test_g3_data_arrives_as_it_was_given(app: App) -> None:
    with Session(app.engine) as session:
        for event, _, _ in CASES:
            emit(session, "thread:7", event)
        session.commit()
    found = app.place.log()
    assert len(found) == len(CASES)
    for (_, _, kind, data), (event, expected_kind, expected) in zip(found, CASES, strict=True):
        wanted = event.data if expected is None and isinstance(event, Event) else expected
        assert (kind, data) == (expected_kind, wanted)


@everywhere
def test_g2_the_size_limit_is_exact(app: App) -> None:
    with Session(app.engine) as session:
        emit(session, "thread:7", Event("e", "x" * (65_536 - 2)))
        emit(session, "thread:7", Event("e", "ü" * (32_768 - 1)))
        for too_large in ("x" * (65_536 - 1), "ü" * 32_768):
            with pytest.raises(InvalidEvent, match="65536"):
                emit(session, "thread:7", Event("e", too_large))
        session.commit()
    assert len(app.sent()) == 2


@everywhere
def test_g4_a_large_transaction(app: App) -> None:
    with Session(app.engine) as session:
        for i in range(3000):
            emit(session, f"thread:{i % 300}", Event("e", i), actor=f"user:{i}")
        session.commit()
    assert set(app.place.heads().values()) == {10}
    assert len(app.sent()) == 3000


@everywhere
def test_labels_travel_with_the_event(app: App) -> None:
    events = app.place.tables.events
    with Session(app.engine) as session:
        emit(session, "t:1", Event("e"), actor="Ünal 'x'", operation="%s", trace_parent="00-a-b-01")
        emit(session, "t:1", Event("e"))
        emit(session, "t:1", lambda: Event("e"), actor="a", operation="o")
        session.commit()
    columns = (events.c.actor, events.c.operation, events.c.trace_parent)
    with app.place.observer.connect() as conn:
        found = conn.execute(events.select().with_only_columns(*columns).order_by(events.c.offset))
        assert [tuple(row) for row in found] == [
            ("Ünal 'x'", "%s", "00-a-b-01"),
            (None, None, None),
            ("a", "o", None),
        ]


def test_numbers_that_json_has_no_word_for_become_null() -> None:
    """As in JavaScript's JSON.stringify; see `encode`."""
    data = {"x": float("nan"), "y": [float("inf"), float("-inf")]}
    assert encode("t:1", Event("e", data)).data_json == '{"x":null,"y":[null,null]}'


def test_a_lone_surrogate_is_refused_wherever_it_stands() -> None:
    class Model(pydantic.BaseModel):
        type: str = "e"
        text: str = "\ud800"

        model_config = pydantic.ConfigDict(validate_default=False)

    for event in (Event("e", ["\ud800"]), Event("e", {"\udfff": 1}), Model.model_construct()):
        with pytest.raises(InvalidEvent):
            encode("t:1", event)


def test_data_is_taken_when_it_is_emitted() -> None:
    data = {"x": 1}
    encoded = encode("t:1", Event("e", data))
    data["x"] = 2
    assert encoded.data_json == '{"x":1}'
