"""The operations of this node: those that are announced and not settled, and what settles them.

A settling runs in a task of the node, not in the task of whoever left the operation, so that a
cancellation cannot interrupt it; it tries until the database has taken the outcome or the node
stops. What a node leaves behind the reaper of another finds, or its own next one.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import uuid
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from commitcast.announcer import Announcer
from commitcast.attempt import Announcement, Attempt, Outcome, Verdict, operation_id, request_hash
from commitcast.errors import InvalidEvent, LateAnnouncement, OperationError
from commitcast.event import check_id, check_label, check_stream
from commitcast.live import Live
from commitcast.log import Log
from commitcast.node import Node, Nodes
from commitcast.notification import ABANDONED, NOTIFICATION_TYPE, Failure
from commitcast.operation import Operation
from commitcast.outcome import Outcomes
from commitcast.outlast import end
from commitcast.reaper import Reaper
from commitcast.sqlite import holds_writer
from commitcast.telemetry import CoordinationEvent, CoordinationEventType, notify
from commitcast.users import actor_of, whose
from commitcast.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

    from commitcast.event import CommittedEvent
    from commitcast.schema import Tables
    from commitcast.settings import Settings
    from commitcast.steps import Steps
    from commitcast.telemetry import Observer, Tracing

_logger = logging.getLogger("commitcast")
_PAUSE_S: Final = 0.05
_MAX_PAUSE_S: Final = 2.0
_STOP_WITHIN_S: Final = 5.0
_SETTLED_AT_ONCE: Final = 64
_LONGEST_S: Final = 7 * 24 * 3600.0
_LONGEST_MESSAGE: Final = 1000


def _message(text: str | None) -> str | None:
    if text is None or (len(text) <= _LONGEST_MESSAGE and "\x00" not in text):
        return text
    raise InvalidEvent(
        f"user_message takes at most {_LONGEST_MESSAGE} characters, none of them NUL"
    )


class Operations:
    """Made and run by a coordinator; `session` makes the sessions of `Operation.begin`."""

    def __init__(  # noqa: PLR0913 - what it shares with its coordinator
        self,
        engine: AsyncEngine,
        tables: Tables,
        settings: Settings,
        *,
        session: Callable[[], AsyncSession],
        deliver: Callable[[Sequence[CommittedEvent]], None],
        hint: Callable[[Sequence[str]], None],
        observers: Sequence[Observer],
        steps: Steps,
        tracing: Tracing | None = None,
    ) -> None:
        self.tracing = tracing
        self.settings = settings
        self.session = session
        self.live = Live(
            settings.max_operations_per_user, settings.max_operations_per_user_per_minute
        )
        self._engine = engine
        self._tables = tables
        self._deliver = deliver
        self._hint = hint
        self._observers = observers
        self._steps = steps
        self._writer = Writer(engine)
        log = Log(tables, self._writer.engine.dialect)
        self.outcomes = Outcomes(log)
        self._of_log: weakref.WeakKeyDictionary[Log, Outcomes] = weakref.WeakKeyDictionary()
        self._announcer = Announcer(self._writer, self.outcomes)
        # With a connection of its own a heartbeat never waits behind a settling that waits for a lock.
        self._beats = Writer(engine)
        nodes = Nodes(tables, self._beats.engine.dialect)
        self.node = Node(self._beats, nodes, settings.lease_s, self._lose_all)
        self.reaper = Reaper(
            self._writer, self.outcomes, self.node, self.is_live, self.start_settling
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        self._settling: dict[tuple[str, int], asyncio.Task[Verdict]] = {}
        self._tried_again: set[tuple[str, int]] = set()
        # Half of the writer's connections: announcements never wait for the locks of settlings.
        self._settling_at_once = asyncio.Semaphore(2)

    # --- lifespan -------------------------------------------------------------------------

    async def open(self) -> None:
        """Join the nodes."""
        try:
            await self.node.join()
        except BaseException:
            await self._beats.close()
            await self._writer.close()
            raise

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """What runs as long as the coordinator does."""
        return [self.node.run(), self.reaper.run()]

    async def close(self) -> None:
        """Give up what is still open, settle what can be settled, leave the nodes."""
        self._lose_all()
        until = asyncio.get_running_loop().time() + _STOP_WITHIN_S
        while (self.live or self._tasks) and asyncio.get_running_loop().time() < until:
            waited: set[asyncio.Task[Any]] = set(self._tasks)
            await (asyncio.wait(waited, timeout=0.1) if waited else asyncio.sleep(0.01))
        await self._announcer.close()
        await end(self._tasks)
        await self.node.leave()
        await self._beats.close()
        await self._writer.close()

    def _lose_all(self) -> None:
        for operation in list(self.live):
            operation.lose()

    def make(  # noqa: PLR0913 - the arguments of `Coordinator.operation`
        self,
        name: str,
        *,
        user: str | None,
        everyone: bool,
        told: str | None,
        stream: str | None,
        key: str | None,
        request: object,
        user_message: str | None,
        deadline_s: float | None,
    ) -> Operation:
        """See `Coordinator.operation`; `told` is the user's own stream."""
        name = check_label("name", name or "", longest=100) or ""
        actor = actor_of(user) if key is None else whose(user, everyone=everyone)
        key = None if key is None else check_id("id", key)
        own = None if stream is None else check_stream(stream)
        streams = tuple(s for s in dict.fromkeys((told, own)) if s is not None)
        if not streams:
            raise ValueError("give user= or stream=, or nobody could be told of a failure")
        limit_s = self.settings.operation_deadline_s if deadline_s is None else deadline_s
        if not 0 < limit_s <= _LONGEST_S:
            raise ValueError(f"deadline_s must be more than 0 and at most {_LONGEST_S:g}")
        announcement = Announcement(
            id=uuid.uuid4().hex if key is None else operation_id(name, actor, key),
            name=name,
            node="",
            term=0,
            # nobody else acts on it before this node has, unless this node is stuck
            deadline_s=limit_s + self.settings.lease_s,
            streams=streams,
            actor=actor,
            key=key,
            request_hash=request_hash(request),
            user_message=_message(user_message),
        )
        return Operation(self, announcement=announcement, stream=own, deadline_s=limit_s)

    async def latest(self, of: str) -> Attempt | None:
        """The newest attempt at an operation."""
        return await self._writer.read(lambda conn: self.outcomes.latest(conn, of))

    # --- announcing -----------------------------------------------------------------------

    def check_not_writing(self) -> None:
        """Raises `LateAnnouncement` if this task would wait for a lock that it holds itself."""
        if holds_writer(self._engine.sync_engine):
            raise LateAnnouncement(
                None,
                "this task has a write transaction open on the SQLite database, which has one "
                "writer; enter the operation before the transaction begins",
            )

    def announce(self, operation: Operation) -> asyncio.Future[int | Attempt]:
        """Announce an attempt under this node's current term."""
        me = self.node.current
        return self._announcer.announce(replace(operation.announcement, node=me.id, term=me.term))

    def abandon(self, operation: Operation, announced: asyncio.Future[int | Attempt]) -> None:
        """Its task was cancelled while it was announced: settle it if it was."""
        self._spawn(self._abandoned(operation, announced))

    async def _abandoned(
        self, operation: Operation, announced: asyncio.Future[int | Attempt]
    ) -> None:
        try:
            answer = await announced
            if isinstance(answer, int):
                operation.attempt = answer
                await self._settled(operation, Failure("CancelledError"), self._steps.clock())
        except Exception as error:  # noqa: BLE001 - if the row is there after all, the reaper finds it
            _logger.info("commitcast: not announced: %s", type(error).__name__)
        finally:
            self.live.discard(operation)
            operation.end_span("CancelledError")

    def is_live(self, attempt: Attempt) -> bool:
        """Whether a task of this node still works on an attempt, or is settling it."""
        key = (attempt.id, attempt.attempt)
        return key in self._settling or any(
            o.id == attempt.id and o.attempt in {0, attempt.attempt} for o in self.live
        )

    # --- settling -------------------------------------------------------------------------

    async def leave(self, operation: Operation, failure: Failure) -> None:
        """Wait for the operation's outcome and for what follows it, ``settle_wait_s`` at most."""
        if operation.outcome is Outcome.COMMITTED and not operation.followers(Outcome.COMMITTED):
            self._tell(operation, Outcome.COMMITTED, failure)
            self.live.discard(operation)
            operation.end_span()
        else:
            await self.decide(operation, failure, final=True)

    async def decide(self, operation: Operation, failure: Failure, *, final: bool = False) -> None:
        """Contend for the outcome; ``operation.outcome`` has it, unless the database is away.

        A cancellation of the waiting task stops the waiting, not the settling.
        """
        known_at = self._steps.clock()
        if final:
            task = self._spawn(self._finish(operation, failure, known_at))
        else:
            task = self._spawn(self._settled(operation, failure, known_at))
        wait_s = self.settings.settle_wait_s
        if holds_writer(self._engine.sync_engine):
            wait_s = 0.0  # the caller's own transaction is what settling waits for
        done, _ = await asyncio.wait({task}, timeout=wait_s)
        for one in done:
            if not one.cancelled():  # the node stops
                one.result()

    async def _finish(self, operation: Operation, failure: Failure, known_at: float) -> None:
        try:
            await self._settled(operation, failure, known_at)
            outcome = operation.outcome
            operation.end_span(failure.kind)
            if outcome is not None:
                self._tell(operation, outcome, failure)
                await self._follow(operation, outcome)
        finally:
            self.live.discard(operation)
            operation.end_span(failure.kind)  # if the node stops before there is an outcome

    async def _settled(self, operation: Operation, failure: Failure, known_at: float) -> None:
        if operation.outcome is None:
            verdict = await self._contend(
                operation.id, operation.attempt, failure, operation.transaction_id,
                operation.announcement.streams, known_at=known_at,
            )  # fmt: skip
            operation.outcome = verdict.outcome

    def start_settling(self, attempt: Attempt, failure: Failure) -> bool:
        """For the reaper: settle in the background; False if too much is under way."""
        if len(self._settling) >= _SETTLED_AT_ONCE:
            return False
        if (attempt.id, attempt.attempt) not in self._settling:
            self._spawn(self._settle(attempt, failure, self._steps.clock()))
        return True

    async def settle_orphan(self, attempt: Attempt) -> bool:
        """Settle an attempt that nobody works on; False if that takes too long."""
        task = self._spawn(self._settle(attempt, ABANDONED, self._steps.clock()))
        done, _ = await asyncio.wait({task}, timeout=self.settings.settle_wait_s)
        return bool(done)

    async def _settle(self, attempt: Attempt, failure: Failure, known_at: float) -> Verdict:
        verdict = await self._contend(
            attempt.id, attempt.attempt, failure, None, (), known_at=known_at
        )
        held = any(o.id == attempt.id and o.attempt == attempt.attempt for o in self.live)
        if verdict.notification is not None and not held:  # whoever holds it tells of it
            notify(
                self._observers,
                CoordinationEvent(
                    CoordinationEventType.TRANSACTION_ROLLED_BACK,
                    attempt.id, attempt.attempt, attempt.name, attempt.actor, error=str(failure),
                )
            )  # fmt: skip
        return verdict

    async def _contend(
        self, of: str, nth: int, failure: Failure, transaction_id: str | None, told: Sequence[str],
        *, known_at: float,
    ) -> Verdict:  # fmt: skip
        """One task for an attempt, however many ask; timed from when the first of them knew."""
        key = (of, nth)
        task = self._settling.get(key)
        if task is None:
            task = self._spawn(self._timed(key, failure, transaction_id, told, known_at))
            self._settling[key] = task
            task.add_done_callback(lambda _: self._settling.pop(key, None))
        return await asyncio.shield(task)

    async def _timed(
        self, key: tuple[str, int], failure: Failure, transaction_id: str | None,
        told: Sequence[str], known_at: float,
    ) -> Verdict:  # fmt: skip
        try:
            verdict = await self._try(*key, failure, transaction_id, told)
            # Without a notification of ours, an earlier try may have written it unheard.
            if verdict.notification is not None or (
                verdict.outcome is Outcome.ROLLED_BACK and key in self._tried_again
            ):
                told_of = verdict.notification
                detail = "" if told_of is None else f"operation {told_of.failed_operation}"
                self._steps.notice_sent(NOTIFICATION_TYPE, known_at, detail)
            return verdict
        finally:
            self._tried_again.discard(key)

    async def _try(
        self, of: str, nth: int, failure: Failure, transaction_id: str | None, told: Sequence[str]
    ) -> Verdict:
        pause_s = _PAUSE_S
        # Only who held the operation is in its trace; a reaper is in that of the node's start.
        traced = self.tracing.current() if self.tracing is not None and told else None
        while True:
            try:
                async with self._settling_at_once:
                    verdict = await self._writer.run(
                        lambda conn: self.outcomes.settle(
                            conn,
                            of,
                            nth,
                            failure,
                            transaction_id=transaction_id,
                            trace_parent=traced,
                        )
                    )
            except Exception as error:  # noqa: BLE001 - drivers raise their own on connect
                self._tried_again.add((of, nth))
                if pause_s == _PAUSE_S:
                    notify(
                        self._observers,
                        CoordinationEvent(
                            CoordinationEventType.COORDINATION_FAILED, of, nth,
                            error=str(Failure.of(error)),
                        )
                    )  # fmt: skip
                _logger.warning(
                    "commitcast: operation %s is not settled yet: %s", of, Failure.of(error)
                )
                await asyncio.sleep(random.uniform(pause_s / 2, pause_s))
                pause_s = min(pause_s * 2, _MAX_PAUSE_S)
            else:
                if verdict.events:
                    self._steps.committed(verdict.events)
                    self._deliver(verdict.events)
                elif told and pause_s > _PAUSE_S:
                    self._hint(told)  # an earlier try may have committed without our hearing of it
                return verdict

    # --- what follows ---------------------------------------------------------------------

    def _tell(self, operation: Operation, outcome: Outcome, failure: Failure) -> None:
        committed = outcome is Outcome.COMMITTED
        kind = (
            CoordinationEventType.TRANSACTION_COMMITTED
            if committed
            else CoordinationEventType.TRANSACTION_ROLLED_BACK
        )
        self.observe(kind, operation, None if committed else str(failure))

    def observe(
        self, kind: CoordinationEventType, operation: Operation, error: str | None = None
    ) -> None:
        """Tell observers of an operation."""
        notify(
            self._observers,
            CoordinationEvent(
                kind, operation.id, operation.attempt, operation.name, operation.actor,
                operation.transaction_id, operation.announcement.streams, error,
            )
        )  # fmt: skip

    async def _follow(self, operation: Operation, outcome: Outcome) -> None:
        for function in operation.followers(outcome):
            try:
                done = function()
                if inspect.isawaitable(done):
                    await done
            except Exception as error:
                _logger.exception("commitcast: %r followed by %r raised", operation, function)
                self.observe(
                    CoordinationEventType.LAYER_SYNC_ERROR, operation, type(error).__name__
                )

    def outcomes_of(self, log: Log) -> Outcomes:
        """The statements for a transaction whose engine has `log`."""
        if log.tables is not self._tables:
            raise OperationError(
                None,
                "the session's engine belongs to another coordinator; one operation has one "
                "database, so bind a session of the coordinator's own engine",
            )
        outcomes = self._of_log.get(log)
        if outcomes is None:
            outcomes = self._of_log[log] = Outcomes(log)
        return outcomes

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
