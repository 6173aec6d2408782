"""``pause-resume``: who of those that wait is let in first."""

from __future__ import annotations

import pytest
from pause_resume_cases import act, admitted, driver_of, end, forwarded, paper, park, resize

from thunderagent.testing import SchedulerDriver


def let_in_order(driver: SchedulerDriver, *waiters: tuple[str, int, float]) -> list[str]:
    """The order in which waiters (program, tokens, seconds after the one before) are let in once there is room for
    all."""
    for program, tokens, after in waiters:
        driver.arrive(program, tokens, after=after)
    before = len(admitted(driver))
    resize(driver, 50_000)
    driver.advance(5.0)
    return [program for program, _ in admitted(driver)[before:]]


def full(**options: str) -> SchedulerDriver:
    """z of 5,000 fills A and runs on."""
    driver = driver_of(5_200, **options)
    driver.arrive("z", 5_000)
    return driver


LARGE_MID_SMALL = (("large", 4_000, 1.0), ("small", 500, 1.0), ("mid", 1_000, 1.0))


@pytest.mark.parametrize(
    ("resume_order", "expected"),
    [
        ("oldest", ["large", "small", "mid"]),
        ("first-come", ["large", "small", "mid"]),
        ("smallest", ["small", "mid", "large"]),
    ],
)
def test_newcomers_are_let_in_by_age_or_by_size(resume_order: str, expected: list[str]) -> None:
    """4,000, then 500, then 1,000 come, a second apart."""
    assert let_in_order(full(resume_order=resume_order), *LARGE_MID_SMALL) == expected


def test_published_order_is_smallest_first_but_places_the_largest_first() -> None:
    """Picked by size, and since all fit, told from the largest down."""
    driver = paper(5_200)
    driver.arrive("z", 5_000)
    assert let_in_order(driver, *LARGE_MID_SMALL) == ["large", "mid", "small"]


@pytest.mark.parametrize(
    ("resume_order", "expected"),
    [
        ("oldest", ["q", "n", "p"]),
        ("first-come", ["p", "q", "n"]),
        ("smallest", ["q", "p", "n"]),
    ],
)
def test_program_that_comes_back_is_let_in_by_its_wait_its_age_or_its_size(
    resume_order: str, expected: list[str]
) -> None:
    """p of 1,000 and q of 500, paused before, ask at 3 s and 1 s, the newcomer n of 2,000 at 2 s. The oldest wait is
    q's, the oldest program p."""
    driver = driver_of(50_000, resume_order=resume_order)
    park(driver, ("p", 1_000), ("q", 500))
    assert let_in_order(driver, ("q", 500, 1.0), ("n", 2_000, 1.0), ("p", 1_000, 1.0)) == expected


def test_waiter_that_does_not_fit_bars_the_younger() -> None:
    """2,500 of room: q, of 600, goes; n of 2,100 does not, and p of 1,100 does not overtake it."""
    driver = driver_of(50_000)
    park(driver, ("p", 1_000), ("q", 500))
    for program, tokens in (("q", 500), ("n", 2_000), ("p", 1_000)):
        driver.arrive(program, tokens, after=1.0)
    before = len(admitted(driver))
    resize(driver, 5_100 + 2_500)
    assert [program for program, _ in admitted(driver)[before:]] == ["q"]


def test_older_program_that_comes_back_bars_the_younger_under_first_come() -> None:
    """q waits for 600. Then p, of 3,000, asks again: it is first now, and 700 of room help neither; 3,100 do help p.
    By age of the wait, 700 let q in."""
    for resume_order, let_in in (("first-come", []), ("oldest", ["q"])):
        driver = driver_of(50_000, resume_order=resume_order)
        park(driver, ("p", 3_000))
        driver.arrive("q", 500, after=1.0)
        driver.arrive("p", 3_000, after=1.0)
        before = len(admitted(driver))
        resize(driver, 5_100 + 700)
        assert [program for program, _ in admitted(driver)[before:]] == let_in
        resize(driver, 5_100 + 700 + 2_400 * (resume_order == "first-come"))
        assert [program for program, _ in admitted(driver)[before:]] == (let_in or ["p"])


def test_smallest_lets_a_small_newcomer_pass_a_large_waiter_at_once() -> None:
    """2,000 are free: large, of 4,000, waits, and 500 go straight in; with ``oldest`` they wait behind it."""
    for resume_order, is_held in (("smallest", False), ("oldest", True)):
        driver = driver_of(7_300, resume_order=resume_order)
        driver.arrive("z", 5_000)
        large = driver.arrive("large", 4_000)
        assert large in driver.held
        assert (driver.arrive("small", 500, after=1.0) in driver.held) is is_held


def test_large_one_that_waited_long_passes_small_newcomers() -> None:
    """4,000 are 500 x 2^3: with ``ageing_seconds`` of 10, newcomers of 500 rank behind the large one after 30 s."""
    driver = full(resume_order="smallest", ageing_seconds="10")
    waiters = (("large", 4_000, 0.0), ("at 29 s", 500, 29.0), ("at 31 s", 500, 2.0))
    assert let_in_order(driver, *waiters) == ["at 29 s", "large", "at 31 s"]


def test_large_one_passes_nobody_without_ageing() -> None:
    """However long it has waited."""
    driver = full(resume_order="smallest")
    waiters = (("large", 4_000, 0.0), ("at 29 s", 500, 29.0), ("at 900 s", 500, 871.0))
    assert let_in_order(driver, *waiters) == ["at 29 s", "at 900 s", "large"]


def test_large_one_is_served_in_spite_of_small_ones_that_keep_coming() -> None:
    """Each second a newcomer of 2,000 takes the room of the one before. 4,000 are 2 x 2,000: with ageing of 10 s the
    large one ranks before the newcomer at 10 s; without, it never does."""
    for ageing_seconds, served_at in (("10", 10.0), ("0", None)):
        driver = driver_of(4_100, resume_order="smallest", ageing_seconds=ageing_seconds)
        driver.arrive("small0", 2_000)
        large = driver.arrive("large", 4_000)
        found_at = None
        for index in range(1, 60):
            driver.arrive(f"small{index}", 2_000, after=1.0)
            end(driver, f"small{index - 1}")
            if large in driver.running:
                found_at = driver.now
                break
        assert found_at == served_at
        driver.close()


def test_one_off_turns_are_let_in_by_age_in_any_order_of_programs() -> None:
    """They stand in a line of their own: 3,000 before 500."""
    driver = full(resume_order="smallest", guest_ratio="0")
    turns = [driver.arrive(None, 3_000, after=1.0), driver.arrive(None, 500, after=1.0)]
    resize(driver, 50_000)
    assert forwarded(driver)[1:] == turns


@pytest.mark.parametrize("resume_order", ["oldest", "smallest", "published"])
def test_one_off_turn_does_not_pass_an_older_one(resume_order: str) -> None:
    """2,000 are free beside z: 3,000 wait, and 500 wait behind them, until z is gone."""
    driver = driver_of(7_300, resume_order=resume_order, guest_ratio="0")
    driver.arrive("z", 5_000)
    turns = [driver.arrive(None, 3_000), driver.arrive(None, 500, after=1.0)]
    assert sorted(driver.held) == turns
    end(driver, "z")
    assert forwarded(driver)[1:] == turns


def test_one_off_turn_does_not_pass_a_turn_that_waits_beside_its_programs_place() -> None:
    """Such turns stand in the same line: s of 4,000, for n, has no room beside z on B, and 500 wait behind it."""
    driver = driver_of(guest_ratio="0")
    driver.add("A", 10_000, ["m"])
    driver.add("B", 7_300, ["n"])
    driver.arrive("p", 1_000, model="m")
    driver.arrive("z", 5_000, model="n")
    turns = [driver.arrive("p", 4_000, model="n", branch="s"), driver.arrive(None, 500, model="n", after=1.0)]
    assert sorted(driver.held) == turns
    end(driver, "z")
    assert forwarded(driver)[2:] == turns


def test_waiter_that_fits_nowhere_is_looked_at_when_room_comes_anywhere() -> None:
    """p, of 6,000, is held by two full backends, and goes to the one that its program leaves."""
    driver = driver_of(10_000, 10_000)
    act(driver, ("a", 9_000), ("b", 9_000))
    turn = driver.arrive("p", 6_000)
    assert turn in driver.held
    driver.release("b")
    assert driver.where == {turn: "B"}
