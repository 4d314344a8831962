"""Commitcast: what your users see is what your database committed."""

from commitcast.attempt import Attempt, Outcome
from commitcast.coordinator import Coordinator
from commitcast.dispatch import Dispatcher
from commitcast.emit import emit
from commitcast.errors import (
    AlreadyCommitted,
    CommitcastError,
    IdempotencyConflict,
    InProgress,
    LateAnnouncement,
    OperationEnded,
    OperationError,
    OperationLost,
    OperationTimedOut,
    OutcomeUnknown,
    PositionLost,
    SubscriptionClosed,
    TooManyOperations,
)
from commitcast.event import CommittedEvent, Event, Position
from commitcast.flags import Mode, Modes, OpenFeatureModes, Rollout
from commitcast.health import CoordinationHealthMonitor, HealthAlert, HealthLevel
from commitcast.invariants import Invariants
from commitcast.notification import Layer, RecoveryAction, RollbackNotification
from commitcast.operation import Operation
from commitcast.request import ConnectionRequest
from commitcast.score import HealthScore, LayerPair
from commitcast.settings import Retention, Settings
from commitcast.subscription import EARLIEST, AccessDenied, Reset, Subscription
from commitcast.telemetry import CoordinationEvent, CoordinationEventType
from commitcast.users import user_of_stream, user_stream

__all__ = [
    "EARLIEST",
    "AccessDenied",
    "AlreadyCommitted",
    "Attempt",
    "CommitcastError",
    "CommittedEvent",
    "ConnectionRequest",
    "CoordinationEvent",
    "CoordinationEventType",
    "CoordinationHealthMonitor",
    "Coordinator",
    "Dispatcher",
    "Event",
    "HealthAlert",
    "HealthLevel",
    "HealthScore",
    "IdempotencyConflict",
    "InProgress",
    "Invariants",
    "LateAnnouncement",
    "Layer",
    "LayerPair",
    "Mode",
    "Modes",
    "OpenFeatureModes",
    "Operation",
    "OperationEnded",
    "OperationError",
    "OperationLost",
    "OperationTimedOut",
    "Outcome",
    "OutcomeUnknown",
    "Position",
    "PositionLost",
    "RecoveryAction",
    "Reset",
    "Retention",
    "RollbackNotification",
    "Rollout",
    "Settings",
    "Subscription",
    "SubscriptionClosed",
    "TooManyOperations",
    "emit",
    "user_of_stream",
    "user_stream",
]
