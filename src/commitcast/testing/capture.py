"""`capture`: the events of a session's commits, also of commits that are none.

Tests often join the session to an outer transaction that is rolled back at the end, so its
``commit()`` commits nothing and nothing leaves. Captured is what would have left.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import event as sa_event

from commitcast.hooks import set_capture, take_captured

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class CapturedEvent:
    """An event that a commit of the captured session would have sent."""

    stream: str
    type: str
    data: Any
    actor: str | None = None
    operation: str | None = None


@contextlib.contextmanager
def capture(session: AsyncSession | Session) -> Iterator[list[CapturedEvent]]:
    """Collect, in order, what each ``commit()`` of `session` makes ready to leave.

    A savepoint's release adds nothing, what is rolled back is not in the list. The engine needs
    no coordinator. Events still leave as ever where the commit is a real one and there is one.
    """
    sync: Any = getattr(session, "sync_session", session)
    captured: list[CapturedEvent] = []

    def keep(committing: Session) -> None:
        captured.extend(
            CapturedEvent(e.stream, e.type, orjson.loads(e.data_json), e.actor, e.operation)
            for e in take_captured(committing)
        )

    set_capture(sync, active=True)
    sa_event.listen(sync, "after_commit", keep)
    try:
        yield captured
    finally:
        sa_event.remove(sync, "after_commit", keep)
        set_capture(sync, active=False)
