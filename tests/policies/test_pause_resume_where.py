"""``pause-resume``: on which backend a program is resumed, for the sake of the prefix that it left."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
from pause_resume_cases import A, B, C, act, admitted, driver_of, end, grow, paused, paused_on_a, resize, turn_of

from policies.pause_resume import PauseResume
from thunderagent.core.events import BackendFailed, BackendRecovered, TurnProgressed
from thunderagent.testing import SchedulerDriver

PREFER_ORIGIN = ["prefer-origin", "origin", "resident"]


@pytest.mark.parametrize(("resume_on", "backend"), [*((name, "A") for name in PREFER_ORIGIN), ("roomiest", "B")])
def test_paused_program_goes_back_to_where_its_prefix_lies(resume_on: str, backend: str) -> None:
    """Its turn is admitted on arrival, at its origin where it fits, though another is roomier; or at the other."""
    driver = paused_on_a(resume_on=resume_on)
    assert driver.where[driver.arrive("p", 2_000)] == backend


@pytest.mark.parametrize(("resume_on", "backend"), [*((name, "A") for name in PREFER_ORIGIN), ("roomiest", "B")])
def test_held_program_is_resumed_where_its_prefix_lies(resume_on: str, backend: str) -> None:
    """Behind w, which fits neither 8,800 on A nor 9,000 on B, it had to wait; when w leaves it fits both."""
    driver = paused_on_a(resume_on=resume_on)
    driver.arrive("b", 40_800)
    ahead, turn = driver.arrive("w", 9_001), driver.arrive("p", 2_000)
    assert [ahead, turn] == sorted(driver.held)
    driver.abandon(ahead)
    assert driver.where[turn] == backend


@pytest.mark.parametrize("resume_on", ["prefer-origin", "roomiest", "tightest"])
def test_program_whose_origin_is_full_goes_to_another(resume_on: str) -> None:
    """Waiting for the prefix would take longer than making it anew."""
    driver = paused_on_a(resume_on=resume_on)
    grow(driver, "z", 8_000)
    assert driver.where[driver.arrive("p", 2_000)] == B


# The tightest


def test_tightest_fills_the_backend_that_is_left_with_the_least() -> None:
    """Rooms of 8,800 on A, p's origin, 49,900 on B and 2,300 on C: 2,000 go to C, 2,400 to A, 9,000 to B."""
    driver = paused_on_a(resume_on="tightest")
    driver.add("C", 5_000)
    driver.arrive("c", 2_500)
    assert driver.where[driver.arrive("p", 2_000)] == C
    for program, tokens in (("q", 2_400), ("r", 9_000)):
        driver.arrive(program, tokens)
    assert admitted(driver)[2:] == [("c", C), ("p", C), ("q", A), ("r", B)]


# The origin only


def waiting_for_a(**options: str) -> SchedulerDriver:
    """p of 2,000 waits for its origin A, where z of 8,500 leaves 1,300, though B, of 50,000, is empty."""
    driver = paused_on_a(resume_on="origin", idle_lease_seconds="0", **options)
    grow(driver, "z", 7_500)
    driver.arrive("p", 2_000)
    assert [event.program for event in driver.held.values()] == ["p"]
    return driver


def test_program_waits_for_its_origin_though_another_has_room() -> None:
    """For as long as it takes, and is let in there at once."""
    driver = waiting_for_a()
    driver.advance(600.0)
    assert [event.program for event in driver.held.values()] == ["p"]
    end(driver, "z")
    assert admitted(driver)[2:] == [("p", A)]


def test_program_that_waits_for_its_origin_stops_nobody_elsewhere() -> None:
    """n, of 1,000, would fit on A too, but goes to B at once; m of 48,000 follows."""
    driver = waiting_for_a()
    driver.arrive("n", 1_000, after=1.0)
    driver.arrive("m", 48_000, after=1.0)
    assert admitted(driver)[2:] == [("n", B), ("m", B)]
    assert [event.program for event in driver.held.values()] == ["p"]


def test_nobody_takes_the_room_that_a_program_waits_for_on_its_origin() -> None:
    """B is full, with 200 left. o of 500 would fit into the 1,300 on A, but would come before p there."""
    driver = waiting_for_a()
    driver.arrive("b", 49_700, after=1.0)
    turn = driver.arrive("o", 500, after=1.0)
    driver.advance(30.0)
    assert turn in driver.held
    end(driver, "z")
    assert admitted(driver)[2:] == [("b", B), ("p", A), ("o", A)]


def test_programs_bound_to_one_origin_are_let_in_in_their_order() -> None:
    """p asks before r: 3,000 of room on A are for p, and r of 2,500 is let in when both fit."""
    driver = driver_of(20_000, resume_on="origin", idle_lease_seconds="0")
    act(driver, ("p", 2_900), ("r", 2_500))
    driver.arrive("z", 5_000)
    resize(driver, 5_100)
    driver.add("B", 50_000)
    assert sorted(paused(driver)) == ["p", "r"]
    driver.arrive("p", 2_900, after=1.0)
    driver.arrive("r", 2_500, after=1.0)
    resize(driver, 5_100 + 3_000)
    assert admitted(driver)[3:] == [("p", A)]
    resize(driver, 5_100 + 3_000 + 2_600)
    assert admitted(driver)[3:] == [("p", A), ("r", A)]


class Unverified(SchedulerDriver):
    """Does not recount thousands of programs after every event."""

    def verify(self) -> None:
        """Nothing."""


def many_for_a(count: int) -> SchedulerDriver:
    """So many programs of 500 wait for their origin A, which z fills; n of 1,000 is behind them, and B, of 50,000,
    empty."""
    options = {"resume_on": "origin", "idle_lease_seconds": "0", "growth_reserve": "0"}
    driver = Unverified(PauseResume.from_options(options))
    driver.add("A", 1_000 * count)
    act(driver, *((f"p{index}", 500) for index in range(count)))
    driver.arrive("z", 3_000)
    resize(driver, 3_100)
    for index in range(count):
        driver.arrive(f"p{index}", 500)
    driver.arrive("n", 1_000)
    assert len(driver.held) == count + 1
    driver.add("B", 50_000)
    return driver


def lines_of(driver: SchedulerDriver) -> int:
    """Lines of Python that one small event takes."""
    lines = 0

    def note(frame: FrameType, what: str, argument: object) -> Any:
        nonlocal lines
        lines += what == "line"
        return note

    sys.settrace(note)
    try:
        driver.scheduler.handle(TurnProgressed(turn_of(driver, "z"), 1), driver.now)
    finally:
        sys.settrace(None)
    return lines


def test_event_does_not_look_at_all_who_wait_for_their_origin() -> None:
    """It takes as many lines with 1,600 of them as with 400."""
    few, many = (lines_of(many_for_a(count)) for count in (400, 1_600))
    assert many < 1.1 * few


def test_who_stands_behind_many_that_wait_for_their_origin_is_looked_at_soon() -> None:
    """Each event looks further than the one before: 300 are passed in a few, and n has its place on B. Those of A
    come in their order when z is gone."""
    driver = many_for_a(300)
    for _ in range(10):
        driver.send(TurnProgressed(turn_of(driver, "z"), 1))
    assert (admitted(driver)[301:], len(driver.held)) == ([("n", B)], 300)
    end(driver, "z")
    assert admitted(driver)[302:] == [(f"p{index}", A) for index in range(5)]


def test_tick_looks_past_many_that_wait_for_their_origin() -> None:
    """Where nothing else happens: 800 of them, and n behind."""
    driver = many_for_a(800)
    driver.advance(1.0)
    assert admitted(driver)[801:] == [("n", B)]


def test_program_may_go_anywhere_once_it_waited_for_so_long() -> None:
    """``move_after_seconds`` of 20: at the tick 20 s after it asked it goes to B; before, and with 0, it waits on."""
    driver = waiting_for_a(move_after_seconds="20")
    driver.advance(19.9)
    assert [event.program for event in driver.held.values()] == ["p"]
    driver.advance(0.1)
    assert admitted(driver)[2:] == [("p", B)]


def test_program_whose_origin_is_lost_goes_anywhere() -> None:
    """There is no prefix to wait for; also not when the backend comes back, empty."""
    driver = waiting_for_a()
    driver.send(BackendFailed(A, "no answer"))
    assert admitted(driver)[2:] == [("p", B)]
    driver = paused_on_a(resume_on="origin")
    driver.send(BackendFailed(A, "no answer"))
    driver.send(BackendRecovered(A))
    assert driver.where[driver.arrive("p", 2_000)] == B


def test_program_that_outgrew_its_origin_goes_to_a_larger_one() -> None:
    """11,000 would never fit on A, of 10,000."""
    driver = paused_on_a(resume_on="origin")
    assert driver.where[driver.arrive("p", 11_000)] == B


def test_new_program_is_not_bound() -> None:
    """It has left nothing anywhere."""
    driver = paused_on_a(resume_on="origin")
    driver.arrive("n", 1_000)
    assert admitted(driver)[2:] == [("n", B)]


def test_idle_programs_give_way_on_the_origin_only() -> None:
    """p waits for A. i on A, idle for 30 s, gives way to it; j on B, idle for as long, does not."""
    driver = driver_of(10_000, resume_on="origin")
    act(driver, ("p", 3_000))
    driver.arrive("z", 4_000)
    resize(driver, 4_100)
    resize(driver, 10_000)
    act(driver, ("i", 4_000))
    driver.add("B", 10_000)
    act(driver, ("j", 9_000))
    turn = driver.arrive("p", 3_000)
    driver.advance(29.0)
    assert (turn in driver.held, paused(driver)) == (True, ["p"])
    driver.advance(2.0)
    assert (driver.where[turn], paused(driver)) == (A, ["p", "i"])


# Where the prefix is judged to lie


def judged(**options: str) -> SchedulerDriver:
    """p of 2,000 waits for A, where z of 8,000 runs on and leaves 2,000 of the cache; B, of 50,000, is empty.

    Only A serves the model ``a``. p's prefix lies there until 2,000 tokens were cached after it, and is judged to
    fade until 4,000 were: half of it is left at 3,000.
    """
    driver = SchedulerDriver(driver_of(resume_on="resident", idle_lease_seconds="0", **options).policy)
    driver.add("A", 20_000, ["m", "a"])
    driver.finish(driver.arrive("p", 2_000, model="m"))
    driver.arrive("z", 8_000, model="m")
    resize(driver, 8_200)
    assert paused(driver) == ["p"]
    resize(driver, 10_000)
    driver.add("B", 50_000, ["m"])
    driver.arrive("p", 2_000, model="m")
    assert [event.program for event in driver.held.values()] == ["p"]
    return driver


def cache_anew(driver: SchedulerDriver, tokens: int) -> None:
    """A one-off turn on A writes so many tokens, of which none were cached."""
    turn = driver.arrive(None, 100, model="a")
    assert driver.where[turn] == A
    driver.finish(turn, 100, tokens - 100, cached=0, after=1.0)


def test_program_moves_only_when_its_prefix_is_judged_gone() -> None:
    """After 1,000, 2,000 and 3,000 tokens of others all, all and half of it are there, and after 3,100 less."""
    driver = judged()
    for _ in range(3):
        cache_anew(driver, 1_000)
        driver.advance(10.0)
        assert [event.program for event in driver.held.values()] == ["p"]
    cache_anew(driver, 100)
    assert admitted(driver)[2:] == [("p", B)]


def test_program_does_not_move_while_nobody_writes() -> None:
    """Time alone evicts nothing."""
    driver = judged()
    driver.advance(600.0)
    assert [event.program for event in driver.held.values()] == ["p"]


def test_resident_ratio_says_how_much_must_be_left() -> None:
    """At 0.75, 2,500 tokens of others leave just enough, and 2,600 do not."""
    driver = judged(resident_ratio="0.75")
    for tokens in (1_000, 1_000, 500):
        cache_anew(driver, tokens)
    assert [event.program for event in driver.held.values()] == ["p"]
    cache_anew(driver, 100)
    assert admitted(driver)[2:] == [("p", B)]


def test_prefix_that_is_cached_again_writes_nothing() -> None:
    """Turns of others that find their prompt cached evict nothing."""
    driver = judged()
    for _ in range(10):
        turn = driver.arrive(None, 1_000, model="a")
        driver.finish(turn, 1_000, 0, cached=1_000, after=1.0)
    assert [event.program for event in driver.held.values()] == ["p"]


def test_program_whose_prefix_lies_there_still_moves_after_a_while() -> None:
    """``move_after_seconds`` bounds the wait here too."""
    driver = judged(move_after_seconds="20")
    driver.advance(19.9)
    assert [event.program for event in driver.held.values()] == ["p"]
    driver.advance(0.1)
    assert admitted(driver)[2:] == [("p", B)]
