"""Alembic's environment for `commitcast.migrations.migrate`; not run by hand."""

from __future__ import annotations

from alembic import context
from sqlalchemy import func, select
from sqlalchemy.schema import CreateSchema

_LOCK = 7_220_041_115_601_120_321  # "commitcast migrations", an arbitrary advisory lock


def _run() -> None:
    attributes = context.config.attributes
    connection, tables = attributes["connection"], attributes["tables"]
    naming = attributes["naming"]
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        if naming.schema is not None:
            connection.execute(CreateSchema(naming.schema, if_not_exists=True))
    context.configure(
        connection=connection,
        target_metadata=tables.metadata,
        version_table=tables.version_table,
        version_table_schema=naming.schema,
    )
    with context.begin_transaction():
        context.run_migrations()


_run()
