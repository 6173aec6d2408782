"""A program's second model, as that of a sub-agent: its turns run beside the program's place, and stay together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from simple_cases import B, C, places

from policies.affinity import Affinity
from policies.least_kv import LeastKv
from policies.pause_resume import PauseResume
from thunderagent.core.events import BackendFailed, BackendRecovered
from thunderagent.policy import Policy, TurnId
from thunderagent.testing import SchedulerDriver

POLICIES = [Affinity, LeastKv, PauseResume]


def sub_turn(driver: SchedulerDriver, tokens: int) -> TurnId:
    """A turn of p's sub-agent, for n."""
    return driver.arrive("p", tokens, branch="sub", model="n")


def with_sub_agent(make_policy: Callable[[], Policy]) -> SchedulerDriver:
    """p is on A, which serves m; its sub-agent's first turn was on B, of B, C and D, which serve n."""
    driver = SchedulerDriver(make_policy())
    driver.add("A", 100_000, ["m"])
    for name in "BCD":
        driver.add(name, 100_000, ["n"])
    driver.finish(driver.arrive("p", 5_000, model="m"), 5_000)
    turn = sub_turn(driver, 3_000)
    assert places(driver, turn) == [B]
    driver.finish(turn, 3_000)
    return driver


@pytest.mark.parametrize("make_policy", POLICIES)
def test_turns_beside_the_place_stay_where_their_conversation_is(make_policy: Callable[[], Policy]) -> None:
    """Though others, which come meanwhile, make C and D the emptier ones in turn."""
    driver, seen = with_sub_agent(make_policy), []
    for index in range(1, 7):
        driver.arrive(f"q{index}", 2_000, model="n")
        turn = sub_turn(driver, 3_000 + 100 * index)
        seen += places(driver, turn)
        driver.finish(turn, 3_000 + 100 * index)
    assert seen == [B] * 6


@pytest.mark.parametrize("make_policy", POLICIES)
def test_turn_beside_the_place_goes_elsewhere_where_its_cache_was_lost(make_policy: Callable[[], Policy]) -> None:
    """B failed, and came back empty: it has no more to offer than C, the emptiest."""
    driver = with_sub_agent(make_policy)
    driver.send(BackendFailed(B, "gone"))
    assert places(driver, sub_turn(driver, 3_100)) == [C]
    driver = with_sub_agent(make_policy)
    driver.send(BackendFailed(B, "gone"))
    driver.send(BackendRecovered(B))
    driver.arrive("q", 2_000, model="n")
    assert places(driver, sub_turn(driver, 3_100)) == [C]


@pytest.mark.parametrize(
    "make_policy", [LeastKv, lambda: PauseResume.from_options({"growth_reserve": "0.05", "guest_ratio": "0"})]
)
def test_turn_beside_the_place_goes_elsewhere_where_it_does_not_fit(make_policy: Callable[[], Policy]) -> None:
    """90,000 of B's 100,000 are taken by then, and 5,000 are kept free."""
    driver = with_sub_agent(make_policy)
    assert places(driver, driver.arrive("q", 90_000, model="n"), sub_turn(driver, 6_000)) == [B, C]


def test_roomiest_is_roomiest_beside_the_place_too() -> None:
    """``resume_on=roomiest`` asks for no origin, and so does the paper."""
    driver = with_sub_agent(lambda: PauseResume.from_options({"preset": "paper"}))
    driver.arrive("q", 2_000, model="n")
    assert places(driver, sub_turn(driver, 3_100)) == [C]
