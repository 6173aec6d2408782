"""How long a turn and its program have waited, over all that may happen to them meanwhile."""

from __future__ import annotations

import pytest
from core_policies import Scripted, anywhere, hold

from thunderagent.core.commands import Forward, Refuse, RefuseCode
from thunderagent.core.events import BackendFailed, BackendRecovered, TurnProgressed
from thunderagent.core.settings import OnHoldLimit, SchedulerSettings
from thunderagent.policy import BackendId, ClusterView, ProgramId, TurnId, TurnView, Yield
from thunderagent.testing.scheduler_driver import SchedulerDriver

A = BackendId("A")


def make_driver(limit_seconds: float = 100.0, mode: OnHoldLimit = OnHoldLimit.HEAD) -> SchedulerDriver:
    """One backend, and a policy that sends everything there."""
    driver = SchedulerDriver(Scripted(), SchedulerSettings(max_hold_seconds=limit_seconds, on_hold_limit=mode))
    driver.add("A", 10_000)
    return driver


def refuse_connections(driver: SchedulerDriver, turn: TurnId, seconds: float) -> None:
    """Each time that the turn is forwarded its connection is refused at once."""
    until = driver.now + seconds
    while driver.now < until and (turn in driver.held or turn in driver.running):
        if turn in driver.running:
            driver.fail(turn)
        else:
            driver.advance(1.0)


@pytest.mark.parametrize("mode", list(OnHoldLimit))
@pytest.mark.parametrize("program", ["p", None])
def test_turn_whose_connections_are_refused_for_ever_is_refused_at_the_limit(
    program: str | None, mode: OnHoldLimit
) -> None:
    """Its backend looks healthy, so it is tried each second; that is one wait, not a hundred."""
    driver = make_driver(mode=mode)
    turn = driver.arrive(program)
    refuse_connections(driver, turn, 150.0)
    assert driver.now == pytest.approx(100.0, abs=2.0)
    assert [refused.code for refused in driver.told(Refuse)] == [RefuseCode.BACKEND_UNAVAILABLE]
    assert len(driver.told(Forward)) == pytest.approx(100, abs=2)
    driver.close()


def test_age_is_kept_over_a_backend_that_fails_and_recovers() -> None:
    """It is let in at 50 s, fails, and waits on from 0 s: at 60 s it is over."""
    driver = make_driver(60.0)
    turn = driver.arrive("p")
    for _ in range(2):
        driver.fail(turn)
        driver.send(BackendFailed(A, "three failures"))
        driver.advance(50.0)
        driver.send(BackendRecovered(A))
    assert [refused.turn for refused in driver.told(Refuse)] == [turn]
    assert driver.now == 100.0


def test_programs_age_over_repeated_tries_of_its_client_is_kept_when_a_forward_fails() -> None:
    """The client gave up at 30 s and came again at 40 s: the program has asked since 0 s, whatever is refused."""
    driver = make_driver()
    driver.policy.answer = hold  # type: ignore[attr-defined]
    first = driver.arrive("p")
    driver.abandon(first, after=30.0)
    driver.policy.answer = anywhere  # type: ignore[attr-defined]
    turn = driver.arrive("p", after=10.0)
    assert turn in driver.running
    driver.fail(turn)
    assert driver.program("p").waiting_since == 0.0


def test_answer_that_began_ends_the_wait() -> None:
    """What is held afterwards waits anew."""
    driver = make_driver()
    turn = driver.arrive("p")
    driver.fail(turn)
    driver.advance(50.0)
    driver.send(TurnProgressed(turn, 1))
    driver.finish(turn)
    driver.policy.answer = hold  # type: ignore[attr-defined]
    later = driver.arrive("p")
    assert driver.cluster.turn_by_id[later].deadline_at == 150.0


@pytest.mark.parametrize("mode", list(OnHoldLimit))
def test_age_of_a_turn_beside_its_place_is_kept_when_the_place_is_lost(mode: OnHoldLimit) -> None:
    """It waited for 90 s by itself, and for 10 s more with its program."""

    def only_main(turn: TurnView, cluster: ClusterView) -> BackendId | None:
        return None if turn.model == "n" else A

    driver = SchedulerDriver(Scripted(only_main), SchedulerSettings(max_hold_seconds=100.0, on_hold_limit=mode))
    driver.add("A", 10_000, ["m"])
    driver.add("B", 10_000, ["n"])
    driver.arrive("p", model="m")
    turn = driver.arrive("p", branch="sub", model="n")
    driver.advance(90.0)
    driver.send(BackendFailed(A, "gone"))
    assert driver.cluster.turn_by_id[turn].deadline_at == 100.0


def test_age_of_a_turn_given_up_an_hour_ago_is_not_the_next_ones() -> None:
    """Though the program was never idle: a turn of it ran all the time."""
    driver = make_driver(1800.0)
    driver.arrive("p")
    driver.policy.decisions = [Yield(ProgramId("p"))]  # type: ignore[attr-defined]
    driver.abandon(driver.arrive(None))
    driver.abandon(driver.arrive("p", branch="sub", after=1.0), after=1.0)
    turn = driver.arrive("p", branch="sub", after=4000.0)
    assert driver.cluster.turn_by_id[turn].deadline_at == 4002.0 + 1800.0


def test_turn_held_at_its_programs_new_place_has_its_own_age() -> None:
    """The program waited since 0 s, the turn that the policy goes on holding since 40 s."""
    driver = make_driver()
    driver.policy.answer = hold  # type: ignore[attr-defined]
    first, second = driver.arrive("p"), driver.arrive("p", branch="sub", after=40.0)
    driver.policy.answer = lambda turn, cluster: A if turn.id == first else None  # type: ignore[attr-defined]
    driver.abandon(driver.arrive(None))
    assert list(driver.running) == [first]
    assert driver.cluster.turn_by_id[second].deadline_at == 140.0
