"""Each kind of breach, made by hand, is found and named by its guarantee."""

import json
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from commitcast.chaos.checker import check
from commitcast.chaos.record import (
    BusinessRow,
    Connected,
    History,
    Observation,
    Received,
    Refused,
    SinkRecord,
    Told,
)

from .histories import EPOCH, frame_of, history, logged, received, row_of, seen_by_first

VALID = history([4, 3], {2})
LOG = list(VALID.log)
SEEN = list(VALID.readers[0].observations)
FIRST, SECOND, THIRD, FOURTH = (SEEN.index(received(event)) for event in LOG[:4])


def breaches(broken: History) -> set[tuple[str, str]]:
    return {(violation.guarantee, violation.breach) for violation in check(broken)}


def seen(*changes: tuple[int, list[Observation]]) -> History:
    """The valid history, but the first reader saw something else at some places."""
    observations = dict(enumerate([observation] for observation in SEEN)) | dict(changes)
    return seen_by_first(VALID, [one for many in observations.values() for one in many])


def test_a_history_without_fault_passes() -> None:
    assert check(VALID) == []
    assert check(history([3], {0, 1, 3}, first=None)) == []


def test_g1_event_that_is_not_in_the_log_is_found() -> None:
    phantom = received(logged("s:0", 5))
    assert ("G1", "event is not in the log") in breaches(seen((FOURTH, [SEEN[FOURTH], phantom])))


@pytest.mark.parametrize(
    ("field", "value", "breach"),
    [
        ("id", "id-other", "another event than the log's"),
        ("type", "other", "another event than the log's"),
        ("data", {"key": "0.0.1"}, "other content than the log's"),
    ],
)
def test_g1_event_with_other_content_is_found(field: str, value: object, breach: str) -> None:
    frame = json.dumps(json.loads(frame_of(LOG[0])) | {field: value})
    assert breaches(seen((FIRST, [Received(f"{EPOCH}:1", frame)]))) == {("G1", breach)}


def test_g1_frame_that_is_no_json_is_found() -> None:
    found = breaches(seen((FIRST, [Received(f"{EPOCH}:1", "{")])))
    assert ("G7", "event of another stream") in found
    assert ("G3", "events lost") in found


def test_g2_event_of_rolled_back_work_is_found() -> None:
    ghost = logged("s:0", 4, doomed=True)
    broken = replace(VALID, log=[ghost if e is LOG[3] else e for e in LOG])
    assert ("G2", "event of rolled-back work") in breaches(broken)


def test_g2_event_without_its_row_is_found() -> None:
    rows = [row for row in VALID.rows if row.key not in VALID.acknowledged][1:]
    kept = [row for row in VALID.rows if row.key in VALID.acknowledged]
    assert breaches(replace(VALID, rows=[*kept, *rows])) == {("G2", "event without its row")}


def test_g2_event_that_differs_from_its_row_is_found() -> None:
    rows = [replace(VALID.rows[0], payload="other"), *VALID.rows[1:]]
    assert breaches(replace(VALID, rows=rows)) == {("G2", "event and row differ")}


def test_g3_row_without_its_event_is_found() -> None:
    rows = [*VALID.rows, BusinessRow(99, "7.7.7", "s:0", "p")]
    assert breaches(replace(VALID, rows=rows)) == {("G3", "row without its event")}


def test_g3_acknowledged_commit_that_is_gone_is_found() -> None:
    gone = replace(VALID, acknowledged=VALID.acknowledged | {"7.7.7"})
    assert breaches(gone) == {("G3", "acknowledged commit is gone")}


def test_g3_event_that_a_reader_never_saw_is_found() -> None:
    assert breaches(seen((FOURTH, []))) == {("G3", "events lost")}


def test_g3_reader_that_saw_nothing_at_all_is_found() -> None:
    assert breaches(seen_by_first(VALID, [])) == {("G3", "events lost")}


@pytest.mark.parametrize(
    "told",
    [
        Told(EPOCH, 2, recovered=False),
        Told(EPOCH, 4, recovered=False, reset=True),
    ],
)
def test_g3_position_that_was_not_honoured_is_found(told: Told) -> None:
    assert breaches(seen((SECOND + 2, [told]))) == {("G3", "position lost")}


def test_g3_recovery_that_nobody_asked_for_is_found() -> None:
    assert breaches(seen((0, [Connected(None)]))) == {("G3", "position lost")}


def test_g3_subscription_that_moves_the_position_is_found() -> None:
    told = Told(EPOCH, 3, recovered=True)
    assert breaches(seen((SECOND + 2, [told]))) == {("G3", "position moved")}


def test_g3_event_before_the_reader_was_told_is_found() -> None:
    assert breaches(seen((SECOND + 2, []))) == {("G3", "reader not told")}


def test_g3_refused_position_is_found_and_a_draining_server_is_not() -> None:
    assert breaches(seen((SECOND, [SEEN[SECOND], Refused(400)]))) == {("G3", "position refused")}
    assert breaches(seen((SECOND, [SEEN[SECOND], Refused(503)]))) == set()


def test_g3_trimmed_events_are_found() -> None:
    assert breaches(replace(VALID, tails={"s:0": 2, "s:1": 1})) == {("G3", "events trimmed")}


def test_g4_events_in_another_order_are_found() -> None:
    swapped = seen((THIRD, [SEEN[FOURTH]]), (FOURTH, [SEEN[THIRD]]))
    assert breaches(swapped) == {("G4", "out of order")}


def test_g4_hole_in_the_log_is_found() -> None:
    broken = replace(VALID, log=[event for event in LOG if event is not LOG[1]])
    assert ("G4", "offsets not contiguous") in breaches(broken)


def test_g4_event_beyond_the_head_is_found() -> None:
    assert ("G4", "offsets not contiguous") in breaches(replace(VALID, heads={"s:0": 3, "s:1": 3}))


def test_g4_offset_used_twice_is_found() -> None:
    again = replace(LOG[0], event_id="id-again")
    assert ("G4", "offset used twice") in breaches(replace(VALID, log=[*LOG, again]))


def test_g4_log_that_is_not_in_commit_order_is_found() -> None:
    events = [logged("s:0", 1, key="0.0.2"), logged("s:0", 2, key="0.0.1")]
    rows = [row_of(event, row_id) for row_id, event in enumerate(events)]
    broken = History(events, {"s:0": 2}, {"s:0": 1}, rows, frozenset(), [])
    assert breaches(broken) == {("G4", "not in commit order")}


def test_g5_event_seen_twice_is_found() -> None:
    assert breaches(seen((THIRD, [SEEN[THIRD]] * 2))) == {("G5", "event seen twice")}
    assert breaches(seen((THIRD, [SEEN[SECOND], SEEN[THIRD]]))) == {("G5", "event seen twice")}


def test_g5_event_logged_twice_is_found() -> None:
    again = replace(logged("s:0", 5, key="0.0.1"), event_id=LOG[0].event_id)
    assert ("G5", "event logged twice") in breaches(replace(VALID, log=[*LOG, again]))


def test_g5_position_that_is_not_the_frames_is_found() -> None:
    wrong = Received(f"{EPOCH}:2", frame_of(LOG[0]))
    assert breaches(seen((FIRST, [wrong]))) == {("G5", "position and frame differ")}


def test_g5_changed_epoch_is_found() -> None:
    other = Received("e1:1", frame_of(LOG[0], "e1"))
    assert breaches(seen((FIRST, [other]))) == {("G5", "epoch changed")}


def test_g7_event_of_another_stream_is_found() -> None:
    stray = received(logged("s:1", 1))
    found = breaches(seen((FIRST, [stray])))
    assert ("G7", "event of another stream") in found


def sink(frames: list[str]) -> History:
    return replace(VALID, sinks=[SinkRecord("deliver", frames)])


FRAMES = [frame_of(event) for event in LOG]


def test_deliver_may_be_handed_events_again() -> None:
    assert breaches(sink([*FRAMES[:3], *FRAMES[:3], *FRAMES[3:]])) == set()


@pytest.mark.parametrize(
    ("frames", "breach"),
    [
        (FRAMES[:-1], ("G3", "events lost")),
        ([FRAMES[1], FRAMES[0], *FRAMES[2:]], ("G4", "out of order")),
        ([*FRAMES, frame_of(logged("s:0", 5))], ("G1", "event is not in the log")),
        ([*FRAMES, frame_of(logged("s:9", 1))], ("G7", "event of another stream")),
    ],
)
def test_deliver_that_missed_or_reordered_is_found(
    frames: list[str], breach: tuple[str, str]
) -> None:
    assert breach in breaches(sink(frames))


LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=3)
CUTS = st.sets(st.integers(0, 12))


@given(LENGTHS, CUTS, st.sampled_from(["new:0", None]))
def test_every_valid_history_passes(lengths: list[int], cuts: set[int], first: str | None) -> None:
    assert check(history(lengths, cuts, first=first)) == []


@given(LENGTHS, CUTS, st.data())
def test_every_mutation_of_what_a_reader_saw_is_found(
    lengths: list[int], cuts: set[int], data: st.DataObject
) -> None:
    valid = history(lengths, cuts)
    observations = list(valid.readers[0].observations)
    events = [at for at, one in enumerate(observations) if isinstance(one, Received)]
    assume(events)
    at = data.draw(st.sampled_from(events), "place")
    mutation = data.draw(st.sampled_from(["drop", "duplicate", "swap", "phantom"]), "mutation")
    match mutation:
        case "drop":
            del observations[at]
        case "duplicate":
            again = data.draw(st.sampled_from(range(at, len(observations))), "again")
            observations.insert(again + 1, observations[at])
        case "swap":
            other = data.draw(st.sampled_from(events), "other")
            assume(other != at)
            observations[at], observations[other] = observations[other], observations[at]
        case _:
            offset = data.draw(st.sampled_from([0, lengths[0] + 1, lengths[0] + 7]), "offset")
            observations.insert(at, received(logged("s:0", offset)))
    found = {violation.guarantee for violation in check(seen_by_first(valid, observations))}
    expected = {"drop": "G3", "duplicate": "G5", "swap": "G4", "phantom": "G1"}[mutation]
    assert expected in found


@given(LENGTHS, st.data())
def test_every_mutation_of_the_database_is_found(lengths: list[int], data: st.DataObject) -> None:
    valid = history(lengths, set())
    assume(valid.log)
    at = data.draw(st.integers(0, len(valid.log) - 1), "place")
    log, rows = list(valid.log), list(valid.rows)
    mutation = data.draw(st.sampled_from(["event", "row", "both", "content"]), "mutation")
    if mutation in {"event", "both"}:
        del log[at]
    if mutation in {"row", "both"}:
        del rows[at]
    if mutation == "content":
        rows[at] = replace(rows[at], payload="other")
    assert check(replace(valid, log=log, rows=rows))
