"""Sessions in states that a team meets: what emit says there, and that it does no I/O."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import ForeignKey, String, event, func, select
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from commitcast import Event, emit
from commitcast.errors import InvalidEvent, NoTransaction

from .places import App, Note, everywhere


class People(DeclarativeBase):
    """Tables of their own, made by the test."""


class Person(People):
    __tablename__ = "people"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))


class Letter(People):
    __tablename__ = "letters"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(50))
    stamp: Mapped[str] = mapped_column(
        String(50), server_default=func.lower("A"), onupdate=func.lower("B")
    )
    writer_id: Mapped[int | None] = mapped_column(ForeignKey("people.id"))
    writer: Mapped[Person | None] = relationship()


@everywhere
@pytest.mark.parametrize(
    ("attribute", "read"),
    [
        ("Letter.stamp", lambda letter: letter.stamp),
        ("Letter.writer", lambda letter: letter.writer.name),
        ("Letter.text", lambda letter: letter.text),
    ],
)
def test_a_function_that_reads_what_is_not_loaded_is_named(
    app: App, attribute: str, read: Any
) -> None:
    with app.engine.begin() as conn:
        People.metadata.create_all(conn)
    try:
        with Session(app.engine) as session:
            session.add(Letter(text="one", writer=Person(name="ann")))
            session.commit()
            letter = session.scalars(select(Letter)).one()
            letter.text = "two"
            if attribute == "Letter.text":
                session.commit()
            emit(session, "letter:7", lambda: Event("changed", {"is": read(letter)}))
            with pytest.raises(InvalidEvent) as failed:
                session.commit()
            for part in ("letter:7", attribute, "test_a_function_that_reads", "refresh"):
                assert part in str(failed.value)
            assert isinstance(failed.value.__cause__, InvalidRequestError)
            session.rollback()
            letter.text = "three"
            session.flush()
            session.refresh(letter)
            emit(session, "letter:7", lambda: Event("changed", {"is": read(letter)}))
            assert read(letter)
            session.commit()
        assert app.sent() == ["changed"]
    finally:
        with app.engine.begin() as conn:
            People.metadata.drop_all(conn)


@pytest.mark.anyio
async def test_a_result_that_reads_what_is_not_loaded_is_named(app: App) -> None:
    if app.async_engine is None:
        pytest.skip("operations are async")
    async with app.coordinator:
        with pytest.raises(InvalidEvent, match=r"result of .*Note\.text"):
            async with app.coordinator.operation("save", user="ann") as op, op.begin() as session:
                session.add(made := Note(text="one"))
                await session.flush()
                session.expire(made)
                op.result = lambda: made.text
    assert app.notes() == []


@everywhere
def test_g2_an_emit_does_not_begin_what_the_team_begins_itself(app: App) -> None:
    with Session(app.engine, autobegin=False) as session:
        with pytest.raises(NoTransaction, match=r"session\.begin\(\)"):
            emit(session, "thread:7", Event("one"))
        assert not session.in_transaction()
        with session.begin():
            session.add(Note(text="one"))
            emit(session, "thread:7", Event("one"))
    assert app.sent() == app.notes() == ["one"]


@pytest.mark.anyio
async def test_g6_an_operation_begins_for_a_session_that_does_not(app: App) -> None:
    if app.async_engine is None:
        pytest.skip("operations are async")
    app.coordinator.detach()
    coordinator = type(app.coordinator)(
        app.async_engine, sessions=async_sessionmaker(app.async_engine, autobegin=False)
    )
    async with coordinator:
        operation = coordinator.operation("save", user="ann", stream="thread:7")
        async with operation as op, op.begin() as session:
            session.add(Note(text="one"))
            op.emit(Event("one"))
        assert str(op.outcome) == "committed"
        operation = coordinator.operation("save", user="ann", stream="thread:7")
        async with operation as op, op.begin() as session:
            session.add(Note(text="two"))
            op.emit(Event("two"))
            await session.commit()  # a checkpoint, after which the outcome is still decided
        assert str(op.outcome) == "committed"
    coordinator.detach()
    assert app.sent() == app.notes() == ["one", "two"]


@everywhere
@pytest.mark.parametrize("savepoint", [False, True])
def test_g2_an_emit_after_a_failed_flush_says_to_roll_back(app: App, savepoint: bool) -> None:
    with Session(app.engine) as session:
        session.add(Note(text="one"))
        session.commit()
        transaction = session.begin_nested() if savepoint else session.begin()
        session.add(Note(text="one"))
        emit(session, "thread:7", Event("before"))
        with pytest.raises(IntegrityError):
            session.flush()
        with pytest.raises(NoTransaction, match=r"session\.rollback\(\)"):
            emit(session, "thread:7", Event("between"))
        transaction.rollback()
        emit(session, "thread:7", Event("after"))
        session.commit()
        assert app.sent() == ["after"]
        app.works(session)


@pytest.mark.anyio
@pytest.mark.parametrize("sql", [False, True])
async def test_g2_a_before_commit_hook_that_raises_leaves_emit_without_io(
    app: App, sql: bool
) -> None:
    """It is called outside of SQLAlchemy's greenlet, where I/O raises."""
    if app.async_engine is None:
        pytest.skip("an async session")
    async with AsyncSession(app.async_engine) as session:

        @event.listens_for(session.sync_session, "before_commit", once=True)
        def refuse(_session: Session) -> None:
            raise LookupError

        if sql:
            session.add(Note(text="one"))
            await session.flush()
        else:
            session.sync_session.begin()
        with pytest.raises(LookupError):
            await session.commit()
        emit(session, "thread:7", Event("one"))
        await session.commit()
    assert app.sent() == ["one"]


@everywhere
def test_g2_a_before_commit_hook_that_raises_leaves_no_connection_behind(app: App) -> None:
    with Session(app.engine) as session:

        @event.listens_for(session, "before_commit", once=True)
        def refuse(_session: Session) -> None:
            raise LookupError

        session.begin()
        with pytest.raises(LookupError):
            session.commit()
        begun: list[object] = []
        event.listen(session, "after_begin", lambda *_: begun.append(1))
        emit(session, "thread:7", Event("one"))
        assert begun == []
        session.commit()
    assert app.sent() == ["one"]
