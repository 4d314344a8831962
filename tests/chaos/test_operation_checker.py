"""Each kind of breach of G6, made by hand, is found and named."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commitcast.chaos.checker import check
from commitcast.chaos.record import (
    Answer,
    AttemptRow,
    History,
    LogEvent,
    NodeRow,
    OutcomeRow,
    Received,
    Said,
    WorkRow,
)
from commitcast.notification import NOTIFICATION_TYPE

from .histories import notification, operations_history, received, relogged, worked

VALID = operations_history()
OPERATIONS = VALID.operations
SAVED, SHOWN, KEYED, AGAIN = OPERATIONS.attempts
COMMITTED, *_, STORED = OPERATIONS.outcomes
STREAM = [event for event in VALID.log if event.stream == "s:0"]
USER = [event for event in VALID.log if event.stream == "user:u"]


def breaches(broken: History) -> set[tuple[str, str]]:
    return {(violation.guarantee, violation.breach) for violation in check(broken)}


def having(**changes: Any) -> History:
    """The valid history, but other evidence of its operations."""
    return replace(VALID, operations=replace(OPERATIONS, **changes))


def decided(attempt: AttemptRow, outcome: str | None) -> History:
    """The valid history, but `attempt` ended otherwise, or not at all."""
    key = (attempt.id, attempt.attempt)
    outcomes = [one for one in OPERATIONS.outcomes if (one.id, one.attempt) != key]
    if outcome is not None:
        outcomes.append(OutcomeRow(*key, outcome, None, None))
    return having(outcomes=outcomes)


def announced(one: AttemptRow, **changes: Any) -> History:
    """The valid history, but `one` was announced otherwise."""
    others = [other for other in OPERATIONS.attempts if other is not one]
    return having(attempts=[*others, replace(one, **changes)])


def test_operations_without_fault_pass() -> None:
    assert check(VALID) == []


def test_g6_attempt_without_an_outcome_is_found() -> None:
    assert ("G6", "no outcome") in breaches(decided(SAVED, None))
    assert ("G6", "no outcome") in breaches(decided(SHOWN, None))


def test_g6_attempt_with_two_outcomes_is_found() -> None:
    both = [*OPERATIONS.outcomes, replace(COMMITTED, outcome="rolled_back")]
    assert ("G6", "more than one outcome") in breaches(having(outcomes=both))


def test_g6_outcome_of_nothing_is_found() -> None:
    more = [*OPERATIONS.outcomes, OutcomeRow("nothing", 1, "rolled_back", None, None)]
    assert breaches(having(outcomes=more)) == {("G6", "outcome of nothing")}


def test_g6_announced_attempt_that_is_gone_is_found() -> None:
    gone = having(announced=OPERATIONS.announced | {("gone", 1)})
    assert breaches(gone) == {("G6", "announced attempt is gone")}
    gone = having(said=[*OPERATIONS.said, Said("gone", 1, "unknown")])
    assert breaches(gone) == {("G6", "announced attempt is gone")}


def test_g6_work_of_what_did_not_commit_is_found() -> None:
    kept = having(work=[*OPERATIONS.work, WorkRow("shown", 1)])
    assert breaches(kept) == {("G6", "work without the outcome committed")}


def test_g6_committed_without_its_work_is_found() -> None:
    assert breaches(having(work=OPERATIONS.work[1:])) == {("G6", "committed without its work")}


def test_g6_failure_that_was_not_told_is_found() -> None:
    untold = breaches(relogged(VALID, "user:u", USER[1:]))
    assert untold == {("G6", "rolled back and not told")}


def test_g6_failure_that_was_told_twice_is_found() -> None:
    twice = breaches(relogged(VALID, "user:u", [*USER, USER[0]]))
    assert twice == {("G6", "told more than once"), ("G5", "event logged twice")}


def test_g6_commit_that_was_told_as_a_failure_is_found() -> None:
    told = relogged(VALID, "user:u", [*USER, notification("user:u", 3, "saved", 1)])
    assert breaches(told) == {("G6", "told of what was not rolled back")}


def test_g6_failure_that_was_told_before_it_had_its_outcome_is_found() -> None:
    assert ("G6", "told of what was not rolled back") in breaches(decided(SHOWN, None))


def test_g6_notification_of_nothing_is_found() -> None:
    told = relogged(VALID, "user:u", [*USER, notification("user:u", 3, "nothing", 1)])
    assert breaches(told) == {("G6", "told of nothing")}


def test_g6_failure_that_was_told_to_others_is_found() -> None:
    told = announced(KEYED, streams=("user:u",))
    assert breaches(told) == {("G6", "told where it was not to be told")}


def test_g6_user_who_was_not_to_be_told_is_found() -> None:
    assert breaches(announced(SAVED, streams=("s:0",))) == {
        ("G6", "its own user is not to be told")
    }


def test_g6_stream_that_saw_it_and_was_not_to_be_told_is_found() -> None:
    found = breaches(announced(SAVED, shown=("s:1",)))
    assert found == {("G6", "not to be told where it was shown")}


def test_g6_notification_under_another_id_is_found() -> None:
    other = replace(USER[0], event_id="another")
    found = breaches(relogged(VALID, "user:u", [other, USER[1]]))
    assert found == {("G6", "told under another id")}


@pytest.mark.parametrize(
    ("field", "value", "breach"),
    [
        ("failed_operation", "another", "told of another operation"),
        ("retract", ["s:0", "s:1"], "told to take back another thing"),
    ],
)
def test_g6_notification_that_says_another_thing_is_found(
    field: str, value: object, breach: str
) -> None:
    data = json.dumps(json.loads(USER[0].data_json) | {field: value})
    other = replace(USER[0], data_json=data)
    assert breaches(relogged(VALID, "user:u", [other, USER[1]])) == {("G6", breach)}


def test_g6_checkpoint_that_was_not_taken_back_is_found() -> None:
    both = relogged(VALID, "user:u", [*USER, worked("user:u", 3, "shown", 1, checkpoint=True)])
    assert breaches(both) == {("G6", "shown and not taken back")}


def test_g6_checkpoint_after_it_was_taken_back_is_found() -> None:
    late = [*STREAM, replace(worked("s:0", 9, "shown", 1, checkpoint=True), offset=6)]
    found = breaches(relogged(VALID, "s:0", late))
    assert found == {("G6", "shown after it was taken back")}


def test_g2_event_of_an_operation_that_was_rolled_back_is_found() -> None:
    kept = [*STREAM, worked("s:0", 6, "shown", 1)]
    found = breaches(relogged(VALID, "s:0", kept))
    assert found == {("G2", "event of rolled-back work")}


@pytest.mark.parametrize(
    ("attempt", "said"), [(SAVED, "rolled_back"), (SHOWN, "committed"), (AGAIN, "rolled_back")]
)
def test_g6_caller_who_was_told_otherwise_is_found(attempt: AttemptRow, said: str) -> None:
    wrong = [*OPERATIONS.said, Said(attempt.id, attempt.attempt, said)]
    assert breaches(having(said=wrong)) == {("G6", "the caller was told otherwise")}


def test_g6_answer_of_what_did_not_commit_is_found() -> None:
    found = breaches(having(answers=[Answer("shown", "null")]))
    assert found == {("G6", "answered as committed, and is not")}


def test_g6_answer_with_another_result_is_found() -> None:
    found = breaches(having(answers=[Answer("keyed", '{"attempt": 1}')]))
    assert found == {("G6", "answered with another result")}


def test_g6_attempt_that_was_left_out_is_found() -> None:
    assert ("G6", "attempts not contiguous") in breaches(announced(AGAIN, attempt=3))


def test_g6_new_attempt_at_what_committed_is_found() -> None:
    found = breaches(decided(KEYED, "committed"))
    assert ("G6", "tried again though committed") in found


def test_g6_dead_node_that_is_taken_for_alive_is_found() -> None:
    more = having(nodes=[*OPERATIONS.nodes, NodeRow("dead", 1, alive=True)])
    assert breaches(more) == {("G6", "a dead node is taken for alive")}


@pytest.mark.parametrize("node", [NodeRow("n", 2, alive=True), NodeRow("n", 2, alive=False)])
def test_g6_living_node_that_was_taken_for_dead_is_found(node: NodeRow) -> None:
    assert breaches(having(nodes=[node], nobody_died=False)) == set()
    found = breaches(having(nodes=[node], nobody_died=True))
    assert found == {("G6", "a living node was taken for dead")}


def test_readers_of_a_notification_are_held_to_the_same_as_of_any_event() -> None:
    first, second = VALID.readers
    seen = [o for o in second.observations if o != received(USER[1])]
    lost = replace(VALID, readers=[first, replace(second, observations=seen)])
    assert breaches(lost) == {("G3", "events lost")}
    twice = [*second.observations, received(USER[1])]
    again = replace(VALID, readers=[first, replace(second, observations=twice)])
    assert breaches(again) == {("G5", "event seen twice")}
    other = received(replace(USER[1], data_json="{}"))
    changed = [other if o == received(USER[1]) else o for o in second.observations]
    wrong = replace(VALID, readers=[first, replace(second, observations=changed)])
    assert breaches(wrong) == {("G1", "other content than the log's")}
    assert any(isinstance(o, Received) for o in second.observations)


@given(st.data())
def test_every_missing_piece_of_evidence_is_found(data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(["attempts", "outcomes", "work"]), "table")
    rows = list(getattr(OPERATIONS, field))
    del rows[data.draw(st.integers(0, len(rows) - 1), "row")]
    assert check(having(**{field: rows}))


@given(st.sampled_from([STREAM, USER]), st.data())
def test_every_notification_that_is_missing_or_told_again_is_found(
    events: list[LogEvent], data: st.DataObject
) -> None:
    told = [at for at, event in enumerate(events) if event.type == NOTIFICATION_TYPE]
    at = data.draw(st.sampled_from(told), "place")
    changed = list(events)
    if data.draw(st.booleans(), "again"):
        changed.append(events[at])
    else:
        del changed[at]
    found = {violation.guarantee for violation in check(relogged(VALID, events[0].stream, changed))}
    assert "G6" in found
