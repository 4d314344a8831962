"""Valid histories of made-up campaigns, for tests that then break them."""

import json
from dataclasses import replace

from commitcast.chaos.record import (
    Answer,
    AttemptRow,
    BusinessRow,
    Connected,
    History,
    LogEvent,
    NodeRow,
    Observation,
    OperationsRecord,
    OutcomeRow,
    ReaderRecord,
    Received,
    Said,
    SinkRecord,
    Told,
    WorkRow,
)
from commitcast.notification import RollbackNotification

EPOCH = "e0"
TYPE = "chaos.written"


def logged(stream: str, offset: int, *, key: str | None = None, doomed: bool = False) -> LogEvent:
    key = key or f"0.{stream[-1]}.{offset}"
    data = json.dumps({"key": key, "payload": f"p{offset}", "doomed": doomed})
    return LogEvent(stream, offset, f"id-{stream}-{offset}", TYPE, data)


def row_of(event: LogEvent, row_id: int) -> BusinessRow:
    data = json.loads(event.data_json)
    return BusinessRow(row_id, data["key"], event.stream, data["payload"])


def frame_of(event: LogEvent, epoch: str = EPOCH) -> str:
    head = {"type": event.type, "id": event.event_id, "stream": event.stream}
    place = {"offset": event.offset, "epoch": epoch, "time": "2026-01-01T00:00:00Z"}
    return json.dumps({**head, **place, "data": json.loads(event.data_json)})


def received(event: LogEvent) -> Received:
    return Received(f"{EPOCH}:{event.offset}", frame_of(event))


def reading(
    log: list[LogEvent], cuts: set[int], *, first: str | None = "new:0"
) -> list[Observation]:
    """What a reader sees whose connection is cut after each of the offsets in `cuts`."""
    seen: list[Observation] = [
        Connected(first),
        Told("new", 0, recovered=first is not None),
    ]
    if 0 in cuts:
        seen += [Connected("new:0"), Told(EPOCH, 0, recovered=True)]
    for event in log:
        seen.append(received(event))
        if event.offset in cuts:
            seen += [
                Connected(f"{EPOCH}:{event.offset}"),
                Told(EPOCH, event.offset, recovered=True),
            ]
    return seen


def history(lengths: list[int], cuts: set[int], *, first: str | None = "new:0") -> History:
    """A history without a fault: one stream for each length, one reader for each stream."""
    logs = {
        f"s:{n}": [logged(f"s:{n}", o + 1) for o in range(length)]
        for n, length in enumerate(lengths)
    }
    return _of(logs, cuts, first=first)


def _of(logs: dict[str, list[LogEvent]], cuts: set[int], *, first: str | None) -> History:
    log = [event for events in logs.values() for event in events]
    rows = [row_of(event, row_id) for row_id, event in enumerate(log) if event.type == TYPE]
    return History(
        log=log,
        heads={stream: len(events) for stream, events in logs.items() if events},
        tails={stream: 1 for stream, events in logs.items() if events},
        rows=rows,
        acknowledged=frozenset(row.key for row in rows[::2]),
        readers=[
            ReaderRecord(f"reader {stream}", stream, reading(events, cuts, first=first))
            for stream, events in logs.items()
        ],
        sinks=[SinkRecord("deliver", [frame_of(event) for event in log])],
    )


def worked(
    stream: str, offset: int, operation: str, attempt: int, *, checkpoint: bool = False
) -> LogEvent:
    """The event of an operation's work."""
    event = logged(stream, offset)
    data = json.loads(event.data_json)
    data |= {"operation": operation, "attempt": attempt, "checkpoint": checkpoint}
    return replace(event, data_json=json.dumps(data))


def notification(
    stream: str, offset: int, operation: str, attempt: int, *, retract: tuple[str, ...] = ()
) -> LogEvent:
    """The rollback notification, as the library encodes it."""
    told = RollbackNotification(
        operation_id=operation, attempt=attempt, transaction_id=None, failed_operation="chaos",
        error_message="", affected_layers=(), recovery_actions=(), user_message="Not saved.",
        retract=retract, time="2026-01-01T00:00:00Z",
    )  # fmt: skip
    (event,) = told.encoded((stream,), "u")
    return LogEvent(stream, offset, event.id, event.type, event.data_json)


def operations_history() -> History:
    """A history without a fault of four attempts at three operations of the user `u`.

    `saved` committed; `shown` was rolled back after a checkpoint on `s:0`; `keyed` was rolled
    back, tried again and committed, and a third writer was answered with its result.
    """
    to = ("user:u", "s:0")
    logs = {
        "s:0": [
            worked("s:0", 1, "shown", 1, checkpoint=True),
            worked("s:0", 2, "saved", 1),
            notification("s:0", 3, "shown", 1, retract=("s:0",)),
            notification("s:0", 4, "keyed", 1),
            worked("s:0", 5, "keyed", 2),
        ],
        "user:u": [
            notification("user:u", 1, "shown", 1, retract=("s:0",)),
            notification("user:u", 2, "keyed", 1),
        ],
    }
    operations = OperationsRecord(
        attempts=[
            AttemptRow("saved", 1, "chaos", "u", to, ()),
            AttemptRow("shown", 1, "chaos", "u", to, ("s:0",)),
            AttemptRow("keyed", 1, "chaos", "u", to, ()),
            AttemptRow("keyed", 2, "chaos", "u", to, ()),
        ],
        outcomes=[
            OutcomeRow("saved", 1, "committed", None, None),
            OutcomeRow("shown", 1, "rolled_back", None, "NodeDied"),
            OutcomeRow("keyed", 1, "rolled_back", None, "NodeDied"),
            OutcomeRow("keyed", 2, "committed", '{"attempt":2}', None),
        ],
        work=[WorkRow("saved", 1), WorkRow("keyed", 2)],
        nodes=[NodeRow("n", 1, alive=True)],
        announced=frozenset({("saved", 1), ("keyed", 1)}),
        said=[
            Said("saved", 1, "committed"),
            Said("shown", 1, "rolled_back"),
            Said("keyed", 2, "unknown"),
        ],
        answers=[Answer("keyed", '{"attempt": 2}')],
        living=1,
    )
    return replace(_of(logs, {1}, first="new:0"), operations=operations)


def relogged(valid: History, stream: str, events: list[LogEvent]) -> History:
    """The same history, but another log of `stream`, which all its readers saw."""
    logs: dict[str, list[LogEvent]] = {name: [] for name in valid.heads}
    for event in valid.log:
        logs[event.stream].append(event)
    logs[stream] = [replace(event, offset=nth + 1) for nth, event in enumerate(events)]
    return replace(_of(logs, {1}, first="new:0"), operations=valid.operations)


def seen_by_first(valid: History, observations: list[Observation]) -> History:
    """The same history, but the first reader saw `observations`."""
    first, *others = valid.readers
    return replace(valid, readers=[replace(first, observations=observations), *others])
