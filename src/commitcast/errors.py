"""Every error that Commitcast raises, in one small tree.

Messages say what was wrong, with what value, and what to do. They are written for
developers and operators; nothing here is ever sent to a user.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from commitcast.event import Position


class CommitcastError(Exception):
    """Base of every error raised by Commitcast."""


class InvalidEvent(CommitcastError, ValueError):
    """An event, a stream name or an event type that cannot be accepted; nothing was written."""


class EmitRefused(CommitcastError):
    """An emit that could not keep its guarantees where it was made.

    Raised by `emit` itself or by the commit that would have carried it. The transaction is
    not committed; after ``rollback()`` the session is usable again.
    """


class NotAttached(EmitRefused):
    """The session's engine has no coordinator, so nobody would deliver the event."""


class NoTransaction(EmitRefused):
    """No transaction is open that could still take the event and leave with it."""


class TransactionNotSeen(EmitRefused):
    """The session's transaction is older than the coordinator; what is in it is not known."""


class AutocommitRefused(EmitRefused):
    """In AUTOCOMMIT mode there is no transaction: rows are saved before the event could be."""


class TwoPhaseRefused(EmitRefused):
    """A prepared transaction may commit later, by anyone; its outcome cannot be followed."""


class IsolationRefused(EmitRefused):
    """Row-mode streams share a head row, which above READ COMMITTED aborts most writers."""


class SeveralEngines(EmitRefused):
    """The transaction may have written on more than one connection, so no single commit covers it."""


class LogError(CommitcastError):
    """The log did not do what it was asked; the transaction must be rolled back."""


class StandbyRefused(EmitRefused):
    """The engine, or ``reader=``, is connected to a standby; Commitcast needs the primary."""


class SchemaMissing(CommitcastError):
    """Commitcast's tables are not in the database, or are of another version."""


class PositionLost(CommitcastError):
    """The events after a position can no longer all be delivered (G3).

    Reload the state from your own tables and read on from `position`.
    """

    def __init__(self, stream: str, position: Position) -> None:
        super().__init__(
            f"events of stream {stream!r} after the given position are gone (trimmed, erased, or "
            f"lost by the database); reload the state and read on from {position}"
        )
        self.stream = stream
        self.position = position


class NotRunning(CommitcastError):
    """Delivery was asked of a coordinator that is not entered (``async with coordinator``)."""


class SubscriptionClosed(CommitcastError):
    """The subscription was closed while it was being read; `position` is where to resume."""

    def __init__(self, stream: str, position: Position | None, reason: str) -> None:
        super().__init__(f"subscription to {stream!r} was closed: {reason}; resume from {position}")
        self.stream = stream
        self.position = position
        self.reason = reason


class OperationError(CommitcastError):
    """Base of what `Coordinator.operation` refuses or reports; `operation_id` says which."""

    def __init__(self, operation_id: str | None, message: str) -> None:
        super().__init__(message)
        self.operation_id = operation_id


class AlreadyCommitted(OperationError):
    """The operation of this id has committed before; `result` is what it stored (JSON values)."""

    def __init__(self, operation_id: str, result: Any) -> None:
        super().__init__(
            operation_id, f"operation {operation_id} has committed already; answer with its result"
        )
        self.result = result


class InProgress(OperationError):
    """The operation of this id is being worked on, or its outcome is not known yet."""

    def __init__(self, operation_id: str) -> None:
        super().__init__(
            operation_id, f"operation {operation_id} is in progress; ask for its outcome later"
        )


class IdempotencyConflict(OperationError):
    """The same id was given before with another request (`request=`)."""

    def __init__(self, operation_id: str) -> None:
        super().__init__(
            operation_id,
            f"operation {operation_id} was announced with another request; use a new id for it",
        )


class TooManyOperations(OperationError):
    """A user has as many operations as one may; nothing was announced.

    `retry_after_s` says after how many seconds it is worth to try again (HTTP: 429, Retry-After).
    """

    def __init__(self, operation_id: str | None, message: str, *, retry_after_s: float) -> None:
        super().__init__(operation_id, f"{message}; try again after {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class LateAnnouncement(OperationError):
    """Work began before the operation was announced; enter the operation first."""


class OperationEnded(OperationError):
    """The operation has an outcome, or was left, or was not entered; nothing can be added to it."""


class OperationLost(OperationError):
    """Someone else decided the outcome: this node was taken for dead, or the deadline passed.

    Raised by the commit that came too late, which is rolled back.
    """

    def __init__(self, operation_id: str | None, message: str | None = None) -> None:
        super().__init__(
            operation_id,
            message
            or f"operation {operation_id} was rolled back by someone else (its node was taken for "
            "dead, its deadline passed, or its user was erased) before this transaction committed; "
            "begin a new attempt",
        )


class OperationTimedOut(OperationError, TimeoutError):
    """The operation took longer than its deadline."""


class OutcomeUnknown(OperationError):
    """COMMIT may or may not have happened, and the database cannot be asked now.

    Commitcast goes on asking; if it did not commit, the rollback notification follows.
    """

    def __init__(self, operation_id: str) -> None:
        super().__init__(
            operation_id,
            f"the outcome of operation {operation_id} is not known while the database is away; "
            "it will be settled as soon as it can be asked",
        )
