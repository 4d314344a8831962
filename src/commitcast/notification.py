"""The rollback notification: what people are told when an announced operation did not commit.

It is an event in the log like any other (G1 to G5 hold for it), written in the transaction that
decides the outcome *rolled_back*. Its event id is made from operation and attempt, so that the
same notification on several streams can be told for one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from commitcast.encoding import to_json
from commitcast.event import EncodedEvent
from commitcast.telemetry import CoordinationEventType

NOTIFICATION_TYPE: Final = str(CoordinationEventType.TRANSACTION_ROLLED_BACK)
"""The type of the event that carries a rollback notification; `emit` refuses it to others."""

DEFAULT_USER_MESSAGE: Final = "Your change was not saved."


class Layer(StrEnum):
    """Where an operation left something that its rollback took back or has to."""

    DATABASE = "database"
    WEBSOCKET = "websocket"


class RecoveryAction(StrEnum):
    """What may help, most promising first."""

    RETRY = "retry"
    """Do the same again: the cause was passing (a deadlock, a lost connection, a dead node)."""
    CHANGE_INPUT = "change_input"
    """The same again would fail again: a rule of the database was broken."""
    RELOAD = "reload"
    """Read the state anew: what was on the screen may not be what is saved."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an operation failed, for operators: class, SQLSTATE and constraint, never parameters."""

    kind: str
    sqlstate: str | None = None
    constraint: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Read what an exception may tell; drivers keep SQLSTATE and constraint differently."""
        original: Any = getattr(error, "orig", None) or error
        found = [original, getattr(original, "__cause__", None), getattr(original, "diag", None)]
        state = next((s for o in found for s in (_text(o, "sqlstate"),) if s), None)
        names = ("constraint_name", "constraint")
        constraint = next((c for o in found for n in names for c in (_text(o, n),) if c), None)
        return cls(type(error).__name__, state, constraint)

    def __str__(self) -> str:
        more = [self.sqlstate and f"SQLSTATE {self.sqlstate}", self.constraint]
        return ", ".join([self.kind, *filter(None, more)])

    @property
    def recovery_actions(self) -> tuple[RecoveryAction, ...]:
        """What may help, from the class of the SQLSTATE (PostgreSQL, appendix A)."""
        broken_rule = (self.sqlstate or "")[:2] in {"22", "23"} or self.kind in {
            "IntegrityError",
            "DataError",
        }
        first = RecoveryAction.CHANGE_INPUT if broken_rule else RecoveryAction.RETRY
        return (first, RecoveryAction.RELOAD)


LEFT_WITHOUT_COMMIT: Final = Failure("LeftWithoutCommit")
NODE_DIED: Final = Failure("NodeDied")
DEADLINE_PASSED: Final = Failure("DeadlinePassed")
ABANDONED: Final = Failure("Abandoned")
ERASED: Final = Failure("Erased")


@dataclass(frozen=True, slots=True)
class RollbackNotification:
    """One failed attempt at an operation. `public` of it goes to users, the rest to operators."""

    operation_id: str
    attempt: int
    transaction_id: str | None
    """The last transaction that was tried; None if none was, or if the process died."""
    failed_operation: str
    """The name given to `Coordinator.operation`."""
    error_message: str
    """Class, SQLSTATE and constraint; for operators, never on the wire."""
    affected_layers: tuple[Layer, ...]
    recovery_actions: tuple[RecoveryAction, ...]
    user_message: str
    retract: tuple[str, ...]
    """Streams on which the operation showed something that the UI must take back; what it is
    carries this operation's id."""
    time: str
    """When the outcome was decided, ISO 8601 in UTC, by the clock of the node that decided."""

    @property
    def event_id(self) -> str:
        """The same for each stream, made from operation and attempt."""
        return notice_id(self.operation_id, self.attempt)

    def public(self) -> dict[str, Any]:
        """The data of the event that users receive."""
        return {
            "operation_id": self.operation_id,
            "attempt": self.attempt,
            "transaction_id": self.transaction_id,
            "failed_operation": self.failed_operation,
            "affected_layers": list(self.affected_layers),
            "recovery_actions": list(self.recovery_actions),
            "user_message": self.user_message,
            "retract": list(self.retract),
            "time": self.time,
        }

    def encoded(self, streams: tuple[str, ...], actor: str | None) -> list[EncodedEvent]:
        """The event for each of `streams`."""
        data = to_json(self.public(), "a rollback notification").decode()
        return [
            EncodedEvent(
                id=self.event_id,
                stream=stream,
                type=NOTIFICATION_TYPE,
                data_json=data,
                actor=actor,
                operation=self.operation_id,
            )
            for stream in dict.fromkeys(streams)
        ]


def notice_id(operation_id: str, attempt: int) -> str:
    """The event id of the notification of one attempt."""
    text = f"rolled_back|{operation_id}|{attempt}".encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _text(value: object, name: str) -> str | None:
    found = getattr(value, name, None)
    return found if isinstance(found, str) else None
