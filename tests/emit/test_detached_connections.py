"""A connection that was taken out of its pool for good has a transaction, and events, as others."""

from __future__ import annotations

import pytest

from commitcast import Event, emit

from .places import App, everywhere, note


@everywhere
@pytest.mark.parametrize("detached", ["before the emit", "before the commit"])
def test_g1_a_detached_connection_sends_at_its_commit(app: App, detached: str) -> None:
    with app.engine.connect() as conn:
        note(conn, "one")
        if detached == "before the emit":
            conn.detach()
        emit(conn, "thread:7", Event("one"))
        if detached == "before the commit":
            conn.detach()
        assert app.sent() == []
        conn.commit()
        note(conn, "two")
        emit(conn, "thread:7", Event("two"))
        conn.rollback()
    assert app.sent() == app.notes() == ["one"]
