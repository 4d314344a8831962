"""The handover: from a commit, in whatever thread or loop it happens, to this node's delivery.

Nothing that happens here fails a commit: what is raised is logged once, and the log has the event.

SQLAlchemy says that a session's COMMIT has returned; of a Core connection, a cancelled commit
or a thread it says nothing. Such commits are looked at until their transaction is over, and
then the log is read, which alone knows whether they committed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any, Final

from commitcast.errors import NotRunning
from commitcast.forked import forget_in_child
from commitcast.telemetry import CoordinationEvent, CoordinationEventType, notify

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from commitcast.delivery import Delivery
    from commitcast.log import Written
    from commitcast.steps import Steps
    from commitcast.telemetry import Observer

_logger = logging.getLogger("commitcast")
_LOOK_FIRST_S: Final = 0.01
_LOOK_LAST_S: Final = 0.05


class Handover:
    """What the hooks of a coordinator's engines call (`commitcast.pending.WriteObserver`)."""

    def __init__(self, steps: Steps, observers: Sequence[Observer]) -> None:
        self.rollbacks = 0
        """Transactions that had emitted and were rolled back."""
        self.rollback_hooks: list[Callable[[tuple[str, ...]], Any]] = []
        self._steps = steps
        self._observers = observers
        self._to: Receiver | None = None
        self._failed = False
        forget_in_child(self)

    def open(self, delivery: Delivery) -> None:
        """Hand over to `delivery`, which runs in this event loop."""
        self._to = Receiver(delivery)
        self._failed = False

    def close(self) -> None:
        """Hand over to nobody; commits go on."""
        receiver, self._to = self._to, None
        if receiver is not None:
            receiver.close()

    def forked(self) -> None:
        """The delivery is the parent's; see `commitcast.forked`."""
        self._to = None

    @property
    def loop_closed(self) -> bool:
        """Whether delivery was never stopped, and its event loop is closed."""
        return self._to is not None and self._to.loop.is_closed()

    def check_loop(self) -> None:
        """Raises `NotRunning` unless delivery runs in the event loop that asks."""
        if self._to is None:
            raise NotRunning(
                "the coordinator is not running: enter it (async with coordinator, or its lifespan)"
            )
        if self._to.loop.is_closed():
            raise NotRunning(
                "the event loop in which the coordinator was entered is closed: enter it again in "
                "this one (async with coordinator), and leave it before its loop ends"
            )
        if not self._to.is_here():
            raise NotRunning(
                "the coordinator was entered in another event loop; use it in that one (emit and "
                "commit work in every loop and thread)"
            )

    # --- what the hooks tell ----------------------------------------------------------------

    def written(self, written: Written) -> None:
        """Our statement ran; see `committed`, or look when the transaction is over."""
        receiver = self._to
        if receiver is not None:
            self._safely(receiver, receiver.look_for, written)

    def committed(self, written: Written) -> None:
        """COMMIT returned: hand the events over, from memory."""
        try:
            self._steps.committed(written.events)
        except Exception as error:  # noqa: BLE001 - the commit has happened, whatever this is
            self._log_once("counting it", error)
        receiver = self._to
        if receiver is not None:
            self._safely(receiver, receiver.take, written)

    def rolled_back(self, streams: tuple[str, ...]) -> None:
        """A transaction that had emitted to `streams` was rolled back."""
        self.rollbacks += 1
        notify(
            self._observers,
            CoordinationEvent(CoordinationEventType.TRANSACTION_ROLLED_BACK, streams=streams),
        )
        for hook in self.rollback_hooks:
            try:
                hook(streams)
            except Exception:
                _logger.exception("commitcast: %r, called on a rollback, raised", hook)

    def _safely(
        self, receiver: Receiver, function: Callable[[Written], None], written: Written
    ) -> None:
        try:
            if receiver.is_here():
                function(written)
            else:
                receiver.loop.call_soon_threadsafe(function, written)
        except Exception as error:  # noqa: BLE001 - the commit must not fail for it
            self._log_once("handing its events over", error)

    def _log_once(self, what: str, error: Exception) -> None:
        if self._failed:
            return
        self._failed = True
        if self.loop_closed:
            _logger.error(
                "commitcast: the event loop in which the coordinator was entered is closed, and the "
                "coordinator was not left: commits go on, but this node delivers nothing until it "
                "is entered again (said once)"
            )
        else:
            _logger.error(
                "commitcast: a commit went on though %s raised %s; its events are read from the "
                "log (said once)",
                what, type(error).__name__, exc_info=error,
            )  # fmt: skip


class Receiver:
    """One delivery in its event loop, and the commits of which it is not known yet what became of them."""

    def __init__(self, delivery: Delivery) -> None:
        self.loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._delivery = delivery
        self._unresolved: dict[Written, None] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._look_s = _LOOK_FIRST_S
        self._closed = False

    def is_here(self) -> bool:
        """Whether the running event loop is delivery's own."""
        if threading.get_ident() != self._thread:
            return False
        try:
            return asyncio.get_running_loop() is self.loop
        except RuntimeError:
            return False

    def close(self) -> None:
        """Take nothing any more."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()

    def look_for(self, written: Written) -> None:
        """Find out what becomes of it, unless somebody says so first."""
        if self._closed:
            return
        self._unresolved[written] = None
        if self._looking is None:
            self._look_s = _LOOK_FIRST_S
            self._looking = self.loop.call_later(self._look_s, self._look)

    def take(self, written: Written) -> None:
        """It has committed."""
        if self._closed:
            return
        self._unresolved.pop(written, None)
        try:
            self._delivery.publish(written.events)
        except Exception:
            self._delivery.changed({e.stream for e in written.events})
            raise

    def _look(self) -> None:
        self._looking = None
        over = [w for w in self._unresolved if w.has_ended()]
        for written in over:
            del self._unresolved[written]
            if written.span is not None:  # a commit whose end nobody saw
                written.span.end()
            self._delivery.changed({e.stream for e in written.events})
        if self._unresolved and not self._closed:
            self._look_s = min(self._look_s * 1.5, _LOOK_LAST_S)
            self._looking = self.loop.call_later(self._look_s, self._look)
