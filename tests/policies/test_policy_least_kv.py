"""``least-kv``: where a turn goes, by free tokens, and what is kept free."""

from __future__ import annotations

import pytest
from simple_cases import A, B, driver_of, places

from policies.least_kv import LeastKv
from thunderagent.core.commands import HoldReason, ProgramMoved, TurnHeld
from thunderagent.core.events import Prefix
from thunderagent.policy import OptionError, PrefixKey, ProgramId
from thunderagent.testing import SchedulerDriver


def least_kv(**options: object) -> LeastKv:
    """With these options, as an operator writes them."""
    return LeastKv.from_options({name: str(value) for name, value in options.items()})


# A new place


def test_roomiest_that_fits_takes_a_newcomer() -> None:
    """Free tokens decide, not the share that is taken: A has 10,000 and 5,000 free, then 500; B has 4,000."""
    driver = driver_of(LeastKv(), 10_000, 4_000)
    turns = [driver.arrive("p", 5_000), driver.arrive("q", 4_500), driver.arrive("r", 1_000)]
    assert places(driver, *turns) == ["A", "A", "B"]


def test_unknown_capacity_counts_as_the_roomiest() -> None:
    """Not knowing is no reason to stay away: 50,000 tokens and the next turn go to B."""
    driver = driver_of(LeastKv(), 10_000, None)
    assert places(driver, driver.arrive("p", 50_000), driver.arrive("q")) == ["B", "B"]


@pytest.mark.parametrize("program", ["q", None])
@pytest.mark.parametrize(("tokens", "place"), [(3_500, "A"), (3_501, "held")])
def test_newcomer_leaves_the_reserve_free(program: str | None, tokens: int, place: str) -> None:
    """6,000 of 10,000 are taken and 500 (5 %) reserved: a program or one-off turn of 3,500 fits, of 3,501 not."""
    driver = driver_of(LeastKv(), 10_000)
    driver.arrive("p", 6_000)
    assert places(driver, driver.arrive(program, tokens)) == [place]


def test_reserve_is_an_option() -> None:
    """A fifth of 10,000: beside 6,000 there is room for 2,000, and without a reserve for 4,000."""
    fifth, nothing = driver_of(least_kv(growth_reserve=0.2), 10_000), driver_of(least_kv(growth_reserve=0), 10_000)
    for driver in (fifth, nothing):
        driver.arrive("p", 6_000)
    assert places(fifth, fifth.arrive("q", 2_001), fifth.arrive(None, 2_000)) == ["held", "A"]
    assert places(nothing, nothing.arrive("q", 4_000)) == ["A"]


def test_empty_backend_keeps_no_reserve() -> None:
    """Nothing is gained by waiting: a program of 10,000 goes to an empty backend of 10,000."""
    driver = driver_of(LeastKv(), 10_000)
    assert places(driver, driver.arrive("p", 10_000)) == ["A"]


def test_reserve_is_each_backends_own_share() -> None:
    """5,000 free on both: of 100,000 all of them are reserved (5 %), of 10,000 500; 4,000 fit on B only."""
    driver = driver_of(LeastKv(), 100_000, 10_000)
    first = driver.arrive("p", 95_000)
    second = driver.arrive("q", 5_000)
    assert places(driver, first, second, driver.arrive("r", 4_000)) == ["A", "B", "B"]


def test_backend_that_could_never_hold_a_turn_is_left_out() -> None:
    """Empty, but of 2,000: a turn of 4,000 waits for the larger one, which is taken by 8,000 of 10,000."""
    driver = driver_of(LeastKv(), 10_000, 2_000)
    running = driver.arrive("p", 8_000)
    turn = driver.arrive("q", 4_000)
    assert places(driver, turn) == ["held"]
    driver.finish(running)
    driver.release("p")
    assert places(driver, turn) == ["A"]


def test_shared_beginning_that_is_there_needs_no_room() -> None:
    """Four programs of 7,000 with 6,000 in common: 8,000 tokens for two on A (10,000), 9,000 for three."""
    prefix = [Prefix(PrefixKey("system"), 4 * 6_000)]
    driver = driver_of(LeastKv(), 10_000, 9_000)
    turns = [driver.arrive(name, 7_000, prefixes=prefix) for name in ("p", "q", "r", "s")]
    assert places(driver, *turns) == ["A", "B", "A", "A"]
    assert driver.accounted() == {"A": 9_000, "B": 7_000}


def test_only_backends_of_the_model_are_looked_at() -> None:
    """B is empty but serves ``two``: 5,000 of ``one`` wait for A, which has 4,000 free."""
    driver = SchedulerDriver(LeastKv())
    driver.add("A", 10_000, ["one"])
    driver.add("B", 10_000, ["two"])
    first = driver.arrive("p", 6_000, model="one")
    second, other = driver.arrive("q", 5_000, model="one"), driver.arrive("r", 5_000, model="two")
    assert places(driver, first, second, other) == ["A", "held", "B"]


# At its place


def test_program_stays_while_its_growth_fits() -> None:
    """5,000 grow to 9,900 of 10,000: into the reserve, and no roomier backend lures it away from its cache."""
    driver = driver_of(LeastKv(), 10_000, 9_000)
    driver.finish(driver.arrive("p", 5_000))
    assert places(driver, driver.arrive("p", 9_900)) == ["A"]
    assert driver.told(ProgramMoved) == []


def test_program_moves_where_it_fits_whole() -> None:
    """Growth of 2,000 does not fit beside 7,000 on A (8,500), but 3,000 and the reserve of 400 do on B (8,000)."""
    driver = driver_of(LeastKv(), 8_500, 8_000)
    driver.finish(driver.arrive("p", 1_000))
    large = driver.arrive("q", 7_000)
    small = driver.arrive("r", 4_000)
    assert places(driver, large, small) == ["B", "A"]
    turn = driver.arrive("p", 5_000)
    assert places(driver, turn) == ["held"]
    driver.finish(large)
    driver.release("q")
    assert places(driver, turn) == ["B"]
    assert driver.told(ProgramMoved) == [ProgramMoved(ProgramId("p"), A, B)]


@pytest.mark.parametrize(("tokens", "place"), [(4_500, "B"), (4_501, "held")])
def test_move_leaves_the_reserve_free_as_well(tokens: int, place: str) -> None:
    """B has 5,000 of 10,000 free and keeps 500: a program that outgrew A moves with 4,500 tokens, not with 4,501."""
    driver = driver_of(LeastKv(), 10_100, 10_000)
    driver.finish(driver.arrive("p", 1_000))
    b = driver.arrive("q", 5_000)
    a = driver.arrive("r", 8_000)
    assert places(driver, b, a) == ["B", "A"]
    assert places(driver, driver.arrive("p", tokens)) == [place]


def test_program_alone_at_its_place_gains_nothing_by_waiting() -> None:
    """Two conversations of 6,000 and 3,000; the second grows to 5,000 of 10,000, and would wait for itself."""
    driver = driver_of(LeastKv(), 10_000)
    driver.finish(driver.arrive("p", 6_000), 6_000)
    driver.finish(driver.arrive("p", 3_000, branch="sub"), 3_000)
    assert places(driver, driver.arrive("p", 5_000, branch="sub")) == ["A"]
    driver.close()


# Overflow


def test_overflow_never_holds() -> None:
    """What fits nowhere goes to the roomiest: four programs of 7,000 on 10,000 and 8,000 tokens, two on each."""
    driver = driver_of(least_kv(overflow=True), 10_000, 8_000)
    turns = [driver.arrive(f"p{index}", 7_000) for index in range(4)]
    assert places(driver, *turns) == ["A", "B", "A", "B"]
    assert driver.told(TurnHeld) == []


def test_overflow_leaves_a_placed_program_where_it_overcommits_least() -> None:
    """A lacks 900 for its growth of 1,000; B, roomier by 1,900, would lack 2,000 for the whole of 4,000."""
    driver = driver_of(least_kv(overflow=True), 10_000, 9_000)
    driver.finish(driver.arrive("p", 3_000), 3_000)
    second, third = driver.arrive("q", 7_000), driver.arrive("r", 6_900)
    assert places(driver, second, third) == ["B", "A"]
    assert places(driver, driver.arrive("p", 4_000)) == ["A"]
    assert driver.told(ProgramMoved) == []


# Told


def test_hold_is_told_as_the_policys() -> None:
    """6,000 of 10,000 are taken: 5,000 wait, for 1,800 s at most."""
    driver = driver_of(LeastKv(), 10_000)
    driver.arrive(None, 6_000)
    turn = driver.arrive("p", 5_000)
    assert driver.told(TurnHeld) == [TurnHeld(turn, ProgramId("p"), HoldReason.POLICY, 1800.0)]


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overflow": "maybe"}, "policy 'least-kv': option overflow must be true or false, got 'maybe'"),
        (
            {"overflows": "true"},
            "policy 'least-kv' has no option 'overflows'; it has: growth_reserve, idle_lease_seconds, overflow",
        ),
        ({"growth_reserve": "5"}, "policy 'least-kv': option growth_reserve must be below 1, got '5'"),
        (
            {"idle_lease_seconds": "-1"},
            "policy 'least-kv': option idle_lease_seconds must be a finite number of at least 0, got '-1'",
        ),
    ],
)
def test_option_that_cannot_be_used_is_refused(options: dict[str, str], message: str) -> None:
    """In words for the operator."""
    with pytest.raises(OptionError) as caught:
        LeastKv.from_options(options)
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["true", "True", "1", "yes", "on"])
def test_truth_has_many_names(text: str) -> None:
    """And so has its opposite."""
    driver = driver_of(LeastKv.from_options({"overflow": text}), 100)
    driver.arrive("p", 90)
    assert places(driver, driver.arrive("q", 90)) == ["A"]
