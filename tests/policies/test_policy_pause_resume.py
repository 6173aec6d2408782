"""``pause-resume``: whom it pauses, whom it resumes and where; the published preset by examples worked by hand."""

from __future__ import annotations

import attrs
import pytest

from policies.pause_resume import PRESETS, PauseResume, Settings
from thunderagent.core.commands import (
    Forward,
    PauseReason,
    ProgramAdmitted,
    ProgramPaused,
    ProgramYielding,
)
from thunderagent.core.events import BackendObserved, TurnProgressed
from thunderagent.policy import BackendId, OptionError, ProgramId
from thunderagent.testing import SchedulerDriver

A, B = BackendId("A"), BackendId("B")


def driver_of(*capacities: int, **options: str) -> SchedulerDriver:
    """Backends A, B of these capacities; no growth reserve unless asked for."""
    driver = SchedulerDriver(PauseResume.from_options({"growth_reserve": "0", **options}))
    for name, capacity_tokens in zip("AB", capacities, strict=False):
        driver.add(name, capacity_tokens)
    return driver


def resize(driver: SchedulerDriver, capacity_tokens: int, name: BackendId = A) -> None:
    """Another number of tokens is found."""
    driver.send(BackendObserved(name, None, capacity_tokens))


def admitted(driver: SchedulerDriver) -> list[tuple[str, str]]:
    """Program and backend of each admission so far."""
    return [(notice.program, notice.backend) for notice in driver.told(ProgramAdmitted)]


def paused(driver: SchedulerDriver) -> list[str]:
    """Programs paused so far."""
    return [notice.program for notice in driver.told(ProgramPaused)]


# Admission


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


def test_newcomer_goes_where_the_fewest_tokens_are() -> None:
    """Of the backends where it fits."""
    driver = driver_of(10_000, 10_000)
    for program, tokens in (("p", 3_000), ("q", 2_000), ("r", 500), ("s", 7_500)):
        driver.arrive(program, tokens)
    assert admitted(driver) == [("p", A), ("q", B), ("r", B)]


def test_newcomer_does_not_overtake_who_waits() -> None:
    """A small one that would fit waits behind the large one, and both go in that order."""
    driver = driver_of(10_000)
    first = driver.arrive("p", 5_000)
    large, small = driver.arrive("q", 6_000), driver.arrive("r", 100)
    assert [large, small] == sorted(driver.held)
    driver.finish(first)
    driver.release("p")
    assert [command.turn for command in driver.told(Forward)] == [first, large, small]


def test_newcomer_of_another_model_is_not_barred() -> None:
    """Who waits for one model's backend does not stop those of another."""
    driver = SchedulerDriver(PauseResume())
    driver.add("A", 10_000, ["m"])
    driver.add("B", 10_000, ["n"])
    driver.arrive("p", 8_000, model="m")
    assert driver.arrive("q", 8_000, model="m") in driver.held
    assert driver.arrive("r", 8_000, model="n") in driver.running


def test_admitted_program_always_goes_on() -> None:
    """Its turns pass, whatever the growth; the policy pauses others or it at the boundary."""
    driver = driver_of(10_000)
    driver.finish(driver.arrive("p", 5_000))
    driver.arrive("q", 4_000)
    assert driver.arrive("p", 9_000) in driver.running


def test_one_off_turn_waits_its_turn() -> None:
    """It is held when it does not fit, and forwarded alone when it does."""
    driver = driver_of(10_000)
    first = driver.arrive("p", 6_000)
    turn = driver.arrive(None, 5_000)
    assert turn in driver.held
    driver.finish(first)
    driver.release("p")
    assert driver.where == {turn: A}
    driver.finish(turn)
    driver.check_empty()


# Pausing


def make_overfull(**options: str) -> SchedulerDriver:
    """Acting: s1 1,500 and s2 3,000; reasoning: r1 2,000 and r2 5,000; 11,500 with 100 of headroom each, on 6,000."""
    driver = driver_of(20_000, **options)
    for program, tokens in (("s2", 3_000), ("s1", 1_500)):
        driver.finish(driver.arrive(program, tokens))
    for program, tokens in (("r2", 5_000), ("r1", 2_000)):
        driver.arrive(program, tokens)
    resize(driver, 6_000)
    return driver


def test_acting_programs_are_paused_first_then_reasoning_ones_yield_smallest_first() -> None:
    """5,900 too many: s1 (1,600), s2 (3,100), then r1 (2,100) at its boundary; r2 stays."""
    driver = make_overfull()
    assert driver.commands[-3:] == [
        ProgramPaused(ProgramId("s1"), A, PauseReason.POLICY),
        ProgramPaused(ProgramId("s2"), A, PauseReason.POLICY),
        ProgramYielding(ProgramId("r1"), A),
    ]
    driver.advance(60.0)
    assert len(driver.told(ProgramPaused)) + len(driver.told(ProgramYielding)) == 3


def test_yielding_program_is_paused_at_its_turns_end() -> None:
    """And its next turn waits."""
    driver = make_overfull()
    driver.finish(min(turn for turn, event in driver.running.items() if event.program == "r1"))
    assert paused(driver) == ["s1", "s2", "r1"]
    assert driver.arrive("r1", 2_000) in driver.held


def test_no_more_are_paused_than_it_takes() -> None:
    """1,900 too many: the two acting ones, since the smaller alone is not enough; on 11,000 the smaller is."""
    driver = make_overfull()
    assert len(paused(driver)) == 2
    driver = driver_of(20_000)
    for program, tokens in (("s2", 3_000), ("s1", 1_500), ("s3", 4_000)):
        driver.finish(driver.arrive(program, tokens))
    resize(driver, 8_000)
    assert paused(driver) == ["s1"]


def test_last_program_of_a_backend_is_never_paused() -> None:
    """It has outgrown the cache alone: pausing it would free nothing that anybody else could use first."""
    driver = driver_of(10_000)
    turn = driver.arrive("p", 9_000)
    driver.send(TurnProgressed(turn, 3_000))
    assert (paused(driver), driver.told(ProgramYielding)) == ([], [])


def test_yielding_tokens_are_counted_once() -> None:
    """While one yields, further growth within what it frees marks nobody else."""
    driver = driver_of(10_000, buffer_tokens="0")
    turns = [driver.arrive(f"p{index}", 2_500) for index in range(4)]
    driver.send(TurnProgressed(turns[3], 100))
    driver.send(TurnProgressed(turns[3], 2_400))
    assert [notice.program for notice in driver.told(ProgramYielding)] == ["p0"]
    driver.send(TurnProgressed(turns[3], 2_600))
    assert [notice.program for notice in driver.told(ProgramYielding)] == ["p0", "p1"]


def test_high_watermark_pauses_earlier() -> None:
    """At 0.5 of 10,000 a second program of 2,500 is one too many when the first has grown."""
    driver = driver_of(10_000, high_watermark="0.5")
    turns = [driver.arrive("p", 2_300), driver.arrive("q", 2_300)]
    driver.send(TurnProgressed(turns[0], 300))
    assert driver.told(ProgramYielding) == [ProgramYielding(ProgramId("q"), A)]


# Resuming


def park(driver: SchedulerDriver, *programs: tuple[str, int]) -> None:
    """Pause these acting programs: z of 5,000 stays when the cache shrinks, and has no room beside it."""
    driver.arrive("z", 5_000)
    for program, tokens in programs:
        driver.finish(driver.arrive(program, tokens))
    resize(driver, 600)
    driver.advance(5.0)
    resize(driver, 5_200)
    assert set(paused(driver)) == {program for program, _ in programs}


def test_waiters_are_resumed_oldest_first() -> None:
    """Not smallest first: the order in which they asked."""
    driver = driver_of(50_000)
    park(driver, ("p", 1_000), ("q", 500))
    for program, tokens in (("q", 500), ("n", 2_000), ("p", 1_000)):
        driver.arrive(program, tokens, after=1.0)
    before = len(admitted(driver))
    resize(driver, 5_200 + 5_000)
    assert [program for program, _ in admitted(driver)[before:]] == ["q", "n", "p"]


def test_waiter_that_does_not_fit_bars_the_younger() -> None:
    """2,600 of room: q, of 600, goes; n of 2,100 does not, and p of 1,100 does not overtake it."""
    driver = driver_of(50_000)
    park(driver, ("p", 1_000), ("q", 500))
    for program, tokens in (("q", 500), ("n", 2_000), ("p", 1_000)):
        driver.arrive(program, tokens, after=1.0)
    before = len(admitted(driver))
    resize(driver, 5_100 + 2_600)
    assert [program for program, _ in admitted(driver)[before:]] == ["q"]


def paused_on_a(resume_on: str) -> SchedulerDriver:
    """p of 2,000 was paused on A, where z of 1,000 runs on; B, of 50,000, is empty."""
    driver = driver_of(10_000, 50_000, resume_on=resume_on)
    driver.finish(driver.arrive("p", 2_000))
    driver.arrive("b", 3_000)
    driver.arrive("z", 1_000)
    resize(driver, 1_050)
    resize(driver, 10_000)
    driver.finish(min(turn for turn, backend in driver.where.items() if backend == B))
    driver.release("b")
    assert (paused(driver), driver.accounted()) == (["p"], {"A": 1_000, "B": 0})
    return driver


@pytest.mark.parametrize(("resume_on", "backend"), [("origin", "A"), ("roomiest", "B")])
def test_paused_program_goes_back_to_where_its_prefix_lies(resume_on: str, backend: str) -> None:
    """Its turn is admitted on arrival, at its origin where it fits, though another is roomier; or at the other."""
    driver = paused_on_a(resume_on)
    assert driver.where[driver.arrive("p", 2_000)] == backend


@pytest.mark.parametrize(("resume_on", "backend"), [("origin", "A"), ("roomiest", "B")])
def test_held_program_is_resumed_where_its_prefix_lies(resume_on: str, backend: str) -> None:
    """Behind w, which fits neither 8,900 on A nor 9,050 on B, it had to wait; when w leaves it fits both."""
    driver = paused_on_a(resume_on)
    driver.arrive("b", 40_850)
    ahead, turn = driver.arrive("w", 9_000), driver.arrive("p", 2_000)
    assert [ahead, turn] == sorted(driver.held)
    driver.abandon(ahead)
    assert driver.where[turn] == backend


def test_program_whose_origin_is_full_goes_to_the_roomiest() -> None:
    """Waiting for the prefix would take longer than making it anew."""
    driver = paused_on_a("origin")
    driver.send(TurnProgressed(min(driver.running), 8_000))
    assert driver.where[driver.arrive("p", 2_000)] == "B"


# Decay


def test_acting_tokens_fade_with_their_half_life() -> None:
    """3,000 + 100 beside 8,000 + 100 on 10,000 fit once 8,000 x 2^(-t/10) is down to 6,800: at the tick at 5 s."""
    driver = driver_of(10_000, half_life_seconds="10")
    driver.finish(driver.arrive("p", 8_000))
    turn = driver.arrive("q", 3_000)
    assert turn in driver.held
    assert driver.advance(4.9) == []
    driver.advance(0.1)
    assert turn in driver.running


def test_without_decay_acting_tokens_count_in_full() -> None:
    """The default of the published code."""
    driver = driver_of(10_000, idle_lease_seconds="0")
    driver.finish(driver.arrive("p", 8_000))
    turn = driver.arrive("q", 3_000)
    driver.advance(600.0)
    assert turn in driver.held


def test_idle_program_keeps_its_place_until_its_lease_is_over() -> None:
    """After it a waiter that fits nowhere has the program idle for longest paused, and no more than needed."""
    driver = driver_of(10_000, idle_lease_seconds="30")
    for name in ("first", "second"):
        driver.finish(driver.arrive(name, 4_000))
        driver.advance(1.0)
    turn = driver.arrive("q", 3_000)
    driver.advance(27.0)
    assert turn in driver.held
    driver.advance(5.0)
    assert turn in driver.running
    places = {name: driver.program(name).place is not None for name in ("first", "second")}
    assert places == {"first": False, "second": True}
    driver.close()


def test_lease_that_makes_no_room_pauses_nobody() -> None:
    """Idle programs that together would not make room for the waiter keep their prefixes."""
    driver = driver_of(10_000, idle_lease_seconds="30")
    driver.finish(driver.arrive("idle", 1_000))
    busy = driver.arrive("busy", 7_000)
    turn = driver.arrive("q", 8_000)
    driver.advance(60.0)
    assert (turn in driver.held, busy in driver.running) == (True, True)
    assert driver.program("idle").place is not None
    driver.close()


def test_resumed_idle_program_does_not_hide_the_fresh_ones() -> None:
    """Decay looks at every acting program, in whatever order they came to the backend."""
    driver = driver_of(10_000, half_life_seconds="1", order="smallest", react="false", resume_on="roomiest")
    driver.finish(driver.arrive("old", 500))
    driver.scheduler._placement.pause(driver.program("old"), PauseReason.POLICY)
    driver.now = 100.0
    fresh = driver.arrive("fresh", 8_000)
    driver.advance(5.0)
    assert driver.program("old").place is not None
    driver.finish(fresh)
    assert driver.arrive("n", 3_000) in driver.held


def test_pausing_frees_no_more_room_than_the_program_still_counted() -> None:
    """A faded program of 6,000 counts nothing any more; pausing it must not make room for 6,000 others."""
    driver = driver_of(10_000, half_life_seconds="1")
    driver.finish(driver.arrive("faded", 6_000))
    driver.advance(60.0)
    driver.arrive("p", 5_000)
    driver.arrive("q", 4_500)
    assert paused(driver) == ["faded"]
    assert driver.arrive("r", 3_000) in driver.held


def test_acting_weight_counts_acting_programs_in_part() -> None:
    """At a half, 8,000 count as 4,000."""
    driver = driver_of(10_000, acting_weight="0.5")
    driver.finish(driver.arrive("p", 8_000))
    assert driver.arrive("q", 5_800) in driver.running


# The published preset


def paper(*capacities: int, **options: str) -> SchedulerDriver:
    """``preset=paper``."""
    driver = SchedulerDriver(PauseResume.from_options({"preset": "paper", **options}))
    for name, capacity_tokens in zip("AB", capacities, strict=False):
        driver.add(name, capacity_tokens)
    return driver


def test_paper_has_the_published_settings() -> None:
    """5 s, watermarks of 1, weight 1, no decay, 100 tokens of headroom, smallest first, any backend."""
    policy = PauseResume.from_options({"preset": "paper"})
    assert attrs.asdict(policy.settings) == {
        **attrs.asdict(Settings()),
        "tick_seconds": 5.0,
        "react": False,
        "order": "smallest",
        "resume_on": "roomiest",
        "high_watermark": 1.0,
        "growth_reserve": 0.0,
        "buffer_tokens": 100,
        "acting_weight": 1.0,
        "half_life_seconds": 0.0,
        "idle_lease_seconds": 0.0,
        "pause_decay": False,
    }


def test_paper_admits_a_newcomer_at_once_where_nobody_waits() -> None:
    """On the backend with the fewest tokens, with its headroom."""
    driver = paper(10_000, 10_000)
    driver.arrive("p", 3_000)
    driver.arrive("q", 9_900)
    driver.arrive("r", 6_900)
    driver.arrive("s", 1)
    assert admitted(driver) == [("p", A), ("q", B)]
    driver = paper(10_000)
    driver.arrive("p", 3_000)
    assert driver.arrive("q", 6_800) in driver.running


def test_paper_pauses_on_the_tick_only() -> None:
    """11,300 of 10,000 are accounted from 1 s on; at 5 s the smallest acting one leaves, and that is enough."""
    driver = paper(10_000)
    for program, tokens in (("a", 4_000), ("b", 3_000)):
        driver.finish(driver.arrive(program, tokens))
    turn = driver.arrive("c", 2_000)
    driver.send(TurnProgressed(turn, 2_000), after=1.0)
    assert driver.advance(3.9) == []
    assert driver.advance(0.1) == [ProgramPaused(ProgramId("b"), A, PauseReason.POLICY)]
    assert driver.advance(30.0) == []


def test_paper_pauses_in_the_published_order() -> None:
    """The same example as above, on a tick: s1, s2, then r1 marked."""
    driver = make_overfull(preset="paper")
    assert driver.advance(5.0) == [
        ProgramPaused(ProgramId("s1"), A, PauseReason.POLICY),
        ProgramPaused(ProgramId("s2"), A, PauseReason.POLICY),
        ProgramYielding(ProgramId("r1"), A),
    ]


def test_paper_makes_a_paused_program_wait_for_the_tick() -> None:
    """Though there is room when its turn comes."""
    driver = paper(50_000)
    park(driver, ("p", 1_000))
    resize(driver, 50_000)
    driver.advance(4.9)
    driver.release("p")
    driver = paper(50_000)
    park(driver, ("p", 1_000))
    turn = driver.arrive("p", 1_000)
    resize(driver, 50_000)
    assert turn in driver.held
    driver.advance(5.0)
    assert turn in driver.running


def test_paper_resumes_in_the_published_order() -> None:
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
    assert [event.program for event in driver.held.values()] == ["n1"]


def test_paper_places_the_largest_first_where_the_most_room_is() -> None:
    """Rooms of 3,000 on A and 2,500 on B: x (2,100) takes A, y (2,000) then B."""
    driver = paper(1_100, 1_100)
    driver.arrive("a", 1_000)
    driver.arrive("b", 1_000)
    driver.arrive("y", 1_090)
    driver.arrive("x", 1_095)
    resize(driver, 1_100 + 1_250)
    resize(driver, 1_100 + 1_200, B)
    driver.advance(5.0)
    assert admitted(driver)[2:] == [("x", A), ("y", B)]


def test_paper_skips_what_fits_the_sum_of_rooms_but_no_single_one() -> None:
    """700 on each: 1,100 in all, and yet x of 1,000 + 100 has no place."""
    driver = paper(1_100, 1_100)
    driver.arrive("a", 1_000)
    driver.arrive("b", 1_000)
    turn = driver.arrive("x", 1_000)
    resize(driver, 1_100 + 700)
    resize(driver, 1_100 + 700, B)
    driver.advance(60.0)
    assert turn in driver.held


# Options


def test_single_options_go_on_top_of_the_preset() -> None:
    """The published algorithm every second, with decay."""
    options = {"preset": "paper", "tick_seconds": "1", "half_life_seconds": "1.0", "pause_decay": "yes"}
    policy = PauseResume.from_options(options)
    assert policy.tick_seconds == 1.0
    assert policy.settings == attrs.evolve(
        PRESETS["paper"], tick_seconds=1.0, half_life_seconds=1.0, pause_decay=True
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "fast"}, "option preset must be one of default, paper, got 'fast'"),
        ({"order": "random"}, "option order must be oldest or smallest, got 'random'"),
        ({"resume_on": "moon"}, "option resume_on must be origin or roomiest, got 'moon'"),
        ({"tick_seconds": "0"}, "option tick_seconds must be above 0"),
        ({"tick_seconds": "soon"}, "option tick_seconds must be a number, got 'soon'"),
        ({"tick_seconds": "nan"}, "option tick_seconds must be a finite number of at least 0, got 'nan'"),
        ({"high_watermark": "inf"}, "option high_watermark must be a finite number of at least 0, got 'inf'"),
        ({"buffer_tokens": "1.5"}, "option buffer_tokens must be a whole number, got '1.5'"),
        ({"buffer_tokens": "-1"}, "option buffer_tokens must be a finite number of at least 0, got '-1'"),
        ({"react": "often"}, "option react must be true or false, got 'often'"),
    ],
)
def test_unusable_option_is_refused_in_words(options: dict[str, str], message: str) -> None:
    """The policy, the option, what it takes, and what it got."""
    with pytest.raises(OptionError) as caught:
        PauseResume.from_options(options)
    assert str(caught.value) == f"policy 'pause-resume': {message}"


def test_unknown_option_is_refused_with_the_known_ones() -> None:
    """A typo does not pass in silence."""
    with pytest.raises(OptionError) as caught:
        PauseResume.from_options({"tick": "5"})
    text = str(caught.value)
    assert text.startswith("policy 'pause-resume' has no option 'tick'; it has: acting_weight, buffer_tokens, ")
    assert "tick_seconds" in text
