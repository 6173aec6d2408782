"""``least-kv``: programs that outgrew their place and wait there, or move."""

from __future__ import annotations

from simple_cases import A, B, driver_of, idle, paused, places

from policies.least_kv import LeastKv
from thunderagent.core.commands import PauseReason, ProgramMoved, ProgramPaused
from thunderagent.core.settings import SchedulerSettings
from thunderagent.policy import ProgramId, Status
from thunderagent.testing import SchedulerDriver


def test_growth_waits_at_its_place_and_goes_when_it_fits() -> None:
    """``p`` of 2,000 grows by 3,000 beside 7,000 of 10,000: it goes on when ``q`` turns out to hold 4,000 only."""
    driver = driver_of(LeastKv(), 10_000)
    idle(driver, "p", 2_000)
    running = driver.arrive("q", 7_000)
    turn = driver.arrive("p", 5_000)
    assert places(driver, turn) == ["held"]
    driver.finish(running, 4_000)
    assert places(driver, turn) == ["A"]
    assert paused(driver) == []


def test_growth_that_waits_on_one_backend_does_not_stop_another() -> None:
    """``p`` waits on A since longer; ``q`` goes on when B has room, though it stands behind in the line."""
    driver = driver_of(LeastKv(), 10_000, 9_000)
    idle(driver, "p", 2_000)
    idle(driver, "q", 2_000)
    on_a, on_b = driver.arrive("x", 7_000), driver.arrive("y", 6_500)
    assert places(driver, on_a, on_b) == ["A", "B"]
    first, second = driver.arrive("p", 6_000), driver.arrive("q", 5_000)
    assert places(driver, first, second) == ["held", "held"]
    driver.finish(on_b, 3_000)
    assert places(driver, first, second) == ["held", "B"]
    driver.check_policy()


def test_all_growth_that_fits_goes_on_at_once() -> None:
    """Three wait with 1,500 more each; 5,000 come free, and all three go."""
    driver = driver_of(LeastKv(), 10_000)
    for name in ("p", "q", "r"):
        idle(driver, name, 1_000)
    running = driver.arrive("x", 6_000)
    turns = [driver.arrive(name, 2_500) for name in ("p", "q", "r")]
    assert places(driver, *turns) == ["held", "held", "held"]
    driver.finish(running, 1_000)
    assert places(driver, *turns) == ["A", "A", "A"]
    driver.check_policy()


def test_programs_that_grow_against_each_other_do_not_lock() -> None:
    """Both fill the cache, and neither runs: ``q``, which is idle, is paused, and ``p`` goes on."""
    driver = driver_of(LeastKv.from_options({"growth_reserve": "0"}), 10_000)
    first, second = driver.arrive("p", 5_000), driver.arrive("q", 5_000)
    driver.finish(first, 5_000)
    held = driver.arrive("p", 6_000)
    assert places(driver, held) == ["held"]
    driver.finish(second, 5_000)
    assert places(driver, held) == ["A"]
    assert driver.told(ProgramPaused) == [ProgramPaused(ProgramId("q"), A, PauseReason.POLICY)]


def test_of_those_who_all_wait_to_grow_the_last_is_paused() -> None:
    """``p``, ``q`` and ``r`` hold 3,000 of 10,000 and want 4,500: as ``x`` ends ``r`` leaves, and two go on."""
    driver = driver_of(LeastKv(), 10_000)
    for name in ("p", "q", "r"):
        idle(driver, name, 3_000)
    running = driver.arrive(None, 500)
    turns = [driver.arrive(name, 4_500, after=1.0) for name in ("p", "q", "r")]
    assert places(driver, *turns) == ["held", "held", "held"]
    driver.finish(running)
    assert (places(driver, turns[0]), paused(driver)) == (["A"], ["r"])
    driver.advance(1.0)
    assert places(driver, *turns) == ["A", "A", "held"]
    driver.check_policy()


def test_newcomer_does_not_take_the_room_that_growth_waits_for() -> None:
    """``p`` needs 3,000 more on A, where 2,500 are free: ``new`` of 500 goes to B, and with 3,000 it waits."""
    driver = driver_of(LeastKv(), 10_000, 2_000)
    idle(driver, "p", 2_500)
    running = driver.arrive("q", 5_000)
    turn = driver.arrive("p", 5_500)
    new, one_off, large = driver.arrive("new", 500), driver.arrive(None, 900), driver.arrive("large", 3_000)
    assert places(driver, turn, new, one_off, large) == ["held", "B", "B", "held"]
    driver.finish(running, 3_000)
    assert places(driver, turn) == ["A"]
    driver.check_policy()


def test_newcomer_goes_where_growth_waits_no_more() -> None:
    """The client of ``p`` gives up: ``large``, which waited behind its growth on A, goes there at once."""
    driver = driver_of(LeastKv(), 10_000)
    idle(driver, "p", 2_500)
    driver.arrive("q", 4_000)
    turn = driver.arrive("p", 6_500)
    large = driver.arrive("large", 3_000)
    assert places(driver, turn, large) == ["held", "held"]
    driver.abandon(turn)
    assert places(driver, large) == ["A"]


def test_program_that_can_move_passes_one_that_waits_to_grow() -> None:
    """``u`` needs 6,000 whole and waits on A; ``p`` of 2,500 fits on B with 3,000 free, and moves there."""
    driver = driver_of(LeastKv(), 10_000, 9_000)
    idle(driver, "u", 2_000)
    on_b = driver.arrive("y", 6_000)
    idle(driver, "p", 1_500)
    on_a = driver.arrive("x", 6_000)
    assert places(driver, on_b, on_a) == ["B", "A"]
    first, second = driver.arrive("u", 6_000), driver.arrive("p", 2_500)
    assert places(driver, first, second) == ["held", "B"]
    assert driver.told(ProgramMoved) == [ProgramMoved(ProgramId("p"), A, B)]


def test_growth_that_fits_only_alone_waits_for_the_one_before() -> None:
    """6,000 come free: ``p`` takes 2,000, and ``q``, which needs 5,000, neither overcommits nor displaces it."""
    driver = driver_of(LeastKv(), 10_000)
    idle(driver, "p", 2_000)
    idle(driver, "q", 2_000)
    running = driver.arrive(None, 5_000)
    first, second = driver.arrive("p", 4_000), driver.arrive("q", 7_000)
    assert places(driver, first, second) == ["held", "held"]
    driver.finish(running)
    assert places(driver, first, second) == ["A", "held"]
    assert (driver.accounted(), paused(driver)) == ({"A": 6_000}, [])
    driver.check_policy()


def test_growth_that_goes_on_is_not_displaced_for_a_newcomer() -> None:
    """Nothing runs any more: ``p`` grows by 4,000 into 7,000, and ``large`` of 9,500 waits on."""
    driver = driver_of(LeastKv(), 10_000)
    idle(driver, "p", 2_000)
    idle(driver, "r", 1_000)
    running = driver.arrive(None, 5_000)
    turns = [driver.arrive("p", 6_000), driver.arrive("large", 9_500)]
    assert places(driver, *turns) == ["held", "held"]
    driver.finish(running)
    assert (places(driver, *turns), paused(driver)) == (["A", "held"], [])
    driver.check_policy()


def test_program_that_waits_to_grow_again_stands_behind_those_that_waited_meanwhile() -> None:
    """``p`` had its turn and wants 3,000 more: they go to ``q``, which needs 5,000 and waited longer."""
    driver = driver_of(LeastKv(), 10_000)
    idle(driver, "p", 2_000)
    idle(driver, "q", 2_000)
    runs_long, ends = driver.arrive(None, 1_000), driver.arrive(None, 3_500)
    first, second = driver.arrive("p", 5_000), driver.arrive("q", 7_000, after=0.1)
    driver.finish(ends)
    assert places(driver, first, second) == ["A", "held"]
    driver.finish(first, 5_000)
    again = driver.arrive("p", 8_000, after=0.1)
    assert places(driver, second, again) == ["held", "held"]
    driver.finish(runs_long)
    assert places(driver, second, again) == ["A", "held"]
    assert paused(driver) == ["p"]
    driver.check_policy()


def test_growth_of_a_yielding_program_waits_for_its_boundary() -> None:
    """``p`` yields for ``large``, which gives up: its second turn has room, but waits until the first has ended."""
    driver = SchedulerDriver(LeastKv(), SchedulerSettings(max_hold_seconds=20.0))
    driver.add("A", 10_000)
    running, one_off = driver.arrive("p", 3_000), driver.arrive(None, 5_000)
    large = driver.arrive("large", 8_000, after=0.5)
    growth = driver.arrive("p", 3_000, branch="sub", after=9.9)
    driver.advance(10.2)
    assert driver.program("p").status is Status.YIELDING
    driver.abandon(large)
    driver.finish(one_off)
    assert places(driver, running, growth) == ["A", "held"]
    driver.finish(running, 3_000)
    assert places(driver, growth) == ["A"]
    driver.check_policy()
