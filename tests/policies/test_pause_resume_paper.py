"""``pause-resume`` with ``preset=paper``: the published algorithm, step by step, by examples worked by hand."""

from __future__ import annotations

import attrs
import pytest
from pause_resume_cases import (
    A,
    B,
    C,
    act,
    admitted,
    driver_of,
    end,
    gauge,
    grow,
    overfull,
    paper,
    park,
    paused,
    resize,
    turn_of,
    yielding,
)

from policies.pause_resume import PauseResume, Settings
from thunderagent.core.commands import (
    Forward,
    PauseReason,
    ProgramAdmitted,
    ProgramForced,
    ProgramPaused,
    ProgramYielding,
)
from thunderagent.core.events import BackendFailed, BackendRecovered
from thunderagent.core.settings import OnHoldLimit, SchedulerSettings
from thunderagent.policy import ProgramId
from thunderagent.testing import SchedulerDriver


def waiting(driver: SchedulerDriver) -> list[str]:
    """Programs whose turns are held, in the order of their turns."""
    return [str(driver.held[turn].program) for turn in sorted(driver.held)]


def test_paper_has_the_published_settings() -> None:
    """5 s, watermarks of 1, weight 1, no decay, 100 tokens of headroom, published scores, any backend, the usage
    correction, forced resume, and none of what was added here."""
    policy = PauseResume.from_options({"preset": "paper"})
    assert policy.settings == attrs.evolve(
        Settings(),
        tick_seconds=5.0,
        react=False,
        resume_order="published",
        resume_on="roomiest",
        low_watermark=1.0,
        high_watermark=1.0,
        growth_reserve=0.0,
        guest_ratio=0.0,
        forced_resume=True,
        buffer_tokens=100,
        acting_weight=1.0,
        shared_correction="usage",
        half_life_seconds=1.0,
        resume_decay=False,
        pause_decay=False,
        pause_order="smallest",
        learned_lease=False,
        idle_lease_seconds=0.0,
        rotation_ratio=0.0,
        quantum_turns=0,
        quantum_seconds=0.0,
        turns_per_program=0,
    )
    assert (policy.tick_seconds, policy.buffer_tokens, policy.on_hold_limit) == (5.0, 100, OnHoldLimit.FORCE)


# A new program


def test_newcomer_is_let_in_at_once_where_nobody_waits() -> None:
    """On the backend with the fewest tokens: p to A, q of 9,800 to B. r of 6,801 does not fit beside 3,100 with its
    own headroom, and s of 1 waits behind it."""
    driver = paper(10_000, 10_000)
    for program, tokens in (("p", 3_000), ("q", 9_800), ("r", 6_801), ("s", 1)):
        driver.arrive(program, tokens)
    assert (admitted(driver), waiting(driver)) == ([("p", A), ("q", B)], ["r", "s"])


def test_newcomer_fits_with_its_headroom() -> None:
    """10,000 less 3,000 + 100 leave 6,800 + 100."""
    for tokens, is_held in ((6_800, False), (6_801, True)):
        driver = paper(10_000)
        driver.arrive("p", 3_000)
        assert (driver.arrive("q", tokens) in driver.held) is is_held


def test_known_active_program_goes_straight_to_its_backend() -> None:
    """However full it is."""
    driver = paper(10_000)
    act(driver, ("p", 5_000))
    driver.arrive("q", 4_000)
    assert driver.arrive("p", 9_000) in driver.running


# Used tokens


@pytest.mark.parametrize(("tokens", "is_held"), [(5_700, False), (5_701, True)])
def test_used_tokens_are_reasoning_weighted_acting_less_shared_and_headroom(tokens: int, is_held: bool) -> None:
    """p reasons with 4,000, q acts with 2,000, of which a weight of 0.5 counts 1,000. The gauge says 30 % of 10,000:
    1,000 of the 4,000 are shared. 4,000 + 1,000 - 1,000 + 200 are used, which leaves 5,700 + 100."""
    driver = paper(10_000, acting_weight="0.5")
    driver.arrive("p", 4_000)
    act(driver, ("q", 2_000))
    gauge(driver, 0.3)
    driver.advance(5.0)
    assert (driver.arrive("r", tokens) in driver.held) is is_held


# Ticks


def test_pausing_waits_for_the_tick() -> None:
    """11,300 of 10,000 are accounted from 1 s on; at 5 s the smallest acting one leaves, and that is enough."""
    driver = paper(10_000)
    act(driver, ("a", 4_000), ("b", 3_000))
    driver.arrive("c", 2_000)
    driver.advance(1.0)
    grow(driver, "c", 2_000)
    assert driver.advance(3.9) == []
    assert driver.advance(0.1) == [ProgramPaused(ProgramId("b"), A, PauseReason.POLICY)]
    assert driver.advance(30.0) == []


def test_resuming_waits_for_the_tick() -> None:
    """p, paused, asks at 5 s, when there is room, and has its place at 10 s; so has n, which came behind it."""
    driver = paper(50_000)
    park(driver, ("p", 1_000))
    resize(driver, 5_200)
    driver.arrive("p", 1_000)
    driver.arrive("n", 1_000)
    resize(driver, 50_000)
    driver.advance(4.9)
    assert waiting(driver) == ["p", "n"]
    driver.advance(0.1)
    assert waiting(driver) == []


def test_tick_resumes_before_it_pauses() -> None:
    """At the same tick w is let in on B, which has room, and then a leaves A, which has not; a, asking at once, waits
    for the next one, and comes back on B."""
    driver = paper(10_000)
    act(driver, ("a", 3_000))
    driver.arrive("c", 6_000)
    turn = driver.arrive("w", 4_000)
    grow(driver, "c", 2_000)
    driver.add("B", 10_000)
    assert driver.advance(5.0) == [
        ProgramAdmitted(ProgramId("w"), B, 5.0, False),
        Forward(turn, B),
        ProgramPaused(ProgramId("a"), A, PauseReason.POLICY),
    ]
    driver.arrive("a", 3_000)
    assert (waiting(driver), driver.advance(4.9)) == (["a"], [])
    driver.advance(0.1)
    assert admitted(driver)[-1] == ("a", B)


# Pausing


def test_acting_programs_leave_first_then_reasoning_ones_are_marked_smallest_first() -> None:
    """5,900 too many: s1 (1,600) and s2 (3,100) at once, then r1 (2,100), which leaves when its turn ends."""
    driver = overfull(preset="paper")
    assert driver.advance(5.0) == [
        ProgramPaused(ProgramId("s1"), A, PauseReason.POLICY),
        ProgramPaused(ProgramId("s2"), A, PauseReason.POLICY),
        ProgramYielding(ProgramId("r1"), A),
    ]
    driver.advance(60.0)
    assert (paused(driver), yielding(driver)) == (["s1", "s2"], ["r1"])
    driver.finish(turn_of(driver, "r1"))
    assert paused(driver) == ["s1", "s2", "r1"]


# Resuming


def test_candidates_are_known_ones_then_new_ones_then_acting_ones_each_by_tokens() -> None:
    """6,000 of room. Waiting and known, by tokens: k2 (1,100), k1 (3,100); new: n2 (900), n1 (2,100) does not fit in
    the 900 that are left; then acting: ac (600). What is picked is placed largest first."""
    driver = paper(50_000)
    park(driver, ("k1", 3_000), ("k2", 1_000), ("ac", 500))
    for program, tokens in (("n1", 2_000), ("k1", 3_000), ("n2", 800), ("k2", 1_000)):
        driver.arrive(program, tokens)
    before = len(admitted(driver))
    resize(driver, 5_100 + 6_000)
    driver.advance(5.0)
    assert [program for program, _ in admitted(driver)[before:]] == ["k1", "k2", "n2", "ac"]
    assert waiting(driver) == ["n1"]


def test_new_one_waits_for_larger_known_ones() -> None:
    """4,200 of room: k (3,100) is picked before n (1,100), though n is smaller; with 3,200 only k is."""
    for room_tokens, let_in in ((4_200, ["k", "n"]), (3_200, ["k"])):
        driver = paper(50_000)
        park(driver, ("k", 3_000))
        driver.arrive("n", 1_000)
        driver.arrive("k", 3_000)
        before = len(admitted(driver))
        resize(driver, 5_100 + room_tokens)
        driver.advance(5.0)
        assert [program for program, _ in admitted(driver)[before:]] == let_in


def test_acting_one_that_was_resumed_goes_on_at_once() -> None:
    """It has its place again before it asks."""
    driver = paper(50_000)
    park(driver, ("ac", 500))
    resize(driver, 50_000)
    driver.advance(5.0)
    assert driver.arrive("ac", 600) in driver.running


def test_sum_of_what_is_picked_runs_over_the_room_of_all_backends() -> None:
    """3,000 on A and 2,000 on B are 5,000: y (1,900 + 100) and x (2,900 + 100) fill them, w (3,000) is one too many.
    Each is placed where the most room is, the largest first: x on A, y on B."""
    driver = paper(6_000, 6_000)
    for program, tokens in (("a", 5_900), ("b", 5_900), ("w", 3_000), ("y", 1_900), ("x", 2_900)):
        driver.arrive(program, tokens)
    resize(driver, 6_000 + 3_000)
    resize(driver, 6_000 + 2_000, B)
    driver.advance(5.0)
    assert (admitted(driver)[2:], waiting(driver)) == ([("x", A), ("y", B)], ["w"])


def test_what_fits_the_sum_of_rooms_but_no_single_one_is_skipped() -> None:
    """700 on each: 1,400 in all. x of 1,000 + 100 has no place; y of 150 + 100, picked before it, has."""
    driver = paper(1_100, 1_100)
    for program, tokens in (("a", 1_000), ("b", 1_000), ("x", 1_000), ("y", 150)):
        driver.arrive(program, tokens)
    resize(driver, 1_100 + 700)
    resize(driver, 1_100 + 700, B)
    driver.advance(60.0)
    assert (admitted(driver)[2:], waiting(driver)) == ([("y", A)], ["x"])


def test_one_that_fits_beside_nobody_has_an_empty_backend() -> None:
    """9,950 + 100 are more than A's 10,000, and would wait for ever."""
    driver = paper(10_000)
    driver.arrive("x", 9_950)
    turn = driver.arrive("y", 9_950)
    end(driver, "x")
    driver.advance(5.0)
    assert turn in driver.running


def test_one_that_an_empty_backend_could_never_hold_waits_and_bars_nobody() -> None:
    """4,800 of A's 50,000 are left; B, of 10,000, is empty. k of 30,000 waits for A; n of 8,000 goes to B meanwhile,
    and k to A when it can."""
    driver = paper(50_000)
    act(driver, ("k", 30_000))
    driver.arrive("z", 5_000)
    resize(driver, 20_000)
    driver.advance(5.0)
    assert paused(driver) == ["k"]
    resize(driver, 50_000)
    grow(driver, "z", 40_000)
    driver.arrive("k", 30_000)
    driver.arrive("n", 8_000)
    driver.add("B", 10_000)
    driver.advance(5.0)
    assert (admitted(driver)[2:], waiting(driver)) == ([("n", B)], ["k"])
    end(driver, "z")
    driver.advance(5.0)
    assert admitted(driver)[3:] == [("k", A)]


def test_waiting_ones_of_several_models_are_each_let_in_once() -> None:
    """Two new ones wait for m on A and one for n on B: all are let in at the tick, where they can run."""
    driver = driver_of(preset="paper")
    driver.add("A", 10_000, ["m"])
    driver.add("B", 10_000, ["n"])
    for program, tokens, model in (("a", 9_000, "m"), ("b", 9_000, "n"), ("p", 2_000, "m"), ("q", 3_000, "n")):
        driver.arrive(program, tokens, model=model)
    driver.arrive("r", 1_000, model="m")
    end(driver, "a")
    end(driver, "b")
    driver.advance(5.0)
    assert admitted(driver)[2:] == [("q", B), ("p", A), ("r", A)]
    driver.check_policy()


def of_two_models() -> SchedulerDriver:
    """A, of 10,000, serves m, and B, of 50,000, serves n."""
    driver = driver_of(preset="paper")
    driver.add("A", 10_000, ["m"])
    driver.add("B", 50_000, ["n"])
    return driver


def test_paused_program_is_not_resumed_where_its_model_is_not_served() -> None:
    """p and q outgrew A. q, in a tool, fits B, which does not serve its model: it comes back to A when p is gone."""
    driver = of_two_models()
    turns = [driver.arrive(program, 4_000, model="m") for program in ("p", "q")]
    driver.finish(turns[0], 6_000)
    driver.finish(turns[1], 5_500)
    driver.advance(15.0)
    assert (paused(driver), driver.program("q").place) == (["q"], None)
    driver.release("p")
    driver.advance(5.0)
    assert admitted(driver)[2:] == [("q", A)]


def test_paused_program_is_resumed_where_its_model_is_served_besides_others() -> None:
    """q left A, which serves m; C serves m and n."""
    driver = of_two_models()
    turns = [driver.arrive(program, 4_000, model="m") for program in ("p", "q")]
    driver.finish(turns[0], 6_000)
    driver.finish(turns[1], 5_500)
    driver.add("C", 10_000, ["n", "m"])
    driver.advance(10.0)
    assert admitted(driver)[2:] == [("q", C)]


def test_paused_program_whose_backend_was_lost_is_resumed_where_its_model_is_served() -> None:
    """Not on B, the roomiest."""
    driver = of_two_models()
    driver.finish(driver.arrive("p", 4_000, model="m"))
    driver.send(BackendFailed(A, "gone"))
    driver.advance(10.0)
    assert driver.program("p").place is None
    driver.add("C", 10_000, ["m"])
    driver.advance(5.0)
    assert admitted(driver)[1:] == [("p", C)]


def test_those_of_one_model_do_not_wait_for_the_room_of_another() -> None:
    """300 are left on A, for which k1 and k2 of 1,000 wait. z, larger than both, wants n, and has B for itself."""
    driver = of_two_models()
    for program in ("k1", "k2"):
        driver.finish(driver.arrive(program, 1_000, model="m"))
    driver.finish(driver.arrive("z", 49_500, model="n"))
    for name in (A, B):
        driver.send(BackendFailed(name, "gone"))
    driver.send(BackendRecovered(A))
    driver.arrive("b", 9_500, model="m")
    for program in ("k1", "k2"):
        driver.arrive(program, 1_000, model="m")
    driver.send(BackendRecovered(B))
    driver.arrive("z", 49_500, model="n")
    driver.advance(5.0)
    assert (admitted(driver)[-1], waiting(driver)) == (("z", B), ["k1", "k2"])


def test_one_that_does_not_fit_the_roomiest_has_an_empty_backend() -> None:
    """9,925 are left on A, and 9,900 on B, which is empty, and so takes p of 9,950 with no regard to headroom."""
    driver = driver_of(preset="paper")
    driver.add("B", 10_000)
    act(driver, ("p", 9_950))
    driver.add("A", 30_000)
    driver.send(BackendFailed(B, "gone"))
    driver.arrive("f", 19_875)
    driver.send(BackendRecovered(B))
    driver.arrive("p", 9_950)
    driver.advance(5.0)
    assert (admitted(driver)[-1], waiting(driver)) == (("p", B), [])


def test_one_off_turns_come_after_new_programs() -> None:
    """2,200 of room: n (1,100), then the turn without a program (1,100); the acting one no more."""
    driver = paper(50_000)
    park(driver, ("ac", 500))
    turns = [driver.arrive(None, 1_000), driver.arrive("n", 1_000)]
    resize(driver, 5_100 + 2_200)
    driver.advance(5.0)
    assert (sorted(driver.running)[-2:], driver.program("ac").place) == (turns, None)


# Decay


def test_decay_lets_others_in_beside_programs_in_long_tools() -> None:
    """The paper's evaluation, ``resume_decay``: 8,000 x 2^-5 count 250 at the first tick, and 9,000 fit beside it."""
    driver = paper(10_000, resume_decay="true")
    act(driver, ("p", 8_000))
    turn = driver.arrive("q", 9_000)
    driver.advance(4.9)
    assert turn in driver.held
    driver.advance(0.1)
    assert turn in driver.running
    driver = paper(10_000)
    act(driver, ("p", 8_000))
    turn = driver.arrive("q", 9_000)
    driver.advance(600.0)
    assert turn in driver.held


# The wait of 1,800 s


def test_program_that_waited_long_enough_is_forced_in_where_it_was() -> None:
    """p was on A, which is full, and is let in there 1,800 s after it asked, though B is less loaded."""
    driver = paper(50_000)
    park(driver, ("p", 1_000))
    driver.add("B", 900)
    driver.arrive("b", 700)
    turn = driver.arrive("p", 1_000)
    driver.advance(1_799.9)
    assert turn in driver.held
    driver.advance(0.1)
    assert driver.told(ProgramForced) == [ProgramForced(ProgramId("p"), A)]
    assert driver.where[turn] == A


def test_new_program_that_waited_long_enough_is_forced_in_where_the_least_is() -> None:
    """500 are left on A, 1,500 on B: too little for n of 2,000, which goes to B."""
    driver = paper(10_000, 10_000)
    for program, tokens in (("a", 9_400), ("b", 8_400)):
        driver.arrive(program, tokens)
    turn = driver.arrive("n", 2_000)
    driver.advance(1_800.0)
    assert driver.told(ProgramForced) == [ProgramForced(ProgramId("n"), B)]
    assert driver.where[turn] == B


def test_operator_has_the_last_word_on_the_hold_limit() -> None:
    """``--on-hold-limit head`` forces nobody in; ``--max-hold-seconds`` is the wait."""
    for on_hold_limit, forced in ((OnHoldLimit.HEAD, []), (None, [ProgramForced(ProgramId("n"), A)])):
        limits = SchedulerSettings(max_hold_seconds=60.0, on_hold_limit=on_hold_limit)
        driver = paper(10_000, settings=limits)
        driver.arrive("a", 9_400)
        driver.arrive("n", 2_000)
        driver.advance(60.0)
        assert driver.told(ProgramForced) == forced
