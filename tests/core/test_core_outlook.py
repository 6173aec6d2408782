"""What waits are to be expected, and what the hold limit costs: whose tokens count, each once."""

from __future__ import annotations

import pytest
from core_policies import Scripted, anywhere, hold, where_it_fits

from thunderagent.core.events import BackendDraining, BackendFailed, Prefix
from thunderagent.core.outlook import Outlook, outlook
from thunderagent.core.settings import SchedulerSettings
from thunderagent.policy import (
    ASSUMED_REFILL_SECONDS,
    Admit,
    BackendId,
    ClusterView,
    Move,
    Pause,
    PrefixKey,
    ProgramId,
    TurnView,
)
from thunderagent.testing.scheduler_driver import BYTES_PER_TOKEN, SchedulerDriver

A, P = BackendId("A"), ProgramId("p")
SYSTEM = Prefix(PrefixKey("system"), 300 * BYTES_PER_TOKEN)


def driver_of(policy: Scripted, *capacities: int | None, limit_seconds: float = 1_000.0) -> SchedulerDriver:
    """Backends A, B, ... of these sizes."""
    driver = SchedulerDriver(policy, SchedulerSettings(max_hold_seconds=limit_seconds))
    for name, capacity_tokens in zip("ABC", capacities, strict=False):
        driver.add(name, capacity_tokens)
    return driver


def of(driver: SchedulerDriver) -> Outlook:
    """Its outlook now."""
    return outlook(driver.cluster, driver.settings)


def pressure(driver: SchedulerDriver) -> float:
    """That of it, which is known."""
    found = of(driver).pressure
    assert found is not None
    return found


def test_nothing_asked_for_no_pressure() -> None:
    """An empty cluster keeps every limit."""
    driver = driver_of(Scripted(where_it_fits), 10_000)
    assert of(driver) == Outlook(0.0, ASSUMED_REFILL_SECONDS, 0.0, 0.0)
    assert of(driver).keeps_limit


def test_waits_are_those_of_the_theory() -> None:
    """Four programs of 5,000 on 10,000: p = 2. At L = 0.1 each has its place for 300 s and waits as long again; a
    limit of 1,000 s takes L = 0.03."""
    driver = driver_of(Scripted(where_it_fits), 10_000)
    for name in "pqrs":
        driver.arrive(name, 5_000)
    assert of(driver) == Outlook(2.0, 30.0, pytest.approx(300.0), pytest.approx(0.03))
    driver.close()


@pytest.mark.parametrize(
    ("limit_seconds", "ratio", "keeps"),
    [(50.0, 0.2, False), (5.0, 2.0, False), (100.0, 0.1, True), (0.0, 0.0, True)],
)
def test_limit_is_kept_for_a_tenth_of_the_engines(limit_seconds: float, ratio: float, keeps: bool) -> None:
    """The same on engines that were seen to prefill 1,000 tokens/s, with other limits: that of 100 s is the wait to
    be expected, and 0 is none."""
    driver = driver_of(Scripted(where_it_fits), 10_000, limit_seconds=limit_seconds)
    driver.finish(driver.arrive(None, 4_000), 4_000, 0, cached=0, first_token_seconds=4.0)
    for name in "pqrs":
        driver.arrive(name, 5_000)
    assert of(driver).rotation_ratio == pytest.approx(ratio)
    assert of(driver).keeps_limit is keeps
    driver.close()


@pytest.mark.parametrize(("limit_seconds", "keeps"), [(100.0, None), (1_000.0, None), (0.0, True)])
def test_limit_is_not_known_to_be_kept_while_the_refill_is_assumed(limit_seconds: float, keeps: bool | None) -> None:
    """The same programs on engines whose speed nobody has seen: neither a limit that 30 s would have kept nor one
    that they would not."""
    driver = driver_of(Scripted(where_it_fits), 10_000, limit_seconds=limit_seconds)
    for name in "pqrs":
        driver.arrive(name, 5_000)
    assert of(driver).keeps_limit is keeps
    driver.close()


def test_capacity_and_refill_are_those_of_all_backends() -> None:
    """10,000 tokens at 2,000 tokens/s take 5 s, the other 30,000 are taken for 30 s: 23.75 s by weight."""
    driver = driver_of(Scripted(), 10_000, 30_000)
    driver.finish(driver.arrive("p", 4_000), 4_000, 0, cached=0, first_token_seconds=2.0)
    assert of(driver) == Outlook(pytest.approx(0.1), pytest.approx(23.75), 0.0, 0.0)
    driver.close()


def test_unknown_capacity_leaves_the_pressure_unknown() -> None:
    """One backend that does not say is enough; without a limit there is nothing to be kept all the same."""
    driver = driver_of(Scripted(), 10_000, None)
    driver.arrive("p", 4_000)
    assert of(driver) == Outlook(None, ASSUMED_REFILL_SECONDS, None, None)
    assert of(driver).keeps_limit is None
    unlimited = SchedulerSettings(max_hold_seconds=0.0)
    assert outlook(driver.cluster, unlimited) == Outlook(None, ASSUMED_REFILL_SECONDS, None, 0.0)
    driver.close()


def test_without_a_backend_nothing_is_known() -> None:
    """None at all, and none that takes turns."""
    driver = driver_of(Scripted(), 10_000)
    driver.send(BackendFailed(A, "gone"))
    driver.arrive("p", 4_000)
    assert of(driver).pressure is None
    assert of(driver_of(Scripted())).pressure is None
    driver.close()


def test_nobody_waits_where_the_policy_holds_nothing() -> None:
    """Twice the capacity is placed, and no wait is to be expected for that."""
    driver = driver_of(Scripted(anywhere), 10_000)
    for name in "pqrs":
        driver.arrive(name, 5_000)
    assert of(driver) == Outlook(2.0, 30.0, 0.0, 0.0)
    driver.close()


def test_paused_program_counts_while_a_turn_of_it_waits() -> None:
    """In its tool it asks for nothing; when it is back it needs all that it left, and the turn's growth."""
    policy = Scripted(where_it_fits, reconsiders=False)
    driver = driver_of(policy, 10_000)
    driver.finish(driver.arrive("p", 6_000), 6_000, 0)
    driver.arrive("q", 3_000)
    policy.decisions = [Pause(P)]
    driver.abandon(driver.arrive(None, 1))
    assert pressure(driver) == pytest.approx(0.3)
    policy.answer = hold
    turn = driver.arrive("p", 8_000)
    assert pressure(driver) == pytest.approx(1.1)
    driver.abandon(turn)
    assert pressure(driver) == pytest.approx(0.3)
    driver.close()


def test_turn_held_at_its_place_counts_with_what_it_adds() -> None:
    """p's 6,000 are accounted; its next turn is of 8,000 and waits."""
    policy = Scripted(where_it_fits, reconsiders=False)
    driver = driver_of(policy, 10_000)
    driver.finish(driver.arrive("p", 6_000), 6_000, 0)
    policy.answer = hold
    driver.arrive("p", 8_000)
    assert driver.accounted() == {"A": 6_000}
    assert pressure(driver) == pytest.approx(0.8)
    driver.close()


def test_guests_of_a_waiting_program_count_once() -> None:
    """p was moved to B while its turn of 4,000 runs at A; its next one, of 5,000, is held and goes on from there."""
    policy = Scripted(where_it_fits, reconsiders=False)
    driver = driver_of(policy, 5_000, 5_000)
    driver.arrive("p", 4_000)
    policy.decisions, policy.answer = [Move(P, BackendId("B"))], hold
    driver.abandon(driver.arrive(None, 1))
    driver.arrive("p", 5_000)
    assert driver.backend("A").guest_tokens == 4_000
    assert pressure(driver) == pytest.approx(0.5)
    driver.close()


def test_shared_beginning_of_those_who_wait_counts_once() -> None:
    """p runs on it; q and r wait with 700 beside it each. Where nobody runs, it counts for the first of them."""
    for answer, expected in ((where_it_fits, 0.24), (hold, 0.24)):
        policy = Scripted(answer, reconsiders=False)
        driver = driver_of(policy, 10_000)
        driver.arrive("p", 1_000, prefixes=[SYSTEM])
        policy.answer = hold
        for name in "qr":
            driver.arrive(name, 1_000, prefixes=[SYSTEM])
        assert pressure(driver) == pytest.approx(expected)
        driver.close()


def test_one_off_turns_count_while_they_wait_and_while_they_run() -> None:
    """2,000 run, 3,000 wait."""
    policy = Scripted(where_it_fits, reconsiders=False)
    driver = driver_of(policy, 10_000)
    driver.arrive(None, 2_000)
    policy.answer = hold
    driver.arrive(None, 3_000)
    assert pressure(driver) == pytest.approx(0.5)
    driver.close()


def test_turn_beside_its_programs_place_counts_by_itself() -> None:
    """p has its place at A, which serves m; the turn of another model waits for B alone, and p's tokens are not in it
    again."""

    def only_m(turn: TurnView, cluster: ClusterView) -> BackendId | None:
        return anywhere(turn, cluster) if turn.model == "m" else None

    driver = SchedulerDriver(Scripted(only_m, reconsiders=False))
    driver.add("A", 5_000, ["m"])
    driver.add("B", 5_000, ["n"])
    driver.arrive("p", 4_000, model="m")
    turn = driver.arrive("p", 1_000, branch="sub", model="n")
    assert turn in driver.held
    assert pressure(driver) == pytest.approx(0.5)
    driver.close()


def test_who_waits_for_a_backend_does_not_wait_for_room() -> None:
    """The turn's model has no backend: more room would not help it."""
    driver = SchedulerDriver(Scripted(where_it_fits, reconsiders=False))
    driver.add("A", 10_000, ["m"])
    driver.add("B", 10_000, ["n"])
    driver.send(BackendFailed(BackendId("B"), "gone"))
    driver.arrive("p", 9_000, model="m")
    driver.arrive("q", 5_000, model="n")
    assert of(driver) == Outlook(pytest.approx(0.9), 30.0, 0.0, 0.0)
    driver.close()


def test_draining_backend_counts_neither_with_its_room_nor_with_its_guests() -> None:
    """p's turn runs to its end there; p waits with its next one and needs all of it elsewhere."""
    policy = Scripted(where_it_fits, reconsiders=False)
    driver = driver_of(policy, 10_000, 10_000)
    driver.arrive("p", 4_000)
    driver.send(BackendDraining(A))
    assert pressure(driver) == 0.0
    policy.answer = hold
    driver.arrive("p", 5_000)
    assert pressure(driver) == pytest.approx(0.5)
    driver.close()


def test_reserved_room_counts_for_who_it_is_reserved_for_only() -> None:
    """At the hold limit q has room promised; its need is not in the account yet, and not counted twice."""
    driver = driver_of(Scripted(where_it_fits), 10_000)
    driver.arrive("p", 8_000)
    turn = driver.arrive("q", 5_000)
    driver.advance(1_000.0)
    assert driver.backend("A").reserved_tokens == 5_000
    assert turn in driver.held
    assert pressure(driver) == pytest.approx(1.3)
    driver.close()


def test_admitting_a_program_does_not_change_the_pressure() -> None:
    """What waited is accounted from then on: the sum is the same before and after."""

    def at_its_place(turn: TurnView, cluster: ClusterView) -> BackendId | None:
        return None if turn.place is None else turn.place.id

    policy = Scripted(at_its_place, reconsiders=False)
    driver = driver_of(policy, 10_000)
    for name in "pqr":
        driver.arrive(name, 1_000, prefixes=[SYSTEM])
    assert driver.accounted() == {"A": 0}
    for name in "pqr":
        assert pressure(driver) == pytest.approx(0.24)
        policy.decisions = [Admit(ProgramId(name), A)]
        driver.abandon(driver.arrive(None, 1))
    assert driver.accounted() == {"A": 2_400}
    assert pressure(driver) == pytest.approx(0.24)
    driver.close()
