"""Which lines of the app led here: the frames that are neither Python's, a library's nor ours.

A chain is kept as code objects and line numbers, never as frames, which would keep the app's
variables alive.
"""

from __future__ import annotations

import asyncio.base_events
import asyncio.events
import asyncio.runners
import concurrent.futures
import gc
import inspect
import itertools
import queue
import sys
import sysconfig
import threading
from pathlib import Path
from types import AsyncGeneratorType, CodeType, FrameType, GeneratorType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from commitcast.audit.report import CallSite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_T = TypeVar("_T")

Chain: TypeAlias = tuple[tuple[CodeType, int], ...]
"""Lines of the app, innermost first."""

_LONGEST: Final = 32
_DEEPEST: Final = 400
_LOOPS: Final = frozenset(
    module.__file__ for module in (asyncio.base_events, asyncio.events, asyncio.runners)
)
_NOT_THE_APP: Final = tuple(
    dict.fromkeys(
        (
            *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
            str(Path(__file__).parents[1]),
        )
    )
)
_WAITS_IN: Final = (
    *(str(Path(inspect.getfile(module)).parent) for module in (asyncio, concurrent.futures)),
    str(Path(sysconfig.get_path("purelib")) / "anyio"),
)
_QUEUES: Final = (*_WAITS_IN, inspect.getfile(queue), str(Path(__file__).parent))
_GENERATORS: Final = (AsyncGeneratorType, GeneratorType)
_MOST_READ: Final = 8
_BOUNDARIES: Final[set[CodeType]] = set()
_known: dict[str, bool] = {}


def boundary(function: Any) -> None:
    """Let chains end where `function` is called: a request begins there."""
    _BOUNDARIES.add(function.__code__)


def is_app(file: str) -> bool:
    """Whether a file is the app's own."""
    found = _known.get(file)
    if found is None:
        found = _known[file] = not (
            file.startswith("<")
            or "site-packages" in file
            or "dist-packages" in file
            or any(file == root or file.startswith(root + "/") for root in _NOT_THE_APP)
        )
    return found


def lines() -> Chain:
    """The app's lines that led here, through SQLAlchemy's greenlets; innermost first."""
    found = ((f.f_code, f.f_lineno) for f in _stack() if is_app(f.f_code.co_filename))
    return tuple(itertools.islice(found, _LONGEST))


def is_called_by_app() -> bool:
    """Whether it is the app, or an event loop on its behalf, that called into Python's queues here."""
    files = (frame.f_code.co_filename for frame in _stack())
    return next((is_app(file) for file in files if not file.startswith(_QUEUES)), True)


def waiting_task(task: asyncio.Task[Any] | None) -> Chain:
    """The app's lines at which a task waits; innermost first."""
    found: list[tuple[CodeType, int]] = []
    waits: Any = None if task is None or task.done() else task.get_coro()
    for _ in range(_DEEPEST):
        frame = getattr(waits, "cr_frame", None) or getattr(waits, "ag_frame", None)
        if frame is None:
            break
        code = frame.f_code
        if code in _BOUNDARIES:
            found.clear()
        elif is_app(code.co_filename):
            found.append((code, frame.f_lineno))
        waits = getattr(waits, "cr_await", None) or getattr(waits, "ag_await", None)
    return tuple(reversed(found[-_LONGEST:]))


def waiting_thread(ident: int | None) -> Chain:
    """The app's lines at which a thread waits for what it has an event loop do; innermost first."""
    if ident is None:
        return ()
    if ident == threading.get_ident():
        return _outside()
    found: list[tuple[CodeType, int]] = []
    frame = sys._current_frames().get(ident)  # noqa: SLF001 - documented, for just this
    waits = False
    for _ in range(_DEEPEST):
        if frame is None or not (waits or not found):
            break
        file = frame.f_code.co_filename
        waits = waits or file.startswith(_WAITS_IN)
        if is_app(file):
            found.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return tuple(found[:_LONGEST]) if waits else ()


def runs(ident: int, chain: Chain) -> bool:
    """Whether a thread is still in one of the functions of a chain."""
    codes = {code for code, _ in chain}
    frame = sys._current_frames().get(ident)  # noqa: SLF001 - documented, for just this
    for _ in range(_DEEPEST):
        if frame is None or frame.f_code in codes:
            break
        frame = frame.f_back
    return frame is not None


def suspended(iterator: Any) -> Chain:
    """The line at which a generator of the app waits, though a library's reads from it."""
    found = ((f.f_code, f.f_lineno) for f in _reading(iterator) if is_app(f.f_code.co_filename))
    return tuple(itertools.islice(found, 1))


def first_local(
    wanted: Callable[[object, CodeType], _T | None], generator: Any = None
) -> _T | None:
    """The first variable that is wanted, which is told the function that has it too.

    Variables are those of a generator that waits and of those it reads from, of the functions of
    libraries that send, and of the app's that call them.
    """
    for frame in (*_reading(generator), *_sending()):
        for value in list(frame.f_locals.values()):
            if (found := wanted(value, frame.f_code)) is not None:
                return found
    return None


def meet(send: Chain, change: Chain) -> int | None:
    """Where the send's chain joins the change's: an index of `send`, or None."""
    codes = {code for code, _ in change}
    return next((n for n, (code, _) in enumerate(send) if code in codes), None)


def site_of(send: Chain, change: Chain = ()) -> tuple[CallSite, tuple[CallSite, ...]]:
    """The line that is to be named, and those from there to the send, outermost first.

    It is in the function that both changed and sent, or if there is none, the innermost line.
    """
    if not send:
        return CallSite("(unknown)", 0, "(no line of the app)"), ()
    at = meet(send, change) or 0
    return call_site(*send[at]), tuple(call_site(*line) for line in reversed(send[:at]))


def call_site(code: CodeType, line: int) -> CallSite:
    """A line as it is reported."""
    path = Path(code.co_filename)
    here = Path.cwd()
    file = str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
    return CallSite(file, line, code.co_qualname.rpartition("<locals>.")[2])


def _outside() -> Chain:
    """The app's lines that wait for the event loop that runs here, as in a thread's asyncio.run."""
    found: list[tuple[CodeType, int]] = []
    frame = inspect.currentframe()
    inside = True
    for _ in range(_DEEPEST):
        if frame is None or frame.f_code in _BOUNDARIES:
            break
        if frame.f_code.co_filename in _LOOPS:
            inside = False
        elif not inside and is_app(frame.f_code.co_filename):
            found.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return tuple(found[:_LONGEST])


def _stack() -> Iterator[FrameType]:
    """Innermost first, through SQLAlchemy's greenlets, to where a request or a task begins."""
    frame = inspect.currentframe()
    greenlet = _current_greenlet()
    for _ in range(_DEEPEST):
        if frame is None:
            # A greenlet's frames end where it began; its parent waits for it in its own.
            greenlet = getattr(greenlet, "parent", None)
            frame = getattr(greenlet, "gr_frame", None)
            if frame is None:
                break
        if frame.f_code in _BOUNDARIES or frame.f_code.co_filename in _LOOPS:
            break
        yield frame
        frame = frame.f_back


def _sending() -> Iterator[FrameType]:
    app = False
    for frame in _stack():
        here = is_app(frame.f_code.co_filename)
        if here or not app:
            yield frame
        app = app or here


def _reading(generator: Any) -> Iterator[FrameType]:
    """Frames of a generator that waits and of the generators that it is reading from."""
    waits: list[Any] = [] if generator is None else [generator]
    for _ in range(_MOST_READ):
        if not waits:
            break
        found = waits.pop(0)
        frame = getattr(found, "ag_frame", None) or getattr(found, "gi_frame", None)
        if frame is not None:
            yield frame
        # What a loop reads from is no variable of it: only the collector knows.
        waits += [each for each in gc.get_referents(found) if isinstance(each, _GENERATORS)]


def _current_greenlet() -> Any:
    module = sys.modules.get("greenlet")
    return None if module is None else module.getcurrent()
