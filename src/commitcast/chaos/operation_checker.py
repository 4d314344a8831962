"""G6: every announced attempt has one outcome, and every failure is told, once, to whom it concerns.

Part of `checker`, and as pure. What has committed it knows from the writers' own rows, what was
told from the log; `outcomes` is on trial like everything else.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Final

from commitcast.chaos.violation import Guarantee, Violation
from commitcast.notification import NOTIFICATION_TYPE
from commitcast.users import user_stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from commitcast.chaos.record import AttemptRow, History, LogEvent, OperationsRecord, OutcomeRow

_Key = tuple[str, int]

_COMMITTED: Final = "committed"
_ROLLED_BACK: Final = "rolled_back"
_UNKNOWN: Final = "unknown"


def check_operations(history: History) -> list[Violation]:
    """Every breach of G6 in `history`."""
    found = history.operations
    outcomes: dict[_Key, list[OutcomeRow]] = defaultdict(list)
    for outcome in found.outcomes:
        outcomes[outcome.id, outcome.attempt].append(outcome)
    told: dict[_Key, list[LogEvent]] = defaultdict(list)
    shown: dict[_Key, list[LogEvent]] = defaultdict(list)
    for event in history.log:
        data = _data(event.data_json)
        if event.type == NOTIFICATION_TYPE:
            told[_key(data, "operation_id")].append(event)
        elif "operation" in data:
            shown[_key(data, "operation")].append(event)
    attempts = {(attempt.id, attempt.attempt): attempt for attempt in found.attempts}
    violations = list(_outcomes(found, attempts, outcomes))
    violations += _work(found, outcomes)
    for key in told.keys() - attempts.keys():
        violations.append(_violation("told of nothing", key, "log"))
    for key, attempt in attempts.items():
        violations += _told(attempt, outcomes.get(key, ()), told.get(key, ()))
        violations += _shown(key, outcomes.get(key, ()), told.get(key, ()), shown.get(key, ()))
    violations += _said(found, attempts, outcomes)
    violations += _keyed(found, outcomes)
    violations += _nodes(found)
    return violations


def _outcomes(
    found: OperationsRecord,
    attempts: Mapping[_Key, AttemptRow],
    outcomes: Mapping[_Key, Sequence[OutcomeRow]],
) -> Iterator[Violation]:
    """One outcome for each attempt, and none for anything else."""
    for key, decided in outcomes.items():
        if key not in attempts:
            yield _violation("outcome of nothing", key, "outcomes")
        if len(decided) > 1:
            yield _violation("more than one outcome", key, "outcomes", f"{decided}")
    for key in attempts.keys() - outcomes.keys():
        yield _violation("no outcome", key, "outcomes")
    for key in found.announced - attempts.keys():
        yield _violation("announced attempt is gone", key, "operations")


def _work(
    found: OperationsRecord, outcomes: Mapping[_Key, Sequence[OutcomeRow]]
) -> Iterator[Violation]:
    """Committed and the row of its work are one thing, as they are one transaction."""
    work = {(row.id, row.attempt) for row in found.work}
    for key in work:
        if not any(outcome.outcome == _COMMITTED for outcome in outcomes.get(key, ())):
            yield _violation("work without the outcome committed", key, "rows")
    for key, decided in outcomes.items():
        if key not in work and any(outcome.outcome == _COMMITTED for outcome in decided):
            yield _violation("committed without its work", key, "rows")


def _told(
    attempt: AttemptRow, outcomes: Sequence[OutcomeRow], told: Sequence[LogEvent]
) -> Iterator[Violation]:
    """What is rolled back is told once on each stream of the attempt; what committed, never."""
    key = (attempt.id, attempt.attempt)
    if attempt.actor is not None and user_stream(attempt.actor) not in attempt.streams:
        yield _violation("its own user is not to be told", key, "operations")
    if not set(attempt.shown) <= set(attempt.streams):
        yield _violation("not to be told where it was shown", key, "operations")
    rolled_back = any(outcome.outcome == _ROLLED_BACK for outcome in outcomes)
    if told and not rolled_back:
        yield _violation("told of what was not rolled back", key, told[0].stream)
        return
    times = Counter(event.stream for event in told)
    for stream in attempt.streams if rolled_back else ():
        if times[stream] != 1:
            breach = "told more than once" if times[stream] else "rolled back and not told"
            yield _violation(breach, key, stream, f"{times[stream]} notifications")
    for stream in times.keys() - set(attempt.streams):
        yield _violation("told where it was not to be told", key, stream)
    for event in told:
        yield from _told_rightly(attempt, event)


def _told_rightly(attempt: AttemptRow, event: LogEvent) -> Iterator[Violation]:
    """The notification says what it is about, and what to take back."""
    key, data = (attempt.id, attempt.attempt), _data(event.data_json)
    if event.event_id != _event_id(key):
        yield _violation("told under another id", key, event.stream, event.event_id)
    if data.get("failed_operation") != attempt.name:
        yield _violation("told of another operation", key, event.stream, event.data_json)
    if sorted(data.get("retract", ())) != sorted(attempt.shown):
        yield _violation("told to take back another thing", key, event.stream, event.data_json)


def _shown(
    key: _Key,
    outcomes: Sequence[OutcomeRow],
    told: Sequence[LogEvent],
    shown: Sequence[LogEvent],
) -> Iterator[Violation]:
    """What a checkpoint showed of an attempt that was rolled back is taken back, and afterwards."""
    if not any(outcome.outcome == _ROLLED_BACK for outcome in outcomes):
        return
    taken_back = {
        event.stream: event.offset
        for event in told
        if event.stream in _data(event.data_json).get("retract", ())
    }
    for event in shown:
        where = f"offset {event.offset}"
        if not _data(event.data_json).get("checkpoint"):
            yield _violation("event of rolled-back work", key, event.stream, where, "G2")
        elif event.stream not in taken_back:
            yield _violation("shown and not taken back", key, event.stream, where)
        elif event.offset > taken_back[event.stream]:
            yield _violation("shown after it was taken back", key, event.stream, where)


def _said(
    found: OperationsRecord,
    attempts: Mapping[_Key, AttemptRow],
    outcomes: Mapping[_Key, Sequence[OutcomeRow]],
) -> Iterator[Violation]:
    """What the callers were told is what happened."""
    for said in found.said:
        key = (said.id, said.attempt)
        if key not in attempts:
            yield _violation("announced attempt is gone", key, "operations")
        elif said.outcome != _UNKNOWN and any(
            outcome.outcome != said.outcome for outcome in outcomes.get(key, ())
        ):
            yield _violation("the caller was told otherwise", key, "writer", said.outcome)
    committed = {o.id: o.result_json for o in found.outcomes if o.outcome == _COMMITTED}
    for answer in found.answers:
        if answer.id not in committed:
            detail = f"answered with {answer.result_json}"
            yield _violation("answered as committed, and is not", (answer.id, 0), "writer", detail)
        elif json.loads(committed[answer.id] or "null") != json.loads(answer.result_json):
            detail = f"{answer.result_json}, stored is {committed[answer.id]}"
            yield _violation("answered with another result", (answer.id, 0), "writer", detail)


def _keyed(
    found: OperationsRecord, outcomes: Mapping[_Key, Sequence[OutcomeRow]]
) -> Iterator[Violation]:
    """Attempts are 1, 2, … and only the last one can have committed."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for attempt in found.attempts:
        numbers[attempt.id].append(attempt.attempt)
    for operation, attempts in numbers.items():
        last = len(attempts)
        if sorted(attempts) != list(range(1, last + 1)):
            yield _violation("attempts not contiguous", (operation, last), "operations")
        for number in sorted(attempts)[:-1]:
            if any(o.outcome == _COMMITTED for o in outcomes.get((operation, number), ())):
                yield _violation("tried again though committed", (operation, number), "operations")


def _nodes(found: OperationsRecord) -> Iterator[Violation]:
    """A dead node is declared so, and where the operating system knows the living, no other is."""
    alive = [node.id for node in found.nodes if node.alive]
    if len(alive) > found.living:
        detail = f"{len(alive)} nodes, {found.living} servers"
        yield Violation("G6", "a dead node is taken for alive", "*", "nodes", detail)
    for node in found.nodes if found.nobody_died else ():
        if node.term > 1 or not node.alive:
            detail = f"node {node.id}, term {node.term}"
            yield Violation("G6", "a living node was taken for dead", "*", "nodes", detail)


def _violation(
    breach: str, key: _Key, where: str, detail: str = "", guarantee: Guarantee = "G6"
) -> Violation:
    return Violation(guarantee, breach, where, f"operation {key[0]}.{key[1]}", detail)


def _event_id(key: _Key) -> str:
    """Made from operation and attempt and nothing else, so that clients know it again."""
    text = f"rolled_back|{key[0]}|{key[1]}".encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _key(data: Mapping[str, Any], name: str) -> _Key:
    attempt = data.get("attempt")
    return str(data.get(name)), attempt if isinstance(attempt, int) else 0


def _data(text: str) -> Mapping[str, Any]:
    value = json.loads(text)
    return value if isinstance(value, dict) else {}
