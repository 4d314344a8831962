"""What is in events and operations is not in the errors of the statements that write them."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import DDL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from commitcast import Event, emit

from .places import App, everywhere

if TYPE_CHECKING:
    from conftest import Database

SECRET = "the-secret-of-ann"


def _break(app: App) -> None:
    """The database refuses every event, and says with which row."""
    events = app.place.tables.events.fullname
    if app.postgresql:
        ddl = f"ALTER TABLE {events} ADD CONSTRAINT never CHECK (type = 'never') NOT VALID"
    else:
        ddl = (
            f"CREATE TRIGGER never BEFORE INSERT ON {events} "
            "BEGIN SELECT RAISE(ABORT, 'never'); END"
        )
    with app.place.observer.begin() as conn:
        conn.execute(DDL(ddl))


def _mend(app: App) -> None:
    events = app.place.tables.events.fullname
    with app.place.observer.begin() as conn:
        conn.execute(
            DDL(
                f"ALTER TABLE {events} DROP CONSTRAINT never"
                if app.postgresql
                else "DROP TRIGGER never"
            )
        )


@pytest.mark.parametrize("count", [1, 3])
@everywhere
def test_event_data_is_in_no_error(app: App, count: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="sqlalchemy.engine")
    _break(app)
    try:
        with pytest.raises(DBAPIError) as caught, Session(app.engine) as session:
            for n in range(count):
                emit(session, f"thread:{n}", Event("said", {"text": SECRET}), actor=SECRET)
            session.commit()
    finally:
        _mend(app)
    shown = "".join(traceback.format_exception(caught.value))
    assert "never" in shown, "what went wrong is still there"
    assert SECRET not in shown + repr(caught.value) + caplog.text
    with Session(app.engine) as session:
        app.works(session)


@everywhere
def test_parameters_of_the_teams_own_statements_are_shown_as_before(app: App) -> None:
    with app.engine.connect() as conn, pytest.raises(DBAPIError) as caught:
        conn.exec_driver_sql(
            "SELECT nowhere FROM notes WHERE text = %s"
            if app.driver == "postgresql+psycopg"
            else "SELECT nowhere FROM notes WHERE text = $1"
            if app.postgresql
            else "SELECT nowhere FROM notes WHERE text = ?",
            (SECRET,),
        )
    assert SECRET in str(caught.value)


@pytest.mark.anyio
@pytest.mark.parametrize("driver", [None, "postgresql+psycopg"])
async def test_what_a_person_did_is_in_no_error_of_operations_and_erasing(
    database: Database, driver: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    if driver is not None and database.kind == "sqlite":
        pytest.skip("a driver of PostgreSQL")
    caplog.set_level(logging.INFO)
    engine = database.engine(driver)
    coordinator = database.coordinator(engine, settle_wait_s=0.2)
    tables = coordinator.tables
    shown = ""
    async with coordinator:
        operation = coordinator.operation(
            "save", user=SECRET, id=SECRET, stream="thread:7", user_message=SECRET
        )
        async with database.engine().begin() as conn:
            name = tables.operations.fullname
            await conn.execute(DDL(f"ALTER TABLE {name} RENAME TO away"))
        for failing in (operation.__aenter__(), coordinator.erase(user=SECRET)):
            with pytest.raises(DBAPIError) as caught:
                await failing
            shown += "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        async with database.engine().begin() as conn:
            schema = "commitcast." if database.kind == "postgresql" else ""
            new = tables.operations.name
            await conn.execute(DDL(f"ALTER TABLE {schema}away RENAME TO {new}"))
    assert "operations" in shown
    assert SECRET not in shown + caplog.text
