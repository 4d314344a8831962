"""Commitcast: what your users see is what your database committed."""

from commitcast.auth import ConnectionRequest
from commitcast.coordinator import Coordinator
from commitcast.emit import emit
from commitcast.errors import CommitcastError, PositionLost, SubscriptionClosed
from commitcast.event import CommittedEvent, Event, Position
from commitcast.settings import Retention, Settings
from commitcast.subscription import EARLIEST, AccessDenied, Reset, Subscription

__all__ = [
    "EARLIEST",
    "AccessDenied",
    "CommitcastError",
    "CommittedEvent",
    "ConnectionRequest",
    "Coordinator",
    "Event",
    "Position",
    "PositionLost",
    "Reset",
    "Retention",
    "Settings",
    "Subscription",
    "SubscriptionClosed",
    "emit",
]
