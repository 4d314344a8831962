"""How the state machine is run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from .machine import machine_on

if TYPE_CHECKING:
    from .simulated import Store


def run(store: Store, runs: int) -> None:
    """That many runs of 50 steps; the same ones each time, so that a failure comes again."""
    chosen = settings(
        max_examples=runs,
        stateful_step_count=50,
        deadline=None,
        database=None,
        derandomize=True,
        # A failure is shown as it was found: to shrink it would take longer than all the runs.
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    logger = logging.getLogger("commitcast")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # deaths and failures are logged by the thousand
    try:
        run_state_machine_as_test(machine_on(store), settings=chosen)
    finally:
        logger.setLevel(level)
