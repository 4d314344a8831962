"""One outcome, told once: whatever nodes, operations and the database do to each other (G6)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from .machine import machine_on
from .simulated import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL

THOROUGH = settings(
    max_examples=2000,
    stateful_step_count=50,
    deadline=None,
    database=None,
    derandomize=True,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Deaths and failures are logged by the thousand."""
    logger = logging.getLogger("commitcast")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def test_g6_one_outcome_told_once_in_two_thousand_runs_of_fifty_steps() -> None:
    store = Store()
    run_state_machine_as_test(machine_on(store), settings=THOROUGH)  # type: ignore[no-untyped-call]
    store.close()
