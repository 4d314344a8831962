"""An operation: one announced unit of work that succeeds or fails as a whole.

Leaving it settles it. Until then it is open; afterwards it has one outcome, and if that is
*rolled_back*, whoever was to see its result is told once (G6), from the log.

What is promised about the end of it:

- COMMIT in `Operation.begin` is outlasted: a cancellation waits until it has returned.
- Nothing is concluded from an exception. Whoever left without a COMMIT that returned contends for
  the outcome (see `commitcast.outcome`), so a COMMIT that arrived after all is found.
- A settling that the database does not let happen now goes on in the background, and after a
  crash in the reaper of any node.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import TYPE_CHECKING, Any, Final, Self

import orjson
from sqlalchemy.exc import DBAPIError

from commitcast import own_session
from commitcast.attempt import Outcome
from commitcast.emit import bind, emit, unbind
from commitcast.encoding import to_json
from commitcast.errors import (
    AlreadyCommitted,
    CommitcastError,
    IdempotencyConflict,
    InProgress,
    InvalidEvent,
    LateAnnouncement,
    NoTransaction,
    OperationEnded,
    OperationError,
    OperationLost,
    OperationTimedOut,
    OutcomeUnknown,
)
from commitcast.in_commit import call
from commitcast.log import Decision
from commitcast.notification import (
    DEADLINE_PASSED,
    LEFT_WITHOUT_COMMIT,
    NODE_DIED,
    Failure,
)
from commitcast.outlast import outlast
from commitcast.pending import moment
from commitcast.telemetry import CoordinationEventType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection
    from types import TracebackType

    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncSession

    from commitcast.attempt import Announcement
    from commitcast.emit import EmitTarget
    from commitcast.log import Log
    from commitcast.operations import Operations
    from commitcast.telemetry import Span

_MAX_RESULT_BYTES: Final = 64 * 1024
_CLOSE_LIMIT_S: Final = 5.0
_UNKNOWN_STATES: Final = ("08", "57", "58", "XX", "40003")
"""Begin the SQLSTATEs after which a COMMIT may have happened (PostgreSQL, appendix A)."""


class Operation:
    """Made by `Coordinator.operation`; enter it once with ``async with``.

    Attributes:
        id: its id; with a key, made from actor, name and key.
        attempt: 1, 2, … known once entered.
        outcome: None while it is open, or not known yet.
        result: what a retry is answered with (`AlreadyCommitted` brings it back, as JSON values):
            what an event's data may be, or a function without arguments that gives it in the
            commit, when the ids of new rows are known. Set it before; later is `OperationEnded`.
    """

    def __init__(
        self,
        operations: Operations,
        *,
        announcement: Announcement,
        stream: str | None,
        deadline_s: float,
    ) -> None:
        self.id = announcement.id
        self.name = announcement.name
        self.actor = announcement.actor
        self.attempt = 0
        self.outcome: Outcome | None = None
        self._result: Any = None
        self.announcement = announcement
        self.transaction_id: str | None = None
        self._operations = operations
        self._span: Span | None = None
        self._stream = stream
        self._deadline_s = deadline_s
        self._timeout: asyncio.Timeout | None = None
        self._lost: Failure | None = None
        self._left = False
        self._abandoned = False
        self._announced_at = 0
        self._binding: _Binding | None = None
        self._place: EmitTarget | None = None
        self._after_commit: list[Callable[[], Any]] = []
        self._on_rollback: list[Callable[[], Any]] = []

    def __repr__(self) -> str:
        return f"<Operation {self.name} {self.id}.{self.attempt} {self.outcome or 'open'}>"

    # --- entering and leaving -------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Announce the attempt; once entered, it is told if it fails.

        Raises:
            AlreadyCommitted, InProgress, IdempotencyConflict: what became of this id before.
            LateAnnouncement: on SQLite, this task has a write transaction open already.
            SQLAlchemyError, OSError: the database did not take it; nothing was begun.
        """
        if self._announced_at or self._left:
            raise OperationEnded(self.id, "an operation is entered once; make another")
        self._operations.check_not_writing()
        self._operations.live.add(self)
        if self._operations.tracing is not None:
            self._span = self._operations.tracing.operation(self.name, self.id)
            self._span.enter()
        try:
            self.attempt = await self._announce()
        except BaseException as error:
            self._left = True
            if self._span is not None:
                self._span.leave()
            if not self._abandoned:
                self._operations.live.discard(self)
                self.end_span(error)
            raise
        self._announced_at = moment()
        self._timeout = asyncio.timeout(self._deadline_s)
        await self._timeout.__aenter__()
        return self

    async def _announce(self) -> int:
        for last in (False, True):
            announced = self._operations.announce(self)
            try:
                answer = await asyncio.shield(announced)
            except asyncio.CancelledError:
                self._abandoned = True
                self._operations.abandon(self, announced)
                raise
            if isinstance(answer, int):
                return answer
            if answer.request_hash != self.announcement.request_hash:
                raise IdempotencyConflict(self.id)
            if answer.outcome is Outcome.COMMITTED:
                stored = answer.result_json
                raise AlreadyCommitted(self.id, None if stored is None else orjson.loads(stored))
            # An attempt that nobody works on any more is settled first; this is the next one.
            if last or not answer.orphan or not await self._operations.settle_orphan(answer):
                break
        raise InProgress(self.id)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Settle. The exception of the block goes on, with the operation's id as a note.

        Raises:
            OperationTimedOut, OperationLost: the deadline passed, or this node was taken for dead.
            OutcomeUnknown: COMMIT was tried, and the database cannot be asked.
        """
        self._left = True
        ending = await self._stop_clock(exc_type, exc, traceback)
        if self._place is not None and self._binding is not None:
            unbind(self._place, self._binding)
        failure = self._lost
        if failure is None:
            failure = LEFT_WITHOUT_COMMIT if ending is None else Failure.of(ending)
        try:
            await self._operations.leave(self, failure)
        finally:
            if self._span is not None:
                self._span.leave()
            if ending is not None:
                ending.add_note(f"operation {self.id}.{self.attempt}: {self.outcome or 'unknown'}")
        tried = self._binding is not None and self._binding.tried
        if self.outcome is None and tried and not isinstance(ending, asyncio.CancelledError):
            raise OutcomeUnknown(self.id) from ending
        if ending is not None and ending is not exc:
            raise ending from exc

    async def _stop_clock(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> BaseException | None:
        if self._timeout is None:  # pragma: no cover - set on entering
            return exc
        try:
            await self._timeout.__aexit__(exc_type, exc, traceback)
        except TimeoutError:
            if self._lost is not None:
                return OperationLost(self.id, f"this node was taken for dead during {self!r}")
            self._lost = DEADLINE_PASSED
            return OperationTimedOut(
                self.id, f"{self!r} took longer than its deadline of {self._deadline_s:g} s"
            )
        return exc

    def end_span(self, error: BaseException | str | None = None) -> None:
        """What is traced of it has ended; `error` counts unless it committed."""
        if self._span is not None:
            if self.attempt:
                self._span.note("commitcast.operation.attempt", self.attempt)
                self._span.note("commitcast.operation.outcome", str(self.outcome or "unknown"))
            self._span.end(None if self.outcome is Outcome.COMMITTED else error)

    def lose(self) -> None:
        """End the work: someone else may settle it now."""
        if self.outcome is None and self._lost is None:
            self._lost = NODE_DIED
            if self._timeout is not None and not self._left:
                self._timeout.reschedule(asyncio.get_running_loop().time())

    # --- inside ---------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncSession]:
        """Our transaction: a session of the coordinator's, committed at the end of the block.

        That commit decides the outcome. ``session.commit()`` inside the block is a checkpoint:
        rows and events are there, the outcome is still open. After a block that failed without a
        COMMIT on its way (a deadlock, a serialization failure) another may be begun.

        Raises:
            OperationEnded: the operation has an outcome, or is not entered.
            OperationLost: someone else rolled it back first.
            OperationError: the session is joined to a transaction outside, so that it commits none.
        """
        self._check_open()
        if self._binding is not None and not self._binding.over:
            raise OperationError(self.id, "the operation is bound to a transaction already")
        session = self._operations.session()
        binding = self._bind(session, final=False)
        try:
            await own_session.begin(session)
            yield session
            self._check_open()
        except BaseException as error:
            binding.over = True
            interrupted = await self._close(session)
            if interrupted is not None and not isinstance(error, asyncio.CancelledError):
                raise interrupted from error
            raise
        await self._commit(session, binding)

    async def _commit(self, session: AsyncSession, binding: _Binding) -> None:
        binding.final = True
        committing = asyncio.ensure_future(own_session.commit_and_close(session))
        interrupted = await outlast(committing, self._operations.settings.commit_limit_s)
        binding.over = True
        self._place = None
        error = _error_of(committing)
        if error is not None:
            interrupted = await self._close(session) or interrupted
        if error is not None and binding.tried and _may_have_committed(error):
            await self._operations.decide(self, Failure.of(error))
            if self.outcome is None and interrupted is None:
                raise OutcomeUnknown(self.id) from error
        if error is not None and self.outcome is not Outcome.COMMITTED and interrupted is None:
            raise error
        if interrupted is not None:
            raise interrupted
        if self.outcome is None:  # RELEASE of a savepoint, or nothing at all
            raise OperationError(
                self.id,
                "the session of `sessions` has committed no transaction of its own (it is joined to "
                "one that is open outside), so that the operation is not committed; give sessions "
                "of an engine",
            )

    async def _close(self, session: AsyncSession) -> asyncio.CancelledError | None:
        """Close our session whatever happens; returns a cancellation that came meanwhile."""
        closing = asyncio.ensure_future(session.close())
        interrupted = await outlast(closing, _CLOSE_LIMIT_S)
        if closing.done() and not closing.cancelled():
            closing.exception()  # a connection that is lost is not there to be closed
        self._place = None
        return interrupted

    def bind(self, target: EmitTarget) -> None:
        """Tie the outcome to a transaction that the caller commits: the next that `target` commits.

        Args:
            target: a session, sync or async, or a connection in a transaction.

        Raises:
            LateAnnouncement: its transaction began before the operation was announced.
            OperationEnded, OperationError, EmitRefused: it cannot be tied to this operation.
        """
        self._check_open()
        if self._binding is not None and not self._binding.over:
            raise OperationError(self.id, "the operation is bound to a transaction already")
        self._bind(target, final=True)

    def _bind(self, target: EmitTarget, *, final: bool) -> _Binding:
        binding = _Binding(self, final=final)
        try:
            bind(target, binding, after=self._announced_at)
        except LateAnnouncement as error:
            raise LateAnnouncement(self.id, str(error)) from None
        self._binding, self._place = binding, target
        self.transaction_id = uuid.uuid4().hex
        self._operations.observe(CoordinationEventType.TRANSACTION_STARTED, self)
        return binding

    def emit(self, event: object, *, stream: str | None = None) -> None:
        """`commitcast.emit` into the transaction that is open, with this operation's id and actor.

        Goes to the operation's own stream unless `stream` is given. Raises as `emit`, and
        NoTransaction outside of `begin` and before `bind`.
        """
        self._check_open()
        where = stream if stream is not None else self._stream
        if where is None:
            raise InvalidEvent("the operation has no stream of its own: give emit(…, stream=…)")
        if self._place is None:
            raise NoTransaction(
                "the operation has no transaction yet: emit inside `async with op.begin()`, or "
                "after op.bind(session)"
            )
        emit(self._place, where, event, actor=self.actor, operation=self.id)

    def after_commit(self, function: Callable[[], Any]) -> None:
        """Call `function`, sync or async, once the operation has committed and is left.

        For effects outside the database. Not called if the process dies first.
        """
        self._after_commit.append(function)

    def on_rollback(self, function: Callable[[], Any]) -> None:
        """Call `function`, sync or async, once the outcome is known to be *rolled_back*.

        For effects outside the database that must be undone. Not called if the process dies first.
        """
        self._on_rollback.append(function)

    def followers(self, outcome: Outcome) -> list[Callable[[], Any]]:
        """The functions that are to follow an outcome."""
        return self._after_commit if outcome is Outcome.COMMITTED else self._on_rollback

    def _check_open(self) -> None:
        if not self._announced_at:
            raise OperationEnded(self.id, "enter the operation first: async with …operation(…)")
        if self._left or self.outcome is not None:
            raise OperationEnded(self.id, f"{self!r} has ended; nothing can be added to it")
        if self._lost is not None:
            raise OperationLost(self.id, f"this node was taken for dead during {self!r}")

    @property
    def result(self) -> Any:
        """See the class."""
        return self._result

    @result.setter
    def result(self, value: Any) -> None:
        if self._left or self.outcome is Outcome.COMMITTED:
            raise OperationEnded(
                self.id, f"{self!r} has ended without this result; set it before its commit"
            )
        self._result = value

    def encoded_result(self) -> str | None:
        """What is stored with the commit; raises `InvalidEvent` for what a retry would not get."""
        value = self._result
        if callable(value):
            value = call(value, f"given as the result of {self!r}")
        if value is None:
            return None
        if hasattr(value, "close") and hasattr(value, "__await__"):
            value.close()
        what = f"the result of {self!r}"
        hint = "a retry is answered with it; give what can be stored, such as {'id': row.id}"
        try:
            encoded = to_json(value, what)
        except InvalidEvent as error:
            raise InvalidEvent(f"{error} ({hint})") from error
        if encoded == b"null" or len(encoded) > _MAX_RESULT_BYTES:
            found = "would be null" if encoded == b"null" else f"takes {len(encoded)} bytes"
            raise InvalidEvent(f"{what} {found}, of at most {_MAX_RESULT_BYTES} ({hint})")
        return encoded.decode()

    def bound_committed(self, binding: _Binding) -> None:
        """COMMIT of the transaction that decides returned; what its session does next is its own."""
        self.outcome = Outcome.COMMITTED
        binding.over = True
        if self._place is not None:
            unbind(self._place, binding)

    def write(
        self, conn: Connection, log: Log, streams: Collection[str], *, final: bool
    ) -> Decision | None:
        """What the transaction that is bound decides; or that it shows something before."""
        outcomes = self._operations.outcomes_of(log)
        if final:
            return Decision(self.id, self.attempt, self.encoded_result())
        if streams:
            outcomes.show(conn, self.id, self.attempt, streams)
        return None


class _Binding:
    """Ties one transaction to an operation (`commitcast.log.Binding`)."""

    def __init__(self, operation: Operation, *, final: bool) -> None:
        self._operation = operation
        self.final = final
        self.tried = False
        """Whether *committed* was to be inserted, so that COMMIT may have been sent."""
        self.over = False

    def write(self, conn: Connection, log: Log, streams: Collection[str]) -> Decision | None:
        """See `Binding`."""
        decision = self._operation.write(conn, log, streams, final=self.final)
        self.tried |= decision is not None
        return decision

    def committed(self) -> None:
        """See `Binding`."""
        if self.tried:
            self._operation.bound_committed(self)


def _error_of(committing: asyncio.Future[None]) -> BaseException | None:
    if not committing.done():
        return TimeoutError("COMMIT has not returned")
    if committing.cancelled():
        return asyncio.CancelledError()
    return committing.exception()


def _may_have_committed(error: BaseException) -> bool:
    """Whether COMMIT, once sent, may have happened although it raised."""
    if isinstance(error, CommitcastError):  # raised before COMMIT was sent
        return False
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return True
    state = Failure.of(error).sqlstate or ""
    return state.startswith(_UNKNOWN_STATES)
