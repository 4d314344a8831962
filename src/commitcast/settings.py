"""Every limit and interval of a coordinator, in one place, with its unit in its name."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from commitcast.event import DEFAULT_MAX_EVENT_BYTES


@dataclass(frozen=True)
class Retention:
    """How long events are kept; an event goes when either limit says so."""

    max_age: timedelta | None = timedelta(days=7)
    max_events_per_stream: int | None = 100_000
    operations_max_age: timedelta | None = timedelta(days=7)
    """How long settled operations are kept, and so how long an idempotency key is remembered."""
    every_s: float = 60.0
    """How often, in seconds, the log is trimmed. 0 turns trimming off on this node."""

    def __post_init__(self) -> None:
        for name in ("max_age", "operations_max_age"):
            age = getattr(self, name)
            if age is not None and age <= timedelta(0):
                raise ValueError(f"{name} must be longer than nothing, not {age}")
        if self.max_events_per_stream is not None and self.max_events_per_stream < 1:
            raise ValueError(
                f"max_events_per_stream must be 1 or more, not {self.max_events_per_stream}"
            )


@dataclass(frozen=True)
class Settings:
    """Limits of one coordinator. Defaults suit a server with some thousand readers."""

    max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES
    """Largest encoded data of one event."""
    poll_interval_s: float = 1.0
    """How often subscribed streams are looked up in the log: the fallback of lost hints."""
    page_events: int = 100
    """Most events read from the log at once."""
    read_connections: int = 4
    """Most database connections that reading takes at one time."""
    stream_buffer_bytes: int = 1024 * 1024
    """Most memory for the latest events of one stream, shared by its readers."""
    node_buffer_bytes: int = 64 * 1024 * 1024
    """Most memory for the latest events of all streams."""
    buffer_age_s: float = 60.0
    """How long an event stays in memory."""
    chunk_bytes: int = 64 * 1024
    """About the most that is written to a client in one go."""
    write_deadline_s: float = 10.0
    """How long a write may wait for a slow client before the client is closed."""
    keep_alive_s: float = 15.0
    """Pause after which a comment is sent to an idle client, and authorisation asked again."""
    retry_ms: int = 1000
    """Shortest pause before a browser connects again; each client is given 1 to 3 times it."""
    max_connections: int = 10_000
    """Most clients of this node."""
    max_connections_per_user: int = 64
    """Most clients of one user on this node."""
    max_connects_per_minute_per_user: int = 600
    """How often one user may connect to this node within a minute, all at once if they like."""
    access_limit_s: float = 10.0
    """How long ``authenticate``, ``authorize`` and ``operators`` may each take to answer. After
    that the client is turned away, or its connection closed; it is never let in."""
    max_connection_s: float = 3600.0
    """How long one connection is served; then the client comes back with its position. It bounds
    what a connection costs whose end the server does not report. Spread by a fifth."""
    drain_s: float = 5.0
    """Time over which clients are closed when the node stops."""
    relay_lease_s: float = 10.0
    """How long a node that died keeps others from delivering to ``deliver``."""
    deliver_limit_s: float = 30.0
    """How long one call of an async ``deliver`` may take; then it is cancelled and tried again."""
    lease_s: float = 10.0
    """How long a node may be silent before others declare it dead and settle its operations."""
    operation_deadline_s: float = 300.0
    """How long an operation may take, unless it says otherwise; then it is rolled back."""
    max_operations_per_user: int = 100
    """Most operations of one user that are open at one time on this node."""
    max_operations_per_user_per_minute: int = 3000
    """How fast one user may begin operations on this node; so many may begin at once."""
    commit_limit_s: float = 30.0
    """How long ``Operation.begin`` waits for COMMIT before it asks the database what became of it."""
    settle_wait_s: float = 5.0
    """How long leaving an operation waits for its outcome; settling goes on afterwards."""
    invariants_every_s: float = 15.0
    """How often the database is asked whether what must hold does (`commitcast.invariants`).
    0 turns it off on this node."""
    invariants_stale_s: float = 10.0
    """How old an event may be that no ``deliver`` callable has been given yet."""
    health_check_every_s: float = 5.0
    """How often scores are compared with the limits of alerts."""
    retention: Retention = field(default_factory=Retention)

    def __post_init__(self) -> None:
        for name in (
            "max_event_bytes", "poll_interval_s", "page_events", "read_connections",
            "stream_buffer_bytes", "node_buffer_bytes", "buffer_age_s", "chunk_bytes",
            "write_deadline_s", "keep_alive_s", "retry_ms", "max_connections",
            "max_connections_per_user", "max_connects_per_minute_per_user", "access_limit_s",
            "max_connection_s",
            "max_operations_per_user", "max_operations_per_user_per_minute",
            "relay_lease_s", "deliver_limit_s", "lease_s", "operation_deadline_s",
            "commit_limit_s", "settle_wait_s", "invariants_stale_s", "health_check_every_s",
        ):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)!r}")
        for name in ("drain_s", "invariants_every_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)!r}")
