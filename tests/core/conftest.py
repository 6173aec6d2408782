"""What most tests of the core begin with; some define their own."""

from __future__ import annotations

import pytest
from core_policies import Scripted

from thunderagent.testing.scheduler_driver import SchedulerDriver


@pytest.fixture
def policy() -> Scripted:
    """Everything to the place, else to the first backend."""
    return Scripted()


@pytest.fixture
def driver(policy: Scripted) -> SchedulerDriver:
    """Two backends of 10,000 tokens."""
    driver = SchedulerDriver(policy)
    driver.add("A", 10_000)
    driver.add("B", 10_000)
    return driver
