"""``working-set``: what its dial does, and that one-off turns pass those that wait."""

from __future__ import annotations

import pytest
from pause_resume_cases import act, admitted, end, paused, resize

from policies.working_set import Options, WorkingSet
from thunderagent.policy import OptionError
from thunderagent.testing import SchedulerDriver


def driver_of(*capacities: int, **options: str) -> SchedulerDriver:
    """Backends A, B, ... of these capacities; no growth reserve unless asked for."""
    driver = SchedulerDriver(WorkingSet.from_options({"growth_reserve": "0", **options}))
    for name, capacity_tokens in zip("ABC", capacities, strict=False):
        driver.add(name, capacity_tokens)
    return driver


def test_dial_has_names_and_is_continuous() -> None:
    """Names and numbers mean the same; the default is the interactive end."""
    shares = {text: WorkingSet.from_options({"dial": text}).settings.rotation_share for text in ("0", "0.5", "1")}
    for name, number in (("batch", "0"), ("balanced", "0.5"), ("interactive", "1")):
        assert WorkingSet.from_options({"dial": name}).settings == WorkingSet.from_options({"dial": number}).settings
    assert WorkingSet.from_options({}).settings == WorkingSet.from_options({"dial": "interactive"}).settings
    assert shares["0"] == 0.0 < shares["0.5"] < shares["1"]


@pytest.mark.parametrize("text", ["fast", "1.1", "-0.1", "nan", ""])
def test_dial_beyond_its_ends_is_refused(text: str) -> None:
    """With what it may be."""
    with pytest.raises(OptionError, match="dial must be batch, balanced, interactive, or a number from 0 to 1"):
        WorkingSet.from_options({"dial": text})


def test_other_options_are_named_when_one_is_wrong() -> None:
    """Not those of pause-resume."""
    with pytest.raises(OptionError, match="it has: dial, growth_reserve, guest_share, turns_per_program"):
        WorkingSet.from_options({"quantum_turns": "3"})


def after_a_pause(**options: str) -> SchedulerDriver:
    """``early`` came first and was paused for its growth; ``late`` came after it and has waited for longer since."""
    driver = driver_of(10_000, **options)
    act(driver, ("early", 3_000))
    driver.advance(10.0)
    driver.arrive("runs", 5_000)
    driver.arrive("late", 4_000, after=1.0)
    resize(driver, 6_000)
    driver.arrive("early", 3_000, after=5.0)
    assert paused(driver) == ["early"]
    return driver


@pytest.mark.parametrize(
    ("dial", "first"), [("batch", "early"), ("0.2", "early"), ("0.9", "late"), ("interactive", "late")]
)
def test_dial_weighs_age_against_waiting(dial: str, first: str) -> None:
    """early came 11 s before late, and asks for a place 5 s after it."""
    driver = after_a_pause(dial=dial)
    end(driver, "runs")
    assert admitted(driver)[-1][0] == first
    driver.close()


def test_batch_lets_programs_run_to_their_end() -> None:
    """However long somebody waits."""
    driver = driver_of(10_000, dial="batch")
    act(driver, ("first", 8_000))
    waits = driver.arrive("second", 8_000)
    for _ in range(40):
        driver.finish(driver.arrive("first", 8_000, after=20.0))
    assert waits in driver.held
    driver.close()


def test_interactive_has_programs_take_turns() -> None:
    """The time to fill the cache is taken for 30 s while it is unknown: after ten times that the place changes."""
    driver = driver_of(10_000)
    act(driver, ("first", 8_000))
    waits = driver.arrive("second", 8_000)
    driver.finish(driver.arrive("first", 8_000, after=20.0))
    assert waits in driver.held
    for _ in range(14):
        if waits in driver.held:
            driver.finish(driver.arrive("first", 8_000, after=20.0))
    assert waits in driver.running
    assert driver.now > 299.0
    driver.close()


def test_one_off_turns_pass_programs_that_wait() -> None:
    """At the expense of what idle programs left in the cache, whose places they keep."""
    driver = driver_of(10_000)
    act(driver, ("idle", 6_000))
    driver.arrive("runs", 3_500)
    program = driver.arrive("waits", 5_000)
    turns = [driver.arrive(None, 900) for _ in range(2)]
    assert all(turn in driver.running for turn in turns)
    assert (program in driver.held, paused(driver)) == (True, [])
    driver.close()


def test_one_off_turns_pass_within_their_share_only() -> None:
    """A fifth of 10,000: the third waits until one of the others ends."""
    driver = driver_of(10_000)
    act(driver, ("idle", 6_000))
    driver.arrive("runs", 3_500)
    driver.arrive("waits", 5_000)
    turns = [driver.arrive(None, 900) for _ in range(3)]
    assert [turn in driver.running for turn in turns] == [True, True, False]
    driver.finish(turns[0])
    assert turns[2] in driver.running
    driver.close()


def test_one_off_turns_wait_for_running_turns() -> None:
    """What runs cannot be evicted: there they need room."""
    driver = driver_of(10_000)
    runs = driver.arrive("runs", 9_500)
    turn = driver.arrive(None, 900)
    assert turn in driver.held
    driver.finish(runs)
    assert turn in driver.running
    driver.close()


def test_one_off_turns_that_come_at_once_are_counted_together() -> None:
    """They wait for a running turn; when it ends, as many go as the share has room for."""
    driver = driver_of(10_000)
    runs = driver.arrive("runs", 9_500)
    turns = [driver.arrive(None, 900) for _ in range(5)]
    driver.finish(runs)
    assert [turn in driver.running for turn in turns] == [True, True, False, False, False]
    driver.close()


def test_without_a_share_they_wait() -> None:
    """As under pause-resume."""
    driver = driver_of(10_000, guest_share="0")
    act(driver, ("idle", 6_000))
    driver.arrive("runs", 3_500)
    assert driver.arrive(None, 900) in driver.held
    driver.close()


def test_options_have_the_defaults_that_they_tell() -> None:
    """Interactive."""
    assert Options().settings() == WorkingSet.from_options({}).settings
