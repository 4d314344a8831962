"""What the team tells the judge about its own messages and users."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from commitcast.audit.message import tells_failure

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from commitcast.audit.channel import Channel, Unit


@dataclass(frozen=True, slots=True)
class Options:
    """The functions given to `Shadow`; what they raise is the hook's to catch."""

    judged_users: Callable[[str | None], bool] | None = None
    user_of: Callable[[MutableMapping[str, Any]], str | None] | None = None
    may_see: Callable[[str, Any], bool] | None = None
    notices: Callable[[Any], bool] | None = None
    ignored: Callable[[Any], bool] | None = None

    def with_(self, *given: Callable[..., Any] | None) -> Options:
        """These, and those of `given` that are not None, in the order of the fields."""
        own = (getattr(self, field.name) for field in fields(self))
        return Options(*(old if new is None else new for old, new in zip(own, given, strict=True)))

    @property
    def isolates(self) -> bool:
        """Whether isolation is judged."""
        return self.user_of is not None and self.may_see is not None

    def user(self, channel: Channel | None) -> str | None:
        """Who a connection belongs to."""
        if self.user_of is None or channel is None or channel.scope is None:
            return None
        return self.user_of(channel.scope)

    def judges(self, unit: Unit | None) -> bool:
        """Whether a request's sends and rollbacks are judged."""
        if self.judged_users is None:
            return True
        return self.judged_users(self.user(None if unit is None else unit.channel))

    def ignores(self, value: Any) -> bool:
        """Whether a message is not to be judged."""
        return self.ignored is not None and self.ignored(value)

    def is_notice(self, value: Any) -> bool:
        """Whether a message tells of a failure."""
        return tells_failure(value) if self.notices is None else self.notices(value)

    def may_see_it(self, channel: Channel, value: Any) -> bool | None:
        """Whether the connection's user may see a message; None if that cannot be said."""
        if self.may_see is None:
            return None
        user = self.user(channel)
        return None if user is None else self.may_see(user, value)
