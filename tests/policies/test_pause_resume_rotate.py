"""``pause-resume``: places that programs give up for those that wait, at the end of a lease or a quantum."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from pause_resume_cases import B, act, driver_of, paused, resize, turn_of, yielding

from thunderagent.core.usage import Outcome
from thunderagent.testing import SchedulerDriver

# The idle lease


def test_idle_program_keeps_its_place_until_its_lease_is_over() -> None:
    """After it a waiter that fits nowhere has the program idle for longest paused, and no more than needed."""
    driver = driver_of(10_000, idle_lease_seconds="30")
    for name in ("first", "second"):
        act(driver, (name, 4_000))
        driver.advance(1.0)
    turn = driver.arrive("q", 3_000)
    driver.advance(27.0)
    assert turn in driver.held
    driver.advance(5.0)
    assert turn in driver.running
    places = {name: driver.program(name).place is not None for name in ("first", "second")}
    assert places == {"first": False, "second": True}
    driver.close()


def test_lease_is_learned_from_when_others_came_back() -> None:
    """Twenty tools took 2 s: a program that is idle for 5 s makes room, where 30 s would be the time to refill."""
    driver = driver_of(10_000)
    for _ in range(21):
        driver.finish(driver.arrive("quick", 4_000, after=2.0), 4_000, 0)
    driver.release("quick")
    act(driver, ("first", 8_000))
    turn = driver.arrive("q", 3_000)
    driver.advance(1.0)
    assert turn in driver.held
    driver.advance(4.0)
    assert turn in driver.running
    assert driver.program("first").place is None
    driver.close()


def test_several_idle_programs_leave_where_one_is_not_enough() -> None:
    """4,200 are missing, and each of three brings 3,100: nobody leaves at 30 s, when the lease of the first alone is
    over, and two do at 31 s."""
    driver = driver_of(10_000)
    for name in ("first", "second", "third"):
        act(driver, (name, 3_000))
        driver.advance(1.0)
    turn = driver.arrive("q", 4_800)
    driver.advance(27.0)
    assert (turn in driver.held, paused(driver)) == (True, [])
    driver.advance(1.0)
    assert (turn in driver.running, paused(driver)) == (True, ["first", "second"])


def test_lease_that_makes_no_room_pauses_nobody() -> None:
    """Idle programs that together would not make room for the waiter keep their prefixes."""
    driver = driver_of(10_000, idle_lease_seconds="30")
    act(driver, ("idle", 1_000))
    busy = driver.arrive("busy", 7_000)
    turn = driver.arrive("q", 8_000)
    driver.advance(60.0)
    assert (turn in driver.held, busy in driver.running) == (True, True)
    assert paused(driver) == []
    driver.close()


def test_idle_program_keeps_its_place_for_ever_while_nobody_needs_it() -> None:
    """Room for others is left."""
    driver = driver_of(10_000, idle_lease_seconds="30")
    act(driver, ("idle", 4_000))
    driver.advance(300.0)
    assert driver.arrive("q", 5_000) in driver.running
    driver.advance(300.0)
    assert paused(driver) == []


def test_lease_of_zero_is_for_ever() -> None:
    """The waiter waits for the idle program to be released."""
    driver = driver_of(10_000, idle_lease_seconds="0")
    act(driver, ("idle", 9_000))
    turn = driver.arrive("q", 5_000)
    driver.advance(600.0)
    assert (turn in driver.held, paused(driver)) == (True, [])


def test_idle_programs_do_not_leave_for_a_waiter_that_their_backend_could_never_hold() -> None:
    """q, of 15,000, waits for B; A, of 10,000, is of no use to it, empty or not."""
    driver = driver_of(10_000)
    act(driver, ("idle", 9_000))
    driver.add("B", 20_000)
    driver.arrive("busy", 12_000)
    turn = driver.arrive("q", 15_000)
    driver.advance(60.0)
    assert (turn in driver.held, paused(driver)) == (True, [])


# The quantum


def turns_of(driver: SchedulerDriver, programs: Sequence[str], tokens: int, rounds: int) -> str:
    """Programs that send their next turn as soon as one ends, for so many turns in all; whose turns ran, in order."""
    for program in programs:
        driver.arrive(program, tokens)
    ran = ""
    for _ in range(rounds):
        turn = min(driver.running)
        program = str(driver.running[turn].program)
        ran += program
        driver.finish(turn, after=3.0)
        driver.arrive(program, tokens)
    return ran


@pytest.mark.parametrize(
    ("options", "ran"),
    [
        ({"quantum_turns": "2"}, "ppqqrrppqqrr"),
        ({"quantum_turns": "1"}, "pqrpqrpqrpqr"),
        ({"quantum_seconds": "9"}, "pppqqqrrrppp"),
        ({"quantum_seconds": "10"}, "ppppqqqqrrrr"),
        ({"quantum_turns": "2", "quantum_seconds": "3"}, "pqrpqrpqrpqr"),
        ({}, "pppppppppppp"),
    ],
)
def test_rotation_serves_everybody_in_turn(options: dict[str, str], ran: str) -> None:
    """Three programs of 8,000 on 10,000, whose turns take 3 s: two turns each, one, three (9 s), four (10 s are not
    over after the third), the sooner of both; without a quantum the first one runs to its end."""
    driver = driver_of(10_000, **options)
    assert turns_of(driver, ["p", "q", "r"], 8_000, 12) == ran
    driver.close()


def test_rotation_at_a_price_serves_everybody_in_turn() -> None:
    """A cache takes 30 s to fill, as long as that is not known, and may take 0.9 of the engine's time: 33.3 s each,
    over after the twelfth turn of 3 s."""
    driver = driver_of(10_000, rotation_ratio="0.9")
    assert turns_of(driver, ["p", "q", "r"], 8_000, 36) == "p" * 12 + "q" * 12 + "r" * 12
    driver.close()


def test_program_keeps_its_place_while_nobody_waits() -> None:
    """Its quantum is over after the second turn, and it takes ten."""
    driver = driver_of(10_000, quantum_turns="2")
    assert turns_of(driver, ["p", "q"], 4_000, 20).count("p") == 10
    assert paused(driver) == []


def test_program_past_its_quantum_yields_to_the_first_who_comes() -> None:
    """At the end of the turn that runs when q comes, the fifth."""
    driver = driver_of(10_000, quantum_turns="2")
    turns_of(driver, ["p"], 8_000, 4)
    turn = driver.arrive("q", 8_000)
    assert (turn in driver.held, paused(driver)) == (True, [])
    driver.finish(turn_of(driver, "p"))
    assert (turn in driver.running, paused(driver)) == (True, ["p"])


def test_program_does_not_yield_where_the_waiter_fits_anyway() -> None:
    """p was taken for 8,000 and turns out to have 3,000: q, of 5,000, fits beside it."""
    driver = driver_of(10_000, quantum_turns="1")
    driver.arrive("p", 8_000)
    turn = driver.arrive("q", 5_000)
    driver.finish(turn_of(driver, "p"), 3_000)
    assert (turn in driver.running, paused(driver)) == (True, [])


def test_program_does_not_yield_to_who_cannot_use_its_backend() -> None:
    """Another model; more than the whole cache; a prefix on another backend."""
    driver = driver_of(quantum_turns="1")
    driver.add("A", 10_000, ["m"])
    driver.add("B", 20_000, ["m", "n"])
    driver.arrive("b", 19_000, model="n")
    driver.arrive("p", 8_000, model="m")
    other_model, too_large = driver.arrive("q", 5_000, model="n"), driver.arrive("r", 15_000, model="m")
    driver.finish(turn_of(driver, "p"))
    assert ({other_model, too_large} == set(driver.held), paused(driver)) == (True, [])


def test_program_does_not_yield_to_who_waits_for_its_origin() -> None:
    """w left its prefix on A and waits for it; p, on B, stays there, until n comes, which may go anywhere."""
    driver = driver_of(10_000, quantum_turns="1", resume_on="origin", idle_lease_seconds="0")
    act(driver, ("w", 4_000))
    driver.arrive("z", 5_000)
    resize(driver, 5_100)
    driver.add("B", 10_000)
    driver.arrive("p", 8_000)
    waits = driver.arrive("w", 4_000)
    driver.finish(turn_of(driver, "p"))
    assert (waits in driver.held, paused(driver)) == (True, ["w"])
    driver.arrive("p", 8_000)
    turn = driver.arrive("n", 5_000)
    driver.finish(turn_of(driver, "p"))
    assert (driver.where[turn], waits in driver.held, paused(driver)) == (B, True, ["w", "p"])


def test_one_backend_makes_room_for_one_waiter() -> None:
    """w, of 9,000, needs both programs of a backend gone. The first whose programs both had a turn is B, and nobody
    leaves A for it: neither before, when one alone would have left for nothing, nor after."""
    driver = driver_of(10_000, 10_000, quantum_turns="1")
    for program in ("a1", "b1", "a2", "b2"):
        driver.arrive(program, 4_000)
    turn = driver.arrive("w", 9_000)
    for program in ("a1", "b1"):
        driver.finish(turn_of(driver, program), after=1.0)
        driver.arrive(program, 4_000)
    assert paused(driver) == []
    driver.finish(turn_of(driver, "b2"), after=1.0)
    assert (paused(driver), yielding(driver)) == (["b2"], ["b1"])
    driver.finish(turn_of(driver, "a2"), after=1.0)
    driver.finish(turn_of(driver, "b1"), after=1.0)
    assert (paused(driver), driver.where[turn]) == (["b2", "b1"], B)


def test_backend_that_cannot_make_the_room_keeps_nobody_waiting() -> None:
    """w, of 7,000, would need long gone from A, whose turn does not end: p stays there, and b1 on B makes room."""
    driver = driver_of(10_000, 10_000, quantum_turns="1")
    for program, tokens in (("long", 5_000), ("b1", 6_000), ("p", 2_500)):
        driver.arrive(program, tokens)
    turn = driver.arrive("w", 7_000)
    driver.finish(turn_of(driver, "p"), after=1.0)
    driver.finish(turn_of(driver, "b1"), after=1.0)
    assert (paused(driver), driver.where[turn]) == (["b1"], B)


def test_several_leave_where_one_is_not_enough() -> None:
    """w, of 4,000, needs two of four programs of 2,400 gone: the one whose turn ends, and of those that had a turn
    one that acts."""
    driver = driver_of(10_000, quantum_turns="1")
    act(driver, ("p", 2_400), ("q", 2_400))
    for program in ("r", "s"):
        driver.arrive(program, 2_400)
    turn = driver.arrive("w", 4_000)
    driver.finish(turn_of(driver, "s"))
    assert (paused(driver), turn in driver.running, len(driver.running)) == (["s", "p"], True, 2)


@pytest.mark.parametrize("options", [{"resume_order": "smallest"}, {"resume_order": "first-come"}, {}])
def test_nobody_rotates_for_who_would_not_be_let_in_before_it(options: dict[str, str]) -> None:
    """p, q and r of 2,500 come back as soon as they leave. Smallest first, and first come, they would be let in
    before w of 6,000, and so keep their places; by age they make room for it."""
    driver = driver_of(10_000, quantum_turns="1", **options)
    for program in ("p", "q", "r"):
        driver.arrive(program, 2_500)
    turn = driver.arrive("w", 6_000)
    for _ in range(5):
        for program in ("p", "q", "r"):
            if any(event.program == program for event in driver.running.values()):
                driver.finish(turn_of(driver, program), after=1.0)
                driver.arrive(program, 2_500, after=0.5)
    assert (turn in driver.held, paused(driver) == []) == ((True, True) if options else (False, False))


def test_smallest_rotates_larger_ones_for_smaller_ones() -> None:
    """p of 8,000 for q of 5,000, and with ageing also for one that was as large 20 s ago."""
    for options, tokens, is_let_in in (
        ({}, 5_000, True),
        ({}, 9_000, False),
        ({"ageing_seconds": "10"}, 9_000, True),
    ):
        driver = driver_of(10_000, quantum_turns="2", resume_order="smallest", **options)
        driver.arrive("p", 8_000)
        turn = driver.arrive("q", tokens)
        driver.finish(turn_of(driver, "p"), after=10.0)
        driver.arrive("p", 8_000)
        driver.finish(turn_of(driver, "p"), after=10.0)
        assert (turn in driver.running) is is_let_in


@pytest.mark.parametrize("options", [{}, {"react": "false"}, {"preset": "paper", "resume_order": "oldest"}])
def test_quantum_ends_in_any_mode(options: dict[str, str]) -> None:
    """The program leaves at the end of its second turn; where all else waits for ticks, the waiter is let in at the
    next one."""
    driver = driver_of(10_000, **{"quantum_turns": "2", **options})
    driver.arrive("p", 8_000)
    driver.finish(turn_of(driver, "p"))
    turn = driver.arrive("w", 5_000)
    driver.arrive("p", 8_000)
    driver.finish(turn_of(driver, "p"))
    assert paused(driver) == ["p"]
    driver.advance(5.0)
    assert turn in driver.running


@pytest.mark.parametrize("options", [{"preset": "paper"}, {"preset": "paper", "react": "true"}, {}])
def test_lease_ends_in_published_order_too(options: dict[str, str]) -> None:
    """The idle program leaves for the waiter at the tick after 30 s."""
    driver = driver_of(10_000, **{"resume_order": "published", "idle_lease_seconds": "30", **options})
    act(driver, ("idle", 8_000))
    turn = driver.arrive("w", 5_000)
    driver.advance(29.0)
    assert (turn in driver.held, paused(driver)) == (True, [])
    driver.advance(6.0)
    assert (turn in driver.running, paused(driver)) == (True, ["idle"])


def test_lease_and_published_scores_let_each_in_once() -> None:
    """k, n and o are let in by the scores; w, of 9,000, needs the idle ones gone, and what was picked counts."""
    driver = driver_of(20_000, preset="paper", idle_lease_seconds="10")
    act(driver, ("i", 8_000), ("j", 9_000))
    driver.arrive("z", 2_500)
    for program, tokens in (("w", 9_000), ("k", 2_000), ("n", 3_000)):
        driver.arrive(program, tokens)
    driver.arrive(None, 1_000)
    driver.advance(60.0)
    assert (sorted(paused(driver)), len(driver.held)) == (["i", "j"], 0)
    driver.check_policy()


def test_program_with_turns_in_parallel_yields_at_its_last() -> None:
    """Its quantum is over with the first of two turns; it leaves when the second ends, and not mid-way."""
    driver = driver_of(10_000, quantum_turns="1")
    turns = [driver.arrive("p", 4_000, branch=branch) for branch in ("main", "sub")]
    waits = driver.arrive("q", 5_000)
    driver.finish(turns[0])
    assert (yielding(driver), paused(driver), waits in driver.held) == (["p"], [], True)
    driver.finish(turns[1])
    assert (paused(driver), waits in driver.running) == (["p"], True)


def test_nobody_else_yields_while_enough_are_leaving() -> None:
    """p, of 4,000, yields with the first of its two turns, and q, past its quantum too, keeps its place: w fits when
    p has left."""
    driver = driver_of(10_000, quantum_turns="1")
    turns = [driver.arrive("p", 2_000, branch=branch) for branch in ("main", "sub")]
    driver.arrive("q", 4_000)
    waits = driver.arrive("w", 3_500)
    driver.finish(turns[0])
    driver.finish(turn_of(driver, "q"))
    assert (yielding(driver), paused(driver)) == (["p"], [])
    driver.finish(turns[1])
    assert (paused(driver), waits in driver.running) == (["p"], True)


def test_program_whose_growth_sends_it_off_is_sent_off_once() -> None:
    """p's turn ends with 2,000 more than was thought, on a full cache: it is paused for that, and had its quantum."""
    driver = driver_of(10_000, quantum_turns="1")
    driver.arrive("q", 6_000)
    driver.arrive("p", 3_000)
    driver.arrive("w", 5_000)
    driver.finish(turn_of(driver, "p"), 3_000, 2_000)
    assert paused(driver) == ["p"]
    driver.check_policy()


def test_program_that_grows_while_it_yields_is_told_once() -> None:
    """The same for one that has another turn running: it yields once."""
    driver = driver_of(10_000, quantum_turns="1")
    driver.arrive("q", 6_000)
    turns = [driver.arrive("p", 1_500, branch=branch) for branch in ("main", "sub")]
    driver.arrive("w", 5_000)
    driver.finish(turns[0], 1_500, 2_000)
    assert (yielding(driver), paused(driver)) == (["p"], [])
    driver.check_policy()


def test_turn_that_failed_counts_for_no_quantum() -> None:
    """One that no backend took is not a turn served, and an error is one."""
    driver = driver_of(10_000, quantum_turns="2")
    driver.arrive("p", 8_000)
    driver.arrive("q", 8_000)
    driver.finish(turn_of(driver, "p"), outcome=Outcome.BACKEND_ERROR)
    assert driver.program("p").turns_served == 1
    assert paused(driver) == []


def test_quantum_begins_anew_with_each_admission() -> None:
    """p has had two turns, is paused and let in again: two more follow before it is q's turn."""
    driver = driver_of(10_000, quantum_turns="2")
    assert turns_of(driver, ["p", "q"], 8_000, 8) == "ppqqppqq"
    driver.close()
