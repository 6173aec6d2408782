"""Agents that need more than there is: all come to their end in time, and no more is admitted than fits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from policies.least_kv import LeastKv
from policies.pause_resume import PauseResume
from thunderagent.core.commands import ProgramForced, Refuse
from thunderagent.policy import Policy
from thunderagent.testing.runs import Agent, ClosedLoop
from thunderagent.testing.scheduler_driver import SchedulerDriver

POLICIES: dict[str, Callable[[], Policy]] = {
    "least-kv": LeastKv,
    "pause-resume": PauseResume,
    "pause-resume paper": lambda: PauseResume.from_options({"preset": "paper"}),
}
EQUAL = [Agent(f"a{index}", 1_000, 200, 8, starts_at=index * 0.1) for index in range(30)]
MIXED = [
    Agent(
        f"a{index}",
        start_tokens=[500, 1_000, 4_000, 8_000][index % 4],
        growth_tokens=[50, 200, 100, 20][index % 4],
        turns=8,
        think_seconds=1.0 + index % 3,
        tool_seconds=[0.2, 1.0, 10.0][index % 3],
        starts_at=index * 0.1,
    )
    for index in range(24)
]


def run(policy: Policy, agents: list[Agent], backends: str = "AB") -> tuple[SchedulerDriver, ClosedLoop]:
    """Agents on backends of 10,000 tokens each."""
    driver = SchedulerDriver(policy)
    for name in backends:
        driver.add(name, 10_000)
    loop = ClosedLoop(driver, agents)
    loop.run()
    return driver, loop


@pytest.mark.parametrize("agents", [EQUAL, MIXED], ids=["equal", "mixed"])
@pytest.mark.parametrize("name", POLICIES)
def test_agents_beyond_the_capacity_all_finish_before_the_hold_limit(name: str, agents: list[Agent]) -> None:
    """Nobody is forced in or refused, nobody waits for a quarter of the limit, and admissions always fit."""
    driver, loop = run(POLICIES[name](), agents)
    assert loop.finished == {agent.name: agent.turns for agent in agents}
    assert loop.longest_hold_seconds < 450.0
    assert loop.overcommitted == []
    assert driver.told(ProgramForced) == []
    assert driver.told(Refuse) == []
    driver.check_policy()
    driver.close()


@pytest.mark.parametrize("name", POLICIES)
def test_closed_loop_is_deterministic(name: str) -> None:
    """The same agents bring the same commands."""
    first, second = (run(POLICIES[name](), MIXED)[0].commands for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", POLICIES)
def test_agents_that_fit_are_never_held(name: str) -> None:
    """Without pressure the gate costs nothing."""
    _, loop = run(POLICIES[name](), [Agent(f"a{index}", 500, 50, 8) for index in range(12)])
    assert loop.longest_hold_seconds == 0.0


@pytest.mark.parametrize("name", POLICIES)
def test_two_agents_that_outgrow_one_backend_both_finish(name: str) -> None:
    """Each fits alone, at their end both do not: one gives way and comes back."""
    agents = [Agent("a", 3_000, 500, 12), Agent("b", 3_000, 500, 12, starts_at=0.5)]
    _, loop = run(POLICIES[name](), agents, backends="A")
    assert loop.finished == {"a": 12, "b": 12}
    assert loop.longest_hold_seconds < 450.0


@pytest.mark.parametrize("name", POLICIES)
def test_tokens_over_the_capacity_are_growth_of_those_admitted(name: str) -> None:
    """More than the capacity is accounted only until the policy has reacted to the growth."""
    driver = SchedulerDriver(POLICIES[name]())
    driver.add("A", 10_000)
    loop, peak_tokens = ClosedLoop(driver, EQUAL), 0
    verify = SchedulerDriver.verify

    def watch(self: SchedulerDriver) -> None:
        nonlocal peak_tokens
        verify(self)
        peak_tokens = max(peak_tokens, self.backend("A").accounted_tokens)

    SchedulerDriver.verify = watch  # type: ignore[method-assign]
    try:
        loop.run()
    finally:
        SchedulerDriver.verify = verify  # type: ignore[method-assign]
    most_admitted, growth_tokens, between_ticks = 9, 200, 3
    assert 9_000 <= peak_tokens <= 10_000 + most_admitted * growth_tokens * between_ticks
