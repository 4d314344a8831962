"""What counts as a transaction with changes, and how its end is known."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from commitcast.audit.report import BreachKind
from commitcast.audit.shadow import Shadow
from commitcast.audit.transactions import changes

from .stage import Note, Run, Stage, found, line

if TYPE_CHECKING:
    from collections.abc import Callable

    from commitcast.health import CoordinationHealthMonitor

pytestmark = pytest.mark.anyio

BEFORE = BreachKind.SENT_BEFORE_COMMIT
ROLLED_BACK = BreachKind.SENT_FOR_ROLLED_BACK_WORK
UNTOLD = BreachKind.ROLLBACK_NOT_TOLD


@pytest.fixture
def send(shadow: Shadow) -> Callable[[dict[str, Any]], None]:
    @shadow.sends
    def push(message: dict[str, Any]) -> None:
        del message

    return push


def kinds(shadow: Shadow) -> dict[BreachKind, int]:
    counted: Counter[BreachKind] = Counter()
    for (kind, _), count in found(shadow).items():
        counted[kind] += count
    return counted


@pytest.mark.parametrize(
    ("statement", "is_change"),
    [
        ("INSERT INTO a VALUES (1)", True),
        ("  update a set b = 1", True),
        ("-- why\nDELETE FROM a", True),
        ("/* why */ MERGE INTO a USING b", True),
        ("REPLACE INTO a VALUES (1)", True),
        ("WITH x AS (INSERT INTO a VALUES (1) RETURNING 1) SELECT * FROM x", True),
        ("WITH x AS (SELECT 1) SELECT * FROM x", False),
        ("WITH x AS (SELECT 'delete') SELECT \"update\" FROM x", False),
        ("SELECT * FROM a FOR UPDATE", False),
        ("WITH x AS (SELECT 1) SELECT * FROM x FOR NO KEY UPDATE", False),
        ("SELECT 'insert into'", False),
        ("SAVEPOINT s", False),
    ],
)
async def test_a_statement_is_a_change_by_its_words(statement: str, is_change: bool) -> None:
    assert changes(statement) is is_change


async def test_reading_is_no_change(stage: Stage, shadow: Shadow, send: Any) -> None:
    async with stage.sessions.begin() as session:
        await session.execute(select(Note).with_for_update())
        await session.execute(update(Note).values(text="b").where(Note.id == -1))
        await session.execute(delete(Note).where(Note.id == -1))
        send({"type": "read"})
    assert kinds(shadow) == {}
    assert shadow.report().transactions == 0


async def test_core_and_text_statements_are_seen_with_their_commit(
    stage: Stage, shadow: Shadow, send: Any
) -> None:
    async with stage.engine.connect() as conn:
        await conn.execute(insert(Note).values(text="a"))
        send({"type": "core"})  # here: core
        await conn.commit()
        send({"type": "core"})
        await conn.execute(text("UPDATE app_notes SET text = 'b'"))
        send({"type": "text"})  # here: text
        await conn.commit()
        send({"type": "text"})
        await conn.execute(select(Note))
        send({"type": "text"})
    async with stage.engine.begin() as conn:
        await conn.execute(insert(Note).values(text="c"))
    send({"type": "core"})
    assert found(shadow) == {(BEFORE, line("core")): 1, (BEFORE, line("text")): 1}
    assert shadow.report().transactions == 3


async def test_a_released_savepoint_is_no_commit(stage: Stage, shadow: Shadow, send: Any) -> None:
    with contextlib.suppress(ValueError):
        async with stage.sessions.begin() as session:
            async with session.begin_nested():
                session.add(Note(text="a"))
            send({"type": "note"})
            raise ValueError
    assert kinds(shadow) == {ROLLED_BACK: 1, UNTOLD: 1}


async def test_what_was_sent_before_the_savepoint_is_judged_by_the_commit(
    stage: Stage, shadow: Shadow, send: Any
) -> None:
    async with stage.sessions.begin() as session:
        session.add(Note(text="a"))
        await session.flush()
        send({"type": "outer"})  # here: outer
        with contextlib.suppress(ValueError):
            async with session.begin_nested():
                session.add(Note(text="b"))
                await session.flush()
                raise ValueError
        send({"type": "outer"})  # here: after
    assert found(shadow) == {(BEFORE, line("outer")): 1, (BEFORE, line("after")): 1}


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("ending", ["commit", "rollback"])
async def test_what_a_savepoint_took_back_is_found_on_a_connection_that_is_older_than_the_shadow(
    stage: Stage, monitor: CoordinationHealthMonitor, before: int, ending: str
) -> None:
    async with stage.engine.connect() as conn:
        for n in range(before):
            nested = await conn.begin_nested()
            await conn.execute(insert(Note).values(text=f"before {n}"))
            await getattr(nested, ending)()
        await conn.commit()
        with Shadow(monitor) as shadow:
            send = shadow.sends(len)
            await conn.execute(insert(Note).values(text="outer"))
            send({"type": "note"})  # here: outer one
            taken_back = await conn.begin_nested()
            await conn.execute(insert(Note).values(text="gone"))
            send({"type": "note"})  # here: taken back
            await taken_back.rollback()
            send({"type": "note"})  # here: outer two
            kept = await conn.begin_nested()
            await conn.execute(insert(Note).values(text="kept"))
            send({"type": "note"})  # here: kept
            await kept.commit()
            await conn.commit()
    assert found(shadow) == {
        (ROLLED_BACK, line("taken back")): 1,
        **{(BEFORE, line(where)): 1 for where in ("outer one", "outer two", "kept")},
    }


@pytest.mark.parametrize("ending", ["commit", "rollback"])
@pytest.mark.parametrize("inner", [False, True])
async def test_a_savepoint_that_is_older_than_the_shadow_takes_its_changes_along(
    stage: Stage, monitor: CoordinationHealthMonitor, ending: str, inner: bool
) -> None:
    async with stage.engine.connect() as conn:
        old = await conn.begin_nested()
        with Shadow(monitor) as shadow:
            send = shadow.sends(len)
            nested = await conn.begin_nested() if inner else None
            await conn.execute(insert(Note).values(text="in the old one"))
            send({"type": "note"})  # here: in the old one
            if nested is not None:
                await nested.commit()
            await getattr(old, ending)()
            await conn.execute(insert(Note).values(text="after"))
            send({"type": "note"})  # here: after the old one
            await conn.commit()
    assert found(shadow) == {
        (ROLLED_BACK if ending == "rollback" else BEFORE, line("in the old one")): 1,
        (BEFORE, line("after the old one")): 1,
    }


async def test_a_connection_that_is_dropped_inside_a_savepoint_is_collected(
    stage: Stage, shadow: Shadow
) -> None:
    def change(sessions: Any) -> weakref.ref[Any]:
        session = sessions()
        session.begin_nested()
        session.add(Note(text="dropped"))
        session.flush()
        return weakref.ref(session.connection())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SQLAlchemy's, of a connection that was not given back
        dropped = change(stage.sync_sessions())
        gc.collect()
    assert dropped() is None
    shadow.finish()
    assert shadow.report().transactions == 1


async def test_an_autocommit_connection_has_no_open_changes(
    stage: Stage, shadow: Shadow, send: Any
) -> None:
    engine = stage.engine.execution_options(isolation_level="AUTOCOMMIT")
    async with engine.connect() as conn:
        await conn.execute(insert(Note).values(text="a"))
        send({"type": "note"})
    assert kinds(shadow) == {}


async def test_a_modified_object_counts_and_an_unchanged_one_does_not(
    stage: Stage, shadow: Shadow, send: Any
) -> None:
    async with stage.sessions.begin() as session:
        session.add(run := Run(status="asked"))
    async with stage.sessions.begin() as session:
        row = await session.get_one(Run, run.id)
        send({"type": "run"})
        row.status = str(row.status)
        send({"type": "run"})
        row.status = "running"
        send({"type": "run"})  # here: modified
    assert found(shadow) == {(BEFORE, line("modified")): 1}


async def test_what_is_never_flushed_was_fine_unless_it_is_rolled_back(
    stage: Stage, shadow: Shadow, send: Any
) -> None:
    async with stage.sessions() as session:
        session.add(note := Note(text="a"))
        send({"type": "dropped"})
        session.expunge(note)
        await session.commit()
    assert kinds(shadow) == {}
    async with stage.sessions() as session:
        session.add(Note(text="a"))
        send({"type": "phantom"})  # here: never flushed
        await session.rollback()  # here: nor told
    assert found(shadow) == {
        (ROLLED_BACK, line("never flushed")): 1,
        (UNTOLD, line("nor told")): 1,
    }
    assert shadow.report().sends == 2


async def test_a_failed_flush_makes_what_was_sent_before_it_a_phantom(
    stage: Stage, shadow: Shadow, send: Any
) -> None:
    async with stage.sessions.begin() as session:
        session.add(Note(text="a"))
    async with stage.sessions() as session:
        session.add(Note(text="a"))
        send({"type": "note"})
        with contextlib.suppress(DBAPIError):
            await session.commit()
    assert kinds(shadow) == {ROLLED_BACK: 1, UNTOLD: 1}


async def test_a_commit_that_the_server_answers_with_rollback_is_one(
    stage: Stage, shadow: Shadow, send: Any
) -> None:
    if stage.database.kind == "sqlite":
        pytest.skip("a failed statement does not abort a transaction on SQLite")
    async with stage.engine.connect() as conn:
        await conn.execute(insert(Note).values(text="a"))
        send({"type": "note"})
        with contextlib.suppress(DBAPIError):
            await conn.execute(insert(Note).values(text="a"))
        await conn.commit()
    assert kinds(shadow) == {ROLLED_BACK: 1, UNTOLD: 1}


async def test_a_commit_that_is_cut_off_is_no_untold_rollback(
    stage: Stage, shadow: Shadow, send: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object) -> None:
        raise asyncio.CancelledError

    async with stage.sessions() as session:
        session.add(Note(text="a"))
        await session.flush()
        send({"type": "note"})
        monkeypatch.setattr(stage.engine.dialect, "do_commit", cut)
        with contextlib.suppress(asyncio.CancelledError):
            await session.commit()
        monkeypatch.undo()
    assert kinds(shadow) == {BEFORE: 1}


async def test_a_commit_that_is_refused_is_a_rollback(
    stage: Stage, shadow: Shadow, send: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise stage.engine.dialect.dbapi.OperationalError("deferred")  # type: ignore[union-attr]

    async with stage.sessions() as session:
        session.add(Note(text="a"))
        await session.flush()
        send({"type": "note"})  # here: refused
        monkeypatch.setattr(stage.engine.dialect, "do_commit", refuse)
        with contextlib.suppress(DBAPIError):
            await session.commit()  # here: commit refused
        monkeypatch.undo()
    assert found(shadow) == {
        (ROLLED_BACK, line("refused")): 1,
        (UNTOLD, line("commit refused")): 1,
    }


async def test_a_connection_that_is_closed_without_a_commit_rolls_back(
    stage: Stage, shadow: Shadow, send: Any
) -> None:
    async with AsyncSession(stage.engine) as session:
        session.add(Note(text="a"))
        await session.flush()
        send({"type": "note"})
    async with stage.engine.connect() as conn:
        await conn.execute(insert(Note).values(text="a"))
    assert kinds(shadow) == {ROLLED_BACK: 1, UNTOLD: 2}


async def test_a_joined_commit_counts_only_where_tests_ask_for_it(
    stage: Stage, monitor: CoordinationHealthMonitor
) -> None:
    async def save_and_send(session: AsyncSession, shadow: Shadow) -> None:
        session.add(Note(text="a"))
        await session.commit()
        shadow.sends(len)({"type": "note"})

    async def run(*, joined_commits: bool) -> dict[BreachKind, int]:
        with Shadow(monitor, joined_commits=joined_commits) as shadow:
            async with stage.engine.connect() as conn:
                await conn.begin()
                await conn.execute(insert(Run).values(status="prepared"))
                options = {"join_transaction_mode": "create_savepoint"}
                async with AsyncSession(conn, **options) as session:  # type: ignore[arg-type]
                    await save_and_send(session, shadow)
                await conn.rollback()
        return kinds(shadow)

    assert await run(joined_commits=True) == {}
    assert await run(joined_commits=False) == {ROLLED_BACK: 1, UNTOLD: 1}


async def test_a_joined_rollback_is_to_be_told_as_well(
    stage: Stage, monitor: CoordinationHealthMonitor
) -> None:
    with Shadow(monitor, joined_commits=True) as shadow:
        async with stage.engine.connect() as conn:
            await conn.begin()
            async with AsyncSession(conn, join_transaction_mode="create_savepoint") as session:
                session.add(Note(text="a"))
                await session.flush()
                await session.rollback()  # here: joined rollback
            await conn.rollback()
    assert found(shadow) == {(UNTOLD, line("joined rollback")): 1}


async def test_only_the_given_engines_are_judged(
    stage: Stage, monitor: CoordinationHealthMonitor
) -> None:
    other = stage.database.engine()
    for engines, count in (([other], 0), ([stage.engine, other], 1)):
        with Shadow(monitor, engines=engines) as shadow:
            async with stage.sessions.begin() as session:
                session.add(Note(text=f"of {count}"))
                await session.flush()
                shadow.sends(len)({"type": "note"})
        assert sum(kinds(shadow).values()) == count
