"""``pause-resume``: which newcomers find room, and on which backend."""

from __future__ import annotations

import pytest
from pause_resume_cases import A, B, act, admitted, driver_of, end, forwarded, grow, paused, resize

from policies.pause_resume import PauseResume
from thunderagent.testing import SchedulerDriver


def test_newcomer_fits_with_its_headroom_and_the_reserve() -> None:
    """10,000 less 1,000 + 100 in use leave 8,900: 8,300 + 100 + 500 fit, one more does not."""
    for tokens, is_held in ((8_300, False), (8_301, True)):
        driver = driver_of(10_000, growth_reserve="0.05")
        driver.arrive("p", 1_000)
        assert (driver.arrive("q", tokens) in driver.held) is is_held


def test_empty_backend_takes_a_newcomer_without_reserve() -> None:
    """Nothing is gained by waiting."""
    driver = driver_of(10_000, growth_reserve="0.05")
    assert driver.arrive("p", 10_000) in driver.running


def test_newcomer_goes_where_the_most_room_is() -> None:
    """Of equal rooms the first. Then 6,900 on A, 7,900 on B: q and r to B; 7,400 then fit neither 6,800 nor 7,200."""
    driver = driver_of(10_000, 10_000)
    for program, tokens in (("p", 3_000), ("q", 2_000), ("r", 500), ("s", 7_400)):
        driver.arrive(program, tokens)
    assert admitted(driver) == [("p", A), ("q", B), ("r", B)]


def test_newcomer_goes_where_the_most_room_is_and_not_the_fewest_tokens() -> None:
    """4,900 are left on A, which accounts nothing but 5,000; 5,900 on B, which accounts 14,000."""
    driver = driver_of(10_000)
    driver.arrive("p", 5_000)
    driver.add("B", 20_000)
    driver.arrive("q", 14_000)
    driver.arrive("r", 1_000)
    assert admitted(driver) == [("p", A), ("q", B), ("r", B)]


def test_newcomers_spread_over_backends_of_unknown_capacity() -> None:
    """Each to the one that accounts the least: 3,000 on A, then 1,000 + 1,500 on B, then A again for the fifth."""
    driver = SchedulerDriver(PauseResume())
    driver.add("A")
    driver.add("B")
    for program, tokens in (("p", 3_000), ("q", 1_000), ("r", 1_500), ("s", 2_000), ("t", 100)):
        driver.arrive(program, tokens)
    assert admitted(driver) == [("p", A), ("q", B), ("r", B), ("s", B), ("t", A)]


def test_backend_of_unknown_capacity_counts_as_roomier_than_any_other() -> None:
    """It says nothing against coming, a known one does."""
    driver = driver_of(50_000)
    driver.add("B")
    for program in ("p", "q", "r"):
        driver.arrive(program, 30_000)
    assert admitted(driver) == [("p", B), ("q", B), ("r", B)]


def test_newcomer_does_not_overtake_who_waits() -> None:
    """A small one that would fit waits behind the large one, and both go in that order."""
    driver = driver_of(10_000)
    first = driver.arrive("p", 5_000)
    large, small = driver.arrive("q", 6_000), driver.arrive("r", 100)
    assert [large, small] == sorted(driver.held)
    driver.finish(first)
    driver.release("p")
    assert forwarded(driver) == [first, large, small]


def test_newcomer_of_another_model_is_not_barred() -> None:
    """Who waits for one model's backend does not stop those of another."""
    driver = SchedulerDriver(PauseResume())
    driver.add("A", 10_000, ["m"])
    driver.add("B", 10_000, ["n"])
    driver.arrive("p", 8_000, model="m")
    assert driver.arrive("q", 8_000, model="m") in driver.held
    assert driver.arrive("r", 8_000, model="n") in driver.running


def test_newcomer_larger_than_one_backend_waits_for_the_other() -> None:
    """12,000 go to no backend of 10,000, empty or not."""
    driver = driver_of(10_000, 20_000)
    busy = driver.arrive("p", 15_000)
    turn = driver.arrive("q", 12_000)
    assert (driver.where[busy], turn in driver.held) == (B, True)
    end(driver, "p")
    assert driver.where[turn] == B


def test_admitted_program_always_goes_on() -> None:
    """Its turns pass, whatever the growth; the policy pauses others or it at the boundary."""
    driver = driver_of(10_000)
    act(driver, ("p", 5_000))
    driver.arrive("q", 4_000)
    assert driver.arrive("p", 9_000) in driver.running


def test_one_off_turn_waits_its_turn() -> None:
    """It is held when it does not fit, and forwarded alone when it does."""
    driver = driver_of(10_000)
    driver.arrive("p", 6_000)
    turn = driver.arrive(None, 5_000)
    assert turn in driver.held
    end(driver, "p")
    assert driver.where == {turn: A}
    driver.finish(turn)
    driver.check_empty()


# Options


def test_react_lets_in_with_the_event_that_made_room() -> None:
    """q of 6,000 goes when p of 5,000 leaves; with ``react=false`` at the next tick, after 1 s."""
    driver = driver_of(10_000)
    driver.arrive("p", 5_000)
    turn = driver.arrive("q", 6_000)
    end(driver, "p")
    assert turn in driver.running
    driver = driver_of(10_000, react="false")
    driver.arrive("p", 5_000)
    turn = driver.arrive("q", 6_000)
    end(driver, "p")
    driver.advance(0.9)
    assert turn in driver.held
    driver.advance(0.1)
    assert turn in driver.running


@pytest.mark.parametrize("tick_seconds", [1, 5])
def test_tick_is_as_often_as_the_option_says(tick_seconds: int) -> None:
    """Without events, room is looked for every second by default, every 5 s in the published setting."""
    driver = driver_of(10_000, react="false", tick_seconds=str(tick_seconds))
    driver.arrive("p", 5_000)
    turn = driver.arrive("q", 6_000)
    end(driver, "p")
    driver.advance(tick_seconds - 0.1)
    assert turn in driver.held
    driver.advance(0.1)
    assert turn in driver.running


@pytest.mark.parametrize(("buffer_tokens", "room_tokens"), [("0", 9_000), ("100", 8_800), ("500", 8_000)])
def test_buffer_is_headroom_for_each_program_and_the_newcomer(buffer_tokens: str, room_tokens: int) -> None:
    """Beside 1,000 on 10,000: 9,000 less twice the buffer fit, and not one more."""
    for tokens, is_held in ((room_tokens, False), (room_tokens + 1, True)):
        driver = driver_of(10_000, buffer_tokens=buffer_tokens)
        driver.arrive("p", 1_000)
        assert (driver.arrive("q", tokens) in driver.held) is is_held


@pytest.mark.parametrize(("acting_weight", "room_tokens"), [("1", 1_800), ("0.5", 5_800), ("0", 9_800)])
def test_acting_weight_counts_acting_programs_in_part(acting_weight: str, room_tokens: int) -> None:
    """8,000 count as 8,000, 4,000 or 0, and 200 are headroom."""
    for tokens, is_held in ((room_tokens, False), (room_tokens + 1, True)):
        driver = driver_of(10_000, acting_weight=acting_weight, idle_lease_seconds="0")
        act(driver, ("p", 8_000))
        assert (driver.arrive("q", tokens) in driver.held) is is_held


def test_high_watermark_bounds_what_is_let_in() -> None:
    """80 % of 10,000, less 1,000 + 100 in use and 100 of headroom: 6,800 fit, one more does not."""
    for tokens, is_held in ((6_800, False), (6_801, True)):
        driver = driver_of(10_000, high_watermark="0.8")
        driver.arrive("p", 1_000)
        assert (driver.arrive("q", tokens) in driver.held) is is_held


def test_nothing_is_let_in_between_the_watermarks_until_the_low_one_is_reached() -> None:
    """0.7 and 0.9 of 10,000. At 7,000 a newcomer of 2,000 is let in; at 9,000 and at 7,500 one of 1,000 waits, though
    it would fit under 9,000; at 6,900 it goes."""
    driver = driver_of(10_000, low_watermark="0.7", high_watermark="0.9", buffer_tokens="0")
    for program, tokens in (("p", 5_400), ("q", 1_500), ("r", 100)):
        driver.arrive(program, tokens)
    assert driver.arrive("s", 2_000) in driver.running
    turn = driver.arrive("t", 1_000)
    end(driver, "q")
    driver.advance(10.0)
    assert (driver.accounted(), turn in driver.held) == ({"A": 7_500}, True)
    grow(driver, "r", 400)
    assert turn in driver.held
    end(driver, "r")
    assert (driver.accounted(), turn in driver.held) == ({"A": 7_400}, True)
    end(driver, "s")
    assert (driver.accounted(), turn in driver.running) == ({"A": 6_400}, True)


def test_below_the_low_watermark_is_filled_up_to_the_high_one_at_once() -> None:
    """From 5,000 of 10,000, 1,900 + 1,900 are let in with one event though the first alone goes above 6,000; a third
    would go above 9,000."""
    driver = driver_of(10_000, low_watermark="0.6", high_watermark="0.9", buffer_tokens="0")
    driver.arrive("p", 5_000)
    driver.arrive("q", 4_000)
    for program in ("r", "s", "t"):
        driver.arrive(program, 1_900)
    end(driver, "q")
    assert [program for program, _ in admitted(driver)] == ["p", "q", "r", "s"]


def test_room_reclaimed_from_idle_programs_counts_from_the_low_watermark() -> None:
    """8,000 of 10,000 are used, idle for 30 s: the waiter of 500 is let in at 7,000 or less only, so more than 1,000
    leave for it: two of 800."""
    driver = driver_of(10_000, low_watermark="0.7", high_watermark="0.9", buffer_tokens="0")
    driver.arrive("z", 2_600)
    act(driver, *((f"idle{index}", 800) for index in range(4)))
    grow(driver, "z", 2_200)
    turn = driver.arrive("p", 500)
    driver.advance(29.0)
    assert (turn in driver.held, paused(driver)) == (True, [])
    driver.advance(2.0)
    assert (turn in driver.running, paused(driver)) == (True, ["idle0", "idle1"])


def test_growth_reserve_is_kept_free_when_letting_in_only() -> None:
    """At 20 % of 10,000 a newcomer of 5,000 does not fit beside 3,000, which may grow to 10,000 unharmed."""
    driver = driver_of(10_000, growth_reserve="0.2")
    driver.arrive("p", 3_000)
    assert driver.arrive("q", 4_900) in driver.held
    resize(driver, 3_100)
    assert paused(driver) == []
