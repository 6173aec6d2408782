"""What the tests of ``round-robin``, ``affinity`` and ``least-kv`` share."""

from __future__ import annotations

from thunderagent.core.commands import ProgramPaused
from thunderagent.policy import BackendId, Policy
from thunderagent.testing import SchedulerDriver

__all__ = ["A", "B", "C", "driver_of", "idle", "paused", "places"]

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


def idle(driver: SchedulerDriver, program: str, tokens: int, model: str | None = None) -> None:
    """A program whose turn of so many tokens has just ended."""
    driver.finish(driver.arrive(program, tokens, model=model), tokens)


def paused(driver: SchedulerDriver) -> list[str]:
    """Programs that were paused, in that order."""
    return [notice.program for notice in driver.told(ProgramPaused)]
