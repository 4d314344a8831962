"""What one client may do: asked of the team's callables, within a limit of time.

Whoever waits for an answer has a place already (`commitcast.admission`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from commitcast.auth import ask_access, ask_user, refusal
from commitcast.errors import SubscriptionClosed
from commitcast.question import ClientLeft, NoAnswer, answer_to

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine
    from typing import Any

    from commitcast.admission import Place
    from commitcast.auth import Authenticate, MayRead
    from commitcast.event import Position
    from commitcast.request import ConnectionRequest

_logger = logging.getLogger("commitcast")
_T = TypeVar("_T")


class Access:
    """Who the client of one request is, and what it may read.

    Args:
        authenticate: as it was given to `Coordinator.asgi`.
        may_read: the ``authorize`` that was given there, see `commitcast.auth.sees_position`.
        request: what the client sent.
        place: the client's; it is kept until every question has ended.
        gone: done when the client has left, which ends every question.
        limit_s: how long an answer may take.
    """

    def __init__(
        self,
        authenticate: Authenticate | None,
        may_read: MayRead | None,
        request: ConnectionRequest,
        *,
        place: Place,
        gone: asyncio.Future[Any],
        limit_s: float,
    ) -> None:
        self.request = request
        self.place = place
        self.gone = gone
        self._authenticate = authenticate
        self._may_read = may_read
        self._limit_s = limit_s

    async def user(self) -> str | None:
        """The user's id; None for nobody. Raises what `answer_to` raises."""
        return await self._answer(ask_user(self._authenticate, self.request))

    async def may_read(self, user: str, stream: str, position: Position | None) -> bool:
        """Whether `user` may read `stream` after `position`. Raises what `answer_to` raises."""
        return await self._answer(ask_access(self._may_read, user, stream, position))

    async def still(self, user: str, stream: str, position: Position | None) -> bool:
        """Whether a client that is being served still is `user` and may read on.

        The session behind the connection may have ended as well.
        """
        try:
            same = await self.user() == user
        except Exception as error:
            if refusal(error) is not None:
                return False
            raise ended(stream, "authenticate", error) from error
        return same and await self.may_read_on(user, stream, position)

    async def may_read_on(self, user: str, stream: str, position: Position | None) -> bool:
        """`may_read` of a client that is being served.

        Where there is no answer, neither yes nor no, the client may come back with its position
        and ask again: `SubscriptionClosed`.
        """
        try:
            return await self.may_read(user, stream, position)
        except Exception as error:
            if refusal(error) is not None:
                return False
            raise ended(stream, "authorize", error) from error

    async def _answer(self, question: Coroutine[Any, Any, _T]) -> _T:
        return await answer_to(
            question, limit_s=self._limit_s, gone=self.gone, hold=self.place.hold
        )


def ended(stream: str, name: str, error: Exception) -> SubscriptionClosed:
    """Why a subscription ends when the callable `name` did not answer; logs it."""
    if isinstance(error, ClientLeft):
        return SubscriptionClosed(stream, None, "the client left")
    log_unanswered(name, error)
    return SubscriptionClosed(stream, None, f"{name} gave no answer")


def log_unanswered(name: str, error: Exception) -> None:
    """Log that the callable `name` raised, or took too long."""
    if isinstance(error, NoAnswer):
        _logger.error("commitcast: %s gave %s", name, error)
    else:
        _logger.error("commitcast: %s raised", name, exc_info=error)
