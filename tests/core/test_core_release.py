"""The end of a program."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from core_policies import Scripted, hold

from thunderagent.core.commands import Refuse, RefuseCode
from thunderagent.core.events import Tick
from thunderagent.core.program import Program, Status
from thunderagent.core.settings import SchedulerSettings
from thunderagent.testing.scheduler_driver import SchedulerDriver


def make_driver() -> tuple[SchedulerDriver, Scripted]:
    """One backend of 10,000 tokens."""
    policy = Scripted()
    driver = SchedulerDriver(policy)
    driver.add("A", 10_000)
    return driver, policy


def test_unknown_program_changes_nothing() -> None:
    """Releasing twice, or what never was, is no error."""
    driver, _ = make_driver()
    assert driver.release("p") == []
    driver.finish(driver.arrive("p"))
    driver.release("p")
    assert driver.release("p") == []


def test_held_turns_are_answered() -> None:
    """409 for each; nothing of the program is left."""
    driver, policy = make_driver()
    policy.answer = hold
    turns = [driver.arrive("p"), driver.arrive("p", branch="sub")]
    commands = driver.release("p")
    assert commands == [Refuse(turn, RefuseCode.PROGRAM_RELEASED, "program 'p' was released") for turn in turns]
    driver.check_empty()


def test_running_turns_finish() -> None:
    """They are not cut off, and what they took is freed at their end."""
    driver, _ = make_driver()
    turn = driver.arrive("p", 500)
    assert driver.release("p") == []
    assert driver.accounted() == {"A": 500}
    driver.finish(turn, 500, 10)
    driver.check_empty()


def test_later_turn_begins_a_new_program() -> None:
    """The id may be used again, even while a turn of the former one runs."""
    driver, _ = make_driver()
    former = driver.program("p") if driver.arrive("p", 500) else None
    driver.release("p")
    turn = driver.arrive("p", 300)
    assert driver.program("p") is not former
    assert driver.program("p").status is Status.ADMITTED
    assert driver.accounted() == {"A": 800}
    driver.finish(turn)
    driver.close()


def test_failed_turn_of_a_released_program_is_answered() -> None:
    """It is not tried again for a program that is over."""
    driver, _ = make_driver()
    turn = driver.arrive("p")
    driver.release("p")
    assert driver.fail(turn) == [Refuse(turn, RefuseCode.PROGRAM_RELEASED, "program 'p' was released")]
    driver.check_empty()


def test_release_lets_the_waiting_in() -> None:
    """The room is offered at once."""
    driver, policy = make_driver()
    policy.answer = lambda turn, cluster: "A" if cluster.fits(turn, turn.eligible_backends[0]) else None
    driver.finish(driver.arrive("p", 9_000))
    turn = driver.arrive("q", 5_000)
    assert turn in driver.held
    driver.release("p")
    assert turn in driver.running


@pytest.fixture
def without_collector() -> Iterator[None]:
    """What is freed is freed by its last reference."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def watched(driver: SchedulerDriver, name: str) -> list[weakref.ref[object]]:
    """The program and its conversations."""
    program: Program = driver.program(name)
    return [weakref.ref(program), *(weakref.ref(branch) for branch in program.branches.values())]


@pytest.mark.usefixtures("without_collector")
def test_released_program_is_no_cycle_that_only_the_collector_frees() -> None:
    """Released, expired or refused, a program goes with its last reference."""
    driver = SchedulerDriver(Scripted(), SchedulerSettings(program_ttl_seconds=100.0))
    driver.add("A", 10_000)
    for branch in ("main", "sub"):
        driver.finish(driver.arrive("p", branch=branch), 100, 10)
    driver.finish(driver.arrive("q"), 100, 10)
    seen = [*watched(driver, "p"), *watched(driver, "q")]
    driver.release("p")
    driver.advance(200.0)
    assert [entry() for entry in seen] == [None] * 5


@pytest.mark.usefixtures("without_collector")
def test_released_program_is_freed_with_its_last_guest_turn() -> None:
    """One turn ends, one fails to be sent, one is given up, all after the release."""
    driver, _ = make_driver()
    turns = [driver.arrive("p", branch=branch) for branch in ("main", "main", "sub", "third")]
    seen = watched(driver, "p")
    driver.release("p")
    driver.finish(turns[0], 100, 10)
    driver.fail(turns[2])
    driver.abandon(turns[3])
    assert seen[0]() is not None
    driver.finish(turns[1])
    driver.send(Tick())  # the event at hand knows its program
    assert [entry() for entry in seen] == [None] * 4
