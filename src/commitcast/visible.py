"""Row security that hides rows of Commitcast's tables would be a silent loss (G3): refuse it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ARRAY, String, Text, and_, cast, column, func, literal, or_, select, table

from commitcast.errors import LogError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from commitcast.schema import Tables


async def check_visible(engine: AsyncEngine, tables: Tables) -> None:
    """Raise `LogError` where row security may hide rows of our tables from this role.

    Allowed are roles that it does not bind (the owner, BYPASSRLS), and policies for SELECT that
    say ``USING (true)``.
    """
    if engine.dialect.name != "postgresql":
        return
    async with engine.connect() as conn:
        hidden = (await conn.scalars(_hidden(tables))).all()
    if hidden:
        raise LogError(
            f"row security may hide rows of {', '.join(sorted(hidden))} from this role, and readers "
            "would miss events without a word; CREATE POLICY … USING (true), or take another role"
        )


def _hidden(tables: Tables) -> Any:
    """The names of our tables of which this role may not see all rows."""
    policies = table(
        "pg_policies", *(column(n, String) for n in ("schemaname", "tablename", "permissive")),
        column("roles", ARRAY(String)), column("cmd", String), column("qual", Text),
        schema="pg_catalog",
    ).c  # fmt: skip
    known = table("pg_class", column("oid"), column("relname", String), schema="pg_catalog").c
    ours = [
        cast(literal(t.fullname if t.schema is None else f'"{t.schema}".{t.name}'), Text)
        for t in tables.metadata.sorted_tables
    ]
    role = func.unnest(policies.roles).column_valued("role")
    is_ours = select(role).where(or_(role == "public", func.pg_has_role(role, "MEMBER")))
    binding = and_(
        policies.tablename == known.relname,
        policies.schemaname == func.coalesce(tables.naming.schema, func.current_schema()),
        policies.cmd.in_(("ALL", "SELECT")),
        is_ours.exists(),
    )
    all_rows = and_(binding, policies.permissive == "PERMISSIVE", policies.qual == "true")
    fewer = and_(binding, policies.permissive != "PERMISSIVE", policies.qual != "true")
    return select(known.relname).where(
        known.oid.in_([func.to_regclass(name) for name in ours]),
        func.row_security_active(known.oid),
        or_(
            ~select(policies.cmd).where(all_rows).exists(),
            select(policies.cmd).where(fewer).exists(),
        ),
    )
