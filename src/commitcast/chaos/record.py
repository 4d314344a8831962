"""What a campaign observed: frozen records that the checker compares.

Records say only what was seen, by whom and in which order. They hold no opinion.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One row of the log, as the database holds it when everything has come to rest."""

    stream: str
    offset: int
    event_id: str
    type: str
    data_json: str


@dataclass(frozen=True, slots=True)
class BusinessRow:
    """One row of the writers' own table, saved in the transaction that emitted its event.

    `key` is ``term.writer.number``; a writer's numbers grow in the order of its commits.
    """

    id: int
    key: str
    stream: str
    payload: str


@dataclass(frozen=True, slots=True)
class Connected:
    """A reader opened a connection (HTTP 200) and asked to go on after `cursor`."""

    cursor: str | None


@dataclass(frozen=True, slots=True)
class Told:
    """A control message: ``commitcast.subscribed`` or, with `reset`, ``commitcast.reset``."""

    epoch: str
    offset: int
    recovered: bool
    reset: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """A durable event as it arrived: the position in the SSE ``id`` field, and the frame."""

    position: str
    frame: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A connection was answered with another status than 200."""

    status: int


Observation = Connected | Told | Received | Refused


@dataclass(frozen=True, slots=True)
class ReaderRecord:
    """Everything that one reader of one stream saw, in order, over all its connections.

    It began at the stream's beginning: with the cursor ``new:0``, or without a cursor before
    the first event was emitted.
    """

    name: str
    stream: str
    observations: Sequence[Observation]


@dataclass(frozen=True, slots=True)
class SinkRecord:
    """The frames that a ``deliver`` callable was handed, in order, over all server lives."""

    name: str
    frames: Sequence[str]


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One row of ``operations``: an announced attempt, and who is to be told if it fails."""

    id: str
    attempt: int
    name: str
    actor: str | None
    streams: Sequence[str]
    shown: Sequence[str]


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """One row of ``outcomes``."""

    id: str
    attempt: int
    outcome: str
    result_json: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class WorkRow:
    """One row of the writers' own, saved in the transaction that was to commit an attempt."""

    id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One row of ``nodes``, while the servers that were left at the end still ran."""

    id: str
    term: int
    alive: bool


@dataclass(frozen=True, slots=True)
class Said:
    """What a writer knew of an attempt when it had left it: ``committed``, ``rolled_back``.

    Or ``unknown``. It is what the library told it, by an answer, an error or ``outcome``.
    """

    id: str
    attempt: int
    outcome: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The result that `AlreadyCommitted` brought back to a writer that came with the same key."""

    id: str
    result_json: str


@dataclass(frozen=True, slots=True)
class OperationsRecord:
    """All evidence of the operations of one campaign.

    `announced` are the attempts that a writer had entered. `living` is how many servers ran
    when `nodes` was read. `nobody_died`: no server was ever killed, and a stopped one cannot be
    taken for a dead one (SQLite, where a lock on a file says who lives).
    """

    attempts: Sequence[AttemptRow] = ()
    outcomes: Sequence[OutcomeRow] = ()
    work: Sequence[WorkRow] = ()
    nodes: Sequence[NodeRow] = ()
    announced: frozenset[tuple[str, int]] = frozenset()
    said: Sequence[Said] = ()
    answers: Sequence[Answer] = ()
    living: int = 0
    nobody_died: bool = False


@dataclass(frozen=True, slots=True)
class History:
    """All evidence of one campaign.

    `heads` and `tails` are the streams table; `acknowledged` are the keys of rows whose
    ``commit()`` returned in a server before it was killed.
    """

    log: Sequence[LogEvent]
    heads: Mapping[str, int]
    tails: Mapping[str, int]
    rows: Sequence[BusinessRow]
    acknowledged: frozenset[str]
    readers: Sequence[ReaderRecord]
    sinks: Sequence[SinkRecord] = field(default=())
    operations: OperationsRecord = field(default_factory=OperationsRecord)
