"""Judges an app's own sends without touching them: what users see against what was committed.

A send is judged against the transactions with changes that are open where it is made. If there is
none it was in step. Otherwise it waits for their end: a commit makes it early, a rollback a message
about something that never was. docs/shadow.md says what is seen, and what is not.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeVar

from commitcast.audit import wire
from commitcast.audit.judge import Judge
from commitcast.audit.options import Options
from commitcast.audit.patches import Patches, judged_sending
from commitcast.audit.states import Watch
from commitcast.health import CoordinationHealthMonitor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

    from commitcast.audit.report import AuditReport

_F = TypeVar("_F", bound="Callable[..., Any]")

_installed: list[Shadow] = []
_lock = threading.Lock()


class Shadow:
    """Watches SQLAlchemy and the app's sends, and records what it finds.

    One can be installed at a time in a process. It changes neither a byte that the app sends nor an
    exception; what goes wrong in it is logged as ``commitcast`` and that send is not judged.
    """

    def __init__(
        self,
        monitor: CoordinationHealthMonitor | None = None,
        *,
        engines: Iterable[Any] | None = None,
        judges: Callable[[str | None], bool] | None = None,
        user_of: Callable[[Any], str | None] | None = None,
        may_see: Callable[[str, Any], bool] | None = None,
        is_notice: Callable[[Any], bool] | None = None,
        ignore: Callable[[Any], bool] | None = None,
        joined_commits: bool = False,
    ) -> None:
        """Prepare; nothing is watched before `install`.

        Functions that are given a message get its JSON's value, or its text or bytes if it is none;
        of socket.io, the data with the event as its ``type``.

        Args:
            monitor: where steps are recorded; by default one of its own.
            engines: the engines whose transactions count, async or not; by default all there are.
            judges: whether requests of a user (`user_of`) are judged; by default all.
            user_of: who a connection belongs to, given its ASGI scope.
            may_see: whether a user may see a message. Isolation is judged if this and `user_of`
                are given.
            is_notice: whether a message, or the JSON answer of a request, tells of a failure; by
                default `commitcast.audit.message.tells_failure`.
            ignore: whether a message is not judged, such as a ping.
            joined_commits: for tests: a commit of a session that joined an outer transaction, which
                the test rolls back, counts as one.
        """
        self.monitor = CoordinationHealthMonitor() if monitor is None else monitor
        options = Options(judges, user_of, may_see, is_notice, ignore)
        self._judge = Judge(self.monitor, options, engines, joined_commits=joined_commits)
        self._patches = Patches(self._judge)

    @property
    def installed(self) -> bool:
        """Whether it is watching."""
        return self in _installed

    def configure(
        self,
        *,
        judges: Callable[[str | None], bool] | None = None,
        user_of: Callable[[Any], str | None] | None = None,
        may_see: Callable[[str, Any], bool] | None = None,
        is_notice: Callable[[Any], bool] | None = None,
        ignore: Callable[[Any], bool] | None = None,
    ) -> None:
        """Give what was not given when it was made; the arguments are the constructor's.

        For whom the Shadow is handed to, as ``commitcast audit --config`` does. Call it before the
        first send.
        """
        self._judge.options = self._judge.options.with_(judges, user_of, may_see, is_notice, ignore)

    def install(self) -> Self:
        """Begin to watch; again does nothing. Install it before the app opens connections.

        Raises RuntimeError if another one is installed.
        """
        with _lock:
            if self in _installed:
                return self
            if _installed:
                raise RuntimeError("another Shadow is installed; uninstall it first")
            _installed.append(self)
            self._judge.transactions.listen()
            self._judge.sessions.listen()
            self._patches.apply()
        return self

    def uninstall(self) -> None:
        """Watch no more, and put everything back; again does nothing."""
        with _lock:
            if self not in _installed:
                return
            self._patches.restore()
            self._judge.sessions.stop()
            self._judge.transactions.stop()
            _installed.remove(self)

    def __enter__(self) -> Self:
        return self.install()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.uninstall()

    def wrap(self, app: Any) -> Any:
        """The ASGI app, whose connections are judged while this is installed.

        Starlette and FastAPI apps need none of that.
        """

        async def judged(scope: Any, receive: Any, send: Any) -> None:
            if self.installed:
                await wire.serve(self._judge, app, scope, receive, send)
            else:
                await app(scope, receive, send)

        return judged

    def sends(self, function: _F) -> _F:
        """Decorate a function, async or not, each call of which is a send.

        The message is the first argument that is a dict, a dataclass, a model or a JSON object as
        text, otherwise the last text; its event type is the message's.
        """
        return judged_sending(lambda: self._judge if self.installed else None, function)

    def watch_state(
        self,
        model: type[Any],
        told: Callable[[Any], tuple[Any, str] | None],
        *,
        key: str = "id",
        state: str = "status",
    ) -> None:
        """Judge what messages tell of a model's state against what its committed rows say.

        Args:
            model: the mapped class.
            told: the key and state that a message tells; None if it tells of none.
            key: the model's attribute with what `told` gives as key.
            state: its attribute with the state.
        """
        self._judge.states.watch(Watch(model, told, key, state))

    def finish(self) -> None:
        """Judge what is still pending: rollbacks nobody was told about, states that never came."""
        self._judge.finish()

    def report(self) -> AuditReport:
        """What was found so far."""
        return self._judge.report()
