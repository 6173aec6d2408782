"""``least-kv``: who waits behind whom."""

from __future__ import annotations

from simple_cases import A, B, driver_of, idle, places

from policies.least_kv import LeastKv
from thunderagent.core.events import BackendFailed, BackendRecovered
from thunderagent.testing import SchedulerDriver


def test_newcomer_that_fits_waits_behind_a_program_that_does_not() -> None:
    """4,000 of 10,000 are free: ``large`` waits with 5,000, and ``small`` behind it with 100."""
    driver = driver_of(LeastKv(), 10_000)
    running = driver.arrive("p", 6_000)
    large, small = driver.arrive("large", 5_000), driver.arrive("small", 100)
    assert places(driver, large, small) == ["held", "held"]
    driver.finish(running)
    driver.release("p")
    assert places(driver, large, small) == ["A", "A"]
    driver.check_policy()


def test_newcomer_waits_behind_others_on_another_backend_too() -> None:
    """``large`` fits on neither; B has 3,000 free and yet ``small`` waits behind it."""
    driver = driver_of(LeastKv(), 10_000, 8_000)
    driver.arrive("p", 8_000)
    driver.arrive("q", 5_000)
    assert places(driver, driver.arrive("large", 5_000), driver.arrive("small", 100)) == ["held", "held"]


def test_newcomer_of_another_model_waits_behind_nobody() -> None:
    """``large`` waits for A of ``one``; ``small`` of ``two`` goes to B."""
    driver = SchedulerDriver(LeastKv())
    driver.add("A", 10_000, ["one"])
    driver.add("B", 10_000, ["two"])
    driver.arrive("p", 6_000, model="one")
    large = driver.arrive("large", 5_000, model="one")
    assert places(driver, large, driver.arrive("small", 100, model="two")) == ["held", "B"]


def test_one_off_turn_passes_programs_but_not_another_that_waits() -> None:
    """Beside 6,000 of 10,000, 100 pass a program of 5,000; behind a one-off turn of 4,500, 100 more wait."""
    driver = driver_of(LeastKv(), 10_000)
    running = driver.arrive("p", 6_000)
    turns = [driver.arrive("large", 5_000), driver.arrive(None, 100), driver.arrive(None, 4_500)]
    turns.append(driver.arrive(None, 100))
    assert places(driver, *turns) == ["held", "A", "held", "held"]
    driver.abandon(turns[2])
    driver.finish(running, 6_000)
    assert places(driver, turns[3]) == ["A"]


def test_placed_program_passes_those_that_wait_for_a_place() -> None:
    """Its growth of 500 goes on while ``large`` waits, and a move frees as much as it takes."""
    driver = driver_of(LeastKv(), 10_000)
    idle(driver, "p", 1_000)
    driver.arrive("q", 6_000)
    assert places(driver, driver.arrive("large", 5_000), driver.arrive("p", 1_500)) == ["held", "A"]


def test_head_of_the_line_does_not_hold_itself_back() -> None:
    """Three of 4,000 wait behind each other; as 9,000 come free two go, in their order."""
    driver = driver_of(LeastKv(), 10_000)
    running = driver.arrive("p", 9_000)
    turns = [driver.arrive(f"q{index}", 4_000, after=1.0) for index in range(3)]
    driver.finish(running)
    driver.release("p")
    assert places(driver, *turns) == ["A", "A", "held"]
    driver.check_policy()


def test_second_turn_of_the_first_waiter_is_not_late() -> None:
    """``q`` waits with 5,000 while 6,000 of 10,000 run; its second turn waits with it, and both go together."""
    driver = driver_of(LeastKv(), 10_000)
    running = driver.arrive("p", 6_000)
    turns = [driver.arrive("q", 5_000), driver.arrive("q", 1_000, branch="sub")]
    driver.finish(running)
    driver.release("p")
    assert places(driver, *turns) == ["A", "A"]


def test_turn_sent_again_keeps_its_age() -> None:
    """The first of two gives up after 10 s and comes again: it is in front of the other, which waits since 5 s."""
    driver = driver_of(LeastKv(), 10_000)
    running = driver.arrive("p", 9_000)
    first = driver.arrive("first", 8_000)
    arrived = driver.held[first]
    second = driver.arrive("second", 8_000, after=5.0)
    driver.abandon(first, after=5.0)
    again = driver.arrive_again(arrived, after=1.0)
    driver.finish(running)
    driver.release("p")
    assert places(driver, again, second) == ["A", "held"]


def test_turn_sent_again_does_not_pass_one_of_its_age() -> None:
    """``large`` and ``small`` came in the same instant; ``small``, which would fit, gives up and comes again."""
    driver = driver_of(LeastKv(), 10_000)
    driver.arrive("p", 6_000)
    large, small = driver.arrive("large", 5_000), driver.arrive("small", 100)
    arrived = driver.held[small]
    driver.abandon(small)
    assert places(driver, large, driver.arrive_again(arrived)) == ["held", "held"]


def test_those_behind_go_on_when_the_first_leaves() -> None:
    """``large`` gives up; ``small``, which fits all along, goes at once although no account changed."""
    driver = driver_of(LeastKv(), 10_000)
    driver.arrive("p", 6_000)
    large, small = driver.arrive("large", 5_000), driver.arrive("small", 100)
    driver.abandon(large)
    assert places(driver, small) == ["A"]


def test_waiter_without_a_backend_blocks_nobody() -> None:
    """The oldest waits for another model's backend; idle programs still make room for the next."""
    driver = SchedulerDriver(LeastKv())
    driver.add("A", 10_000, ["m"])
    driver.add("B", 10_000, ["n"])
    idle(driver, "p", 8_000, "m")
    driver.send(BackendFailed(B, "gone"))
    dead = driver.arrive("q", model="n")
    assert places(driver, dead, driver.arrive("r", 8_000, model="m")) == ["held", "A"]


def test_backend_that_comes_takes_those_who_wait_in_their_order() -> None:
    """Three of 6,000 wait for anybody; A of 10,000 takes the first, B the second."""
    driver = SchedulerDriver(LeastKv())
    turns = [driver.arrive(f"p{index}", 6_000) for index in range(3)]
    driver.add("A", 10_000)
    assert places(driver, *turns) == ["A", "held", "held"]
    driver.add("B", 10_000)
    assert places(driver, *turns) == ["A", "B", "held"]
    driver.finish(turns[0])
    driver.send(BackendFailed(A, "gone"))
    driver.send(BackendRecovered(A))
    assert places(driver, turns[2]) == ["A"]
    driver.check_policy()


def test_other_model_of_a_waiting_program_does_not_wait_for_the_first() -> None:
    """``p`` waits for A of ``one``, which is full; its turn of ``two`` has its place on the empty B."""
    driver = SchedulerDriver(LeastKv())
    driver.add("A", 10_000, ["one"])
    driver.add("B", 10_000, ["two"])
    running = driver.arrive("x", 9_000, model="one")
    first = driver.arrive("p", 5_000, model="one")
    second = driver.arrive("p", 1_000, model="two", branch="sub")
    assert places(driver, first, second) == ["held", "B"]
    driver.finish(running)
    driver.release("x")
    assert places(driver, first) == ["A"]
    assert driver.program("p").place is driver.backend(B)
    driver.check_policy()


def test_second_turn_of_a_program_behind_others_waits_with_the_first() -> None:
    """``q`` is second in the line with 5,000; its turn of 100 would fit, but is no way past ``large``."""
    driver = driver_of(LeastKv(), 10_000)
    driver.arrive("p", 6_000)
    turns = [driver.arrive("large", 8_000), driver.arrive("q", 5_000), driver.arrive("q", 100, branch="sub")]
    assert places(driver, *turns) == ["held", "held", "held"]
