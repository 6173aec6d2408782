"""What one event costs where thousands of turns belong to one program, branch or backend: lines run, not seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from core_policies import Scripted, anywhere, hold

from thunderagent.core.events import BackendFailed, TurnProgressed
from thunderagent.core.settings import SchedulerSettings
from thunderagent.policy import BackendId, ProgramId, TurnId, Yield
from thunderagent.testing.scheduler_driver import SchedulerDriver

FEW, MANY = 50, 2_000
A = BackendId("A")


@pytest.fixture(autouse=True)
def without_recounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recount after each of thousands of events takes too long."""
    monkeypatch.setattr(SchedulerDriver, "verify", lambda self: None)


def lines_of(action: Callable[[], object]) -> int:
    """Lines of Python that run meanwhile."""
    lines = 0

    def note(frame: FrameType, what: str, argument: object) -> Any:
        nonlocal lines
        lines += what == "line"
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        action()
    finally:
        sys.settrace(before)
    return lines


def assert_bounded(prepare: Callable[[int], Callable[[], object]]) -> None:
    """Forty times as many turns make the event at most half as dear again."""
    few, many = (lines_of(prepare(number)) for number in (FEW, MANY))
    assert many <= 1.5 * few, f"{few} lines with {FEW} turns, {many} with {MANY}"


def driver_with(policy: Scripted) -> SchedulerDriver:
    """One backend of unknown capacity."""
    driver = SchedulerDriver(policy, SchedulerSettings(max_branches=10**6, branch_ttl_seconds=0.0))
    driver.add("A")
    return driver


@pytest.mark.parametrize("program", ["p", None])
def test_running_turns_of_one_branch_are_not_gone_through_for_each_progress(program: str | None) -> None:
    """Charge and need of a branch are kept, not summed up."""

    def prepare(number: int) -> Callable[[], object]:
        driver = driver_with(Scripted())
        turns = [driver.arrive(program, 100 + index) for index in range(number)]
        return lambda: (driver.send(TurnProgressed(turns[-1], 5)), driver.finish(turns[-1]))

    assert_bounded(prepare)


@pytest.mark.parametrize("is_lost", [True, False])
def test_held_turns_of_one_program_are_not_gone_through_for_each_that_comes_or_goes(is_lost: bool) -> None:
    """Whether a backend is there for them or not."""

    def prepare(number: int) -> Callable[[], object]:
        driver = driver_with(Scripted(hold, reconsiders=False))
        if is_lost:
            driver.send(BackendFailed(A, "gone"))
        turns = [driver.arrive("p", 100 + index) for index in range(number)]
        return lambda: (driver.arrive("p", 10_000), driver.abandon(turns[0]), driver.abandon(turns[-1]))

    assert_bounded(prepare)


def test_held_turns_of_a_yielding_program_are_not_gone_through_for_each_that_comes() -> None:
    """None of them waits for the policy's word."""

    def prepare(number: int) -> Callable[[], object]:
        policy = Scripted()
        driver = driver_with(policy)
        driver.arrive("p")
        policy.decisions = [Yield(ProgramId("p"))]
        driver.arrive("q")
        for _ in range(number):
            driver.arrive("p")
        return lambda: driver.arrive("p")

    assert_bounded(prepare)


@pytest.mark.parametrize("answer", [anywhere, hold])
def test_conversations_of_one_program_are_not_gone_through_for_each_turn(answer: Any) -> None:
    """Neither to forget the old ones nor to add up what the program needs."""

    def prepare(number: int) -> Callable[[], object]:
        driver = driver_with(Scripted(answer, reconsiders=False))
        for index in range(number):
            driver.arrive("p", branch=f"b{index}")
        return lambda: driver.arrive("p", branch="another")

    assert_bounded(prepare)


def test_old_conversations_behind_busy_ones_are_forgotten_in_time() -> None:
    """Of 100 that run and 50 that ended, 64 in all may be remembered: each arrival forgets some."""
    driver = SchedulerDriver(Scripted())
    driver.add("A")
    running: list[TurnId] = [driver.arrive("p", branch=f"running{index}") for index in range(100)]
    for index in range(50):
        driver.finish(driver.arrive("p", branch=f"ended{index}"))
    for _ in range(20):
        driver.finish(driver.arrive("p"))
    assert len(driver.program("p").branches) == 101
    assert len(running) == 100
