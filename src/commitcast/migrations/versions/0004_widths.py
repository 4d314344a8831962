"""Ids of 255 characters."""

from __future__ import annotations

from alembic import context, op

from commitcast.migrations.steps import STEPS

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    STEPS[revision].upgrade(op, context.config.attributes["naming"])


def downgrade() -> None:
    STEPS[revision].downgrade(op, context.config.attributes["naming"])
