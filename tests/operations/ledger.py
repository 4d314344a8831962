"""What must hold of the tables, whoever did what: one outcome, told once.

`Ledger` keeps what the test itself knows to have happened and compares it with the database after
each transaction. It shares no code with what it checks, the event's id included.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

Key = tuple[str, int]


class Announced(NamedTuple):
    """A row of operations."""

    id: str
    attempt: int
    node: str
    term: int
    deadline: float
    request_hash: str | None
    settled: bool

    @property
    def key(self) -> Key:
        return (self.id, self.attempt)


class Logged(NamedTuple):
    """A row of events, with the head of its stream."""

    stream: str
    offset: int
    event_id: str
    type: str
    operation: str
    data: str
    head: int


@dataclass
class Snapshot:
    """All tables at one time."""

    operations: dict[Key, Announced] = field(default_factory=dict)
    outcomes: dict[Key, str] = field(default_factory=dict)
    nodes: dict[str, tuple[int, float | None]] = field(default_factory=dict)
    events: list[Logged] = field(default_factory=list)
    rows: set[tuple[str, int, str]] = field(default_factory=set)

    @classmethod
    def of(cls, looked: Mapping[str, list[Any]]) -> Snapshot:
        return cls(
            {(row[0], row[1]): Announced._make(row) for row in looked["operations"]},
            {(row[0], row[1]): row[2] for row in looked["outcomes"]},
            {row[0]: (row[1], row[2]) for row in looked["nodes"]},
            [Logged._make(row) for row in looked["events"]],
            {(row[0], row[1], row[2]) for row in looked["rows"]},
        )

    def latest(self, of: str) -> Announced | None:
        """The newest attempt at an operation."""
        attempts = [row for (id_, _), row in self.operations.items() if id_ == of]
        return max(attempts, key=lambda row: row.attempt, default=None)

    def is_orphan(self, of: Announced, now: float) -> bool:
        """Whether nobody can be working on an attempt any more."""
        node = self.nodes.get(of.node)
        return node is None or node[0] > of.term or of.deadline < now

    def open(self) -> list[Announced]:
        return [row for key, row in self.operations.items() if key not in self.outcomes]


@dataclass
class Work:
    """One announced attempt, and what its node knows of it."""

    id: str
    attempt: int
    node: str
    term: int
    told: list[str]
    shown: list[str] = field(default_factory=list)
    checkpoints: int = 0
    left: bool = False
    """Its task has gone, and wants it settled."""
    lost: bool = False
    """Its node was taken for dead, and knows it."""

    @property
    def key(self) -> Key:
        return (self.id, self.attempt)


def notification_id(of: str, attempt: int) -> str:
    """The event id that is promised."""
    text = f"rolled_back|{of}|{attempt}".encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest()


class Ledger:
    """The attempts that were announced, and the last state of the tables that was found good."""

    def __init__(self) -> None:
        self.work: dict[Key, Work] = {}
        self.seen = Snapshot()
        self._living: dict[str, tuple[int, bool]] = {}
        """The last term that each node lived under, and whether it has died since."""

    def check(self, found: Snapshot) -> None:
        """Raises AssertionError for what may not be; `found` is the last seen from now on."""
        before = self.seen
        self.seen = found
        for key, outcome in before.outcomes.items():
            now = found.outcomes.get(key)
            assert now == outcome, f"{key} was {outcome}, and is {now}"
        assert found.operations.keys() == self.work.keys(), "attempts that nobody announced"
        assert found.outcomes.keys() <= found.operations.keys(), "an outcome of nothing"
        self._check_terms(found)
        self._check_attempts(found)
        self._check_rows(found)
        self._check_events(found)

    def _check_terms(self, found: Snapshot) -> None:
        for name, (term, died) in self._living.items():
            now = found.nodes.get(name)
            if now is None or now[1] is None:
                self._living[name] = (term, True)
            else:
                assert now[0] >= term + died, f"{name} lives again under an old term"
        for name, (term, heartbeat) in found.nodes.items():
            if heartbeat is not None:
                self._living[name] = (term, False)

    def _check_attempts(self, found: Snapshot) -> None:
        last: dict[str, int] = {}
        for of, attempt in found.operations:
            last[of] = max(last.get(of, 0), attempt)
        count = Counter(of for of, _ in found.operations)
        assert last == count, "attempts are not 1, 2, 3 …"
        for (of, attempt), row in found.operations.items():
            outcome = found.outcomes.get((of, attempt))
            if attempt < last[of]:
                assert outcome == "rolled_back", f"{of}.{attempt} is {outcome}, and was retried"
            assert not row.settled or outcome is not None, f"{of}.{attempt} is put aside open"

    def _check_rows(self, found: Snapshot) -> None:
        done = {(of, attempt) for of, attempt, kind in found.rows if kind == "done"}
        committed = {key for key, outcome in found.outcomes.items() if outcome == "committed"}
        assert done == committed, f"rows without outcome or the reverse: {done ^ committed}"

    def _check_events(self, found: Snapshot) -> None:
        told: Counter[tuple[str, str]] = Counter()
        done: Counter[str] = Counter()
        shown: Counter[Key] = Counter()
        offsets: dict[str, int] = {}
        for event in found.events:
            offset = offsets[event.stream] = offsets.get(event.stream, 0) + 1
            assert event.offset == offset <= event.head, f"{event.stream} has a gap at {offset}"
            if event.type == "transaction_rolled_back":
                told[event.event_id, event.stream] += 1
            elif event.type == "done":
                done[event.operation] += 1
            else:
                shown[event.operation, json.loads(event.data)["attempt"]] += 1
        assert all(event.head == offsets[event.stream] for event in found.events), "a head ahead"
        expected: Counter[tuple[str, str]] = Counter()
        for key, work in self.work.items():
            if found.outcomes.get(key) == "rolled_back":
                identity = notification_id(*key)
                expected.update((identity, stream) for stream in work.told)
            assert shown[key] == work.checkpoints, f"{key}: checkpoints"
        assert told == expected, f"told {told - expected} too often, {expected - told} too rarely"
        committed = Counter(of for (of, _), kind in found.outcomes.items() if kind == "committed")
        assert done == committed, "events of what did not commit, or the reverse"

    def check_retracted(self) -> None:
        """Each notification says what its attempt has shown."""
        for event in self.seen.events:
            if event.type == "transaction_rolled_back":
                data = json.loads(event.data)
                work = self.work[data["operation_id"], data["attempt"]]
                assert sorted(data["retract"]) == sorted(work.shown), f"{work.key}: retract"
