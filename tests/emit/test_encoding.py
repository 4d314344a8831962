"""What a driver or a library made of JSON's types, anywhere in a value, is encoded as those are."""

from __future__ import annotations

import collections
import enum
import numbers
import sqlite3
import types
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple
from zoneinfo import ZoneInfo

import orjson
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import DateTime, Interval, Numeric, Uuid, cast, literal, select, text
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    make_transient_to_detached,
    mapped_column,
)

from commitcast import Event, RollbackNotification, emit
from commitcast.attempt import request_hash
from commitcast.encoding import _Walk, plain, to_json
from commitcast.errors import InvalidEvent
from commitcast.event import CommittedEvent, encode
from commitcast.protocols import sse

from .places import App, everywhere

ID = uuid.UUID("12345678-1234-5678-1234-567812345678")
NOON = datetime(2026, 1, 2, 12, 0, 0, 5, tzinfo=UTC)


class Id(uuid.UUID):
    """As asyncpg has one of its own."""


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "what str() makes of it is not what it is"


class Whole(int):
    pass


class Number(float):
    pass


class Money(Decimal):
    pass


class Moment(datetime):
    pass


class Day(date):
    pass


class Clock(time):
    pass


class Span(timedelta):
    pass


class Items(list[Any]):
    pass


class Pair(tuple[Any, ...]):
    __slots__ = ()


class Point(NamedTuple):
    x: Any
    y: Any


class Kind(str, enum.Enum):  # noqa: UP042 - as teams write it
    NEW = "new"


class Level(enum.IntEnum):
    HIGH = 3


@numbers.Integral.register
class Counted:
    """As numpy's integers are."""

    def __int__(self) -> int:
        return 7


@dataclass
class Part:
    name: Any
    hidden: ClassVar[int] = 1
    _secret: int = 2


@dataclass
class Whatever:
    value: Any
    type: str = "e"


class Model(pydantic.BaseModel):
    type: str = "e"
    id: uuid.UUID
    value: Any


SCALARS: list[tuple[Any, Any]] = [
    (Id(ID.hex), str(ID)),
    (Text("x"), "x"),
    (Kind.NEW, "new"),
    (Level.HIGH, 3),
    (Whole(5), 5),
    (Counted(), 7),
    (Number(1.5), 1.5),
    (Money("1.10"), "1.10"),
    (Moment(2026, 1, 2, 12, 0, 0, 5, tzinfo=UTC), "2026-01-02T12:00:00.000005Z"),
    (Moment(2026, 7, 2, 12, tzinfo=ZoneInfo("Europe/Berlin")), "2026-07-02T12:00:00+02:00"),
    (Moment(2026, 1, 2, 12), "2026-01-02T12:00:00"),
    (Day(2026, 1, 2), "2026-01-02"),
    (Clock(1, 2, 3), "01:02:03"),
    (time(1, 2, 3, 10_000), "01:02:03.010000"),
    (time(1, 2, 3, tzinfo=UTC), "01:02:03Z"),
    (time(1, 2, 3, tzinfo=timezone(timedelta(hours=-3))), "01:02:03-03:00"),
    (timedelta(days=400, hours=1, seconds=5, microseconds=30), "P400DT1H5.00003S"),
    (timedelta(minutes=90), "PT1H30M"),
    (Span(days=1), "P1D"),
    (-timedelta(seconds=5), "-PT5S"),
    (timedelta(0), "PT0S"),
]

OBJECTS: list[tuple[Any, Any]] = [
    (Items([Pair((1, Id(ID.hex)))]), [[1, str(ID)]]),
    (Point(1, Id(ID.hex)), {"x": 1, "y": str(ID)}),
    (types.MappingProxyType({"a": Whole(1)}), {"a": 1}),
    (collections.OrderedDict(a=Point(1, 2)), {"a": {"x": 1, "y": 2}}),
    (collections.defaultdict(list, a=[Number(1.5)]), {"a": [1.5]}),
    (collections.ChainMap({"a": 1}), {"a": 1}),
    (collections.UserDict({"a": Whole(1)}), {"a": 1}),
    (Part(Id(ID.hex)), {"name": str(ID)}),
    (Part({Id(ID.hex): Kind.NEW}), {"name": {str(ID): "new"}}),
]


@pytest.mark.parametrize(("value", "expected"), [*SCALARS, *OBJECTS], ids=repr)
def test_the_class_that_a_value_has_of_someone_elses_does_not_matter(
    value: Any, expected: Any
) -> None:
    for held, wanted in [
        (value, expected),
        ({"a": [{"b": value}]}, {"a": [{"b": expected}]}),
        ((value,), [expected]),
        (Point(value, 0), {"x": expected, "y": 0}),
        (Part(value), {"name": expected}),
        ({1: value}, {"1": expected}),
    ]:
        assert orjson.loads(to_json(held, "it")) == wanted
        assert request_hash(held) == request_hash(wanted) or "T12" in str(expected)
    assert orjson.loads(encode("t:1", Event("e", value)).data_json) == expected
    assert orjson.loads(encode("t:1", Whatever(value)).data_json) == {"value": expected}


@pytest.mark.parametrize(("value", "expected"), SCALARS, ids=repr)
def test_nor_does_it_in_a_key(value: Any, expected: Any) -> None:
    name = expected if isinstance(expected, str) else orjson.dumps(expected).decode()
    for held, wanted in [({value: 1}, {name: 1}), ([{"a": {value: {value: value}}}],
                                                  [{"a": {name: {name: expected}}}])]:  # fmt: skip
        assert orjson.loads(to_json(held, "it")) == wanted


def test_a_model_takes_a_uuid_of_a_drivers_own_class() -> None:
    made = encode("t:1", Model(id=Id(ID.hex), value={"by": [Id(ID.hex)]}))
    assert orjson.loads(made.data_json) == {"id": str(ID), "value": {"by": [str(ID)]}}


def test_a_moment_is_one_request_in_whatever_time_zone_a_driver_gives_it() -> None:
    berlin, utc = NOON.astimezone(ZoneInfo("Europe/Berlin")), {"at": [NOON]}
    assert request_hash({"at": [berlin]}) == request_hash(utc)
    assert request_hash({"at": [Moment.fromtimestamp(NOON.timestamp(), UTC)]}) == request_hash(utc)
    assert request_hash({berlin: 1}) == request_hash({NOON: 1})
    assert request_hash({"at": [NOON + timedelta(microseconds=1)]}) != request_hash(utc)


def test_the_order_of_keys_is_no_part_of_a_request() -> None:
    class Request(pydantic.BaseModel):
        b: int = 2
        a: int = 1

    @dataclass
    class Asked:
        b: int = 2
        a: int = 1

    hashes = {request_hash(one) for one in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, Request(), Asked())}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "value",
    [
        {1: "a", "1": "b"},
        {True: 1, "true": 2},
        {None: 1, "null": 2},
        {ID: 1, str(ID): 2},
        {Kind.NEW: 1, Level.HIGH: 2, "3": 3},
        {Decimal(1): 1, "1": 2},
        [{"a": Part({1.0: 1, "1.0": 2})}],
        types.MappingProxyType({1: "a", "1": "b"}),
    ],
    ids=repr,
)
def test_keys_that_become_one_are_refused(value: object) -> None:
    with pytest.raises(InvalidEvent, match="two keys become"):
        encode("t:1", Event("e", value))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"a": [0, {"b": object()}]}, r"at \.a\[1\]\.b: object is not JSON"),
        ({"a": {1: {2, 3}}}, r"at \.a\.1: a set has no order"),
        ([b"x"], r"at \[0\]: bytes"),
        ({"a": 2**64}, r"at \.a: an integer over 64 bits; give it as text"),
        ([-(2**63) - 1], r"at \[0\]: an integer over 64 bits"),
        ({"a": ["\udc00"]}, r"at \.a\[0\]: half of a surrogate pair"),
        ({("a", "b"): 1}, "a key is a"),
        ({Point(1, 2): 1}, "a key is a"),
        ([Fraction(1, 3)], r"at \[0\]: a fraction"),
        (uuid.UUID, "uuid.UUID is not JSON"),
        (Part, "Part is not JSON"),
    ],
    ids=repr,
)
def test_what_is_not_json_is_refused_with_its_place(value: object, why: str) -> None:
    with pytest.raises(InvalidEvent, match=why):
        encode("t:1", Event("e", value))


def test_what_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append({"a": loop})
    mapping: dict[Any, Any] = {}
    mapping[1] = mapping
    for one in (loop, mapping, Part(loop)):
        with pytest.raises(InvalidEvent, match="holds itself"):
            encode("t:1", Event("e", one))


def test_integers_as_far_as_64_bits_go_keep_every_digit() -> None:
    for number in (2**53 + 1, 2**64 - 1, -(2**63)):
        for held in ([number], {1: [Whole(number)]}):
            assert str(number) in encode("t:1", Event("e", held)).data_json


class _Tree(enum.Enum):
    LEAF = "leaf"


_leaves = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.uuids() | st.decimals() | st.dates() | st.times() | st.timedeltas()
    | st.datetimes(timezones=st.none() | st.timezones() | st.just(UTC)) | st.sampled_from(_Tree)
)  # fmt: skip
_values = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner)
        | st.builds(Part, inner) | st.builds(Point, inner, inner)
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(_values)
def test_the_walk_says_what_the_fast_way_says(value: Any) -> None:
    fast = to_json(value, "it")
    walked = to_json(_Walk(plain).tree(value, "", 0), "it")
    assert walked == fast
    assert orjson.loads(to_json({1: value}, "it"))["1"] == orjson.loads(fast)


# --- rows -------------------------------------------------------------------------------------


@everywhere
def test_what_a_driver_returns_is_sent_as_it_is_and_as_a_row(app: App) -> None:
    columns: dict[str, Any] = {
        "id": cast(literal(str(ID)), Uuid) if app.postgresql else literal(ID, Uuid),
        "price": cast(literal("1.50"), Numeric(10, 2)),
        "note": literal("ü"),
    }
    if app.postgresql:
        columns["at"] = literal(NOON, DateTime(timezone=True))
        columns["took"] = literal(timedelta(minutes=90), Interval)
    query = select(*(column.label(name) for name, column in columns.items()))
    with Session(app.engine) as session:
        if app.postgresql:
            session.execute(text("SET LOCAL TIME ZONE 'Asia/Tokyo'"))
        row = session.execute(query).one()
        assert isinstance(row.id, uuid.UUID)
        values = row._asdict()
        emit(session, "t:1", Event("row", row))
        emit(session, "t:1", Event("mapping", [row._mapping]))
        emit(session, "t:1", Event("values", values))
        emit(session, "t:1", Event("key", {row.id: row}))
        emit(session, "t:1", Whatever(row))
        emit(session, "t:1", Model(id=row.id, value=row.id))
        emit(session, "t:1", lambda: Event("later", row))
        hashed = request_hash(row), request_hash(values)
        session.commit()
    sent = {kind: data for _, _, kind, data in app.place.log()}
    wanted = {"id": str(ID), "price": "1.50", "note": "ü"}
    if app.postgresql:
        at = sent["row"].pop("at")
        assert datetime.fromisoformat(at) == NOON
        wanted["took"] = sent["row"]["took"]
        assert wanted["took"] == "PT1H30M"
        del sent["key"][str(ID)]["at"]
        expected = {**wanted, "at": "2026-01-02T12:00:00.000005Z"}
        assert hashed == (request_hash(expected),) * 2
        for data in (sent["mapping"][0], sent["values"], sent["later"]):
            assert datetime.fromisoformat(data.pop("at")) == NOON
    else:
        assert hashed == (request_hash(wanted),) * 2
    assert sent["row"] == sent["mapping"][0] == sent["values"] == sent["later"] == wanted
    assert sent["key"] == {str(ID): wanted}


class Tables(MappedAsDataclass, DeclarativeBase):
    pass


class Saved(Tables):
    __tablename__ = "saved"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(default="x")
    type: Mapped[str] = mapped_column(default="saved")


def test_a_row_that_is_a_dataclass_is_sent_if_it_is_loaded_and_never_loaded_by_us() -> None:
    row = Saved(id=1)
    assert orjson.loads(to_json([row], "it")) == [{"id": 1, "text": "x", "type": "saved"}]
    assert orjson.loads(encode("t:1", row).data_json) == {"id": 1, "text": "x"}
    row = Saved(id=1, text="y", type="saved")
    make_transient_to_detached(row)
    del row.__dict__["id"]  # as after a commit that expires it
    for event in (row, Event("e", {"rows": [row]})):
        with pytest.raises(InvalidEvent, match=r"Saved\.id is not loaded"):
            encode("t:1", event)


@everywhere
def test_a_row_with_two_columns_of_one_name_is_refused(app: App) -> None:
    with Session(app.engine) as session:
        row = session.execute(text("SELECT 1 AS a, 2 AS a")).one()
        for one in (row, [row._mapping]):
            with pytest.raises(InvalidEvent, match="one name"):
                emit(session, "t:1", Event("e", one))


def test_a_row_of_sqlites_own_is_an_object() -> None:
    conn = sqlite3.connect(":memory:")
    conn.row_factory = sqlite3.Row
    row = conn.execute("SELECT 1 AS a, 'x' AS b").fetchone()
    conn.close()
    assert orjson.loads(to_json({"row": row}, "it")) == {"row": {"a": 1, "b": "x"}}


@pytest.mark.anyio
@pytest.mark.parametrize("driver", ["postgresql+asyncpg"])
async def test_a_record_of_asyncpgs_own_is_an_object(app: App) -> None:
    assert app.async_engine is not None
    async with app.async_engine.connect() as conn:
        raw: Any = (await conn.get_raw_connection()).driver_connection
        record = await raw.fetchrow(f"SELECT 1 AS a, '{ID}'::uuid AS b, '01:02+03'::timetz AS c")
        twice = await raw.fetchrow("SELECT 1 AS a, 2 AS a")
    wanted = {"a": 1, "b": str(ID), "c": "01:02:00+03:00"}
    assert orjson.loads(to_json(record, "it")) == wanted
    assert request_hash(record) == request_hash(wanted)
    with pytest.raises(InvalidEvent, match="one name"):
        to_json(twice, "it")


# --- lines ------------------------------------------------------------------------------------

BREAKS = "\x85\u2028\u2029"


def test_no_text_of_ours_is_broken_by_a_reader_that_splits_lines_as_python_does() -> None:
    data = {f"k{BREAKS}": [f"é{BREAKS}\r\n\x0b\x0c\x1c\x1d\x1e"], "m": Whatever(BREAKS)}
    for made in (encode("t:1", Event("e", data)).data_json, to_json({1: data}, "it").decode()):
        assert len(made.splitlines()) == 1
    assert orjson.loads(encode("t:1", Event("e", data)).data_json)["k" + BREAKS] == [
        f"é{BREAKS}\r\n\x0b\x0c\x1c\x1d\x1e"
    ]


def test_a_frame_of_data_that_was_written_before_is_one_line_too() -> None:
    event = CommittedEvent(
        stream="t:1", epoch="a", offset=1, id="i", type="e", time="", actor=f"ü{BREAKS}",
        operation=BREAKS, data_json=f'"{BREAKS}"',
    )  # fmt: skip
    assert len(event.frame.splitlines()) == 1
    assert len(sse.encode_event(event).decode().splitlines()) == 3
    found = orjson.loads(event.frame)
    assert (found["data"], found["actor"], found["operation"]) == (BREAKS, f"ü{BREAKS}", BREAKS)


def test_a_rollback_notification_is_one_line() -> None:
    notification = RollbackNotification(
        operation_id="o", attempt=1, transaction_id=None, failed_operation="save",
        error_message="Boom", affected_layers=(), recovery_actions=(), user_message=BREAKS,
        retract=(), time="",
    )  # fmt: skip
    [event] = notification.encoded(("t:1",), None)
    assert len(event.data_json.splitlines()) == 1
    assert orjson.loads(event.data_json)["user_message"] == BREAKS


def test_the_limit_counts_the_text_that_is_stored() -> None:
    with pytest.raises(InvalidEvent, match="takes 14 bytes"):
        encode("t:1", Event("e", "\u2028\u2029"), max_bytes=13)
