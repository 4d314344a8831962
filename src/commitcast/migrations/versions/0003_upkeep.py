"""What trimming and erasing look things up by; `emit` in SQL checks as Python does."""

from __future__ import annotations

from alembic import context, op

from commitcast.migrations.steps import STEPS

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    STEPS[revision].upgrade(op, context.config.attributes["naming"])


def downgrade() -> None:
    STEPS[revision].downgrade(op, context.config.attributes["naming"])
