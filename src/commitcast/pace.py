"""How often each user may come: a limit that costs one number for each user who came of late."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_MINUTE_S: Final = 60.0
_SWEEP_AT_LEAST: Final = 1024


class Pace:
    """How often each user may come: at most `per_minute` times a minute, all at once if they like.

    One number a user, the time by which all their visits will have been paid for (the generic cell
    rate algorithm, ITU-T I.371); of those who have paid nothing is kept. `clock` is in seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._each_s = _MINUTE_S / per_minute
        self._clock = clock
        self._paid_at: dict[str, float] = {}
        self._sweep_at = _SWEEP_AT_LEAST

    def come(self, user: str) -> float:
        """0 and the visit counts; or the seconds until one would, and this one does not."""
        now = self._clock()
        paid_at = max(now, self._paid_at.get(user, now)) + self._each_s
        too_early_s = paid_at - now - _MINUTE_S
        if too_early_s > 1e-6:  # noqa: PLR2004 - what adding up floats leaves
            return too_early_s
        self._paid_at[user] = paid_at
        if len(self._paid_at) >= self._sweep_at:
            self._paid_at = {u: at for u, at in self._paid_at.items() if at > now}
            self._sweep_at = max(_SWEEP_AT_LEAST, 2 * len(self._paid_at))
        return 0.0

    def __len__(self) -> int:
        """How many users something is kept of."""
        return len(self._paid_at)
