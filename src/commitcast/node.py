"""Nodes: who is alive, under which term, and how one is declared dead.

What the database decides: the term of a node, by compare-and-set on its row; that a heartbeat is
too old, by its own clock. What local time decides: only whether this node has itself heartbeaten
without a gap for long enough to judge others.

Invariants:

- Operations carry the node and term under which they were announced. A node is declared dead by
  raising its term, committed before any of its work is touched.
- A heartbeat with an old term finds nothing. The node then gives its work up and takes a new term.
- After an outage of the database nobody is declared dead for a full lease, in which every living
  node has had the time to heartbeat again.
- On SQLite, where a heartbeat would wait behind writers, a node holds a lock on a file for as long
  as its process lives; the operating system lets go of it when the process dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import false, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from commitcast.clock import DatabaseClock
from commitcast.forked import forget_in_child

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from sqlalchemy import URL, Dialect
    from sqlalchemy.engine import Connection

    from commitcast.clock import Clock
    from commitcast.schema import Tables
    from commitcast.writer import Writer

_logger = logging.getLogger("commitcast")


@dataclass(frozen=True, slots=True)
class NodeTerm:
    """A node as of one term."""

    id: str
    term: int


class Nodes:
    """Statements over the table of nodes; holds no connection."""

    def __init__(self, tables: Tables, dialect: Dialect, clock: Clock | None = None) -> None:
        self._nodes = tables.nodes
        self._operations = tables.operations
        self._clock = clock if clock is not None else DatabaseClock(dialect)
        self._dialect: Any = postgresql if dialect.name == "postgresql" else sqlite

    def join(self, conn: Connection, node: str, above: int = 0) -> NodeTerm:
        """Enter a node, or enter it again under a term above every one it had."""
        nodes, now = self._nodes, self._clock.now()
        insert = self._dialect.insert(nodes).values(id=node, term=above + 1, heartbeat=now)
        larger = func.greatest if self._dialect is postgresql else func.max
        known: Any = larger(nodes.c.term, above)
        term = conn.scalar(
            insert.on_conflict_do_update(
                index_elements=[nodes.c.id], set_={"term": known + 1, "heartbeat": now}
            ).returning(nodes.c.term)
        )
        return NodeTerm(node, int(term))

    def heartbeat(self, conn: Connection, node: NodeTerm) -> bool:
        """Say that the node lives; False if it was declared dead."""
        nodes = self._nodes
        done = conn.execute(
            update(nodes)
            .where(nodes.c.id == node.id, nodes.c.term == node.term)
            .values(heartbeat=self._clock.now())
        )
        return bool(done.rowcount == 1)

    def still(self, conn: Connection, node: NodeTerm) -> bool:
        """Whether the node has this term; what `heartbeat` asks, without writing."""
        nodes = self._nodes
        return conn.scalar(select(nodes.c.term).where(nodes.c.id == node.id)) == node.term

    def others(self, conn: Connection, node: str, silent_s: float | None) -> list[NodeTerm]:
        """Nodes besides `node` that nobody declared dead; with `silent_s`, those silent so long."""
        nodes = self._nodes
        query = select(nodes.c.id, nodes.c.term).where(
            nodes.c.id != node, nodes.c.heartbeat.is_not(None)
        )
        if silent_s is not None:
            query = query.where(nodes.c.heartbeat < self._clock.later(-silent_s))
        return [NodeTerm(row.id, row.term) for row in conn.execute(query)]

    def declare_dead(self, conn: Connection, node: NodeTerm, silent_s: float | None) -> bool:
        """Raise a node's term; False if it has heartbeaten or someone was first.

        Commit before any of its work is touched. A node declares itself dead to leave.
        """
        nodes = self._nodes
        this = update(nodes).where(
            nodes.c.id == node.id, nodes.c.term == node.term, nodes.c.heartbeat.is_not(None)
        )
        if silent_s is not None:
            this = this.where(nodes.c.heartbeat < self._clock.later(-silent_s))
        done = conn.execute(this.values(term=nodes.c.term + 1, heartbeat=None))
        return bool(done.rowcount == 1)

    def forgettable(self, conn: Connection) -> list[str]:
        """Dead nodes that have nothing left to settle."""
        nodes, operations = self._nodes, self._operations
        unsettled = (
            select(operations.c.node)
            .where(operations.c.node == nodes.c.id, operations.c.settled == false())
            .exists()
        )
        return list(conn.scalars(select(nodes.c.id).where(nodes.c.heartbeat.is_(None), ~unsettled)))

    def forget(self, conn: Connection, gone: Collection[str]) -> None:
        """Delete nodes that are still dead."""
        nodes = self._nodes
        conn.execute(nodes.delete().where(nodes.c.id.in_(gone), nodes.c.heartbeat.is_(None)))


class FileLocks:
    """A lock on a file beside the database for each node of a SQLite database.

    Where the operating system has no ``flock`` (Windows) every other node is taken for alive, and
    what a dead one left is settled when its deadline passes.
    """

    def __init__(self, url: URL) -> None:
        self._stem = Path(url.database or "commitcast").absolute()
        self._held: dict[str, int] = {}
        forget_in_child(self)

    def forked(self) -> None:
        """The locks are the parent's: a child that kept them would outlive it as its node."""
        while self._held:
            os.close(self._held.popitem()[1])

    def _path(self, node: str) -> Path:
        return self._stem.with_name(f"{self._stem.name}-node-{node}")

    def hold(self, node: str) -> None:
        """Hold a node's lock from now on, for as long as the process lives."""
        if node in self._held:
            return
        handle = os.open(self._path(node), os.O_RDWR | os.O_CREAT, 0o600)
        if not _locked(handle):  # pragma: no cover - ids are random
            os.close(handle)
            raise RuntimeError(f"the lock of node {node} is held by another process")
        self._held[node] = handle

    def release(self, node: str) -> None:
        """Let go of a node's lock and remove its file."""
        handle = self._held.pop(node, None)
        if handle is not None:
            self._remove(node)
            os.close(handle)

    def is_dead(self, node: str) -> bool:
        """Whether nobody holds a node's lock."""
        if node in self._held:
            return False
        try:
            handle = os.open(self._path(node), os.O_RDWR)
        except FileNotFoundError:
            return fcntl is not None
        try:
            return _locked(handle)
        finally:
            os.close(handle)

    def remove(self, node: str) -> None:
        """Remove the file of a node that was declared dead."""
        self._remove(node)

    def _remove(self, node: str) -> None:
        with contextlib.suppress(OSError):
            self._path(node).unlink()


def _locked(handle: int) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class Node:
    """This node: it joins, says that it lives, and judges the others.

    `lost` is called when it was declared dead: its work under the old term is no longer its own.
    """

    def __init__(
        self,
        writer: Writer,
        nodes: Nodes,
        lease_s: float,
        lost: Callable[[], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.nodes = nodes
        self._writer = writer
        self._lease_s = lease_s
        self._lost = lost
        self._monotonic = monotonic
        self._id = uuid.uuid4().hex
        self._term = 0
        self._steady_since = float("inf")
        self._heard = 0.0
        url = writer.engine.url
        self._locks = FileLocks(url) if url.get_backend_name() == "sqlite" else None

    @property
    def current(self) -> NodeTerm:
        """This node under its current term."""
        return NodeTerm(self._id, self._term)

    @property
    def beat_s(self) -> float:
        """Seconds between two heartbeats, or two looks at the others."""
        return self._lease_s / 4

    async def join(self) -> None:
        """Enter the node, under a term above every one it had."""
        if self._locks is not None:
            self._locks.hold(self._id)
        above = self._term
        began = self._monotonic()
        joined = await self._writer.run(lambda conn: self.nodes.join(conn, self._id, above))
        self._term = joined.term
        self._heard, self._steady_since = began, self._monotonic()

    async def run(self) -> None:
        """Heartbeat, for ever."""
        while True:
            await asyncio.sleep(self.beat_s * random.uniform(0.8, 1.0))
            try:
                await self.beat()
            except Exception as error:  # noqa: BLE001 - drivers raise their own on connect
                _logger.warning("commitcast: no heartbeat: %s", type(error).__name__)

    async def beat(self) -> None:
        """One heartbeat. If the node was declared dead it gives up its work and joins again."""
        asked, me = self._monotonic(), self.current
        if self._locks is None:
            limit_s = self._lease_s * 0.75
            lives = await self._writer.run(
                lambda conn: self.nodes.heartbeat(conn, me), limit_s=limit_s
            )
        else:
            lives = await self._writer.read(lambda conn: self.nodes.still(conn, me))
        if not lives:
            _logger.error("commitcast: node %s was taken for dead; its work is given up", me.id)
            self._lost()
            await self.join()
            return
        now = self._monotonic()
        if now - self._heard > self._lease_s * 0.75:  # it may have hung for part of an outage
            self._steady_since = now
        self._heard = asked

    def may_judge(self) -> bool:
        """Whether it has heartbeaten without a gap for a full lease (see the module's invariants)."""
        now = self._monotonic()
        heard = now - self._heard <= self._lease_s * 0.75
        return self._locks is not None or (heard and now - self._steady_since >= self._lease_s)

    async def declare_deaths(self) -> int:
        """Declare dead whoever is; returns how many. Each is committed by itself."""
        if not self.may_judge():
            return 0
        silent_s = None if self._locks is not None else self._lease_s
        others = await self._writer.read(lambda conn: self.nodes.others(conn, self._id, silent_s))
        declared = 0
        for other in others:
            if self._locks is not None and not self._locks.is_dead(other.id):
                continue
            if not self.may_judge():  # the database was away in between
                break
            if await self._writer.run(
                lambda conn, other=other: self._declare_dead(conn, other, silent_s)  # type: ignore[misc]
            ):
                _logger.warning("commitcast: node %s is dead", other.id)
                declared += 1
                if self._locks is not None:
                    self._locks.remove(other.id)
        return declared

    def _declare_dead(self, conn: Connection, other: NodeTerm, silent_s: float | None) -> bool:
        declared = self.nodes.declare_dead(conn, other, silent_s)
        if declared and not self.may_judge():
            # The statement waited, perhaps for an outage to end in which nobody could heartbeat.
            raise TimeoutError(f"too late to declare node {other.id} dead; rolled back")
        return declared

    def abandon(self) -> None:
        """Without a word to the database, for which there is no event loop: it is dead to others."""
        if self._locks is not None:
            self._locks.forked()

    async def leave(self) -> None:
        """Declare itself dead, so that nobody waits for its lease."""
        me = self.current
        try:
            await self._writer.run(
                lambda conn: self.nodes.declare_dead(conn, me, None), limit_s=2.0
            )
        except Exception as error:  # noqa: BLE001 - drivers raise their own on connect
            _logger.info("commitcast: the lease runs out by itself: %s", type(error).__name__)
        finally:
            if self._locks is not None:
                self._locks.release(self._id)
