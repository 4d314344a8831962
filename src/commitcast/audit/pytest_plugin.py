"""The pytest plugin ``commitcast``: judges what an app sends while its tests run.

Without ``--commitcast-audit`` it adds three more options, and does and imports nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from commitcast.audit.report import AuditReport

NAME: Final = "commitcast-audit"
"""The name under which the running audit is registered as a plugin."""
_PATIENT_MS: Final = 60_000.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("commitcast", "commitcast: what users see is what was committed")
    group.addoption(
        "--commitcast-audit", action="store_true",
        help="judge what the app sends while the tests run, and print a report",
    )  # fmt: skip
    group.addoption(
        "--commitcast-json", metavar="FILE", type=Path, help="write the report to FILE as well"
    )
    group.addoption(
        "--commitcast-fail-under", metavar="N", type=float, default=100.0,
        help="fail if the score is below N, or nothing was sent; default 100; 0 never fails",
    )  # fmt: skip
    group.addoption(
        "--commitcast-config", metavar="MODULE:FUNCTION",
        help="is given the Shadow before the first test, to set user_of, watch_state and so on",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Begin to watch, if that is asked for."""
    if not config.getoption("commitcast_audit"):
        return
    if getattr(config, "workerinput", None) is not None or config.getoption("dist", "no") != "no":
        raise pytest.UsageError("--commitcast-audit judges one process; run pytest without -n")
    audit = Audit(config)
    config.pluginmanager.register(audit, NAME)


class Audit:
    """One audited run.

    Steps are judged by their order, not by their time: how long a test takes says nothing about
    production.
    """

    def __init__(self, config: pytest.Config) -> None:
        """Install a Shadow; raises UsageError for a configuration that is not there."""
        from commitcast.audit.shadow import Shadow
        from commitcast.audit.target import WrongUse, import_from_here, load_function
        from commitcast.health import CoordinationHealthMonitor
        from commitcast.score import LayerPair

        self._json: Path | None = config.getoption("commitcast_json")
        self._fail_under: float = config.getoption("commitcast_fail_under")
        timed = (LayerPair.DATABASE_SOCKET, LayerPair.AGENT_STATE, LayerPair.ROLLBACK_NOTIFICATION)
        monitor = CoordinationHealthMonitor(
            thresholds_ms=dict.fromkeys(timed, _PATIENT_MS), window_minutes=24 * 60
        )
        self._shadow = Shadow(monitor, joined_commits=True)
        named: str | None = config.getoption("commitcast_config")
        if named is not None:
            import_from_here()
            try:
                load_function("--commitcast-config", named)(self._shadow)
            except WrongUse as error:
                raise pytest.UsageError(str(error)) from None
        self.report: AuditReport | None = None
        self._shadow.install()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Judge what is pending, and fail the run if it is below."""
        self._shadow.finish()
        self._shadow.uninstall()
        self.report = self._shadow.report()
        if self._json is not None:
            import orjson

            from commitcast.audit.text import to_json

            self._json.write_bytes(orjson.dumps(to_json(self.report)) + b"\n")
        if self._failed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_unconfigure(self) -> None:
        """Put everything back, also where the session was not finished."""
        self._shadow.uninstall()

    @property
    def _failed(self) -> bool:
        if self.report is None or self._fail_under <= 0:
            return False
        score = self.report.score.overall
        return not self.report.sends or score is None or score < self._fail_under

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the report."""
        from commitcast.audit.text import to_text

        if self.report is None:
            return
        terminalreporter.section("commitcast audit")
        terminalreporter.write_line(to_text(self.report))
        if self._failed:
            terminalreporter.write_line("")
            terminalreporter.write_line(
                f"Failed: --commitcast-fail-under={self._fail_under:g}", red=True
            )
