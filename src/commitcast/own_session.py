"""The session of `Operation.begin`: begun and committed by us, whatever the team's sessions are like."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession


async def begin(session: AsyncSession) -> None:
    """Begin a transaction where the session does not do it by itself (``autobegin=False``)."""
    if not session.sync_session.autobegin and not session.in_transaction():
        await session.begin()


async def commit_and_close(session: AsyncSession) -> None:
    """Commit, also if nothing is open (after a checkpoint): the outcome is decided by it."""
    await begin(session)
    await session.commit()
    await session.close()  # sends nothing after a commit that returned
