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


class States:
    """The committed state of each watched row, as far as it was seen."""

    def __init__(self, apart: Callable[[Told, float | None, Chain], None]) -> None:
        """Call `apart` for each state that was told ahead.

        With the time of its commit, or None, and the lines of the row's last change.
        """
        self._apart = apart
        self._watches: list[Watch] = []
        self._committed: OrderedDict[tuple[int, str], tuple[str, Chain]] = OrderedDict()
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

    def told(self, value: Any, works: tuple[Work, ...]) -> tuple[tuple[int, str], str, bool] | None:
        """What a message tells of a row that is known: its key, the state, and whether it is so."""
        for number, watch in enumerate(self._watches):
            said = watch.told(value)
            if said is not None:
                key = (number, str(said[0]))
                state = _plain(said[1])
                if key in self._committed:
                    return key, state, self._committed[key][0] == state
                if any(key in work.states for work in works):
                    return key, state, False
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
            self._committed[key] = state, cause
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
        _, cause = self._committed.get(key, ("", ()))
        self._apart(told, None, cause)


def _plain(state: Any) -> str:
    return str(getattr(state, "value", state))
