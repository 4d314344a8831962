"""Compares what clients and the database saw, and names each breach by its guarantee.

A pure function over `History`. It trusts nobody: rows and log are compared both ways, the
log against the writers' acknowledgements, and each reader against the log.

What it cannot see: an event that left before its commit and whose commit then succeeded
looks like any other. Only a kill in between shows it, which is why there are many.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from commitcast.chaos.operation_checker import check_operations
from commitcast.chaos.record import BusinessRow, Connected, Received, Refused, Told
from commitcast.chaos.violation import Guarantee, Violation
from commitcast.notification import NOTIFICATION_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from commitcast.chaos.record import History, LogEvent, ReaderRecord, SinkRecord

_Log = dict[str, dict[int, "LogEvent"]]
_Breach = tuple[Guarantee, str, str]

_DRAINING: Final = 503
_NEW: Final = "new"


def check(history: History) -> list[Violation]:
    """Every breach in `history`; an empty list when all guarantees held."""
    log: _Log = {stream: {} for stream in history.heads}
    for event in history.log:
        log.setdefault(event.stream, {})[event.offset] = event
    found = list(_log(history, log))
    found += _rows(history)
    for reader in history.readers:
        found += _reader(reader, log.get(reader.stream, {}))
    for sink in history.sinks:
        found += _sink(sink, log)
    found += _epochs(history)
    found += check_operations(history)
    return found


def _log(history: History, log: _Log) -> Iterator[Violation]:
    """G4: offsets are 1, 2, 3 … head and a writer's events stand in the order it committed."""
    for stream, events in log.items():
        head = history.heads.get(stream, 0)
        if sorted(events) != list(range(1, head + 1)):
            missing = sorted(set(range(1, head + 1)) - set(events))
            beyond = sorted(set(events) - set(range(1, head + 1)))
            yield Violation(
                "G4",
                "offsets not contiguous",
                stream,
                "log",
                f"head {head}, missing {missing[:5]}, beyond {beyond[:5]}",
            )
        if history.tails.get(stream, 1) != 1:
            detail = f"tail {history.tails[stream]}, nothing was to be trimmed"
            yield Violation("G3", "events trimmed", stream, "log", detail)
        last: dict[str, int] = {}
        for offset, event in sorted(events.items()):
            if event.type == NOTIFICATION_TYPE:
                continue  # told when its operation has ended, by whoever found that
            writer, number = _writer_and_number(_data(event.data_json).get("key"))
            if number <= last.get(writer, -1):
                detail = f"offset {offset} of writer {writer} stands after its later work"
                yield Violation("G4", "not in commit order", stream, "log", detail)
            last[writer] = number
    # One notification has one id on all its streams.
    ids = Counter(
        (event.event_id, event.stream if event.type == NOTIFICATION_TYPE else "*")
        for event in history.log
    )
    for (event_id, stream), count in ids.items():
        if count > 1:
            detail = f"id {event_id}: {count} times"
            yield Violation("G5", "event logged twice", stream, "log", detail)
    if len(history.log) != sum(map(len, log.values())):
        yield Violation("G4", "offset used twice", "*", "log", "one (stream, offset), two events")


def _rows(history: History) -> Iterator[Violation]:
    """G2 and G3: a row has its event and an event its row, and both say the same."""
    rows = {row.key: row for row in history.rows}
    logged: Counter[str] = Counter()
    for event in history.log:
        if event.type == NOTIFICATION_TYPE:
            continue
        data = _data(event.data_json)
        key = str(data.get("key"))
        logged[key] += 1
        where = f"offset {event.offset}, row {key}"
        if data.get("doomed"):
            yield Violation("G2", "event of rolled-back work", event.stream, "log", where)
        row = rows.get(key)
        if row is None:
            yield Violation("G2", "event without its row", event.stream, "log", where)
        elif not _same(row, event.stream, data):
            yield Violation("G2", "event and row differ", event.stream, "log", where)
    for row in history.rows:
        if logged[row.key] == 0:
            yield Violation("G3", "row without its event", row.stream, "rows", f"row {row.key}")
        elif logged[row.key] > 1:
            detail = f"row {row.key} has {logged[row.key]} events"
            yield Violation("G5", "event logged twice", row.stream, "rows", detail)
    for key in sorted(history.acknowledged - rows.keys()):
        yield Violation("G3", "acknowledged commit is gone", "*", "rows", f"row {key}")


@dataclass(slots=True)
class _Place:
    """Where a reader stands, as the checker follows it."""

    seen: set[int]
    reached: int = 0
    cursor: str | None = None
    subscribed: bool = True  # by the connection that is open; there is none yet


def _reader(reader: ReaderRecord, log: Mapping[int, LogEvent]) -> Iterator[Violation]:
    """G1, G3, G4, G5 and G7 for one reader, over all its connections."""
    place = _Place(set())
    found: list[_Breach] = []
    for observation in reader.observations:
        match observation:
            case Connected(cursor):
                place.cursor, place.subscribed = cursor, False
            case Refused(status):
                if status != _DRAINING:
                    detail = f"status {status} at offset {place.reached}"
                    found.append(("G3", "position refused", detail))
            case Told():
                found += _told(observation, place)
                place.subscribed = True
            case Received():
                found += _received(observation, reader.stream, log, place)
    if lost := sorted(log.keys() - place.seen):
        found.append(("G3", "events lost", f"{len(lost)} never came, first {lost[:5]}"))
    for guarantee, what, detail in found:
        yield Violation(guarantee, what, reader.stream, reader.name, detail)


def _told(told: Told, place: _Place) -> Iterator[_Breach]:
    at = f"{told.epoch}:{told.offset}"
    if told.reset:
        yield "G3", "position lost", f"reset to {at} at {place.reached}, nothing was trimmed"
    elif told.recovered is (place.cursor is None):
        yield "G3", "position lost", f"recovered: {told.recovered} for cursor {place.cursor}"
    elif told.offset != place.reached:
        yield "G3", "position moved", f"subscribed at {at}, the reader stands at {place.reached}"


def _received(
    received: Received, stream: str, log: Mapping[int, LogEvent], place: _Place
) -> Iterator[_Breach]:
    if not place.subscribed:
        yield "G3", "reader not told", f"{received.position} came before commitcast.subscribed"
        place.subscribed = True
    shown = _data(received.frame)
    offset = _offset(shown)
    if received.position != f"{shown.get('epoch')}:{offset}":
        yield "G5", "position and frame differ", f"id {received.position}: {received.frame[:200]}"
    if shown.get("stream") != stream:
        yield "G7", "event of another stream", received.frame[:200]
    elif (wrong := _difference(shown, log.get(offset))) is not None:
        yield "G1", wrong, f"offset {offset}: {received.frame[:200]}"
    if offset in place.seen:
        yield "G5", "event seen twice", f"offset {offset}"
    elif offset != place.reached + 1:
        yield "G4", "out of order", f"offset {offset} came after {place.reached}"
    place.seen.add(offset)
    place.reached = max(place.reached, offset)


def _sink(sink: SinkRecord, log: _Log) -> Iterator[Violation]:
    """G1, G3 and G4 for a ``deliver`` callable: at least once, and in order by event id."""
    reached: dict[str, int] = dict.fromkeys(log, 0)
    for frame in sink.frames:
        shown = _data(frame)
        stream, offset = str(shown.get("stream")), _offset(shown)
        if stream not in log:
            yield Violation("G7", "event of another stream", stream, sink.name, frame[:200])
            continue
        if (wrong := _difference(shown, log[stream].get(offset))) is not None:
            yield Violation("G1", wrong, stream, sink.name, f"offset {offset}: {frame[:200]}")
        if offset > reached[stream] + 1:
            detail = f"offset {offset} came after {reached[stream]}"
            yield Violation("G4", "out of order", stream, sink.name, detail)
        reached[stream] = max(reached[stream], offset)
    for stream, events in log.items():
        if lost := [offset for offset in events if offset > reached[stream]]:
            detail = f"{len(lost)} never came, first {min(lost)}"
            yield Violation("G3", "events lost", stream, sink.name, detail)


def _epochs(history: History) -> Iterator[Violation]:
    """G5: killing a server reuses no offset, so no reader may see an epoch change."""
    epochs: dict[str, set[str]] = {}
    for reader in history.readers:
        for observation in reader.observations:
            match observation:
                case Received(position, _):
                    epochs.setdefault(reader.stream, set()).add(position.partition(":")[0])
                case Told(epoch) if epoch != _NEW:
                    epochs.setdefault(reader.stream, set()).add(epoch)
                case _:
                    pass
    for stream, names in epochs.items():
        if len(names) > 1:
            yield Violation("G5", "epoch changed", stream, "readers", f"{sorted(names)}")


def _difference(shown: Mapping[str, Any], event: LogEvent | None) -> str | None:
    if event is None:
        return "event is not in the log"
    if shown.get("id") != event.event_id or shown.get("type") != event.type:
        return "another event than the log's"
    if shown.get("data") != json.loads(event.data_json):
        return "other content than the log's"
    return None


def _same(row: BusinessRow, stream: str, data: Mapping[str, Any]) -> bool:
    return (
        row.stream == stream
        and row.payload == data.get("payload")
        and data.get("row", row.id) == row.id
    )


def _data(text: str) -> Mapping[str, Any]:
    """The JSON object in `text`; empty where there is none, which then differs from the log."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _offset(shown: Mapping[str, Any]) -> int:
    offset = shown.get("offset")
    return offset if isinstance(offset, int) else -1


def _writer_and_number(key: object) -> tuple[str, int]:
    writer, _, number = str(key).rpartition(".")
    return (writer, int(number)) if number.isdigit() else (str(key), 0)
