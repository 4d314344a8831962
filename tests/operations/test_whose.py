"""Whose operation it is: said by who asks, closed by default; and found as it was announced."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from commitcast import AlreadyCommitted, user_stream
from commitcast.errors import IdempotencyConflict, InvalidEvent

from .application import App, running, save

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import Database

    from .judge import Judge

pytestmark = pytest.mark.anyio

USERS = ["auth0|5f7c", "o'brien@x.org", "CORP\\ann", "ann smith", "josé", "🦊" * 255, "x" * 255]


@pytest.fixture
async def app(database: Database, driver: str, judge: Judge) -> AsyncIterator[App]:
    streams = ["thread:7", *map(user_stream, [*USERS, "ann", "bob"])]
    async with running(database.engine(driver), judge, database.coordinator, streams) as found:
        yield found


async def saved(app: App, **options: Any) -> str:
    async with app.entered(**options) as op, op.begin() as session:
        save(session, op)
        op.result = {"id": 3}
    return op.id


async def test_g8_committed_work_is_found_by_what_it_was_announced_with(app: App) -> None:
    find: Any = app.coordinator.find_operation
    key: Any
    for key in ("k", uuid.uuid4(), uuid.uuid4().hex, "auth0|5", "ü" * 255):
        of = await saved(app, id=key)
        found = await find("save", id=key, user="ann")
        assert found is not None
        assert (found.id, found.outcome, found.key) == (of, "committed", str(key))
        assert await find(operation_id=of, user="ann") == found
        for other in ({"name": "send"}, {"user": "bob"}, {"id": "other"}):
            assert await find(**{"name": "save", "id": key, "user": "ann", **other}) is None
        assert await find(operation_id=of, user="bob") is None
    assert await app.outcomes() == ["committed"] * 5


async def test_g8_what_cannot_be_an_id_is_refused_and_not_answered_with_none(app: App) -> None:
    find: Any = app.coordinator.find_operation
    of = await saved(app, id="k")
    for arguments in (
        {"operation_id": "k"},
        {"operation_id": of.upper()},
        {"operation_id": f"{of}.1"},
        {"operation_id": uuid.UUID(of)},
        {"operation_id": of, "id": "k"},
        {"operation_id": of, "name": "save"},
        {"name": of},
        {"name": "k"},
        {"id": "k"},
        {"name": "save", "id": ""},
        {"name": "", "id": "k"},
        {},
    ):
        with pytest.raises(InvalidEvent):
            await find(**arguments, user="ann")
    with pytest.raises(TypeError):
        await find("save", "k")
    assert await app.outcomes() == ["committed"]


async def test_g7_nobody_given_is_not_everybody(app: App) -> None:
    of = await saved(app, id="k")
    coordinator: Any = app.coordinator
    for nobody in ({}, {"user": None}, {"user": "ann", "everyone": True}, {"user": ""}):
        with pytest.raises(InvalidEvent):
            await coordinator.find_operation(operation_id=of, **nobody)
        with pytest.raises(InvalidEvent):
            await coordinator.find_operation("save", id="k", **nobody)
        with pytest.raises(InvalidEvent):
            await coordinator.operations("committed", **nobody)
    assert [one.id for one in await coordinator.operations("committed", user="ann")] == [of]
    assert await coordinator.operations("committed", user="bob") == []
    assert [one.id for one in await coordinator.operations("committed", everyone=True)] == [of]
    found = await coordinator.find_operation(operation_id=of, everyone=True)
    assert found is not None
    assert await app.outcomes() == ["committed"]


async def test_g7_a_key_that_all_share_is_only_made_by_who_says_so(app: App) -> None:
    with pytest.raises(InvalidEvent, match="everyone=True"):
        app.operation(user=None, id="k")
    with pytest.raises(InvalidEvent, match="everyone=True"):
        app.operation(user="ann", id="k", everyone=True)
    with pytest.raises(InvalidEvent, match="everyone=True"):
        await app.coordinator.execute_coordinated_operation("save", print, stream="t:1", id="k")
    shared = await saved(app, user=None, id="k", everyone=True)
    own = await saved(app, user="ann", id="k")
    assert shared != own
    with pytest.raises(AlreadyCommitted):
        await saved(app, user=None, id="k", everyone=True)
    find: Any = app.coordinator.find_operation
    found = await find("save", id="k", everyone=True)
    assert found is not None
    assert (found.id, found.actor) == (shared, None)
    assert await find(operation_id=shared, user="ann") is None
    assert await app.outcomes() == ["committed"] * 2


async def test_g7_every_printable_id_has_operations_and_is_told_on_its_own_stream(
    app: App,
) -> None:
    for user in USERS:
        of = await saved(app, user=user, id="k")
        found = await app.coordinator.find_operation("save", id="k", user=user)
        assert found is not None
        assert (found.id, found.actor) == (of, user)
        assert [o.id for o in await app.coordinator.operations("committed", user=user)] == [of]
        with pytest.raises(ZeroDivisionError):
            async with app.entered(user=user, stream=None):
                _ = 1 / 0
    assert len(await app.outcomes()) == 2 * len(USERS)
    told = [stream for stream, _ in app.judge.notifications()]
    assert sorted(told) == sorted(map(user_stream, USERS))


async def test_g7_a_user_is_the_same_by_the_number_or_uuid_that_a_driver_gives(app: App) -> None:
    class Id(uuid.UUID):
        pass

    user: Any
    for user, text in ((7, "7"), (Id(int=7), str(uuid.UUID(int=7)))):
        of = await saved(app, user=user, id="k")
        with pytest.raises(AlreadyCommitted) as caught:
            await saved(app, user=text, id="k")
        assert caught.value.operation_id == of
        found = await app.coordinator.find_operation("save", id="k", user=user)
        assert found is not None
        assert found.actor == text
        assert len(await app.coordinator.operations("committed", user=user)) == 1
    assert await app.outcomes() == ["committed"] * 2


async def test_g6_a_retry_with_equal_values_of_another_class_is_the_same_request(
    app: App,
) -> None:
    class Id(uuid.UUID):
        pass

    of = uuid.uuid4()
    await saved(app, id="k", request={"doc": of, 1: [Id(of.hex)]})
    for same in ({"doc": Id(of.hex), 1: [of]}, {"1": [str(of)], "doc": str(of)}):
        with pytest.raises(AlreadyCommitted):
            await saved(app, id="k", request=same)
    with pytest.raises(IdempotencyConflict):
        await saved(app, id="k", request={"doc": uuid.uuid4(), 1: [of]})
    with pytest.raises(InvalidEvent, match="two keys become"):
        app.operation(id="k2", request={1: 1, "1": 2})
    assert await app.outcomes() == ["committed"]
