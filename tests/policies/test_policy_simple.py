"""``round-robin``, ``affinity`` and ``least-kv``, each by its rule."""

from __future__ import annotations

import pytest

from policies.affinity import Affinity
from policies.least_kv import LeastKv
from policies.round_robin import RoundRobin
from thunderagent.core.commands import HoldReason, PauseReason, ProgramMoved, ProgramPaused, TurnHeld
from thunderagent.core.events import BackendFailed, BackendRecovered
from thunderagent.policy import BackendId, OptionError, Policy, ProgramId
from thunderagent.testing import SchedulerDriver

A, B = BackendId("A"), BackendId("B")


def driver_of(policy: Policy, *capacities: int | None) -> SchedulerDriver:
    """Backends A, B, ... of these capacities."""
    driver = SchedulerDriver(policy)
    for name, capacity_tokens in zip("ABC", capacities, strict=False):
        driver.add(name, capacity_tokens)
    return driver


def places(driver: SchedulerDriver, *turns: int) -> list[str]:
    """Where turns run; "held" for those that wait."""
    return [driver.where.get(turn, "held") for turn in turns]


# round-robin


def test_round_robin_takes_the_backends_in_turn() -> None:
    """Turn by turn, whatever the program and the load."""
    driver = driver_of(RoundRobin(), 1_000, 1_000, 1_000)
    turns = [driver.arrive("p", 5_000) for _ in range(4)] + [driver.arrive(None), driver.arrive("q")]
    assert places(driver, *turns) == ["A", "B", "C", "A", "B", "C"]
    assert driver.told(TurnHeld) == []


def test_round_robin_leaves_out_a_lost_backend() -> None:
    """The others take its turns."""
    driver = driver_of(RoundRobin(), None, None, None)
    driver.send(BackendFailed(B, "gone"))
    assert set(places(driver, *[driver.arrive("p") for _ in range(6)])) == {"A", "C"}


# affinity


def test_affinity_keeps_a_program_where_it_is() -> None:
    """However full that is; new ones go where the fewest tokens are accounted."""
    driver = driver_of(Affinity(), 1_000, 100_000)
    first = driver.arrive("p", 900)
    second = driver.arrive("q", 500)
    again = [driver.arrive("p", 3_000) for _ in range(3)]
    assert places(driver, first, second, *again) == ["A", "B", "A", "A", "A"]
    assert places(driver, driver.arrive("r"), driver.arrive(None)) == ["B", "B"]


def test_affinity_moves_on_when_the_backend_is_lost() -> None:
    """And does not come back when that recovers."""
    driver = driver_of(Affinity(), None, None)
    driver.finish(driver.arrive("p"))
    driver.send(BackendFailed(A, "gone"))
    driver.finish(driver.arrive("p"))
    driver.send(BackendRecovered(A))
    assert places(driver, driver.arrive("p")) == ["B"]


def test_affinity_spreads_equal_programs_by_turns() -> None:
    """Where the tokens are equal, the backend with the fewest turns."""
    driver = driver_of(Affinity(), None, None)
    assert places(driver, *[driver.arrive(f"p{index}") for index in range(4)]) == ["A", "B", "A", "B"]


# least-kv


def test_least_kv_takes_the_roomiest_that_fits() -> None:
    """Free tokens decide, not the share that is taken."""
    driver = driver_of(LeastKv(), 10_000, 4_000)
    turns = [driver.arrive("p", 5_000), driver.arrive("q", 4_500), driver.arrive("r", 1_000)]
    assert places(driver, *turns) == ["A", "A", "B"]


def test_least_kv_prefers_unknown_capacity() -> None:
    """Not knowing is no reason to stay away."""
    driver = driver_of(LeastKv(), 10_000, None)
    assert places(driver, driver.arrive("p", 50_000), driver.arrive("q")) == ["B", "B"]


def test_least_kv_stays_while_its_growth_fits() -> None:
    """A roomier backend does not lure a program away from its cache."""
    driver = driver_of(LeastKv(), 10_000, 9_000)
    driver.finish(driver.arrive("p", 5_000))
    assert places(driver, driver.arrive("p", 9_900)) == ["A"]
    assert driver.told(ProgramMoved) == []


def test_least_kv_moves_where_the_whole_program_fits() -> None:
    """Its growth does not fit any more, but elsewhere all of it does."""
    driver = driver_of(LeastKv(), 10_000, 9_000)
    driver.finish(driver.arrive("p", 4_000))
    driver.arrive("q", 3_000)
    driver.arrive("r", 5_900)
    turn = driver.arrive("p", 5_000)
    assert places(driver, turn) == ["B"]
    assert driver.told(ProgramMoved) == [ProgramMoved(ProgramId("p"), A, B)]


def test_least_kv_holds_what_fits_nowhere_until_it_does() -> None:
    """The end of a one-off turn makes the room."""
    driver = driver_of(LeastKv(), 10_000)
    running = driver.arrive(None, 6_000)
    turn = driver.arrive("p", 5_000)
    assert driver.told(TurnHeld) == [TurnHeld(turn, ProgramId("p"), HoldReason.POLICY, 1800.0)]
    driver.finish(running)
    assert places(driver, turn) == ["A"]


def test_least_kv_overflow_never_holds() -> None:
    """What fits nowhere goes to the roomiest."""
    driver = driver_of(LeastKv.from_options({"overflow": "true"}), 10_000, 8_000)
    turns = [driver.arrive(f"p{index}", 7_000) for index in range(4)]
    assert places(driver, *turns) == ["A", "B", "A", "B"]


def test_least_kv_lets_idle_programs_go_where_nothing_runs() -> None:
    """The one idle for longest gives its tokens to who waits, and no more of them than needed."""
    driver = driver_of(LeastKv(), 10_000)
    for program in ("p", "q", "r"):
        driver.finish(driver.arrive(program, 3_000, after=1.0))
    turn = driver.arrive("s", 2_000, after=1.0)
    assert places(driver, turn) == ["A"]
    assert driver.told(ProgramPaused) == [ProgramPaused(ProgramId("p"), A, PauseReason.POLICY)]


def test_least_kv_keeps_idle_programs_while_others_run() -> None:
    """The end of a turn may make room; until then the held one waits."""
    driver = driver_of(LeastKv(), 10_000)
    driver.finish(driver.arrive("p", 4_000))
    driver.arrive("q", 4_000)
    turn = driver.arrive("r", 4_000)
    assert places(driver, turn) == ["held"]
    assert driver.told(ProgramPaused) == []


def test_least_kv_programs_that_grow_against_each_other_do_not_lock() -> None:
    """Both are held for want of growth, and neither runs: one is paused, and the other goes on."""
    driver = driver_of(LeastKv(), 10_000)
    first, second = driver.arrive("p", 5_000), driver.arrive("q", 5_000)
    driver.finish(first, 5_000)
    held = driver.arrive("p", 6_000)
    assert places(driver, held) == ["held"]
    driver.finish(second, 5_000)
    assert places(driver, held) == ["A"]
    assert driver.told(ProgramPaused) == [ProgramPaused(ProgramId("q"), A, PauseReason.POLICY)]


def test_least_kv_waiter_without_a_backend_blocks_nobody() -> None:
    """The oldest waits for another model's backend; idle programs still make room for the next."""
    driver = SchedulerDriver(LeastKv())
    driver.add("A", 10_000, ["m"])
    driver.add("B", 10_000, ["n"])
    driver.finish(driver.arrive("p", 8_000, model="m"))
    driver.send(BackendFailed(B, "gone"))
    dead = driver.arrive("q", model="n")
    assert places(driver, dead, driver.arrive("r", 8_000, model="m")) == ["held", "A"]


def test_least_kv_sends_nothing_to_a_backend_that_could_never_hold_it() -> None:
    """Empty, but smaller than the turn: it waits for the larger one."""
    driver = driver_of(LeastKv(), 10_000, 2_000)
    running = driver.arrive("p", 8_000)
    turn = driver.arrive("q", 4_000)
    assert places(driver, turn) == ["held"]
    driver.finish(running)
    assert places(driver, turn) == ["A"]


def test_least_kv_shares_prefix_room() -> None:
    """Shared tokens that are there already need no room."""
    from thunderagent.core.events import Prefix
    from thunderagent.policy import PrefixKey

    prefix = [Prefix(PrefixKey("system"), 4 * 6_000)]
    driver = driver_of(LeastKv(), 10_000, 9_000)
    turns = [driver.arrive(name, 7_000, prefixes=prefix) for name in ("p", "q", "r", "s")]
    assert places(driver, *turns) == ["A", "B", "A", "A"]


# Options


@pytest.mark.parametrize("policy", [RoundRobin, Affinity])
def test_policy_without_options_refuses_any(policy: type[Policy]) -> None:
    """With its name and the option's."""
    with pytest.raises(OptionError, match=rf"^policy '{policy.name}' takes no options, got x$"):
        policy.from_options({"x": "1"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overflow": "maybe"}, "policy 'least-kv': option overflow must be true or false, got 'maybe'"),
        ({"overflows": "true"}, "policy 'least-kv' has no option 'overflows'; it has: overflow"),
    ],
)
def test_least_kv_refuses_what_it_cannot_use(options: dict[str, str], message: str) -> None:
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
