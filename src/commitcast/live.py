"""The operations that are live on this node: entered, and not over with all that follows them.

One user has a share of them at a time and of those begun in a minute (G10), so that nobody opens
operations without end. It is counted in memory, before anything is written. Operations without a
user are the application's own work and are not limited.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from commitcast.errors import TooManyOperations
from commitcast.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from commitcast.operation import Operation

_ASK_AGAIN_S: Final = 1.0


class Live:
    """A set of operations, counted for each user."""

    def __init__(
        self, most: int, per_minute: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take `most` of one user at a time and `per_minute` new ones; `clock` is in seconds."""
        self._most, self._per_minute = most, per_minute
        self._operations: set[Operation] = set()
        self._open: Counter[str] = Counter()
        self._pace = Pace(per_minute, clock)

    def add(self, operation: Operation) -> None:
        """Take one in; raises `TooManyOperations` where its user has no room."""
        actor = operation.actor
        if actor is not None:
            self._admit(operation.id, actor)
            self._open[actor] += 1
        self._operations.add(operation)

    def discard(self, operation: Operation) -> None:
        """Let one go, if it is there."""
        if operation not in self._operations:
            return
        self._operations.remove(operation)
        actor = operation.actor
        if actor is not None:
            self._open[actor] -= 1
            if not self._open[actor]:
                del self._open[actor]

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._operations)

    def __len__(self) -> int:
        return len(self._operations)

    def _admit(self, operation_id: str, actor: str) -> None:
        if self._open[actor] >= self._most:
            raise TooManyOperations(
                operation_id,
                f"the user has {self._most} operations open on this node, which is the most "
                "(max_operations_per_user)",
                retry_after_s=_ASK_AGAIN_S,
            )
        wait_s = self._pace.come(actor)
        if wait_s > 0:
            raise TooManyOperations(
                operation_id,
                f"the user began {self._per_minute} operations within a minute on this node, which "
                "is the most (max_operations_per_user_per_minute)",
                retry_after_s=math.ceil(wait_s * 1000) / 1000,
            )
