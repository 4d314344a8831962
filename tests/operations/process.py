"""One process of the state machine's world."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from commitcast.node import Node, Nodes
from commitcast.reaper import Reaper

from .simulated import Channel

if TYPE_CHECKING:
    from .ledger import Key, Work
    from .simulated import Task
    from .world import World

LEASE_S: Final = 10.0
BEAT_S: Final = LEASE_S / 4


class Process:
    """One process: a node, its reaper, and the operations that its tasks hold."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.state = "running"
        self.live: dict[Key, Work] = {}
        self.settling: dict[Key, Task] = {}
        self.beat: Task | None = None
        self.look: Task | None = None
        self.other: Task | None = None
        self.due = world.store.now + BEAT_S
        self.heard_at = world.store.now
        """When the database had its last heartbeat."""
        self.spoiled = False
        """The test has spoiled its last heartbeat."""
        channel: Any = Channel()
        store = world.store
        nodes = Nodes(store.tables, store.dialect, store.clock)
        self.node = Node(channel, nodes, LEASE_S, self._lost, monotonic=lambda: store.now)
        self.node._id = name
        self.reaper = Reaper(
            channel,
            world.outcomes,
            self.node,
            lambda attempt: self.holds((attempt.id, attempt.attempt)),
            lambda attempt, why: world.start_settling(self, attempt, why),
        )

    def _lost(self) -> None:
        for work in self.live.values():
            work.lost = True

    def holds(self, key: Key) -> bool:
        return key in self.live or key in self.settling

    def tasks(self) -> list[Task]:
        some = (self.beat, self.look, self.other, *self.settling.values())
        return [task for task in some if task is not None]

    def end(self) -> None:
        """As kill -9 does it."""
        self.state = "gone"
        for task in self.tasks():
            task.kill()
        self.live, self.settling = {}, {}
        self.beat = self.look = self.other = None
