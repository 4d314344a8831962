"""One outcome, told once: whatever nodes, operations and the database do to each other (G6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine
from sqlalchemy.schema import DDL

from .machine import Machine, machine_on
from .process import LEASE_S, Process
from .runs import run
from .simulated import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """SQLite in memory, so that a run costs a few hundredths of a second."""
    found = Store()
    yield found
    found.close()


@pytest.fixture
def machine_url(postgresql_template: URL) -> URL:
    """A PostgreSQL database of its own, for a sync driver."""
    admin = create_engine(postgresql_template, isolation_level="AUTOCOMMIT")
    with admin.connect() as conn:
        conn.execute(DDL("CREATE DATABASE machine TEMPLATE template_commitcast"))
    admin.dispose()
    return postgresql_template.set(database="machine")


@pytest.fixture
def world(store: Store) -> Iterator[Machine]:
    """Two nodes that are steady, to be taken through a history by hand."""
    found = machine_on(store)()
    found.first(nodes=2)
    yield found
    found.teardown()


def test_g6_one_outcome_told_once_in_two_thousand_runs_of_fifty_steps(store: Store) -> None:
    run(store, 2000)


def test_g6_one_outcome_told_once_on_postgresql(machine_url: URL) -> None:
    store = Store(machine_url)
    run(store, 30)
    store.close()


def test_a_death_that_waits_through_an_outage_is_not_declared(world: Machine) -> None:
    """The judge was steady when it asked; then the database was away, for everybody."""
    judge, other = world.processes
    other.state = "stopped"
    world._pass(LEASE_S + 0.1)
    look = world._begin_look(judge)
    world.do(judge, look)  # it has seen who is silent, and asks for the death
    world._resume(other)
    world.finish(other, world._begin_beat(other))
    world.away = "hanging"
    world._pass(LEASE_S + 0.1)
    world.away, world.back_at = None, world.store.now
    world.do(judge, look)
    assert other.state == "running"
    assert _term(world, other) == other.node.current.term


def test_an_outage_is_noticed_though_a_heartbeat_hung_through_half_of_it(world: Machine) -> None:
    judge, other = world.processes
    world._pass(0.1)
    world.away = "refusing"
    world._pass(LEASE_S * 0.6)
    world.away = "hanging"
    for process in (judge, other):
        world._begin_beat(process)
    world.store.now += LEASE_S * 0.45
    world.away, world.back_at = None, world.store.now
    assert judge.beat is not None
    world.do(judge, judge.beat)
    world._reap(judge)
    assert _term(world, other) == other.node.current.term


def _term(world: Machine, process: Process) -> int:
    return world.ledger.seen.nodes[process.name][0]
