"""However long an app runs and however wrong it is, the judge's memory stays what it is."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import String, bindparam, create_engine, insert, update
from sqlalchemy.orm import Session

from commitcast.audit.findings import MORE, MOST_GROUPS, Findings
from commitcast.audit.report import BreachKind
from commitcast.audit.sessions import seen
from commitcast.audit.states import MOST_KEYS, States, Told
from commitcast.audit.transactions import open_works
from commitcast.audit.work import MOST_HELD

from .stage import Base, Note, Run, found, line

if TYPE_CHECKING:
    from commitcast.audit.shadow import Shadow

pytestmark = pytest.mark.anyio


async def test_a_task_that_never_ends_leaves_memory_flat(shadow: Shadow) -> None:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with engine.begin() as conn:
        conn.execute(insert(Note).values(text=""))
    made = update(Note).values(text=bindparam("n", type_=String))
    shadow.watch_state(Run, lambda message: message.get("run"))

    @shadow.sends
    def push(message: dict[str, Any]) -> None:
        del message

    def once(n: int) -> None:
        with engine.begin() as conn:
            conn.execute(made, {"n": str(n)})
            push({"type": "early"})
        push({"type": "in time"})
        if n % 10 == 0:
            with Session(engine) as session:
                session.add(run := Run(status="asked"))
                push({"type": "unflushed"})
                session.flush()
                push({"type": "early", "run": (run.id, "done")})
                session.commit()
        if n % 5 == 0:
            with contextlib.suppress(ZeroDivisionError), engine.begin() as conn:
                conn.execute(made, {"n": str(n)})
                push({"type": "phantom"})
                raise ZeroDivisionError

    def objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    for n in range(8_000):  # until all that has a bound is full
        once(n)
    before = objects()
    for n in range(8_000, 16_000):
        once(n)
    assert objects() - before < 2_000

    judge = shadow._judge
    assert judge.transactions.live == 0
    assert judge.rollbacks.pending <= 1_000
    assert len(judge.transactions._committing) == len(judge.transactions._of_root) == 0
    assert len(judge.sessions._notes) <= 1
    assert len(open_works.get()) <= 2
    assert len(seen.get()) <= 8
    report = shadow.report()
    assert report.transactions == 20_801
    assert report.sends == 38_400
    engine.dispose()


async def test_a_transaction_holds_so_many_sends_and_counts_the_rest(shadow: Shadow) -> None:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    push = shadow.sends(len)
    with Session(engine) as session:
        session.add(Note(text="a"))
        session.flush()
        for _ in range(MOST_HELD + 500):
            push({"type": "token"})  # here: token
        (work,) = open_works.get()
        assert len(work.holding.sends) <= MOST_HELD + 1
        session.commit()
    assert found(shadow) == {(BreachKind.SENT_BEFORE_COMMIT, line("token")): MOST_HELD + 500}
    engine.dispose()


async def test_lines_past_the_bound_are_one() -> None:
    findings = Findings()
    code = compile("", __file__, "exec")
    for n in range(MOST_GROUPS + 10):
        findings.add(BreachKind.STATE_APART, f"type{n}", 1.0, ((code, n + 1),))
    found_groups = findings.all()
    assert len(found_groups) == MOST_GROUPS + 1
    assert found_groups[0].site == MORE
    assert found_groups[0].count == 10
    assert len(found_groups[0].event_types) == 10


async def test_states_past_the_bound_are_forgotten() -> None:
    judged: list[float | None] = []
    states = States(lambda _told, at, _cause: judged.append(at))
    for n in range(MOST_KEYS + 10):
        states.committed({(0, str(n)): "asked"}, 1.0, ())
        states.hold((0, str(n)), Told("run", "done", 1.0, ()))
    assert len(judged) == 10
    assert len(states._committed) == len(states._told) == MOST_KEYS
    states.committed({(0, str(MOST_KEYS)): "done"}, 2.0, ())
    assert judged[-1] == 2.0
