"""The setting of a rollout: who is left alone, who is watched, for whom Commitcast sends.

`Rollout` is a plain setting by percentage of users; `OpenFeatureModes` asks a flag of OpenFeature
(extra ``openfeature``). Both may change at any time: `commitcast.dispatch` asks once for each
transaction and user.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openfeature.client import OpenFeatureClient

_logger = logging.getLogger("commitcast")
_BUCKETS: Final = 10_000
_LOG_EVERY_S: Final = 60.0


class Mode(StrEnum):
    """What Commitcast does about an event."""

    OFF = "off"
    """Nothing: the app's own sending, untouched, and nobody looks."""
    SHADOW = "shadow"
    """The app's own sending, untouched; each send is judged."""
    ENFORCE = "enforce"
    """Commitcast sends, after the commit; the app's own sending is not called."""


_VALUES: Final = frozenset(Mode)


class Modes(Protocol):
    """Who says which mode a user is in. Called on the way of a request: no I/O, no exceptions."""

    def mode(self, user: str | None) -> Mode:
        """The mode of `user`, at this moment; None where nobody is known."""


@dataclass(frozen=True, slots=True)
class _Setting:
    """What a rollout is set to: one value, so that nobody reads half of a change."""

    enforce: float
    shadow: float
    overrides: Mapping[str | None, Mode]


class Rollout:
    """Modes by percentage of users, changeable at run time, from any thread.

    Each user has a place from 0 to 99.99 that depends on `key` and the user alone, so that raising
    `enforce` only adds users and every process agrees. The first `enforce` percent are in
    `Mode.ENFORCE`, the next `shadow` percent in `Mode.SHADOW` (as far as there are any), the others
    in `Mode.OFF`. Who has no user (None) has the last place: enforced at 100 only.
    """

    def __init__(
        self,
        enforce: float = 0,
        shadow: float = 100,
        *,
        key: str = "commitcast",
        overrides: Mapping[str | None, Mode] | None = None,
    ) -> None:
        """Set the percentages.

        Args:
            enforce: percent of the users for whom Commitcast sends, 0 to 100, in steps of 0.01.
            shadow: percent of the users who are watched beside them; what is over 100 together
                does not count.
            key: another key deals the users' places anew, so that it is not the same people who
                are first in every rollout.
            overrides: users whose mode is given, whatever the percentages; the key None is for
                those without a user.

        Raises:
            ValueError: a percentage is out of range, or an override is not a mode.
        """
        self._key = key
        self._change = threading.Lock()
        self._setting = _Setting(
            _percentage("enforce", enforce), _percentage("shadow", shadow), _modes(overrides or {})
        )

    def set(
        self,
        *,
        enforce: float | None = None,
        shadow: float | None = None,
        overrides: Mapping[str | None, Mode] | None = None,
    ) -> None:
        """Change what is given, all of it at once; it counts from the next transaction on.

        `overrides` replaces all that there are: ``set(enforce=0, overrides={})`` takes everybody
        back. This process only: tell each of them, or have a flag of OpenFeature.

        Raises:
            ValueError: as the constructor; nothing is changed then.
        """
        changes: dict[str, object] = {}
        if enforce is not None:
            changes["enforce"] = _percentage("enforce", enforce)
        if shadow is not None:
            changes["shadow"] = _percentage("shadow", shadow)
        if overrides is not None:
            changes["overrides"] = _modes(overrides)
        with self._change:
            self._setting = replace(self._setting, **changes)  # type: ignore[arg-type]

    @property
    def enforce(self) -> float:
        """Percent of the users for whom Commitcast sends."""
        return self._setting.enforce

    @property
    def shadow(self) -> float:
        """Percent of the users who are watched beside them."""
        return self._setting.shadow

    @property
    def overrides(self) -> Mapping[str | None, Mode]:
        """Users whose mode is given; read only."""
        return self._setting.overrides

    def mode(self, user: str | None) -> Mode:
        """The mode of `user`, as it is set at this moment."""
        setting = self._setting
        given = setting.overrides.get(user)
        if given is not None:
            return given
        place = _BUCKETS - 1 if user is None else self._place(user)
        if place < round(setting.enforce * 100):
            return Mode.ENFORCE
        if place < round((setting.enforce + setting.shadow) * 100):
            return Mode.SHADOW
        return Mode.OFF

    def _place(self, user: str) -> int:
        # Not hash(), which every process salts anew.
        text = f"{self._key}\0{user}".encode(errors="surrogatepass")
        return int.from_bytes(hashlib.sha256(text).digest()[:8]) % _BUCKETS

    def __repr__(self) -> str:
        setting = self._setting
        return (
            f"<Rollout enforce={setting.enforce} shadow={setting.shadow} "
            f"overrides={len(setting.overrides)}>"
        )


class OpenFeatureModes:
    """Modes by a string flag of OpenFeature: ``off``, ``shadow`` or ``enforce``.

    The user is the targeting key, so that the provider deals the percentages. Where the flag cannot
    be evaluated or has another value, `default` counts, and a warning is logged, once a minute at
    most. The client's provider is asked for every transaction and user, without a cache: it must
    evaluate in memory, as those do that fetch their rules in the background.
    """

    def __init__(
        self,
        client: OpenFeatureClient | None = None,
        *,
        flag: str = "commitcast-mode",
        default: Mode = Mode.OFF,
    ) -> None:
        """Ask `client`, or one of the default domain, for `flag`.

        Raises:
            ImportError: the extra ``openfeature`` is not installed.
            ValueError: `default` is not a mode.
        """
        try:
            from openfeature import api
            from openfeature.evaluation_context import EvaluationContext
        except ImportError as error:
            raise ImportError(
                "OpenFeatureModes needs the OpenFeature SDK: pip install 'commitcast[openfeature]'"
            ) from error
        self._client = client if client is not None else api.get_client()
        self._context = EvaluationContext
        self._flag = flag
        self._default = as_mode("default", default)
        self._logged_at = float("-inf")
        self._logging = threading.Lock()
        self.failures = 0
        """How many evaluations gave no mode, so that `default` counted."""

    def mode(self, user: str | None) -> Mode:
        """The mode that the flag has for `user` at this moment; does not raise."""
        try:
            found = self._client.get_string_details(
                self._flag, self._default.value, self._context(targeting_key=user)
            )
        except Exception as error:  # noqa: BLE001 - hooks and providers raise their own
            reason = type(error).__name__
        else:
            if found.error_code is not None:
                reason = found.error_code.value
            elif found.value in _VALUES:
                return Mode(found.value)
            else:
                reason = "its value is not off, shadow or enforce"
        self._failed(reason)
        return self._default

    def _failed(self, reason: str) -> None:
        with self._logging:
            self.failures += 1
            now = time.monotonic()
            if now < self._logged_at + _LOG_EVERY_S:
                return
            self._logged_at = now
        _logger.warning(
            "commitcast: the flag %s cannot be used (%s), so the mode is %s; %d failures so far",
            self._flag, reason, self._default.value, self.failures,
        )  # fmt: skip


def _percentage(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:  # noqa: PLR2004 - a percentage
        raise ValueError(f"{name} is a percentage of users, from 0 to 100, not {value!r}")
    return value


def _modes(overrides: Mapping[str | None, Mode]) -> Mapping[str | None, Mode]:
    return MappingProxyType(
        {user: as_mode(f"overrides[{user!r}]", mode) for user, mode in overrides.items()}
    )


def as_mode(name: str, value: object) -> Mode:
    """Return a mode, also given by its value; raises ValueError that names what it was for."""
    try:
        return Mode(value)  # type: ignore[arg-type]
    except ValueError:
        raise ValueError(
            f"{name} is {value!r}; give Mode.OFF, Mode.SHADOW or Mode.ENFORCE"
        ) from None
