"""`commitcast audit`: an app as it is, judged while it serves or while its tests run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from commitcast.audit.shadow import Shadow
from commitcast.audit.target import (
    WrongUse,
    check_there,
    import_from_here,
    load_app,
    load_function,
)
from commitcast.audit.text import NOTHING_SENT, to_json, to_text
from commitcast.health import CoordinationHealthMonitor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from commitcast.audit.report import AuditReport

CLEAN, FOUND, WRONG, NOTHING = 0, 1, 2, 3
"""Exit codes: at or above ``--fail-under``, below it, wrong use, no send seen."""

_WINDOW_MINUTES = 24 * 60


def audit(  # noqa: PLR0913, PLR0917 - an option each
    app: Annotated[str, typer.Argument(metavar="MODULE:APP", help="The ASGI app.")],
    pytest_arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- PYTEST...]", help="With --tests: arguments for pytest."),
    ] = None,
    factory: Annotated[
        bool, typer.Option("--factory", help="MODULE:APP is a function that makes the app.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    seconds: Annotated[
        float | None,
        typer.Option("--for", min=0.1, metavar="SECONDS", help="Default: until Ctrl-C."),
    ] = None,
    drive: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Makes the traffic: is given the app's URL; the audit ends when it returns.",
        ),
    ] = None,
    tests: Annotated[
        bool, typer.Option("--tests", help="Run the app's tests with pytest instead of serving.")
    ] = False,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Is given the Shadow before the first send, to set user_of, watch_state, …",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    fail_under: Annotated[
        float, typer.Option(min=0, max=100, help="Exit with 1 if the score is below.")
    ] = 100.0,
) -> None:
    """Judge what an app sends: before its commit, for work rolled back, failures nobody was told of.

    Exit codes: 0 the score is at or above --fail-under; 1 it is below, or a test failed; 2 wrong
    use; 3 no send was seen, so nothing was judged.
    """
    asked = _Asked(
        app, factory=factory, host=host, port=port, seconds=seconds, drive=drive, config=config
    )
    import_from_here()
    with _stdout_for(json) as put:
        try:
            if tests:
                report, code = _of_tests(asked, pytest_arguments or [])
            else:
                report, code = _of_serving(asked, pytest_arguments or [])
        except WrongUse as error:
            _say(str(error))
            raise typer.Exit(WRONG) from None
        put(orjson.dumps(to_json(report)).decode() if json else to_text(report))
    raise typer.Exit(code or _code(report, fail_under))


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the command line says."""

    app: str
    factory: bool
    host: str
    port: int
    seconds: float | None
    drive: str | None
    config: str | None


def _code(report: AuditReport, fail_under: float) -> int:
    score = report.score.overall
    if not report.sends or score is None:
        _say(NOTHING_SENT)
        return NOTHING
    return FOUND if score < fail_under else CLEAN


def _of_serving(asked: _Asked, for_pytest: list[str]) -> tuple[AuditReport, int]:
    from commitcast.audit.serving import listen, serve

    if for_pytest:
        raise WrongUse(f"{for_pytest[0]!r} is for pytest; add --tests to run the tests")

    # A day: an audit may take longer than the hour that a monitor keeps by default.
    shadow = Shadow(CoordinationHealthMonitor(window_minutes=_WINDOW_MINUTES))
    code = CLEAN
    with shadow:  # before the app is imported, which may open connections
        if asked.config is not None:
            load_function("--config", asked.config)(shadow)
        driver = None if asked.drive is None else load_function("--drive", asked.drive)
        app = shadow.wrap(load_app(asked.app, factory=asked.factory))
        with listen(asked.host, asked.port) as listener:
            try:
                asyncio.run(serve(app, listener, seconds=asked.seconds, drive=driver, ready=_ready))
            except WrongUse:
                raise
            except Exception:  # noqa: BLE001 - the team's own function; what was seen is shown
                traceback.print_exc()
                _say(f"--drive {asked.drive} raised; the report is of what was seen before")
                code = WRONG
        shadow.finish()
    return shadow.report(), code


def _ready(url: str) -> None:
    _say(f"serving on {url}; Ctrl-C for the report")


def _of_tests(asked: _Asked, arguments: list[str]) -> tuple[AuditReport, int]:
    try:
        import pytest
    except ImportError:
        raise WrongUse("--tests needs pytest; pip install pytest") from None
    check_there("the app", asked.app)
    found = _Found()
    own = ["-p", "commitcast", "--commitcast-audit", "--commitcast-fail-under=0"]
    # The command has imported what pytest would rewrite; a suite may make warnings errors.
    own += ["-W", "ignore:Module already imported so cannot be rewritten"]
    if asked.config is not None:
        own.append(f"--commitcast-config={asked.config}")
    status = pytest.main([*own, *arguments], plugins=[found])
    report = found.report
    if report is None:
        raise WrongUse(f"pytest stopped with status {int(status)} before a test ran; see above")
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise WrongUse("pytest found no tests; name their folder after --")
    if status != pytest.ExitCode.OK:
        _say(f"tests failed (pytest's status {int(status)})")
        return report, FOUND
    return report, CLEAN


class _Found:
    """A plugin that remembers the audit's, whose report is there once pytest has ended."""

    audited: Any = None

    def pytest_sessionfinish(self, session: Any) -> None:
        self.audited = session.config.pluginmanager.get_plugin("commitcast-audit")

    @property
    def report(self) -> AuditReport | None:
        found: AuditReport | None = None if self.audited is None else self.audited.report
        return found


@contextlib.contextmanager
def _stdout_for(json: bool) -> Iterator[Any]:
    """Give a function that prints; for JSON all else that is printed goes to standard error."""
    if not json:
        yield typer.echo
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "w", encoding="utf-8") as out:

            def put(text: str) -> None:
                sys.stdout.flush()
                out.write(f"{text}\n")

            yield put
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _say(message: str) -> None:
    typer.echo(f"commitcast audit: {' '.join(message.split())}", err=True)
