"""The live connections of each user, so that they can be cut.

The library closes connections politely; to see a page recover from a cut one, the demo keeps the
task that serves each and ends it without ending its response.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

    from commitcast.request import ConnectionRequest

    Authenticate = Callable[[ConnectionRequest], Awaitable[str | None]]

_TASK: Final = "commitcast.demo.task"


class Connections:
    """Wrap the realtime app with `serving` and its ``authenticate`` with `noting`."""

    def __init__(self) -> None:
        self._tasks: dict[str, set[asyncio.Task[Any]]] = {}

    def noting(self, authenticate: Authenticate) -> Authenticate:
        """`authenticate`, and whose connection it is is noted."""

        async def noted(request: ConnectionRequest) -> str | None:
            user = await authenticate(request)
            task = request.scope.get(_TASK)
            if user is None or task is None or task in self._tasks.get(user, ()):
                return user
            self._tasks.setdefault(user, set()).add(task)
            task.add_done_callback(partial(self._gone, user))
            # again: who signed out since the first answer did not find this task to cut
            return await authenticate(request)

        return noted

    def serving(self, app: ASGIApp) -> ASGIApp:
        """`app`, each request in a task of its own."""

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            task = scope[_TASK] = asyncio.ensure_future(app(scope, receive, send))
            try:
                await task
            except asyncio.CancelledError:
                me = asyncio.current_task()
                if not task.cancelled() or me is None or me.cancelling():
                    raise
                # cut: the server closes a connection whose response has no end

        return serve

    def cut(self, user: str) -> int:
        """Cut the user's connections on this node; returns how many."""
        tasks = list(self._tasks.get(user, ()))
        for task in tasks:
            task.cancel()
        return len(tasks)

    def _gone(self, user: str, task: asyncio.Task[Any]) -> None:
        tasks = self._tasks.get(user, set())
        tasks.discard(task)
        if not tasks:
            self._tasks.pop(user, None)
