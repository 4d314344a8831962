"""A user's id is what an identity provider gives: taken as it is, and each has a stream of its own."""

from __future__ import annotations

import enum
import random
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from commitcast import ConnectionRequest, Event, emit, user_of_stream, user_stream
from commitcast.auth import ask_user
from commitcast.errors import InvalidEvent
from commitcast.event import check_stream

from .places import App, everywhere

if TYPE_CHECKING:
    from conftest import Database

IDS = [
    "ann", "auth0|5f7c8ec7c33c6c004bbafe82", "o'brien@example.org", "CORP\\ann", "ann smith",
    "josé", "_ann", "-ann", "~ann", "a~7Eb", "100%", "a%20b", "CN=Ann,OU=x", "urn:oid:1.2~3", "u$1",
    "5*", "a|b", "a~7Cb", "spiffe://x/ann", "日本語", "🦊" * 255, "x" * 255, '"', "ann&co?x=1#y", "..", "/",
]  # fmt: skip
NO_IDS: list[Any] = [
    "", "x" * 256, "a\nb", "a\x00", "a\u2028b", "\ud800", True, 1.5, b"ann", ["ann"], object(),
]  # fmt: skip


def printable(within: str | None = None) -> Any:
    characters = st.characters(codec="utf-8") if within is None else st.sampled_from(within)
    return st.text(characters.filter(str.isprintable), min_size=1, max_size=255)


@given(printable())
def test_g7_an_id_goes_into_its_stream_and_comes_back(user: str) -> None:
    stream = user_stream(user)
    assert check_stream(stream) == stream
    assert user_of_stream(stream) == user


@given(printable("a~%7E|: 2"), printable("a~%7E|: 2"))
def test_g7_two_users_never_have_one_stream(one: str, other: str) -> None:
    assert (user_stream(one) == user_stream(other)) == (one == other)


def test_an_id_of_a_streams_own_characters_stands_as_it_is() -> None:
    for user in ("ann", "ann@example.org", "a-b_c.d:e/f+g=h", str(uuid.uuid4())):
        assert user_stream(user) == f"user:{user}"


def test_g7_ids_that_look_like_escaped_ones_are_not_taken_for_them() -> None:
    assert len({user_stream(user) for user in IDS}) == len(IDS)
    assert [user_of_stream(user_stream(user)) for user in IDS] == IDS


def test_what_is_nobodys_stream_names_no_user() -> None:
    for stream in (
        "thread:7",
        "user:",
        "user:a~zz",
        "user:~61",
        "user:a~FF",
        "user:a~0A",
        "user:~7e",
    ):
        assert user_of_stream(stream) is None


@pytest.mark.parametrize("user", NO_IDS, ids=repr)
def test_what_cannot_be_an_id_is_refused_by_its_value(user: Any) -> None:
    with pytest.raises(InvalidEvent, match="user must be"):
        user_stream(user)


@everywhere
def test_g3_every_users_stream_and_actor_are_taken_and_kept(app: App) -> None:
    events = app.place.tables.events
    with Session(app.engine) as session:
        for user in IDS:
            emit(session, user_stream(user), Event("e"), actor=user, operation=user)
        session.commit()
        session.rollback()
    assert app.place.heads() == {user_stream(user): 1 for user in IDS}
    with app.place.observer.connect() as conn:
        kept = conn.execute(events.select().with_only_columns(events.c.actor, events.c.operation))
        assert sorted(map(tuple, kept)) == sorted((user, user) for user in IDS)


@everywhere
def test_g3_the_longest_names_are_taken_whatever_is_in_them(app: App) -> None:
    """PostgreSQL's index takes 2,704 bytes a name, compressed."""
    rng = random.Random(7)
    planes = [range(0x21, 0x7F), range(0xA1, 0x250), range(0x4E00, 0x9FFF), range(0x20000, 0x2A6D0)]
    names = [
        user_stream(
            "".join(c for c in (chr(rng.choice(plane)) for _ in range(400)) if c.isprintable())[
                :255
            ]
        )
        for plane in planes
    ]
    plain = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:/@+=-"
    names.append("x" + "".join(rng.choices(plain, k=1029)))
    names.append("x" + "".join(f"~{rng.randrange(256):02X}" for _ in range(1029)))
    with Session(app.engine) as session:
        for name in names:
            emit(session, name, Event("e"))
        session.commit()
    assert app.place.heads() == dict.fromkeys(names, 1)


@everywhere
def test_names_of_classes_of_someone_elses_are_kept_as_their_text(app: App) -> None:
    class Name(str, enum.Enum):  # noqa: UP042 - which psycopg sends as the name of the member
        STREAM = "t:1"
        TYPE = "e"
        ANN = "ann"
        OF = "o"

    class Id(uuid.UUID):
        pass

    of = Id(int=7)
    events = app.place.tables.events
    with Session(app.engine) as session:
        emit(session, Name.STREAM, Event(Name.TYPE, 1), actor=Name.ANN, operation=Name.OF)
        emit(session, "t:2", Event("e", 2), actor=of)  # type: ignore[arg-type]
        emit(session, "t:3", Event("e", 3), actor=7)  # type: ignore[arg-type]
        session.commit()
    assert app.place.log() == [("t:1", 1, "e", 1), ("t:2", 1, "e", 2), ("t:3", 1, "e", 3)]
    with app.place.observer.connect() as conn:
        kept = conn.execute(
            events.select().with_only_columns(events.c.actor).order_by(events.c.data)
        )
        assert [row.actor for row in kept] == ["ann", str(of), "7"]


@pytest.mark.anyio
@pytest.mark.parametrize("user", [user for user in IDS if len(user) < 50])
async def test_g7_erasing_a_user_takes_their_stream_and_their_events_and_nobody_elses(
    database: Database, user: str
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine)
    async with AsyncSession(engine) as session:
        for one in (user, f"{user}x"):
            emit(session, coordinator.stream_of(one), Event("own"), actor="system")
            emit(session, "thread:7", Event("said"), actor=one)
        await session.commit()
    await coordinator.erase(user=user)
    streams, events = coordinator.tables.streams, coordinator.tables.events
    async with engine.connect() as conn:
        names = await conn.scalars(streams.select().with_only_columns(streams.c.name))
        assert set(names) == {"thread:7", user_stream(f"{user}x")}
        actors = await conn.scalars(events.select().with_only_columns(events.c.actor))
        assert set(actors) == {None, f"{user}x", "system"}


@pytest.mark.anyio
async def test_g7_a_user_stream_of_the_teams_own_wins_and_must_name_a_stream(
    database: Database,
) -> None:
    coordinator = database.coordinator(user_stream=lambda user: f"inbox:{len(user)}")
    assert coordinator.stream_of("auth0|7") == "inbox:7"
    async with coordinator:
        assert coordinator.operation("x", user="auth0|7").announcement.streams == ("inbox:7",)
    bad: Any
    for bad in (lambda user: f"in box:{user}", lambda _user: None):
        naming = database.coordinator(user_stream=bad)
        async with naming:
            with pytest.raises(InvalidEvent, match="is not a stream name"):
                naming.operation("x", user="ann")
        with pytest.raises(InvalidEvent, match="is not a stream name"):
            await naming.erase(user="ann")


@pytest.mark.anyio
async def test_g7_authenticate_may_return_any_id_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    request = ConnectionRequest({"headers": []})
    for user in IDS:
        assert await ask_user(lambda _, user=user: user, request) == user  # type: ignore[misc]
    given: Any
    for given, text in ((7, "7"), (uuid.UUID(int=7), str(uuid.UUID(int=7)))):
        assert await ask_user(lambda _, given=given: given, request) == text  # type: ignore[misc]
    for given in (None, "", True, False):
        assert await ask_user(lambda _, given=given: given, request) is None  # type: ignore[misc]
    assert not caplog.records
    for given in ("x" * 256, "a\nb", {"sub": "ann"}, object(), 1.5):
        caplog.clear()
        assert await ask_user(lambda _, given=given: given, request) is None  # type: ignore[misc]
        [line] = caplog.records
        assert "no user's id" in line.message
