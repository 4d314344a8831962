"""The log: streams, events, deliveries."""

from __future__ import annotations

from alembic import context, op

from commitcast.migrations.steps import STEPS

revision = "0001"
down_revision = None


def upgrade() -> None:
    STEPS[revision].upgrade(op, context.config.attributes["naming"])


def downgrade() -> None:
    STEPS[revision].downgrade(op, context.config.attributes["naming"])
