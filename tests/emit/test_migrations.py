"""Commitcast's tables: made by its own migrations or in a team's chain, and let alone by Alembic."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    Table,
    create_engine,
    func,
    inspect,
    make_url,
    text,
)
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import DDL

from commitcast import Coordinator, Event, emit, migrations, sqlite
from commitcast.schema import Naming, Tables, include_object

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NAMES = iter(range(1, 1000))


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A sync engine on a database of its own, with nothing in it."""
    if request.param == "sqlite":
        engine = create_engine(f"sqlite:///{tmp_path}/m.db", poolclass=NullPool)
        sqlite.configure(engine)
    else:
        url = request.getfixturevalue("postgresql_url").set(drivername="postgresql+psycopg")
        name = f"migrated_{next(_NAMES)}"
        admin = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with admin.connect() as conn:
            conn.execute(DDL(f"CREATE DATABASE {name}"))
        engine = create_engine(url.set(database=name), poolclass=NullPool)
    yield engine
    engine.dispose()


def sends(engine: Engine, **options: Any) -> list[tuple[str, int]]:
    """Emit once; what is then in the log of that installation."""
    coordinator = Coordinator(engine, **options)
    with Session(engine) as session:
        emit(session, "thread:7", Event("e"))
        session.commit()
    tables = coordinator.tables
    with engine.connect() as conn:
        found = conn.execute(
            tables.streams.select().with_only_columns(tables.streams.c.name, tables.streams.c.head)
        ).all()
    coordinator.detach()
    return [(name, head) for name, head in found]


def differences(engine: Engine, naming: Naming) -> list[Any]:
    with engine.connect() as conn:
        context = MigrationContext.configure(
            conn,
            opts={
                "include_schemas": True,
                "version_table": Tables(naming).version_table,
                "version_table_schema": naming.schema,
                "compare_type": True,
                "include_name": lambda name, kind, _parent: (
                    name == naming.schema if kind == "schema" else True
                ),
            },
        )
        return list(compare_metadata(context, Tables(naming).metadata))


def test_migrating_twice_is_migrating_once(engine: Engine) -> None:
    for _ in range(2):
        with engine.connect() as conn:
            migrations.migrate(conn)
    assert sends(engine) == [("thread:7", 1)]


@pytest.mark.parametrize(
    "options",
    [
        {}, {"prefix": "cc_"}, {"schema": "live"}, {"schema": "live", "prefix": "cc_"},
        {"schema": "order"}, {"schema": "user", "prefix": "select"}, {"prefix": "_"},
        {"schema": "x" * 40, "prefix": "y" * 40},
    ],
)  # fmt: skip
def test_migrated_tables_are_those_of_the_metadata(engine: Engine, options: dict[str, str]) -> None:
    with engine.connect() as conn:
        migrations.migrate(conn, **options)
    assert differences(engine, Naming.of(engine.dialect.name, **options)) == []
    assert sends(engine, **options) == [("thread:7", 1)]
    if engine.dialect.name == "postgresql":
        function = f'"{options.get("schema", "commitcast")}"."{options.get("prefix", "")}emit"'
        with engine.begin() as conn:
            assert conn.scalar(text(f"SELECT {function}('thread:7', 'e')")) == 2


def test_two_installations_in_one_database(engine: Engine) -> None:
    ones: list[dict[str, str]] = [{"prefix": "a_"}, {"prefix": "b_"}]
    if engine.dialect.name == "postgresql":
        ones += [{"schema": "other"}, {}]
    for options in ones:
        with engine.connect() as conn:
            migrations.migrate(conn, **options)
    for options in ones:
        assert sends(engine, **options) == [("thread:7", 1)]


@pytest.mark.parametrize("name", ["Upper", "has space", "a;b", "x" * 41, "1a", 'q"'])
def test_a_bad_schema_or_prefix_is_refused(name: str) -> None:
    for options in ({"schema": name}, {"prefix": name}):
        with pytest.raises(ValueError, match="must be 1 to 40"):
            Naming.of("postgresql", **options)


@pytest.mark.parametrize("options", [{"schema": "pg_x"}, {"prefix": "sqlite_"}])
def test_a_name_that_the_database_keeps_for_itself_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="the database keeps names"):
        Naming.of("postgresql", **options)


def test_an_empty_schema_is_refused_and_an_empty_prefix_is_none() -> None:
    with pytest.raises(ValueError, match="schema '' must be 1 to 40"):
        Naming.of("postgresql", schema="")
    assert Naming.of("postgresql", prefix="").prefix == ""


@pytest.mark.parametrize("options", [{}, {"schema": "order", "prefix": "cc_"}])
def test_a_log_of_an_earlier_version_goes_on_after_each_step(
    engine: Engine, options: dict[str, str]
) -> None:
    """Forward from the first step, back, and forward again; what was in the log stays."""
    with engine.connect() as conn:
        op = Operations(MigrationContext.configure(conn))
        for step in ("0001", "0002", "0003"):
            migrations.upgrade(op, step, **options)
        conn.commit()
    assert sends(engine, **options) == [("thread:7", 1)]
    with engine.connect() as conn:
        op = Operations(MigrationContext.configure(conn))
        migrations.downgrade(op, "0003", **options)
        migrations.upgrade(op, "0003", **options)
        conn.commit()
    assert sends(engine, **options) == [("thread:7", 2)]


def test_names_do_not_depend_on_the_search_path(engine: Engine) -> None:
    if engine.dialect.name != "postgresql":
        pytest.skip("SQLite has no search_path")
    with engine.connect() as conn:
        migrations.migrate(conn)
        conn.execute(DDL("CREATE SCHEMA trap"))
        conn.execute(DDL("CREATE TABLE trap.streams (id int)"))
        conn.execute(DDL("CREATE TABLE trap.events (id int)"))
        conn.commit()
    coordinator = Coordinator(engine)
    with Session(engine) as session:
        session.execute(text("SET LOCAL search_path = trap"))
        emit(session, "thread:7", Event("e"))
        session.execute(text("SELECT commitcast.emit('thread:8', 'e')"))
        session.commit()
    coordinator.detach()
    assert sorted(sends(engine)) == [("thread:7", 2), ("thread:8", 1)]


# --- in a team's own chain ---------------------------------------------------------------------

ENV = """
from alembic import context
from sqlalchemy import Column, Integer, MetaData, Table
from commitcast.schema import include_object

metadata = MetaData()
Table("team_table", metadata, Column("id", Integer, primary_key=True))
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    include_object=include_object(),
    include_schemas=context.config.attributes["include_schemas"],
)
with context.begin_transaction():
    context.run_migrations()
"""

REVISION = """
from alembic import op
from commitcast import migrations

revision = "team1"
down_revision = None

def upgrade():
    migrations.upgrade(op, "0001")
    migrations.upgrade(op, "0002")
    migrations.upgrade(op, "0003")
    migrations.upgrade(op, "0004")

def downgrade():
    migrations.downgrade(op, "0004")
    migrations.downgrade(op, "0003")
    migrations.downgrade(op, "0002")
    migrations.downgrade(op, "0001")
"""

TEMPLATE = """
from alembic import op
import sqlalchemy as sa
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
def upgrade():
    ${upgrades if upgrades else "pass"}
def downgrade():
    ${downgrades if downgrades else "pass"}
"""


@pytest.mark.parametrize("include_schemas", [False, True])
def test_a_teams_own_chain(engine: Engine, tmp_path: Path, include_schemas: bool) -> None:
    script = tmp_path / "alembic"
    (script / "versions").mkdir(parents=True)
    (script / "env.py").write_text(textwrap.dedent(ENV))
    (script / "script.py.mako").write_text(TEMPLATE)
    (script / "versions" / "team1.py").write_text(textwrap.dedent(REVISION))
    config = Config()
    config.set_main_option("script_location", str(script))
    config.set_main_option("path_separator", "os")
    config.attributes["include_schemas"] = include_schemas

    def run(function: Any, *arguments: Any, **options: Any) -> None:
        with engine.connect() as conn:
            config.attributes["connection"] = conn
            function(config, *arguments, **options)
            conn.commit()

    run(command.upgrade, "head")
    assert sends(engine) == [("thread:7", 1)]
    found = [
        d for d in differences(engine, Naming.of(engine.dialect.name)) if d[0] != "remove_table"
    ]
    assert found == []  # beside the team's own alembic_version
    with engine.connect() as conn:
        Table("dropped_by_the_team", MetaData(), Column("id", Integer)).create(conn)
        conn.commit()

    run(command.revision, message="auto", autogenerate=True, rev_id="team2")
    [made] = (script / "versions").glob("team2*.py")
    written = made.read_text()
    assert "create_table('team_table'" in written.replace('"', "'")
    assert "drop_table('dropped_by_the_team'" in written.replace('"', "'")
    assert "commitcast" not in written
    assert "streams" not in written
    assert "schema=" not in written

    run(command.upgrade, "head")
    assert sends(engine) == [("thread:7", 2)]
    run(command.downgrade, "base")
    found = inspect(engine)
    schema = "commitcast" if engine.dialect.name == "postgresql" else None
    assert [t for t in found.get_table_names(schema=schema) if "streams" in t] == []
    run(command.upgrade, "head")
    assert sends(engine) == [("thread:7", 1)]


def test_the_filter_knows_other_names() -> None:
    keep = include_object(schema="live", prefix="cc_")
    reflected = True
    ours = Tables(Naming("live", "cc_")).streams
    theirs = Table("streams", MetaData())
    assert not keep(ours, "cc_streams", "table", reflected, None)
    assert keep(theirs, "streams", "table", reflected, None)


# --- any language on PostgreSQL ------------------------------------------------------------------


def test_g1_g2_emit_in_sql(engine: Engine) -> None:
    if engine.dialect.name != "postgresql":
        pytest.skip("a function of PostgreSQL")
    with engine.connect() as conn:
        migrations.migrate(conn)
    call = text("SELECT commitcast.emit(:stream, :type, CAST(:data AS jsonb))")
    good = {"stream": "thread:7", "type": "message.created", "data": '{"id": 3}'}
    tables = Tables(Naming.of("postgresql"))
    with engine.connect() as conn:
        assert conn.execute(call, good).scalar() == 1
        conn.rollback()
        assert conn.execute(call, good).scalar() == 1
        conn.execute(text("SET LOCAL synchronous_commit = off"))
        assert conn.execute(call, good).scalar() == 2
        assert conn.execute(text("SHOW synchronous_commit")).scalar() == "on"
        conn.commit()
        for bad in (
            {"stream": "bad name"},
            {"stream": "thread:7\n"},
            {"stream": None},
            {"type": "7"},
            {"type": "e\n"},
            {"type": "commitcast.reset"},
            {"type": None},
            {"data": None},
            {"data": '"' + "x" * 65_536 + '"'},
        ):
            with pytest.raises(Exception, match="commitcast: "):
                conn.execute(call, {**good, **bad})
            conn.rollback()
        for level in ("REPEATABLE READ", "SERIALIZABLE"):
            conn.execute(text(f"SET TRANSACTION ISOLATION LEVEL {level}"))
            with pytest.raises(Exception, match="READ COMMITTED"):
                conn.execute(call, good)
            conn.rollback()
        assert conn.execute(func.max(tables.events.c.offset).select()).scalar() == 2
        conn.rollback()
    coordinator = Coordinator(engine)
    with Session(engine) as session:  # both ways in one transaction
        session.execute(call, good)
        emit(session, "thread:7", Event("python"))
        session.commit()
    coordinator.detach()
    assert sends(engine) == [("thread:7", 5)]


@pytest.mark.anyio
async def test_g3_emit_in_sql_is_delivered(postgresql_url: Any, database: Any) -> None:
    if database.kind != "postgresql":
        pytest.skip("a function of PostgreSQL")
    engine = database.engine()
    async with (
        database.coordinator(engine, poll_interval_s=0.05) as coordinator,
        coordinator.subscribe("thread:7") as subscription,
        engine.begin() as conn,
    ):
        await conn.execute(
            text("""SELECT commitcast.emit('thread:7', 'message.created', '{"id": 3}')""")
        )
        await conn.commit()
        event = await anext(subscription)
        assert (event.offset, event.type, event.data) == (1, "message.created", {"id": 3})


def test_urls_stay_secret() -> None:
    """The error that shows an engine hides its password."""
    engine = create_engine(make_url("postgresql+psycopg://u:secret@nowhere/db"))
    with Session(engine) as session, pytest.raises(Exception) as caught:  # noqa: PT011 - its text
        emit(session, "thread:7", Event("e"))
    assert "secret" not in str(caught.value)
