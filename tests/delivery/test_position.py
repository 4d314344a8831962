"""G7: who may read a stream now need not be allowed what was said in it before."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from commitcast import Position

from .live import say, serving

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Database

pytestmark = pytest.mark.anyio
SSE = "/realtime/sse?stream=thread:7"
JOINED = 5


def since_joined(user: str, stream: str, position: Position | None) -> bool:
    """The pattern of the guide."""
    return position is None or position.offset >= JOINED


async def since_joined_later(user: str, stream: str, *, position: Position | None) -> bool:
    return since_joined(user, stream, position)


def with_default(user: str, stream: str, position: Position | None = None) -> bool:
    return since_joined(user, stream, position)


def wrapped(authorize: Callable[..., bool]) -> Callable[..., bool]:
    @functools.wraps(authorize)
    def wrapper(*arguments: Any, **options: Any) -> bool:
        return authorize(*arguments, **options)

    return wrapper


class Membership:
    def may_read(self, user: str, stream: str, position: Position | None) -> bool:
        return since_joined(user, stream, position)

    __call__ = may_read


@pytest.mark.parametrize(
    "authorize",
    [
        since_joined,
        since_joined_later,
        with_default,
        wrapped(since_joined),
        Membership().may_read,
        Membership(),
        functools.partial(since_joined),
    ],
)
async def test_g7_authorize_sees_the_position_and_so_keeps_back_what_was_before(
    database: Database, authorize: Callable[..., Any]
) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, drain_s=0, page_events=2)
    await say(engine, "thread:7", *range(1, 11))
    async with serving(coordinator, authorize=authorize) as site:
        newcomer = await site.listen("thread:7")
        place = await newcomer.named("subscribed")
        epoch = place["epoch"]
        for cursor in ("earliest", "new:0", f"{epoch}:0", f"{epoch}:4"):
            client = await site.get(f"{SSE}&cursor={cursor}")
            assert client.status == 403
            assert "without a cursor" in (await client.problem())["detail"]
            client = await site.get(SSE, headers={"Last-Event-ID": cursor})
            assert client.status == (200 if cursor == "earliest" else 403)
        since = await site.listen("thread:7", cursor=f"{epoch}:5")
        assert (await since.named("subscribed"))["recovered"] is True
        assert await since.numbers(5) == [6, 7, 8, 9, 10]
        # one that cannot be read leads nowhere: what comes from now on
        lost = await site.listen("thread:7", headers={"Last-Event-ID": "of another server"})
        assert (await lost.named("subscribed"))["recovered"] is False
        await say(engine, "thread:7", 11)
        for client in (newcomer, since, lost):
            assert await client.numbers(1) == [11]


async def test_g7_a_position_of_another_epoch_is_none_of_this_one(database: Database) -> None:
    engine = database.engine()
    coordinator = database.coordinator(engine, drain_s=0)
    await say(engine, "thread:7", *range(1, 11))
    async with serving(coordinator, authorize=since_joined) as site:
        client = await site.listen("thread:7", cursor="0123456789abcdef:7")
        assert (await client.named("subscribed"))["recovered"] is False
        await say(engine, "thread:7", 11)
        assert await client.numbers(1) == [11]


async def test_g7_every_page_and_keep_alive_is_asked_about_with_its_own_position(
    database: Database,
) -> None:
    engine = database.engine()
    asked: list[Position | None] = []

    def authorize(_user: str, _stream: str, position: Position | None) -> bool:
        asked.append(position)
        return True

    coordinator = database.coordinator(engine, drain_s=0, page_events=2, keep_alive_s=0.3)
    await say(engine, "thread:7", *range(1, 6))
    async with serving(coordinator, authorize=authorize) as site:
        client = await site.listen("thread:7", cursor="earliest")
        epoch = (await client.named("subscribed"))["epoch"]
        assert await client.numbers(5) == [1, 2, 3, 4, 5]
        await client.comment()
        places = [Position("new", 0), *(Position(epoch, n) for n in (0, 2, 4, 5))]
        assert [place for place, _ in itertools.groupby(asked)] == places


async def test_g7_authorize_of_two_parameters_is_given_two(database: Database) -> None:
    def authorize(user: str, stream: str, /, *others: object, **options: object) -> bool:
        return not others and not options

    async with serving(database.coordinator(drain_s=0), authorize=authorize) as site:
        await (await site.listen("thread:7")).named("subscribed")


@pytest.mark.parametrize(
    "authorize", [lambda _user: True, lambda _user, _stream, _db: True, lambda *, _user: True]
)
async def test_g7_an_authorize_that_cannot_be_asked_is_refused_when_the_app_is_made(
    database: Database, authorize: Callable[..., bool]
) -> None:
    with pytest.raises(ValueError, match=r"authorize must take \(user, stream\) or"):
        database.coordinator().asgi(authorize=authorize)
