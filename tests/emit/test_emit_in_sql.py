"""`SELECT commitcast.emit(…)`: as strict as `emit`, and the same text in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from commitcast import Event
from commitcast.errors import InvalidEvent
from commitcast.event import check_stream, check_type, encode
from commitcast.schema import Naming, Tables
from commitcast.telemetry import CoordinationEventType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from .places import Place

CALL = text("SELECT commitcast.emit(:stream, :type, CAST(:data AS jsonb))")
TABLES = Tables(Naming.of("postgresql"))


@pytest.fixture
def engine(place_of: Callable[[str], Place]) -> Iterator[Engine]:
    place = place_of("postgresql")
    engine = create_engine(place.url.set(drivername="postgresql+psycopg"), poolclass=NullPool)
    yield engine
    engine.dispose()


def send(engine: Engine, stream: str, kind: str, data: str = "{}") -> bool:
    """Whether the function takes it; what it refuses it says is Commitcast's."""
    with engine.connect() as conn:
        try:
            conn.execute(CALL, {"stream": stream, "type": kind, "data": data})
        except DBAPIError as error:
            if "commitcast: " in str(error.orig):
                return False
            raise
        conn.commit()
        return True


def stored(engine: Engine) -> list[str]:
    events = TABLES.events
    with engine.connect() as conn:
        return list(conn.scalars(select(events.c.data).order_by(events.c.offset)))


def takes(check: Callable[[str], Any], value: str) -> bool:
    try:
        check(value)
    except InvalidEvent:
        return False
    return True


@pytest.mark.parametrize(
    "kind",
    [
        *map(str, CoordinationEventType), "commitcast.erased", "commitcast.", "commitcast",
        "Commitcast.x", "transaction_rolled_back2", "a", "a.b-c:d_e", "7", "", "é", "a b", "a\n",
        "x" * 100, "x" * 101,
    ],
)  # fmt: skip
def test_g6_the_types_that_emit_refuses_are_refused(engine: Engine, kind: str) -> None:
    assert send(engine, "thread:7", kind) is takes(check_type, kind)


@pytest.mark.parametrize(
    "stream",
    [
        "thread:7", "a.b_c:d/e@f+g=h-i", "7", "-a", ":a", "", "a b", "é", "a\n", "a;b", "a'b", "\u0430nn",
        "x" * 200, "x" * 201, "x" * 1030, "x" * 1031, "x" + "~C3" * 1029, "x" + "~C3" * 1030, "x" + "~c3" * 344,
    ],
)  # fmt: skip
def test_g7_the_names_that_emit_refuses_are_refused(engine: Engine, stream: str) -> None:
    assert send(engine, stream, "e") is takes(check_stream, stream)


def test_a_user_id_that_was_encoded_into_a_name_is_taken(engine: Engine) -> None:
    assert send(engine, "user:auth0~7c5f7c", "e")
    assert not send(engine, "~7c", "e")


@pytest.mark.parametrize(
    "value",
    [
        {"text": 'a, b: c "quoted, also: this" \\, \\\\'},
        {"a": [1, {"b": [True, None, -1.5]}], "c": {}, "d": []},
        {"": ", ", "é, ": "ü: 漢 😀 \x7f"},
        "\n\r\t\b\f\x01\x1f\x0b/",
        [[], [[]], [{"k": ": "}]],
        [", ", ": ", "\\", '"', '\\", "'],
        None,
        0.1,
        2**53 + 1,
        2**64 - 1,
        -(2**63),
    ],
)
def test_what_is_stored_is_what_python_would_have_stored(engine: Engine, value: Any) -> None:
    pretty = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    assert send(engine, "thread:7", "e", pretty)
    assert stored(engine) == [encode("thread:7", Event("e", value)).data_json]


def test_nothing_that_a_client_takes_for_the_end_of_a_line_is_stored(engine: Engine) -> None:
    data = "".join(chr(n) for n in range(1, 0x3000) if not 0xD800 <= n <= 0xDFFF)
    assert send(engine, "thread:7", "e", orjson.dumps([data]).decode())
    [found] = stored(engine)
    assert found.splitlines() == [found]
    assert orjson.loads(found) == [data]


@pytest.mark.parametrize("number", ["1e400", "-1e400", "2e308"])
def test_a_number_that_no_client_could_read_is_refused(engine: Engine, number: str) -> None:
    assert not send(engine, "thread:7", "e", f'{{"deep": [{{"n": {number}}}]}}')
    assert send(engine, "thread:7", "e", '{"n": 1.7976931348623157e308, "m": 1e-400}')


@pytest.mark.parametrize("inner", ["1", "[]", "{}", '{"k": 1}'])
@pytest.mark.parametrize("deep", [252, 253, 254, 255, 2000])
def test_what_is_too_deep_for_a_reader_in_python_is_refused(
    engine: Engine, deep: int, inner: str
) -> None:
    """A relay that cannot decode an event would try it for ever."""
    data = "[" * deep + inner + "]" * deep
    levels = deep + (inner != "1")
    assert send(engine, "thread:7", "e", data) == (levels <= 254)
    value: Any = orjson.loads(inner)
    for _ in range(deep):
        value = [value]
    if (deep, inner) != (254, "[]"):  # orjson 3.11.6 does not count an empty list
        assert takes(lambda _: encode("thread:7", Event("e", value)), "") == (levels <= 254)


def test_g10_the_limit_is_that_of_what_is_stored(engine: Engine) -> None:
    numbers = ",".join("1" for _ in range(32_767))
    assert send(engine, "thread:7", "e", f"[{numbers},1]".replace(",1]", "]"))
    assert len(stored(engine)[0]) == 65_535
    assert not send(engine, "thread:7", "e", f"[{numbers},11]")
    assert not send(engine, "thread:7", "e", '"' + "x" * 65_535 + '"')
    assert not send(engine, "thread:7", "e", '"' + "x" * 10_000_000 + '"')
