"""What a kill leaves of a ``deliver`` callable's file is read back without what it cut off."""

import os
from pathlib import Path

import pytest

from commitcast.chaos import evidence
from commitcast.chaos.server import FileSink
from commitcast.event import CommittedEvent


def committed(offset: int, text: str) -> CommittedEvent:
    return CommittedEvent(
        stream="s", epoch="e0", offset=offset, id=f"id-{offset}", type="t",
        data_json=f'{{"text":"{text}"}}', time="2026-01-01T00:00:00Z",
    )  # fmt: skip


@pytest.mark.anyio
async def test_frame_that_a_kill_cut_in_a_character_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "delivered"
    whole, cut, again = committed(1, "é😀"), committed(2, "😀" * 2000), committed(2, "😀")
    await FileSink(str(path), ["s"]).send(whole)
    await FileSink(str(path), ["s"]).send(cut)
    os.truncate(path, path.stat().st_size - 100)
    await FileSink(str(path), ["s"]).send(again)
    await FileSink(str(path), ["s"]).send(committed(3, ""))
    frames = [whole.frame, again.frame, committed(3, "").frame]
    assert list(evidence.delivered(path)) == frames
    assert list(evidence.delivered(tmp_path / "none")) == []
