"""A percentage that moves under load, over real sockets: nothing is lost, nothing comes twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from commitcast import Event, Mode, Rollout

from .chat import PATIENCE_S, Chat, Hub, Message, Reader, chatting, create_tables, saved

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from commitcast import Coordinator
    from conftest import Database

pytestmark = pytest.mark.anyio

USERS = [f"user-{n}" for n in range(12)]
POSTS_EACH = 40
POSTS = len(USERS) * POSTS_EACH


def thread_of(user: str) -> str:
    """Two users talk in each thread."""
    return f"thread:{USERS.index(user) // 2}"


class OnPurpose(Exception):
    """A transaction that fails."""


@dataclass
class Load:
    """Every user posts; each post is one transaction with two events."""

    hub: Hub
    rollout: Rollout
    moves: list[tuple[int, str]] = field(default_factory=list)
    fails: bool = False
    begun: int = 0
    done: int = 0
    rolled_back: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def dispatches(self, coordinator: Coordinator) -> None:
        self.dispatch = coordinator.dispatcher(self.send, modes=self.rollout)
        self.steps = [POSTS * n // 4 for n in range(1, 4)]

    async def post(self, session: AsyncSession, thread: str, user: str) -> None:
        self.begun += 1
        number = self.begun
        with contextlib.suppress(OnPurpose):
            await self._transaction(session, thread, user, fail=self.fails and number % 3 == 0)
        self.done += 1
        if self.done == POSTS:
            self.over.set()

    async def _transaction(
        self, session: AsyncSession, thread: str, user: str, *, fail: bool
    ) -> None:
        message = Message(thread=thread, author=user)
        session.add(message)
        await session.flush()
        said = Event("said", {"id": message.id, "by": user})
        await self.dispatch(session, thread, said, user=user)
        self._move("between two events", user, self.dispatch.mode(session, user))
        await session.flush()
        await self.dispatch(
            session, thread, lambda: Event("counted", {"id": message.id, "by": user}), user=user
        )
        if fail:
            self.rolled_back += 1
            await session.rollback()
            raise OnPurpose
        await session.commit()

    async def send(self, stream: str, event: Any) -> None:
        """The app's own sending, which may be on its way while the percentage moves."""
        await self.hub.send(stream, event)
        self._move("inside a send", event.data["by"], Mode.SHADOW)

    def _move(self, place: str, user: str, decided: Mode) -> None:
        """Move the percentage, if it is time to, in the middle of what concerns this very user."""
        if not self.moves or self.moves[0][1] != place or self.begun < self.steps[0]:
            return
        before = self.rollout.enforce
        self.rollout.set(enforce=self.moves[0][0])
        if self.rollout.mode(user) is decided:
            self.rollout.set(enforce=before)  # another user's, then
            return
        del self.moves[0], self.steps[0]


def check(reader: Reader, committed: set[int]) -> None:
    """The reader has the two events of every message of the table, once each, and no other."""
    expected = {(kind, number) for number in committed for kind in ("said", "counted")}
    counts = Counter(reader.seen)
    assert {e: n for e, n in counts.items() if n > 1} == {}, "came twice"
    assert expected - counts.keys() == set(), "lost"
    assert counts.keys() - expected == set(), "never committed"


async def everybody_posts(chat: Chat, load: Load, stack: contextlib.AsyncExitStack) -> None:
    readers = [await chat.join(user, thread_of(user), stack) for user in USERS]
    for _ in range(POSTS_EACH):
        for reader in readers:
            await reader.socket.send("post")
    async with asyncio.timeout(PATIENCE_S):
        await load.over.wait()
    await chat.end()


async def test_g3_g5_a_percentage_that_moves_under_load_loses_and_doubles_nothing(
    database: Database,
) -> None:
    engine, hub = database.engine(), Hub()
    await create_tables(engine)
    coordinator = database.coordinator(engine, deliver=hub.deliver)
    rollout = Rollout(enforce=0)
    moves = [(50, "inside a send"), (100, "between two events"), (0, "between two events")]
    load = Load(hub, rollout, moves)
    load.dispatches(coordinator)
    async with (
        chatting(coordinator, hub, engine, load.post) as chat,
        contextlib.AsyncExitStack() as stack,
    ):
        await everybody_posts(chat, load, stack)
        rows = await saved(engine)
    assert sum(map(len, rows.values())) == POSTS
    for reader in chat.readers:
        check(reader, rows[reader.thread])
    for reader in chat.readers:
        ways: dict[int, str] = {}
        for frame in reader.frames:
            way = ways.setdefault(frame["data"]["id"], frame["way"])
            assert way == frame["way"], "a transaction was split"
        assert set(ways.values()) == {"own", "commitcast"}
    assert load.moves == []
    assert rollout.enforce == 0
    counts = load.dispatch.counts
    assert counts[Mode.SHADOW] + counts[Mode.ENFORCE] == 2 * POSTS
    assert load.dispatch.refusals == {}


async def test_g1_g2_in_enforce_rolled_back_posts_reach_nobody_under_load(
    database: Database,
) -> None:
    engine, hub = database.engine(), Hub()
    await create_tables(engine)
    coordinator = database.coordinator(engine, deliver=hub.deliver)
    rollout = Rollout(enforce=100)
    load = Load(hub, rollout, fails=True)
    load.dispatches(coordinator)
    async with (
        chatting(coordinator, hub, engine, load.post) as chat,
        contextlib.AsyncExitStack() as stack,
    ):
        await everybody_posts(chat, load, stack)
        rows = await saved(engine)
    assert load.rolled_back == POSTS // 3
    assert sum(map(len, rows.values())) == POSTS - load.rolled_back
    for reader in chat.readers:
        check(reader, rows[reader.thread])
        assert {frame["way"] for frame in reader.frames} == {"commitcast"}
    assert coordinator.rollbacks == load.rolled_back
