"""docs/rollout.md: its example runs, and prints what the page says happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "rollout.md"


def test_the_example_runs(tmp_path: Path) -> None:
    example = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    *sent, counts = done.stdout.splitlines()
    assert sorted(sent) == [
        "commitcast: thread:7 message.created {'id': 2}",
        "commitcast: thread:7 message.created {'id': 3}",
        "own way:    thread:7 message.created {'id': 1}",
        "own way:    thread:7 message.created {'id': 4}",
    ]
    assert counts == "{'off': 0, 'shadow': 2, 'enforce': 2} {}"
