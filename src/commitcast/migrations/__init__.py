"""Migrations of Commitcast's own tables, run by Alembic.

Either on their own (``commitcast migrate``, `migrate`), with a version table of their own, or
inside a team's Alembic chain: one revision of theirs calls ``upgrade(op, "0001")`` and a later
one the next step. Needs the extra ``commitcast[migrate]``.
"""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import update
from sqlalchemy.exc import DBAPIError

from commitcast.errors import CommitcastError, LogError, SchemaMissing
from commitcast.schema import Naming, Tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection

LATEST: Final = "0004"


def upgrade(
    op: Any, revision: str = LATEST, *, schema: str | None = None, prefix: str | None = None
) -> None:
    """Run one step inside a revision of your own chain.

    Args:
        op: ``alembic.op``, or an ``alembic.operations.Operations``.
        revision: the step, ``"0001"`` being the first. Call each step once, in its order.
        schema: the option given to the coordinator; so with `prefix`.
        prefix: see `schema`.
    """
    from commitcast.migrations import steps

    step = steps.STEPS.get(revision)
    if step is None:
        raise ValueError(f"there is no step {revision!r}; the steps are {', '.join(steps.STEPS)}")
    step.upgrade(op, Naming.of(op.get_bind().dialect.name, schema, prefix))


def downgrade(
    op: Any, revision: str = LATEST, *, schema: str | None = None, prefix: str | None = None
) -> None:
    """Undo one step; the events in its tables are gone."""
    from commitcast.migrations import steps

    step = steps.STEPS.get(revision)
    if step is None:
        raise ValueError(f"there is no step {revision!r}; the steps are {', '.join(steps.STEPS)}")
    step.downgrade(op, Naming.of(op.get_bind().dialect.name, schema, prefix))


def migrate(
    connection: Connection, *, schema: str | None = None, prefix: str | None = None
) -> None:
    """Bring Commitcast's tables up to date on `connection`; commits what it did.

    Safe to run again and by several processes at once (PostgreSQL: under an advisory lock).
    """
    try:
        from alembic import command
        from alembic.config import Config
    except ImportError as error:
        raise CommitcastError("migrations need Alembic: install commitcast[migrate]") from error
    naming = Naming.of(connection.dialect.name, schema, prefix)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes.update(connection=connection, naming=naming, tables=Tables(naming))
    command.upgrade(config, "head")
    connection.commit()


@contextlib.contextmanager
def schema_there() -> Iterator[None]:
    """Say what to do where a first look finds no tables, or those of an older version."""
    try:
        yield
    except LogError as error:
        raise SchemaMissing(str(error)) from error
    except DBAPIError as error:
        text = str(error.orig).lower()
        if any(s in text for s in ("does not exist", "no such table", "no such column")):
            raise SchemaMissing(
                "Commitcast's tables are not in the database, or are of an older version; run "
                "`commitcast migrate`, or upgrade(op) in your Alembic chain"
            ) from error
        raise


def mark_restored(connection: Connection, tables: Tables) -> None:
    """Change every epoch, in the caller's transaction: see `Coordinator.mark_restored`."""
    changed = update(tables.installation).values(incarnation=uuid.uuid4().hex)
    if connection.execute(changed).rowcount != 1:
        raise SchemaMissing("the installation row is missing; run `commitcast migrate`")
