"""What the tests of ``round-robin``, ``affinity`` and ``least-kv`` share."""

from __future__ import annotations

from thunderagent.policy import BackendId, Policy
from thunderagent.testing import SchedulerDriver

__all__ = ["A", "B", "C", "driver_of", "places"]

A, B, C = BackendId("A"), BackendId("B"), BackendId("C")


def driver_of(policy: Policy, *capacities: int | None) -> SchedulerDriver:
    """Backends A, B, ... of these capacities."""
    driver = SchedulerDriver(policy)
    for name, capacity_tokens in zip("ABCD", capacities, strict=False):
        driver.add(name, capacity_tokens)
    return driver


def places(driver: SchedulerDriver, *turns: int) -> list[str]:
    """Where turns run; "held" for those that wait."""
    return [driver.where.get(turn, "held") for turn in turns]
