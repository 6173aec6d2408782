"""``affinity``: where a new program goes, and that it stays there."""

from __future__ import annotations

from collections import Counter

import pytest
from simple_cases import A, B, C, driver_of, places

from policies.affinity import Affinity
from thunderagent.core.commands import ProgramMoved, TurnHeld
from thunderagent.core.events import BackendDraining, BackendFailed, BackendObserved, BackendRecovered
from thunderagent.testing import SchedulerDriver


def spread(driver: SchedulerDriver, names: list[str], tokens: int) -> Counter[str]:
    """A turn of each program of so many tokens, which runs on; how many went where."""
    return Counter(places(driver, *[driver.arrive(name, tokens) for name in names]))


def programs(count: int, prefix: str = "p") -> list[str]:
    return [f"{prefix}{index}" for index in range(count)]


# Where a new program goes


def test_program_stays_however_full_its_backend_is() -> None:
    """900 of 1,000 tokens, then three turns of 3,000: all on A, and new ones go to B."""
    driver = driver_of(Affinity(), 1_000, 100_000)
    first = driver.arrive("p", 900)
    second = driver.arrive("q", 500)
    again = [driver.arrive("p", 3_000) for _ in range(3)]
    assert places(driver, first, second, *again) == ["A", "B", "A", "A", "A"]
    assert places(driver, driver.arrive("r"), driver.arrive(None)) == ["B", "B"]
    assert (driver.told(TurnHeld), driver.told(ProgramMoved)) == ([], [])


def test_backend_twice_as_large_takes_twice_as_much() -> None:
    """30 programs of 1,000 tokens on 10,000, 20,000 and 30,000 tokens: 5, 10 and 15."""
    driver = driver_of(Affinity(), 10_000, 20_000, 30_000)
    assert spread(driver, programs(30), 1_000) == {"A": 5, "B": 10, "C": 15}


def test_one_unknown_capacity_makes_tokens_decide() -> None:
    """12 programs of 1,000 tokens on 10,000 and on unknown capacity: 6 and 6."""
    driver = driver_of(Affinity(), 10_000, None)
    assert spread(driver, programs(12), 1_000) == {"A": 6, "B": 6}


def test_only_eligible_backends_must_say_their_capacity() -> None:
    """C of another model says none: of 9 programs A (10,000) takes 3 and B (20,000) takes 6."""
    driver = SchedulerDriver(Affinity())
    driver.add("A", 10_000, ["one"])
    driver.add("B", 20_000, ["one"])
    driver.add("C", None, ["two"])
    turns = [driver.arrive(name, 1_000, model="one") for name in programs(9)]
    assert Counter(places(driver, *turns)) == {"A": 3, "B": 6}


def test_capacity_that_becomes_known_counts_from_then_on() -> None:
    """2,000 tokens each; then A says 4,000 and B 40,000, and 5 programs of 1,000 all go to B."""
    driver = driver_of(Affinity(), None, None)
    assert spread(driver, programs(4), 1_000) == {"A": 2, "B": 2}
    driver.send(BackendObserved(A, None, 4_000))
    driver.send(BackendObserved(B, None, 40_000))
    assert spread(driver, programs(5, "later"), 1_000) == {"B": 5}


@pytest.mark.parametrize("capacity", [None, 10_000])
def test_equal_tokens_are_decided_by_running_turns(capacity: int | None) -> None:
    """1,000 tokens on each; a turn runs on A, none on B."""
    driver = driver_of(Affinity(), capacity, capacity)
    first, second = driver.arrive("p", 1_000), driver.arrive("q", 1_000)
    driver.finish(second, 1_000)
    assert places(driver, first, driver.arrive("r", 10)) == ["A", "B"]


@pytest.mark.parametrize("capacity", [None, 10_000])
def test_equal_tokens_and_turns_are_decided_by_programs(capacity: int | None) -> None:
    """Two programs of 500 tokens on A, one of 1,000 on B, none runs: the next goes to B."""
    driver = driver_of(Affinity(), capacity, capacity)
    driver.finish(driver.arrive("p", 500), 500)
    driver.finish(driver.arrive("q", 1_000), 1_000)
    driver.finish(driver.arrive("r", 500), 500)
    assert driver.accounted() == {"A": 1_000, "B": 1_000}
    assert places(driver, driver.arrive("s", 10)) == ["B"]


# Backends that go and come


def test_programs_of_a_lost_backend_spread_over_the_rest() -> None:
    """Eight of 1,000 tokens on A; B has 4,000 and C none: as they return C takes 6 and B takes 2, 6,000 each."""
    driver = driver_of(Affinity(), None)
    names = programs(8)
    for name in names:
        driver.finish(driver.arrive(name, 1_000), 1_000)
    driver.add("B")
    driver.arrive("large", 4_000)
    driver.add("C")
    driver.send(BackendFailed(A, "gone"))
    assert spread(driver, names, 1_000) == {"B": 2, "C": 6}
    assert driver.accounted() == {"A": 0, "B": 6_000, "C": 6_000}


def test_turns_that_a_lost_backend_dropped_spread_over_the_rest() -> None:
    """Six running turns break off, one after the other: three go to B and three to C."""
    driver = driver_of(Affinity(), None)
    turns = [driver.arrive(name, 1_000) for name in programs(6)]
    driver.add("B")
    driver.add("C")
    for turn in turns:
        driver.fail(turn)
    driver.send(BackendFailed(A, "gone"))
    assert Counter(places(driver, *turns)) == {"B": 3, "C": 3}


def test_program_does_not_come_back_with_its_backend() -> None:
    """It was taken over by B, and stays there when A recovers."""
    driver = driver_of(Affinity(), None, None)
    driver.finish(driver.arrive("p"))
    driver.send(BackendFailed(A, "gone"))
    driver.finish(driver.arrive("p"))
    driver.send(BackendRecovered(A))
    assert places(driver, driver.arrive("p")) == ["B"]


def test_new_programs_fill_a_recovered_backend_while_placed_ones_stay() -> None:
    """Six programs of 1,000 on B when A is back: the next six go to A, then one to each."""
    driver = driver_of(Affinity(), 100_000, 100_000)
    driver.send(BackendFailed(A, "gone"))
    old = programs(6)
    assert spread(driver, old, 1_000) == {"B": 6}
    driver.send(BackendRecovered(A))
    assert spread(driver, old, 1_000) == {"B": 6}
    assert spread(driver, programs(6, "new"), 1_000) == {"A": 6}
    assert spread(driver, programs(2, "last"), 1_000) == {"A": 1, "B": 1}


def test_new_programs_fill_an_added_backend_while_placed_ones_stay() -> None:
    """Four programs of 1,000 on A; B, twice as large, takes the next eight."""
    driver = driver_of(Affinity(), 10_000)
    old = programs(4)
    assert spread(driver, old, 1_000) == {"A": 4}
    driver.add("B", 20_000)
    assert spread(driver, programs(8, "new"), 1_000) == {"B": 8}
    assert spread(driver, old, 1_000) == {"A": 4}


def test_draining_backend_gives_its_programs_to_the_others() -> None:
    """Its running turn ends where it is, the next one goes to B."""
    driver = driver_of(Affinity(), None, None)
    turn = driver.arrive("p")
    driver.send(BackendDraining(A))
    assert places(driver, turn, driver.arrive("p")) == ["A", "B"]


# Models


def test_second_model_of_a_program_goes_elsewhere_without_moving_it() -> None:
    """``p`` lives on A; its turns of ``two`` go to the emptier of B and C, and the next of ``one`` is on A again."""
    driver = SchedulerDriver(Affinity())
    for name, models in {"A": ["one"], "B": ["two"], "C": ["two"]}.items():
        driver.add(name, 10_000, models)
    driver.arrive("q", 5_000, model="two")
    first = driver.arrive("p", 1_000, model="one")
    beside = driver.arrive("p", 2_000, model="two", branch="sub")
    again = driver.arrive("p", 1_500, model="one")
    assert places(driver, first, beside, again) == ["A", "C", "A"]
    assert driver.program("p").place is driver.backend(A)
    assert driver.told(ProgramMoved) == []
    driver.finish(beside, 2_000)
    assert driver.accounted() == {"A": 1_500, "B": 5_000, "C": 0}
    driver.close()


def test_second_model_waits_for_its_backend_while_the_first_goes_on() -> None:
    """B is lost: the turn of ``two`` waits alone, and goes there when B is back."""
    driver = SchedulerDriver(Affinity())
    driver.add("A", None, ["one"])
    driver.add("B", None, ["two"])
    driver.send(BackendFailed(B, "gone"))
    first, beside = driver.arrive("p", model="one"), driver.arrive("p", model="two")
    assert places(driver, first, beside) == ["A", "held"]
    driver.send(BackendRecovered(B))
    assert places(driver, beside, driver.arrive("p", model="one")) == ["B", "A"]


def test_all_backends_lost_and_one_back_takes_all() -> None:
    """Nobody is held by the policy: what waits goes to C, the only one there."""
    driver = driver_of(Affinity(), 1_000, 1_000, 1_000)
    for backend in (A, B, C):
        driver.send(BackendFailed(backend, "gone"))
    turns = [driver.arrive(name, 900) for name in programs(3)]
    driver.send(BackendRecovered(C))
    assert places(driver, *turns) == ["C", "C", "C"]
