"""``round-robin``: an even rotation per model, whatever comes and goes."""

from __future__ import annotations

from collections import Counter

import pytest
from simple_cases import A, B, driver_of, places

from policies.affinity import Affinity
from policies.round_robin import RoundRobin
from thunderagent.core.commands import TurnHeld
from thunderagent.core.events import BackendFailed, BackendObserved, BackendRecovered, BackendRemoved
from thunderagent.policy import BackendId, OptionError, Policy
from thunderagent.testing import SchedulerDriver


def rotation(driver: SchedulerDriver, count: int, model: str | None = None) -> str:
    """Where so many turns of a model go, in order."""
    return "".join(places(driver, *[driver.arrive(None, model=model) for _ in range(count)]))


def test_turns_take_the_backends_in_turn() -> None:
    """Turn by turn, whatever the program and the load: six turns on three backends go to A, B, C, A, B, C."""
    driver = driver_of(RoundRobin(), 1_000, 1_000, 1_000)
    turns = [driver.arrive("p", 5_000) for _ in range(4)] + [driver.arrive(None), driver.arrive("q")]
    assert places(driver, *turns) == ["A", "B", "C", "A", "B", "C"]
    assert driver.told(TurnHeld) == []


def test_lost_backend_is_left_out_and_the_others_keep_their_order() -> None:
    """After A and B, B is lost: C is next all the same, then A and C in turn."""
    driver = driver_of(RoundRobin(), None, None, None)
    assert rotation(driver, 2) == "AB"
    driver.send(BackendFailed(B, "gone"))
    assert rotation(driver, 5) == "CACAC"


def test_recovered_backend_takes_one_turn_and_no_burst() -> None:
    """B missed three turns; when it is back it is next once, not three times."""
    driver = driver_of(RoundRobin(), None, None)
    driver.send(BackendFailed(B, "gone"))
    assert rotation(driver, 4) == "AAAA"
    driver.send(BackendRecovered(B))
    assert rotation(driver, 4) == "BABA"


def test_backend_that_joins_is_next_and_shifts_nobody() -> None:
    """After A, C joins beside A and B: C, which never had a turn, and B follow, and then all three in one order."""
    driver = driver_of(RoundRobin(), None, None)
    assert rotation(driver, 3) == "ABA"
    driver.add("C")
    assert rotation(driver, 6) == "CBACBA"


def test_two_models_interleaved_on_the_same_backends_are_even_each() -> None:
    """One counter for both would send every turn of one model to A and of the other to B."""
    driver = SchedulerDriver(RoundRobin())
    for name in "AB":
        driver.add(name, None, ["one", "two"])
    count = Counter((model, rotation(driver, 1, model)) for _ in range(10) for model in ("one", "two"))
    assert count == {(model, name): 5 for model in ("one", "two") for name in "AB"}


def test_two_models_interleaved_on_subsets_are_even_each() -> None:
    """``one`` on A, B and C, ``two`` on C and D: 12 turns of each are 4 per backend and 6 per backend."""
    driver = SchedulerDriver(RoundRobin())
    for name, models in {"A": ["one"], "B": ["one"], "C": ["one", "two"], "D": ["two"]}.items():
        driver.add(name, None, models)
    count = Counter((model, rotation(driver, 1, model)) for _ in range(12) for model in ("one", "two"))
    expected = {("one", "A"): 4, ("one", "B"): 4, ("one", "C"): 4, ("two", "C"): 6, ("two", "D"): 6}
    assert count == expected


def test_turn_that_a_backend_failed_goes_to_the_next() -> None:
    """A gives no answer: the turn goes on to B, and the next turn to C."""
    driver = driver_of(RoundRobin(), None, None, None)
    turn = driver.arrive("p")
    driver.fail(turn)
    assert places(driver, turn, driver.arrive("q")) == ["B", "C"]


def test_any_number_of_model_names_is_even_and_takes_bounded_memory() -> None:
    """500 names on backends that serve any: 250 turns each, and no more than 256 rotations are remembered."""
    policy = RoundRobin()
    driver = driver_of(policy, None, None)
    count = Counter(rotation(driver, 1, f"model-{index}") for index in range(500))
    assert count == {"A": 250, "B": 250}
    assert len(policy._rotations) == 256


def test_model_in_use_is_not_forgotten_for_names_that_come_once() -> None:
    """Between turns of ``steady`` come 300 names in all: it still goes to A and B in turn."""
    driver = driver_of(RoundRobin(), None, None)
    steady = ""
    for index in range(300):
        steady += rotation(driver, 1, "steady")
        rotation(driver, 1, f"once-{index}")
    assert steady == "AB" * 150


def test_backends_that_come_and_go_take_bounded_memory() -> None:
    """200 backends, one after the other beside A: no rotation remembers more than a few."""
    policy = RoundRobin()
    driver = driver_of(policy, None)
    for index in range(200):
        driver.add(f"new-{index}")
        rotation(driver, 2)
        driver.send(BackendRemoved(BackendId(f"new-{index}")))
    assert max(map(len, policy._rotations.values())) <= 8
    assert len(policy._last) <= 8


def test_model_that_a_backend_begins_to_serve_goes_there_too() -> None:
    """B serves ``one`` from the third turn on: A, A, then B and A in turn."""
    driver = SchedulerDriver(RoundRobin())
    driver.add("A", None, ["one"])
    driver.add("B", None, ["two"])
    assert rotation(driver, 2, "one") == "AA"
    driver.send(BackendObserved(B, ("one", "two")))
    assert rotation(driver, 4, "one") == "BABA"


@pytest.mark.parametrize("policy", [RoundRobin, Affinity])
def test_policy_without_options_refuses_any(policy: type[Policy]) -> None:
    """With its name and the option's."""
    with pytest.raises(OptionError, match=rf"^policy '{policy.name}' takes no options, got x$"):
        policy.from_options({"x": "1"})


def test_no_backend_holds_and_the_first_takes_the_turns() -> None:
    """Nothing is counted while nobody is there: A, then B, take the turns that waited."""
    driver = SchedulerDriver(RoundRobin())
    waiting = [driver.arrive(None), driver.arrive(None)]
    driver.add(A)
    driver.add(B)
    assert places(driver, *waiting) == ["A", "A"]
    assert rotation(driver, 3) == "BAB"
