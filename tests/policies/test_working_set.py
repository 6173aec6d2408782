"""``working-set``: what its dial does, and that one-off turns pass those that wait."""

from __future__ import annotations

import pytest
from pause_resume_cases import SYSTEM_PROMPT, act, admitted, end, paused, resize

from policies.pause_resume import Settings
from policies.working_set import WorkingSet
from thunderagent.core.settings import SchedulerSettings
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
    shares = {text: WorkingSet.from_options({"dial": text}).settings.rotation_ratio for text in ("0", "0.5", "1")}
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
    with pytest.raises(OptionError, match="it has: dial, growth_reserve, guest_ratio, turns_per_program"):
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
    driver = driver_of(10_000, guest_ratio="0")
    act(driver, ("idle", 6_000))
    driver.arrive("runs", 3_500)
    assert driver.arrive(None, 900) in driver.held
    driver.close()


def test_flood_of_one_off_turns_does_not_keep_room_from_the_hold_limit() -> None:
    """While room is made for a program that waited too long, one-off turns take none of it."""
    settings = SchedulerSettings(max_hold_seconds=60.0)
    driver = SchedulerDriver(WorkingSet.from_options({"growth_reserve": "0"}), settings)
    driver.add("A", 10_000)
    act(driver, ("idle", 3_000))
    big = driver.arrive("big", 9_500)
    for _ in range(120):
        driver.arrive(None, 240)
        driver.advance(1.0)
        for turn in [turn for turn in driver.running if turn != big][:1]:
            driver.finish(turn)
    assert big in driver.running
    driver.close()


def test_one_off_turns_leave_room_for_what_running_turns_share() -> None:
    """Six on a common beginning take 9,400 of 10,000, though only 5,400 of them are their own."""
    driver = driver_of(10_000)
    for index in range(6):
        driver.arrive(f"p{index}", 1_900, prefixes=[SYSTEM_PROMPT])
    assert driver.accounted() == {"A": 6_400}
    driver.arrive("p6", 3_900, prefixes=[SYSTEM_PROMPT])
    turns = [driver.arrive(None, 900) for _ in range(2)]
    assert not any(turn in driver.running for turn in turns)
    driver.close()


def test_one_off_turns_count_programs_that_were_let_in_just_now() -> None:
    """10,000 are free at once: a program takes 9,000 of them, and one-off turns see that."""
    driver = driver_of(10_000)
    first = driver.arrive(None, 9_900)
    program = driver.arrive("second", 9_000)
    turns = [driver.arrive(None, 600) for _ in range(3)]
    driver.finish(first)
    assert program in driver.running
    assert sum(turn in driver.running for turn in turns) == 1
    driver.close()


def test_large_one_off_turn_stops_no_small_ones() -> None:
    """It takes more than their part, so it waits for room as programs do."""
    driver = driver_of(10_000)
    driver.arrive("runs", 7_800)
    large = driver.arrive(None, 2_900)
    small = [driver.arrive(None, 200) for _ in range(5)]
    assert [turn in driver.running for turn in (large, *small)] == [False] + [True] * 5
    driver.close()


def test_nobody_gives_its_place_up_for_a_one_off_turn_that_waits_for_another() -> None:
    """Their part is full for a moment."""
    driver = driver_of(10_000)
    turn = driver.arrive("p", 7_900)
    driver.arrive(None, 1_900)
    driver.advance(400.0)
    waits = driver.arrive(None, 1_900)
    driver.finish(turn)
    driver.arrive("p", 7_900)
    assert (paused(driver), waits in driver.held) == ([], True)
    driver.close()


def test_program_with_many_turns_comes_back_behind_who_waits() -> None:
    """Turns that waited at its own place did not ask for one: else it would have its place back at once."""
    driver = driver_of(10_000, turns_per_program="1")
    turns = [driver.arrive("many", 8_000, branch=f"b{index}") for index in range(40)]
    waits = driver.arrive("waits", 8_000, after=1.0)
    for _ in range(40):
        driver.advance(10.0)
        running = [turn for turn in turns if turn in driver.running]
        if waits in driver.running or not running:
            break
        driver.finish(running[0], 190, 10)
    assert waits in driver.running
    assert driver.now < 330.0
    driver.close()


def test_options_mean_what_pause_resume_calls_them() -> None:
    """All of them at the interactive end, written out."""
    assert WorkingSet.from_options({}).settings == Settings(
        resume_order="oldest",
        wait_weight=1.0,
        rotation_ratio=0.1,
        growth_reserve=0.1,
        guest_ratio=0.2,
        pace_prefills=True,
        turns_per_program=32,
        learned_lease=True,
    )
