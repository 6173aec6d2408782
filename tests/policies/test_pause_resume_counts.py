"""``pause-resume``: what acting programs, shared beginnings and the engine's gauge count for."""

from __future__ import annotations

import pytest
from pause_resume_cases import SYSTEM_PROMPT, act, driver_of, end, gauge, grow, paper, park, paused, resize, yielding

from thunderagent.testing import SchedulerDriver

# Decay


def test_without_decay_acting_tokens_count_in_full() -> None:
    """The default of the published code."""
    driver = driver_of(10_000, idle_lease_seconds="0")
    act(driver, ("p", 8_000))
    turn = driver.arrive("q", 3_000)
    driver.advance(600.0)
    assert turn in driver.held


@pytest.mark.parametrize(("half_life_seconds", "lets_in_at"), [("10", 3.0), ("20", 5.0), ("1", 1.0)])
def test_acting_tokens_fade_with_their_half_life(half_life_seconds: str, lets_in_at: float) -> None:
    """3,000 + 100 beside 8,000 + 100 on 10,000 fit once 8,000 x 2^(-t/10) is down to 6,800, after 2.34 s: at the tick
    at 3 s. With a half-life of 20 s after 4.7 s, of 1 s after 0.23 s."""
    driver = driver_of(10_000, resume_decay="true", half_life_seconds=half_life_seconds)
    act(driver, ("p", 8_000))
    turn = driver.arrive("q", 3_000)
    assert driver.advance(lets_in_at - 0.1) == []
    driver.advance(0.1)
    assert turn in driver.running


def test_decay_when_letting_in_does_not_keep_from_being_paused() -> None:
    """At 3 s q is let in beside the faded p; p still counts 8,000 of 11,200 when pausing, and leaves at 4 s."""
    driver = driver_of(10_000, resume_decay="true")
    act(driver, ("p", 8_000))
    turn = driver.arrive("q", 3_000)
    driver.advance(3.0)
    assert (turn in driver.running, paused(driver)) == (True, [])
    driver.advance(1.0)
    assert paused(driver) == ["p"]


def test_decay_when_letting_in_and_pausing_keeps_the_place() -> None:
    """At 4 s p counts 8,000 x 2^(-0.4) = 6,063 beside 3,000 and 200: nobody leaves."""
    driver = driver_of(10_000, resume_decay="true", pause_decay="true", idle_lease_seconds="0")
    act(driver, ("p", 8_000))
    turn = driver.arrive("q", 3_000)
    driver.advance(30.0)
    assert (turn in driver.running, paused(driver)) == (True, [])


def faded(**options: str) -> SchedulerDriver:
    """p of 6,000 has acted for 10 s, a half-life, and counts 3,000 with a decay; q of 3,000 has grown to 5,000."""
    driver = driver_of(10_000, idle_lease_seconds="0", **options)
    act(driver, ("p", 6_000))
    driver.arrive("q", 3_000)
    driver.advance(10.0)
    grow(driver, "q", 2_000)
    return driver


def test_decay_when_pausing_leaves_a_faded_program_alone() -> None:
    """11,200 are on 10,000, of which 8,200 count: p stays. Without the decay it is paused."""
    assert paused(faded()) == ["p"]
    assert paused(faded(resume_decay="true")) == ["p"]
    assert paused(faded(pause_decay="true")) == []


def test_decay_when_pausing_alone_lets_nobody_in() -> None:
    """Newcomers see p in full: 1,000 do not fit beside 11,200."""
    driver = faded(pause_decay="true")
    turn = driver.arrive("r", 1_000)
    driver.advance(60.0)
    assert (turn in driver.held, paused(driver)) == (True, [])


def test_decay_when_pausing_takes_as_many_as_what_they_still_count() -> None:
    """500 too many by 8 s, with a half-life of 1 s: s of 2,000 counts 8 and 100 of headroom, so t of 3,000, which has
    just begun to act, goes as well."""
    driver = driver_of(20_000, pause_decay="true", half_life_seconds="1", idle_lease_seconds="0")
    act(driver, ("s", 2_000))
    driver.advance(8.0)
    driver.arrive("r", 5_000)
    act(driver, ("t", 3_000))
    resize(driver, 5_000 + 3_000 + 8 + 300 - 500)
    assert paused(driver) == ["s", "t"]


def test_resumed_idle_program_does_not_hide_the_fresh_ones() -> None:
    """Decay looks at every acting program, in whatever order they came to the backend: old has acted for 10 s, fresh
    not at all, and 3,000 do not fit beside its 8,000."""
    driver = paper(20_000, resume_decay="true")
    park(driver, ("old", 500))
    resize(driver, 10_000)
    driver.advance(5.0)
    assert driver.program("old").place is not None
    end(driver, "z")
    act(driver, ("fresh", 8_000))
    assert driver.arrive("n", 3_000) in driver.held


def test_pausing_frees_no_more_room_than_the_program_still_counted() -> None:
    """A faded program of 6,000 counts nothing any more; pausing it must not make room for 6,000 others."""
    driver = driver_of(10_000, resume_decay="true", half_life_seconds="1")
    act(driver, ("faded", 6_000))
    driver.advance(60.0)
    driver.arrive("p", 5_000)
    driver.arrive("q", 4_500)
    assert paused(driver) == ["faded"]
    assert driver.arrive("r", 3_000) in driver.held


# Shared beginnings


def let_in(shared_correction: str, newcomer_tokens: int) -> bool:
    """Whether a newcomer is let in on 10,000 beside two programs of 3,000; all three begin with the same 1,000."""
    driver = driver_of(10_000, shared_correction=shared_correction)
    for program in ("p", "q"):
        driver.arrive(program, 3_000, prefixes=[SYSTEM_PROMPT])
    return driver.arrive("r", newcomer_tokens, prefixes=[SYSTEM_PROMPT]) in driver.running


@pytest.mark.parametrize(
    ("shared_correction", "room_tokens"), [("prefixes", 5_700), ("none", 3_700), ("usage", 5_700)]
)
def test_shared_beginnings_count_once_or_for_each(shared_correction: str, room_tokens: int) -> None:
    """Once: 1,000 + 2,000 + 2,000 + 200 are in use, and the newcomer brings all but 1,000, and 100 of headroom. For
    each: 6,200 are, and it brings all. Without a reading ``usage`` corrects nothing."""
    fits = (let_in(shared_correction, room_tokens), let_in(shared_correction, room_tokens + 1))
    assert fits == (True, False)


def test_waiters_that_share_nothing_by_the_count_do_not_overfill() -> None:
    """With ``none`` 4,000 each are let in on 8,200 two at a time, and nobody is paused for it."""
    driver = driver_of(8_200, shared_correction="none")
    driver.arrive("z", 8_000)
    for program in ("p", "q", "r"):
        driver.arrive(program, 4_000, prefixes=[SYSTEM_PROMPT])
    end(driver, "z")
    driver.advance(5.0)
    assert (len(driver.running), len(driver.held), paused(driver)) == (2, 1, [])


@pytest.mark.parametrize(
    ("shared_correction", "capacity_tokens"), [("none", 12_300 - 4_100), ("prefixes", 10_300 - 3_100)]
)
def test_no_more_leave_than_it_takes_by_the_same_count(shared_correction: str, capacity_tokens: int) -> None:
    """Of three of 4,000 one frees 4,100 where beginnings count for each, 3,100 where they count once; for one token
    more a second one goes."""
    driver = driver_of(20_000, shared_correction=shared_correction)
    for program in ("a", "b", "c"):
        driver.finish(driver.arrive(program, 4_000, prefixes=[SYSTEM_PROMPT]))
    resize(driver, capacity_tokens)
    assert paused(driver) == ["a"]
    resize(driver, capacity_tokens - 1)
    assert paused(driver) == ["a", "b"]


# The engine's gauge


def two_running(**options: str) -> SchedulerDriver:
    """p and q of 4,000 run on 10,000, of which the engine says that half is in use."""
    driver = driver_of(10_000, **options)
    driver.arrive("p", 4_000)
    driver.arrive("q", 4_000)
    gauge(driver, 0.5)
    driver.advance(1.0)
    return driver


@pytest.mark.parametrize(
    ("shared_correction", "room_tokens"), [("usage", 4_700), ("prefixes", 1_700), ("none", 1_700)]
)
def test_gauge_corrects_what_running_turns_are_accounted_for(shared_correction: str, room_tokens: int) -> None:
    """8,000 + 200 are accounted, the gauge says 5,000: 3,000 are shared unseen. 4,700 + 100 fit; else 1,700 + 100."""
    for tokens, is_held in ((room_tokens, False), (room_tokens + 1, True)):
        driver = two_running(shared_correction=shared_correction)
        assert (driver.arrive("r", tokens) in driver.held) is is_held


def test_gauge_says_nothing_while_requests_wait_in_the_engine() -> None:
    """Half is in use, and one of the two waits there: what the gauge lacks is that one's. 1,700 + 100 fit."""
    for tokens, is_held in ((1_700, False), (1_701, True)):
        driver = two_running(shared_correction="usage")
        gauge(driver, 0.5, requests_waiting=1)
        driver.advance(1.0)
        assert (driver.arrive("r", tokens) in driver.held) is is_held


def test_gauge_that_says_more_than_is_accounted_corrects_nothing() -> None:
    """9,000 in use by the gauge, 8,000 + 200 by the accounts: 1,700 + 100 fit, one more does not."""
    for tokens, is_held in ((1_700, False), (1_701, True)):
        driver = two_running(shared_correction="usage")
        gauge(driver, 0.9)
        driver.advance(1.0)
        assert (driver.arrive("r", tokens) in driver.held) is is_held


def test_stale_gauge_frees_no_more_than_what_runs_now() -> None:
    """It was read while 8,000 ran and said 3,000: 5,000 less. Of the 4,000 + 100 left since, that frees 1,000."""
    for tokens, is_held in ((6_800, False), (6_801, True)):
        driver = two_running(shared_correction="usage")
        gauge(driver, 0.3)
        end(driver, "q")
        driver.advance(1.0)
        assert (driver.arrive("r", tokens) in driver.held) is is_held


def test_gauge_read_before_others_came_says_nothing_of_them() -> None:
    """It was read while 4,000 ran and said 2,000: 2,000 less. The 4,000 since count in full, so that 3,700 fit."""
    for tokens, is_held in ((3_700, False), (3_701, True)):
        driver = driver_of(10_000, shared_correction="usage")
        driver.arrive("p", 4_000)
        gauge(driver, 0.2)
        driver.arrive("q", 4_000)
        driver.advance(1.0)
        assert (driver.arrive("r", tokens) in driver.held) is is_held


def test_gauge_says_nothing_of_acting_programs() -> None:
    """p of 4,000 acts and counts, q of 4,000 runs and the gauge says 1,000: 5,200 are in use, so that 4,700 fit."""
    for tokens, is_held in ((4_700, False), (4_701, True)):
        driver = driver_of(10_000, shared_correction="usage")
        act(driver, ("p", 4_000))
        driver.arrive("q", 4_000)
        gauge(driver, 0.1)
        driver.advance(1.0)
        assert (driver.arrive("r", tokens) in driver.held) is is_held


def test_gauge_keeps_from_pausing_what_fits_by_it() -> None:
    """p grows to 7,000 beside 4,000: 11,200 on 10,000, of which the gauge says 3,000 less. Without it q yields."""
    for shared_correction, leaving in (("usage", []), ("prefixes", ["q"])):
        driver = two_running(shared_correction=shared_correction)
        grow(driver, "p", 3_000)
        assert yielding(driver) == leaving
