"""What is told of a run against what its committed row says."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import inspect

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from commitcast.audit.callsite import Chain
    from commitcast.audit.work import Work

MOST_KEYS: Final = 10_000
_MOST_EARLIER: Final = 4


@dataclass(frozen=True, slots=True)
class Watch:
    """A model whose rows have a state that messages tell."""

    model: type[Any]
    told: Callable[[Any], tuple[Any, str] | None]
    key: str
    state: str


@dataclass(slots=True, eq=False)
class Told:
    """A state that was told before its row had it."""

    event_type: str
    state: str
    at: float
    chain: Chain


@dataclass(slots=True)
class _Row:
    """What a row says, and what it said before."""

    state: str
    cause: Chain
    earlier: tuple[tuple[str, float], ...] = ()
    """States that it had, and when they ended, newest first."""

    def changed(self, state: str, cause: Chain, at: float) -> _Row:
        """The row with another state, since `at`."""
        if state == self.state:
            return _Row(state, cause, self.earlier)
        return _Row(state, cause, ((self.state, at), *self.earlier[: _MOST_EARLIER - 1]))

    def behind_ms(self, state: str, at: float) -> float | None:
        """How long ago the row had a state, 0 if it has it; None if it never did."""
        if state == self.state:
            return 0.0
        ended = next((ended for had, ended in self.earlier if had == state), None)
        return None if ended is None else max(0.0, at - ended) * 1_000


class States:
    """The committed state of each watched row, as far as it was seen."""

    def __init__(self, apart: Callable[[Told, float | None, Chain], None]) -> None:
        """Call `apart` for each state that was told ahead.

        With the time of its commit, or None, and the lines of the row's last change.
        """
        self._apart = apart
        self._watches: list[Watch] = []
        self._committed: OrderedDict[tuple[int, str], _Row] = OrderedDict()
        self._told: OrderedDict[tuple[int, str], list[Told]] = OrderedDict()

    def watch(self, watch: Watch) -> None:
        """Begin to follow a model."""
        self._watches.append(watch)

    def __bool__(self) -> bool:
        return bool(self._watches)

    def flushed(self, session: Session, works: list[Work]) -> None:
        """A session has sent its objects."""
        if not self._watches or not works:
            return
        for found in (*session.new, *session.dirty):
            for number, watch in enumerate(self._watches):
                if isinstance(found, watch.model):
                    values = inspect(found).dict
                    if values.get(watch.key) is not None and watch.state in values:
                        key = (number, str(values[watch.key]))
                        for work in works:
                            work.states[key] = _plain(values[watch.state])

    def told(
        self, value: Any, works: tuple[Work, ...], at: float
    ) -> tuple[tuple[int, str], str, float | None] | None:
        """What a message tells of a row that is known: its key, the state, and how late it is.

        0 ms if the row says so, more if it did before (who sends in order may be behind), None if it
        never did.
        """
        for number, watch in enumerate(self._watches):
            said = watch.told(value)
            if said is not None:
                key = (number, str(said[0]))
                state = _plain(said[1])
                row = self._committed.get(key)
                if row is not None:
                    return key, state, row.behind_ms(state, at)
                if any(key in work.states for work in works):
                    return key, state, None
        return None

    def hold(self, key: tuple[int, str], told: Told) -> None:
        """Wait for the row to get the state."""
        waiting = self._told.setdefault(key, [])
        waiting.append(told)
        if len(waiting) > 100:  # noqa: PLR2004 - a bound like any other
            self._never(key, waiting.pop(0))
        while len(self._told) > MOST_KEYS:
            oldest, forgotten = self._told.popitem(last=False)
            for each in forgotten:
                self._never(oldest, each)

    def committed(self, states: dict[tuple[int, str], str], at: float, cause: Chain) -> None:
        """A work has committed what its objects say, changed by the lines of `cause`."""
        for key, state in states.items():
            row = self._committed.get(key)
            self._committed[key] = (
                _Row(state, cause) if row is None else row.changed(state, cause, at)
            )
            self._committed.move_to_end(key)
            for told in self._told.pop(key, ()):
                self._apart(told, at if told.state == state else None, cause)
        while len(self._committed) > MOST_KEYS:
            self._committed.popitem(last=False)

    def finish(self) -> None:
        """No later commit will bring what was told."""
        while self._told:
            key, waiting = self._told.popitem()
            for told in waiting:
                self._never(key, told)

    def _never(self, key: tuple[int, str], told: Told) -> None:
        row = self._committed.get(key)
        self._apart(told, None, () if row is None else row.cause)


def _plain(state: Any) -> str:
    return str(getattr(state, "value", state))
