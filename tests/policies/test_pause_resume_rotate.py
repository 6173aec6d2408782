"""``pause-resume``: places that programs give up for those that wait, at the end of a lease or a quantum."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from pause_resume_cases import A, B, act, driver_of, paused, resize, turn_of, yielding

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
    """w, of 9,000, needs both programs of a backend gone. The first that ends a turn is a1: from then on A makes room
    for w, and b1 and b2 on B keep their places."""
    driver = driver_of(10_000, 10_000, quantum_turns="1")
    for program in ("a1", "b1", "a2", "b2"):
        driver.arrive(program, 4_000)
    turn = driver.arrive("w", 9_000)
    for program in ("a1", "b1", "b2"):
        driver.finish(turn_of(driver, program), after=1.0)
    assert (paused(driver), turn in driver.held) == (["a1"], True)
    driver.finish(turn_of(driver, "a2"), after=1.0)
    assert (paused(driver), driver.where[turn]) == (["a1", "a2"], A)


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
