"""A simulation for each test; in CI hypothesis finds the same examples each time, and a failure prints how to run it again."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

from tests.sim.fleet import Fleet
from tests.sim.simulation import Simulation

hypothesis.settings.register_profile(
    "sim", derandomize=True, deadline=None, print_blob=True, database=None
)
hypothesis.settings.register_profile(
    "sim-search", parent=hypothesis.settings.get_profile("sim"), derandomize=False
)
SEARCH = bool(
    os.environ.get("PRETUNE_SIM_SEARCH")
)  # look for new faults, rather than prove again what is known


@pytest.fixture
def sim() -> Iterator[Simulation]:
    simulation = Simulation()
    yield simulation
    simulation.laws.check()
    simulation.close()


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    simulation = Fleet()
    yield simulation
    simulation.laws.check()
    simulation.close()
