"""Idle programs that nobody releases, dead models and large waiters: none of them stops everybody."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from policies.least_kv import LeastKv
from policies.pause_resume import PauseResume
from policies.working_set import WorkingSet
from thunderagent.core.events import BackendFailed
from thunderagent.policy import BackendId, Policy
from thunderagent.testing import SchedulerDriver

POLICIES: dict[str, Callable[[], Policy]] = {
    "least-kv": LeastKv,
    "pause-resume": PauseResume,
    "working-set": WorkingSet,
}
PATIENCE_SECONDS = 60.0


@pytest.mark.parametrize("need_tokens", [9_000, 9_600, 10_000])
@pytest.mark.parametrize("name", POLICIES)
def test_waiter_that_needs_nearly_all_displaces_a_forgotten_program(name: str, need_tokens: int) -> None:
    """A small program that nobody releases gives way to one that fits only without it, and to those behind."""
    driver = SchedulerDriver(POLICIES[name]())
    driver.add("A", 10_000)
    driver.finish(driver.arrive("forgotten", 1_000), 1_000)
    large = driver.arrive("large", need_tokens)
    small = [driver.arrive(f"small{index}", 100) for index in range(3)]
    driver.advance(PATIENCE_SECONDS)
    assert large in driver.running or large in driver.ended
    driver.finish(large)
    driver.release("large")
    driver.advance(PATIENCE_SECONDS)
    assert all(turn in driver.running for turn in small)
    driver.close()


@pytest.mark.parametrize("name", POLICIES)
def test_turns_of_a_dead_model_stop_nobody_else(name: str) -> None:
    """300 turns wait for a backend that is down; an idle program on another one still gives way."""
    driver = SchedulerDriver(POLICIES[name]())
    driver.add("A", 10_000, models=["one"])
    driver.add("B", 10_000, models=["two"])
    driver.finish(driver.arrive("forgotten", 9_000, model="two"), 9_000)
    driver.send(BackendFailed(BackendId("A"), "down"))
    for index in range(300):
        driver.arrive(f"stuck{index}", 100, model="one")
    turn = driver.arrive("waits", 5_000, model="two")
    driver.advance(PATIENCE_SECONDS)
    assert turn in driver.running


def test_paper_gives_an_empty_backend_to_a_program_of_its_size() -> None:
    """The published sum of rooms leaves out the headroom: without this it would wait for the hold limit."""
    driver = SchedulerDriver(PauseResume.from_options({"preset": "paper"}))
    driver.add("A", 10_000)
    first = driver.arrive("x", 9_950)
    turn = driver.arrive("y", 9_950)
    driver.finish(first, 9_950)
    driver.release("x")
    driver.advance(5.0)
    assert turn in driver.running
    driver.close()


def test_one_off_turn_that_fits_passes_a_large_program_that_waits() -> None:
    """Turns without an id are held only where they do not fit."""
    driver = SchedulerDriver(PauseResume())
    driver.add("A", 100_000)
    driver.arrive("p", 60_000)
    large = driver.arrive("q", 50_000)
    assert large in driver.held
    assert driver.arrive(None, 100) in driver.running
    driver.close()


def test_newcomer_of_another_model_is_not_held_at_all() -> None:
    """Who waits for one model is no reason to hold a turn of another."""
    driver = SchedulerDriver(PauseResume())
    driver.add("A", 1_000, models=["one"])
    driver.add("B", 1_000, models=["two"])
    driver.arrive("p", 800, model="one")
    assert driver.arrive("q", 800, model="one") in driver.held
    held_turns = driver.scheduler.cluster.queue.turn_count
    assert driver.arrive("r", 800, model="two") in driver.running
    assert (held_turns, driver.scheduler.cluster.queue.turn_count) == (1, 1)
    driver.close()
