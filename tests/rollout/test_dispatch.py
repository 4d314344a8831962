"""One event, one way: who decides, when, and for how long."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from sqlalchemy import create_engine, select
from sqlalchemy import event as sa_event
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session

from commitcast import Event, Mode, Rollout, sqlite
from commitcast.errors import InvalidEvent, NoTransaction

from .chat import Message, create_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from commitcast import Coordinator, Dispatcher, Modes
    from conftest import Database

pytestmark = pytest.mark.anyio
SAID = Event("said", {"n": 1})
OWN_WAYS = [Mode.OFF, Mode.SHADOW]


class Answers:
    """Modes that are another at each question; who was asked about."""

    def __init__(self, *modes: Mode) -> None:
        self._modes = modes
        self.asked: list[str | None] = []

    def mode(self, user: str | None) -> Mode:
        self.asked.append(user)
        return self._modes[(len(self.asked) - 1) % len(self._modes)]


@dataclass
class Team:
    """An app's engine with a coordinator, and its own sending, which notes what it was given."""

    database: Database
    engine: AsyncEngine
    coordinator: Coordinator
    own: list[tuple[str, Any]] = field(default_factory=list)

    def dispatcher(self, modes: Modes | Mode) -> Dispatcher:
        answers = Answers(modes) if isinstance(modes, Mode) else modes
        return self.coordinator.dispatcher(self.send, modes=answers)

    def send(self, stream: str, event: Any) -> None:
        self.own.append((stream, event))

    async def send_later(self, stream: str, event: Any) -> None:
        self.send(stream, event)

    async def log(self) -> list[tuple[str, str | None, Any]]:
        """(type, actor, data) of what has committed, as another connection sees it."""
        events = self.coordinator.tables.events
        query = select(events.c.type, events.c.actor, events.c.data).order_by(events.c.offset)
        async with self.engine.connect() as conn:
            rows = await conn.execute(query)
            return [(kind, actor, orjson.loads(data)) for kind, actor, data in rows]

    async def kinds(self) -> list[str]:
        return [kind for kind, _, _ in await self.log()]


@pytest.fixture
async def team(database: Database) -> Team:
    engine = database.engine()
    await create_tables(engine)
    return Team(database, engine, database.coordinator(engine))


# --- the two ways --------------------------------------------------------------------------


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("mode", OWN_WAYS)
async def test_off_and_shadow_are_the_app_s_own_sending_there_and_then(
    team: Team, mode: Mode, later: bool
) -> None:
    send: Any = team.send_later if later else team.send
    dispatch = team.coordinator.dispatcher(send, modes=Answers(mode))
    async with AsyncSession(team.engine) as session:
        session.add(Message(thread="t", author="ann"))
        await dispatch(session, "s", SAID, user="ann")
        assert team.own == [("s", SAID)]
        assert team.own[0][1] is SAID
        await session.rollback()
    assert team.own == [("s", SAID)], "what is wrong with the old way stays as it is"
    assert await team.log() == []
    assert team.coordinator.rollbacks == 0


@pytest.mark.parametrize("mode", OWN_WAYS)
async def test_what_the_app_s_own_sending_raises_is_raised_as_it_is(team: Team, mode: Mode) -> None:
    error = ConnectionError("gone")

    def send(_stream: str, _event: Any) -> None:
        raise error

    dispatch = team.coordinator.dispatcher(send, modes=Answers(mode))
    async with AsyncSession(team.engine) as session:
        session.add(Message(thread="t", author="ann"))
        with pytest.raises(ConnectionError) as raised:
            await dispatch(session, "s", object())
        assert raised.value is error
        await session.commit()


@pytest.mark.parametrize("mode", OWN_WAYS)
async def test_the_app_s_own_events_may_be_anything(team: Team, mode: Mode) -> None:
    dispatch = team.dispatcher(mode)
    async with AsyncSession(team.engine) as session:
        for event in ({"type": "said"}, "text", None):
            await dispatch(session, "a stream of any name", event, user="\n")
    assert [event for _, event in team.own] == [{"type": "said"}, "text", None]


async def test_g1_g2_enforce_sends_with_the_commit_and_not_the_app_s_own_way(team: Team) -> None:
    dispatch = team.dispatcher(Mode.ENFORCE)
    async with AsyncSession(team.engine) as session:
        session.add(Message(thread="t", author="ann"))
        await dispatch(session, "s", SAID, user="ann")
        await session.flush()
        if team.database.kind == "postgresql":
            assert await team.log() == []
        await session.commit()
        assert await team.log() == [("said", "ann", {"n": 1})]
        session.add(Message(thread="t", author="ann"))
        await dispatch(session, "s", Event("gone"), user="ann")
        await session.rollback()
    assert await team.kinds() == ["said"]
    assert team.own == []


async def test_a_function_is_called_at_once_or_at_the_commit(team: Team) -> None:
    for mode in Mode:
        calls: list[int] = []
        dispatch = team.dispatcher(mode)
        async with AsyncSession(team.engine) as session:
            session.add(message := Message(thread="t", author="ann"))

            def make(message: Message = message, calls: list[int] = calls) -> Event:
                calls.append(1)
                return Event("said", {"saved": message.id is not None})

            await dispatch(session, "s", make)
            assert calls == ([] if mode is Mode.ENFORCE else [1])
            await session.commit()
            assert calls == [1]
    assert team.own == [("s", Event("said", {"saved": False}))] * 2, "not flushed: no id yet"
    assert await team.log() == [("said", None, {"saved": True})]


async def test_a_class_is_no_function_that_makes_an_event(team: Team) -> None:
    async with AsyncSession(team.engine) as session:
        await team.dispatcher(Mode.OFF)(session, "s", Event)
    assert team.own == [("s", Event)]


# --- who decides, and for how long ---------------------------------------------------------


@pytest.mark.parametrize("first", list(Mode))
async def test_a_mode_that_changes_at_every_question_loses_and_doubles_nothing(
    team: Team, first: Mode
) -> None:
    others = [mode for mode in Mode if mode is not first]
    answers = Answers(first, *others)
    dispatch = team.dispatcher(answers)
    for _ in range(3):
        async with AsyncSession(team.engine) as session:
            session.add(Message(thread="t", author="ann"))
            for n in range(4):
                await dispatch(session, "s", Event("said", {"n": n}), user="ann")
                await session.flush()
            await session.commit()
    assert answers.asked == ["ann"] * 3, "once for each transaction"
    assert len(team.own) == 8
    assert len(await team.log()) == 4
    assert [e.data["n"] for _, e in team.own] == [0, 1, 2, 3] * 2
    assert dict(dispatch.counts) == dict.fromkeys(Mode, 4)


async def test_each_user_of_a_transaction_has_a_mode_of_their_own(team: Team) -> None:
    rollout = Rollout(enforce=0, overrides={"ann": Mode.ENFORCE, None: Mode.ENFORCE})
    dispatch = team.dispatcher(rollout)
    async with AsyncSession(team.engine) as session:
        await session.connection()
        for user in ("ann", "bob", None):
            await dispatch(session, "s", Event(f"of.{user}"), user=user)
        rollout.set(enforce=100, overrides={"ann": Mode.OFF})
        for user in ("ann", "bob", None):
            assert dispatch.mode(session, user) is (Mode.SHADOW if user == "bob" else Mode.ENFORCE)
        await session.commit()
        assert dispatch.mode(session, "ann") is Mode.OFF
    assert [event.type for _, event in team.own] == ["of.bob"]
    assert await team.kinds() == ["of.ann", "of.None"]


async def test_a_savepoint_is_part_of_its_transaction(team: Team) -> None:
    answers = Answers(Mode.ENFORCE, Mode.OFF)
    dispatch = team.dispatcher(answers)
    async with AsyncSession(team.engine) as session:
        await session.connection()
        await dispatch(session, "s", Event("a"))
        savepoint = await session.begin_nested()
        await dispatch(session, "s", Event("gone"))
        await savepoint.rollback()
        async with session.begin_nested():
            await dispatch(session, "s", Event("b"))
        await session.commit()
    assert (await team.kinds(), team.own, answers.asked) == (["a", "b"], [], [None])


async def test_a_session_and_its_connection_are_one_transaction(team: Team) -> None:
    answers = Answers(Mode.ENFORCE, Mode.OFF)
    dispatch = team.dispatcher(answers)
    async with AsyncSession(team.engine) as session:
        conn = await session.connection()
        await dispatch(conn, "s", Event("a"))
        await dispatch(session, "s", Event("b"))
        await session.commit()
    async with team.engine.connect() as conn:
        await conn.begin()
        for name in "cd":  # each a session joined to the connection's transaction
            async with AsyncSession(bind=conn) as joined:
                joined.add(Message(thread="t", author="ann"))
                await joined.flush()
                await dispatch(joined, "s", Event(name))
                await joined.commit()
        await dispatch(conn, "s", Event("e"))
        await conn.commit()
    assert (await team.kinds(), answers.asked) == (["a", "b"], [None, None])
    assert [event.type for _, event in team.own] == ["c", "d", "e"]


async def test_a_scoped_session_is_the_session_it_stands_for(team: Team) -> None:
    answers = Answers(Mode.ENFORCE, Mode.OFF)
    dispatch = team.dispatcher(answers)
    scoped = async_scoped_session(async_sessionmaker(team.engine), scopefunc=lambda: 1)
    await scoped.connection()
    await dispatch(scoped, "s", Event("a"))
    await dispatch(scoped(), "s", Event("b"))
    await scoped.commit()
    await scoped.remove()
    assert (await team.kinds(), answers.asked) == (["a", "b"], [None])


async def test_decisions_go_with_their_transactions(team: Team) -> None:
    dispatch = team.dispatcher(Rollout())
    async with AsyncSession(team.engine) as session:
        for n in range(300):
            await session.connection()
            await dispatch(session, "s", SAID, user=f"user-{n}")
            await (session.rollback() if n % 2 else session.commit())
    gc.collect()
    assert len(dispatch._decided) == 0


@pytest.mark.parametrize("answer", ["on", None])
async def test_what_is_no_mode_is_refused_before_anything_is_sent(team: Team, answer: Any) -> None:
    dispatch = team.dispatcher(Answers(answer))
    async with AsyncSession(team.engine) as session:
        await session.connection()
        with pytest.raises(ValueError, match=r"modes\.mode\(\) returned is .*; give Mode\.OFF"):
            await dispatch(session, "s", SAID)
        await session.commit()
    assert (team.own, await team.log()) == ([], [])


# --- without a transaction -----------------------------------------------------------------


@pytest.mark.parametrize("mode", OWN_WAYS)
async def test_after_the_commit_the_old_way_is_as_it_was(team: Team, mode: Mode) -> None:
    answers = Answers(mode)
    dispatch = team.dispatcher(answers)
    async with AsyncSession(team.engine) as session:
        session.add(Message(thread="t", author="ann"))
        await session.commit()
        for _ in range(2):
            await dispatch(session, "s", SAID)
        assert not session.in_transaction(), "begin() would raise then"
    assert (team.own, len(answers.asked)) == ([("s", SAID)] * 2, 2)


async def test_g3_enforce_refuses_an_event_that_no_commit_would_send(team: Team) -> None:
    dispatch = team.dispatcher(Mode.ENFORCE)
    async with AsyncSession(team.engine) as session:
        session.add(Message(thread="t", author="ann"))
        await session.commit()
        with pytest.raises(NoTransaction, match=r"inside of the transaction, before its commit"):
            await dispatch(session, "s", SAID)
        async with session.begin():
            await dispatch(session, "s", Event("inside"))

        @sa_event.listens_for(session.sync_session, "after_commit")
        def tell(sync: Session) -> None:
            dispatch.sync(sync, "s", SAID)

        session.add(Message(thread="t", author="ann"))
        with pytest.raises(NoTransaction):
            await session.commit()
    async with team.engine.connect() as conn:
        with pytest.raises(NoTransaction):
            await dispatch(conn, "s", SAID)
    assert (await team.kinds(), team.own) == (["inside"], [])


# --- what shadow finds out -----------------------------------------------------------------


async def test_shadow_counts_what_enforce_would_refuse_and_raises_none_of_it(
    team: Team, caplog: pytest.LogCaptureFixture
) -> None:
    dispatch = team.dispatcher(Mode.SHADOW)
    unfit: Sequence[tuple[str, object]] = [
        ("s", {"type": "said", "card": 4111}),
        ("s", Event("said", {"card": {4111}})),  # a set, which JSON has not
        ("no stream name", SAID),
        ("s", Event("x", "y" * 70_000)),
    ]
    with caplog.at_level(logging.WARNING):
        async with AsyncSession(team.engine) as session:
            await session.connection()
            await dispatch(session, "s", SAID, user="ann")
            assert dispatch.refusals == {}
            for stream, event in unfit:
                await dispatch(session, stream, event, user="ann")
            await dispatch(session, "s", SAID, user="\n")
            assert dispatch.refusals == {"InvalidEvent": 5}
            await session.commit()
            await dispatch(session, "s", SAID)
            await dispatch(session, "s", SAID)
            assert dispatch.refusals == {"InvalidEvent": 5, "NoTransaction": 2}
    assert len(team.own) == 8
    said = [r.getMessage() for r in caplog.records if r.name == "commitcast"]
    assert len(said) == 2
    assert "4111" not in "".join(said)
    assert " to s " not in "".join(said), "a stream's name may be a user's"
    assert "an event (dict) would be refused with InvalidEvent" in said[0]
    assert "NoTransaction: no transaction is open" in said[1]


async def test_shadow_finds_engines_and_levels_that_enforce_refuses(team: Team) -> None:
    dispatch = team.dispatcher(Mode.SHADOW)
    other = team.database.engine()  # has no coordinator
    async with AsyncSession(other) as session:
        await session.connection()
        await dispatch(session, "s", SAID)
    autocommit = team.engine.execution_options(isolation_level="AUTOCOMMIT")
    async with autocommit.connect() as conn:
        await conn.begin()
        await dispatch(conn, "s", SAID)
    async with AsyncSession(team.engine) as session:
        session.sync_session.twophase = True
        session.sync_session.begin()
        await dispatch(session, "s", SAID)

        @sa_event.listens_for(session.sync_session, "after_commit")
        def tell(sync: Session) -> None:
            dispatch.sync(sync, "s", SAID)

        await session.rollback()
        session.sync_session.twophase = False
        session.add(Message(thread="t", author="ann"))
        await session.commit()
    assert dispatch.refusals == {
        "NotAttached": 1,
        "AutocommitRefused": 1,
        "TwoPhaseRefused": 1,
        "NoTransaction": 1,
    }
    assert len(team.own) == 4


async def test_off_looks_at_nothing(team: Team) -> None:
    dispatch = team.dispatcher(Mode.OFF)
    async with AsyncSession(team.engine) as session:
        await dispatch(session, "no stream name", object())
    assert dispatch.refusals == {}


# --- code that cannot await ----------------------------------------------------------------


@pytest.mark.parametrize("first", list(Mode))
async def test_sync_code_has_the_same_from_a_session_of_its_own(team: Team, first: Mode) -> None:
    kind = team.database.kind
    driver = "sqlite+pysqlite" if kind == "sqlite" else "postgresql+psycopg"
    engine = create_engine(team.database.url.set(drivername=driver))
    if kind == "sqlite":
        sqlite.configure(engine)
    team.coordinator.attach(engine)
    answers = Answers(first, *(mode for mode in Mode if mode is not first))
    dispatch = team.dispatcher(answers)
    for _ in range(3):
        with Session(engine) as session, session.begin():
            session.add(message := Message(thread="t", author="ann"))
            session.flush()
            dispatch.sync(session, "s", SAID, user="ann")
            dispatch.sync(session, "s", lambda m=message: Event("made", {"id": m.id}))
    engine.dispose()
    assert answers.asked == ["ann", None] * 3
    assert dict(dispatch.counts) == dict.fromkeys(Mode, 2)
    assert len(team.own) == 4
    assert sorted(await team.kinds()) in (["made", "said"], ["made", "made"], ["said", "said"])


def awaits(team: Team) -> Callable[[str, Any], Any]:
    class Hub:
        async def __call__(self, stream: str, event: Any) -> None:
            team.send(stream, event)

    return Hub()


@pytest.mark.parametrize("mode", list(Mode))
async def test_an_async_way_of_sending_is_refused_in_sync_code(team: Team, mode: Mode) -> None:
    dispatch = team.coordinator.dispatcher(team.send_later, modes=Answers(mode))
    with Session(team.engine.sync_engine) as session:
        session.begin()
        with pytest.raises(TypeError, match=r"the app's own sending is async"):
            dispatch.sync(session, "s", SAID)
    if mode is not Mode.ENFORCE:
        hidden = team.coordinator.dispatcher(awaits(team), modes=Answers(mode))
        with Session(team.engine.sync_engine) as session:
            session.begin()
            with pytest.raises(TypeError, match=r"the app's own sending is async"):
                hidden.sync(session, "s", SAID)
    assert team.own == []


async def test_what_is_no_session_is_refused_in_every_mode(team: Team) -> None:
    for mode in Mode:
        with pytest.raises(TypeError, match="takes a SQLAlchemy session or connection"):
            await team.dispatcher(mode)("session", "s", SAID)  # type: ignore[arg-type]
    assert team.own == []


async def test_enforce_refuses_what_emit_refuses(team: Team) -> None:
    dispatch = team.dispatcher(Mode.ENFORCE)
    async with AsyncSession(team.engine) as session:
        await session.connection()
        with pytest.raises(InvalidEvent):
            await dispatch(session, "s", {"type": "said"})
        await session.commit()
    assert (await team.kinds(), team.own) == ([], [])
