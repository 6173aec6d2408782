"""``pause-resume``: whom it pauses where the cache is outgrown, in which order, and how many."""

from __future__ import annotations

import pytest
from pause_resume_cases import A, B, act, driver_of, end, grow, overfull, paused, resize, turn_of, yielding

from thunderagent.core.commands import PauseReason, ProgramPaused, ProgramYielding
from thunderagent.policy import ProgramId


def test_acting_programs_are_paused_first_then_reasoning_ones_yield_smallest_first() -> None:
    """5,900 too many: s1 (1,600), s2 (3,100), then r1 (2,100) at its boundary; r2 stays."""
    driver = overfull()
    assert driver.commands[-3:] == [
        ProgramPaused(ProgramId("s1"), A, PauseReason.POLICY),
        ProgramPaused(ProgramId("s2"), A, PauseReason.POLICY),
        ProgramYielding(ProgramId("r1"), A),
    ]
    driver.advance(60.0)
    assert (paused(driver), yielding(driver)) == (["s1", "s2"], ["r1"])


def test_yielding_program_is_paused_at_its_turns_end() -> None:
    """And its next turn waits."""
    driver = overfull()
    driver.finish(turn_of(driver, "r1"))
    assert paused(driver) == ["s1", "s2", "r1"]
    assert driver.arrive("r1", 2_000) in driver.held


def test_no_more_are_paused_than_it_takes() -> None:
    """800 too many of 8,800 on 8,000: the smallest acting one, of 1,600, is enough."""
    driver = driver_of(20_000)
    act(driver, ("s2", 3_000), ("s1", 1_500), ("s3", 4_000))
    resize(driver, 8_000)
    assert paused(driver) == ["s1"]


def test_last_program_of_a_backend_is_never_paused() -> None:
    """It has outgrown the cache alone: pausing it would free nothing that anybody else could use first."""
    driver = driver_of(10_000)
    driver.arrive("p", 9_000)
    grow(driver, "p", 3_000)
    assert (paused(driver), yielding(driver)) == ([], [])


def test_program_beside_those_that_yield_counts_as_the_last() -> None:
    """p yields; q grows beyond the cache by itself, and stays."""
    driver = driver_of(10_000)
    driver.arrive("p", 4_000)
    driver.arrive("q", 5_000)
    grow(driver, "q", 2_000)
    grow(driver, "q", 6_000)
    assert (paused(driver), yielding(driver)) == ([], ["p"])


def test_yielding_tokens_are_counted_once() -> None:
    """While one yields, further growth within what it frees marks nobody else."""
    driver = driver_of(10_000, buffer_tokens="0")
    for index in range(4):
        driver.arrive(f"p{index}", 2_500)
    grow(driver, "p3", 100)
    grow(driver, "p3", 2_400)
    assert yielding(driver) == ["p0"]
    grow(driver, "p3", 2_600)
    assert yielding(driver) == ["p0", "p1"]


def test_each_backend_pauses_its_own() -> None:
    """700 too many on B: q, the smallest there, though p on A is smaller; and A pauses nobody."""
    driver = driver_of(10_000, 10_000)
    for program, tokens in (("p", 1_000), ("q", 1_500), ("r", 3_000), ("s", 2_000)):
        act(driver, (program, tokens))
    places = {name: driver.program(name).place for name in ("p", "q", "r", "s")}
    assert {name: place and place.id for name, place in places.items()} == {"p": A, "q": B, "r": A, "s": B}
    resize(driver, 3_000, B)
    assert paused(driver) == ["q"]


# Options


@pytest.mark.parametrize(("pause_order", "first"), [("smallest", "small"), ("largest", "big"), ("last-come", "mid")])
def test_pause_order_says_which_acting_program_goes(pause_order: str, first: str) -> None:
    """900 too many: small (1,000) is enough, and so is big (3,000), which came first, and mid (2,000), the last."""
    driver = driver_of(20_000, pause_order=pause_order)
    act(driver, ("big", 3_000), ("small", 1_000), ("mid", 2_000))
    resize(driver, 6_300 - 900)
    assert paused(driver) == [first]


@pytest.mark.parametrize(
    ("pause_order", "leaving"), [("smallest", ["s", "m"]), ("largest", ["l"]), ("last-come", ["m"])]
)
def test_pause_order_says_which_reasoning_programs_yield(pause_order: str, leaving: list[str]) -> None:
    """1,900 too many: the smallest (1,100) and the next (2,100), or the largest (3,100), or the last to come."""
    driver = driver_of(20_000, pause_order=pause_order)
    for program, tokens in (("l", 3_000), ("s", 1_000), ("m", 2_000)):
        driver.arrive(program, tokens)
    resize(driver, 6_300 - 1_900)
    assert (paused(driver), yielding(driver)) == ([], leaving)


@pytest.mark.parametrize("pause_order", ["smallest", "largest", "last-come"])
def test_acting_programs_go_before_reasoning_ones_in_any_order(pause_order: str) -> None:
    """5,900 too many: s1 and s2, 4,700 together, are not enough, in whichever order."""
    driver = overfull(pause_order=pause_order)
    assert sorted(paused(driver)) == ["s1", "s2"]
    assert yielding(driver) == [{"smallest": "r1", "largest": "r2", "last-come": "r1"}[pause_order]]


def test_program_that_came_first_stays_when_it_comes_back_last() -> None:
    """``last-come`` goes by the first turn that a program ever sent: q leaves, though p was let in again after it."""
    driver = driver_of(20_000, pause_order="last-come")
    act(driver, ("p", 3_000))
    driver.arrive("z", 5_000)
    resize(driver, 6_000)
    resize(driver, 20_000)
    act(driver, ("q", 3_000), ("p", 3_000))
    end(driver, "z")
    resize(driver, 5_000)
    assert paused(driver) == ["p", "q"]


def test_high_watermark_pauses_earlier() -> None:
    """At 0.5 of 10,000 a second program of 2,500 is one too many when the first has grown."""
    driver = driver_of(10_000, high_watermark="0.5")
    driver.arrive("p", 2_300)
    driver.arrive("q", 2_300)
    grow(driver, "p", 200)
    assert yielding(driver) == []
    grow(driver, "p", 201)
    assert yielding(driver) == ["q"]


def test_acting_weight_counts_when_pausing() -> None:
    """At a half 8,000 acting and 5,000 running count 9,200 with their headroom; on 9,000 the acting one leaves."""
    driver = driver_of(20_000, acting_weight="0.5")
    act(driver, ("p", 8_000))
    driver.arrive("q", 5_000)
    resize(driver, 9_200)
    assert paused(driver) == []
    resize(driver, 9_199)
    assert paused(driver) == ["p"]


def test_without_react_the_cache_is_looked_at_on_ticks() -> None:
    """1,300 too many from the start; q yields after 1 s."""
    driver = driver_of(10_000, react="false")
    for program in ("p", "q", "r"):
        driver.arrive(program, 3_000)
    grow(driver, "p", 2_000)
    driver.advance(0.9)
    assert yielding(driver) == []
    driver.advance(0.1)
    assert yielding(driver) == ["q"]
