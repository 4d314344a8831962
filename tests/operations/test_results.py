"""A retry is answered with what the first call had, or the first call does not commit."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from commitcast import AlreadyCommitted, Event, OperationEnded
from commitcast.errors import InvalidEvent

from .application import App, Saved, save

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncSession

pytestmark = pytest.mark.anyio


class Id(uuid.UUID):
    """As asyncpg has one of its own."""


@dataclass
class Answer:
    """What a function of the application's may return."""

    id: Id
    row: object = None


OF = Id(int=7)
COUNTS = "counts"


async def work(session: AsyncSession) -> Saved:
    """What an application does: it returns its row."""
    session.add(row := Saved(operation="", attempt=1))
    return row


def returns(value: object) -> Callable[[AsyncSession], object]:
    async def do(session: AsyncSession) -> object:
        await work(session)
        return value

    return do


async def execute(app: App, do: Callable[..., Any], **options: Any) -> Any:
    options = {"user": "ann", "stream": "thread:7", "id": "k", **options}
    return await app.coordinator.execute_coordinated_operation("save", do, **options)


async def retried(app: App, **options: Any) -> Any:
    with pytest.raises(AlreadyCommitted) as caught:
        await execute(app, work, **options)
    return caught.value.result


async def test_g8_a_row_is_returned_and_the_retry_is_answered_with_what_is_made_of_it(
    app: App,
) -> None:
    row = await execute(app, work, result=lambda row: {"id": row.id, "at": (1, OF)})
    assert isinstance(row, Saved)
    assert await retried(app) == {"id": row.id, "at": [1, str(OF)]}


async def test_g8_what_can_be_stored_is_what_the_retry_has(app: App) -> None:
    can: list[tuple[object, object]] = [
        ({"id": OF}, {"id": str(OF)}),
        (Answer(OF), {"id": str(OF), "row": None}),
        ([OF], [str(OF)]),
        (0, 0),
        (False, False),
        ("", ""),
        ([], []),
        (None, None),
    ]
    for nth, (value, stored) in enumerate(can):
        assert await execute(app, returns(value), id=f"k{nth}") == value
        assert await retried(app, id=f"k{nth}") == stored


async def test_g6_a_result_that_a_retry_would_not_have_keeps_the_first_call_from_committing(
    app: App,
) -> None:
    loop: list[Any] = []
    loop.append(loop)
    bad: list[tuple[Callable[..., Any], dict[str, Any], type[Exception], str]] = [
        (work, {}, InvalidEvent, "Saved is not JSON.*a retry is answered with it"),
        (returns(Answer(OF, object())), {}, InvalidEvent, r"at \.row: object is not JSON"),
        (returns({1: 1, "1": 2}), {}, InvalidEvent, "two keys become"),
        (returns(loop), {}, InvalidEvent, "holds itself"),
        (returns("x" * 70_000), {}, InvalidEvent, "takes 70002 bytes"),
        (returns(float("nan")), {}, InvalidEvent, "would be null"),
        (work, {"result": lambda row: row}, InvalidEvent, "Saved is not JSON"),
        (work, {"result": lambda _row: float("inf")}, InvalidEvent, "would be null"),
        (work, {"result": lambda row: row.nothing}, AttributeError, "nothing"),
        (work, {"result": returns(1)}, InvalidEvent, "coroutine is not JSON"),
    ]
    for nth, (do, options, error, why) in enumerate(bad):
        with pytest.raises(error, match=why):
            await execute(app, do, id=f"k{nth}", **options)
        assert await app.coordinator.find_operation("save", id=f"k{nth}", user="ann") is not None
    notices = [data["failed_operation"] for _, data in app.judge.notifications()]
    assert notices == ["save"] * 2 * len(bad)
    assert await app.coordinator.operations("committed", everyone=True) == []
    async with app.session() as session:
        assert (await session.execute(Saved.__table__.select())).all() == []


async def test_g8_without_a_key_there_is_no_retry_and_any_row_may_be_returned(app: App) -> None:
    row = await execute(app, work, id=None)
    assert isinstance(row, Saved)
    other = await execute(app, work, id=None, result=lambda row: row.id)
    kept = await app.coordinator.operations("committed", user="ann")
    assert sorted(one.result_json or "" for one in kept) == ["", str(other.id)]


async def test_g8_a_result_that_comes_after_the_commit_is_refused(app: App) -> None:
    with pytest.raises(OperationEnded, match="set it before its commit"):
        async with app.entered(id="k") as op:
            async with op.begin() as session:
                save(session, op)
                op.result = {"id": 1}
            op.result = {"id": 2}
    assert op.result == {"id": 1}
    assert await retried(app) == {"id": 1}
    with pytest.raises(OperationEnded):
        async with app.entered(id="bound") as op, app.session() as session:
            op.bind(session)
            save(session, op)
            await session.commit()
            op.result = {"id": 2}
    async with app.entered(id="in time") as op:
        op.result = "before begin()"
        async with op.begin() as session:
            save(session, op)
    with pytest.raises(OperationEnded):
        op.result = 3
    assert await app.outcomes() == ["committed"] * 3


@pytest.mark.parametrize("result", [float("nan"), lambda: float("-inf")], ids=["value", "function"])
async def test_g8_a_result_that_json_has_no_word_for_is_refused(app: App, result: Any) -> None:
    with pytest.raises(InvalidEvent, match="would be null"):
        async with app.entered() as op, op.begin() as session:
            save(session, op)
            op.result = result
    assert await app.outcomes() == ["rolled_back"]


async def counted(app: App) -> list[tuple[str, str]]:
    """Type and data of what the log has for the readers of the counts."""
    streams, events = app.coordinator.tables.streams, app.coordinator.tables.events
    of_counts = (streams.c.id == events.c.stream_id) & (streams.c.name == COUNTS)
    async with app.session() as session:
        found = await session.execute(
            select(events.c.type, events.c.data).where(of_counts).order_by(events.c.offset)
        )
        return [(row.type, row.data) for row in found]


@pytest.mark.parametrize("what", ["event", "function", "function_that_emits"])
@pytest.mark.parametrize("commits", ["begin", "bind"])
async def test_g3_what_the_function_of_a_result_emits_is_sent_with_its_commit(
    app: App, commits: str, what: str
) -> None:
    async with app.entered(id="k") as op:

        def event() -> Event:
            if what == "function_that_emits":
                op.emit(Event("more"), stream=COUNTS)
            return Event("counted", {"id": row.id})

        def result() -> dict[str, int]:
            op.emit(event() if what == "event" else event, stream=COUNTS)
            return {"id": row.id}

        op.result = result
        if commits == "begin":
            async with op.begin() as session:
                row = save(session, op)
        else:
            async with app.session() as session:
                op.bind(session)
                row = save(session, op)
                await session.commit()
    assert await app.outcomes() == ["committed"]
    assert await retried(app) == {"id": row.id}
    more = [("more", "{}")] if what == "function_that_emits" else []
    assert await counted(app) == [("counted", f'{{"id":{row.id}}}'), *more]


async def test_g2_what_the_function_of_a_result_emits_goes_with_the_commit_that_it_refuses(
    app: App,
) -> None:
    def result() -> object:
        op.emit(Event("counted"), stream=COUNTS)
        return float("nan")

    with pytest.raises(InvalidEvent, match="would be null"):
        async with app.entered() as op, op.begin() as session:
            op.result = result
            save(session, op)
    with pytest.raises(InvalidEvent):
        async with app.entered() as op, op.begin() as session:
            op.result = lambda: op.emit(Event("not a type"), stream=COUNTS)
            save(session, op)
    assert await app.outcomes() == ["rolled_back"] * 2
    assert await counted(app) == []
