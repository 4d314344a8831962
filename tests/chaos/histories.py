"""Valid histories of made-up campaigns, for tests that then break them."""

import json
from dataclasses import replace

from commitcast.chaos.record import (
    BusinessRow,
    Connected,
    History,
    LogEvent,
    Observation,
    ReaderRecord,
    Received,
    SinkRecord,
    Told,
)

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
    log = [event for events in logs.values() for event in events]
    rows = [row_of(event, row_id) for row_id, event in enumerate(log)]
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


def seen_by_first(valid: History, observations: list[Observation]) -> History:
    """The same history, but the first reader saw `observations`."""
    first, *others = valid.readers
    return replace(valid, readers=[replace(first, observations=observations), *others])
