"""Backends that fail, come back, drain and go, and turns that got no answer."""

from __future__ import annotations

import pytest
from core_policies import Scripted, anywhere, hold

from thunderagent.core.commands import (
    Forward,
    HoldReason,
    PauseReason,
    ProgramAdmitted,
    ProgramMoved,
    ProgramPaused,
    Refuse,
    RefuseCode,
    TurnHeld,
)
from thunderagent.core.events import (
    BackendDraining,
    BackendFailed,
    BackendObserved,
    BackendRecovered,
    BackendRemoved,
    Event,
)
from thunderagent.core.settings import SchedulerSettings
from thunderagent.policy import BackendId, Pause, ProgramId, Yield
from thunderagent.testing.scheduler_driver import SchedulerDriver

A, B, P = BackendId("A"), BackendId("B"), ProgramId("p")
LOSSES = [BackendFailed(A, "gone"), BackendDraining(A), BackendRemoved(A)]


def test_refused_connection_is_tried_elsewhere_at_once(driver: SchedulerDriver) -> None:
    """The backend never saw the request; the program, which runs nothing else there, goes along."""
    turn = driver.arrive("p", 500)
    assert driver.fail(turn) == [
        ProgramPaused(P, A, PauseReason.BACKEND_LOST),
        ProgramAdmitted(P, B, 0.0, True),
        Forward(turn, B),
    ]
    assert driver.accounted() == {"A": 0, "B": 500}


def test_turn_beside_running_ones_is_tried_elsewhere_alone(driver: SchedulerDriver) -> None:
    """One failed connection does not move a program whose other turn runs there."""
    driver.arrive("p", 500)
    turn = driver.arrive("p", 600, branch="sub")
    assert driver.fail(turn) == [Forward(turn, B)]
    assert driver.accounted() == {"A": 500, "B": 600}
    driver.close()


def test_turn_that_no_backend_takes_is_offered_again_after_a_second(driver: SchedulerDriver) -> None:
    """Held without a backend, its place kept; then it is tried there again."""
    turn = driver.arrive("p")
    driver.fail(turn)
    held = driver.fail(turn)
    assert held[-1] == TurnHeld(turn, P, HoldReason.NO_BACKEND, 1800.0)
    assert driver.scheduler.next_deadline() == 1.0
    commands = driver.advance(1.0)
    assert Forward(turn, B) in commands
    assert driver.told(ProgramPaused) == [ProgramPaused(P, A, PauseReason.BACKEND_LOST)]


def test_backend_that_refused_once_is_asked_again_later(driver: SchedulerDriver, policy: Scripted) -> None:
    """The other one being full, the turn does not wait for it alone: the first may have been restarting."""
    turn = driver.arrive("p")
    policy.answer = lambda turn, cluster: next((b.id for b in turn.eligible_backends if b.id == A), None)
    driver.fail(turn)
    assert turn in driver.held
    driver.advance(1.0)
    assert driver.where == {turn: A}


def test_request_that_broke_two_backends_is_given_up(driver: SchedulerDriver) -> None:
    """One that kills its engine must not be handed to every other one."""
    turn = driver.arrive("p")
    driver.fail(turn, sent=True)
    assert driver.where == {turn: B}
    commands = driver.fail(turn, sent=True)
    expected = Refuse(turn, RefuseCode.BACKEND_GONE, "the backend gave no answer: connection lost", 1.0)
    assert [command for command in commands if isinstance(command, Refuse)] == [expected]
    driver.close()


def test_failed_sends_may_be_forbidden_altogether() -> None:
    """``max_failed_sends=0``: a request that a backend saw is never sent twice."""
    driver = SchedulerDriver(Scripted(), SchedulerSettings(max_failed_sends=0))
    driver.add("A")
    driver.add("B")
    turn = driver.arrive("p")
    driver.fail(turn, sent=True)
    assert [refused.code for refused in driver.told(Refuse)] == [RefuseCode.BACKEND_GONE]
    assert turn not in driver.running


def test_refused_connections_do_not_count_as_failed_sends(driver: SchedulerDriver) -> None:
    """They may go on for as long as the turn may wait."""
    turn = driver.arrive("p")
    for _ in range(10):
        driver.fail(turn)
        driver.fail(turn)
        driver.advance(1.0)
    assert turn in driver.running


def test_failed_turn_of_a_yielding_program_gives_the_place_up(driver: SchedulerDriver, policy: Scripted) -> None:
    """A failure before the first byte is a turn boundary."""
    turn = driver.arrive("p")
    policy.decisions = [Yield(P)]
    driver.arrive("q")
    policy.answer = hold
    driver.fail(turn)
    assert driver.program("p").place is None
    assert turn in driver.held


@pytest.mark.parametrize("loss", LOSSES)
def test_lost_backend_unbinds_its_programs_at_once(driver: SchedulerDriver, loss: Event) -> None:
    """Idle and running ones alike; nothing is accounted there but what still runs."""
    driver.finish(driver.arrive("p", 500))
    running = driver.arrive("q", 700)
    assert driver.send(loss) == [
        ProgramPaused(ProgramId("q"), A, PauseReason.BACKEND_LOST),
        ProgramPaused(P, A, PauseReason.BACKEND_LOST),
    ]
    assert driver.accounted().get("A", 700) == 700
    assert driver.program("p").origin is None
    assert driver.where[driver.arrive("p", 500)] == B
    driver.finish(running)
    assert driver.where[driver.arrive("q", 700)] == B
    driver.close()


@pytest.mark.parametrize("loss", LOSSES)
def test_held_turns_of_a_lost_backend_are_placed_elsewhere(
    driver: SchedulerDriver, policy: Scripted, loss: Event
) -> None:
    """A turn held at its place does not wait for a backend that is gone."""
    driver.finish(driver.arrive("p"))
    policy.answer = hold
    turn = driver.arrive("p")
    policy.answer = anywhere
    driver.send(loss)
    assert driver.where == {turn: B}


def test_loss_is_told_once(driver: SchedulerDriver) -> None:
    """A second failure, a recovery of the healthy and a second drain change nothing."""
    driver.send(BackendFailed(A, "gone"))
    assert driver.send(BackendFailed(A, "gone")) == []
    assert driver.send(BackendRecovered(B)) == []
    driver.send(BackendDraining(B))
    assert driver.send(BackendDraining(B)) == []


def test_turns_wait_while_no_backend_is_there(driver: SchedulerDriver) -> None:
    """A rolling restart queues; the first backend that comes back takes them, without asking again for each."""
    driver.send(BackendFailed(A, "gone"))
    driver.send(BackendFailed(B, "gone"))
    turns = [driver.arrive("p"), driver.arrive(None), driver.arrive("q")]
    assert [notice.reason for notice in driver.told(TurnHeld)] == [HoldReason.NO_BACKEND] * 3
    commands = driver.send(BackendRecovered(B))
    forwarded = [command for command in commands if isinstance(command, Forward)]
    assert sorted(forwarded, key=lambda forward: forward.turn) == [Forward(turn, B) for turn in turns]


def test_turn_before_the_first_backend_waits_for_it() -> None:
    """The router may be up before its backends; no model is unknown then."""
    driver = SchedulerDriver(Scripted())
    turn = driver.arrive("p", model="m")
    driver.add("A")
    assert driver.where == {turn: A}


def test_turn_on_a_failed_backend_is_nowhere_else(driver: SchedulerDriver) -> None:
    """It ends by itself; only then is the turn forwarded again."""
    turn = driver.arrive("p")
    driver.send(BackendFailed(A, "gone"))
    assert driver.where == {turn: A}
    driver.fail(turn)
    assert driver.where == {turn: B}


def test_paused_programs_of_a_lost_backend_forget_it(driver: SchedulerDriver, policy: Scripted) -> None:
    """Its cache is gone, so it is no origin to go back to."""
    driver.finish(driver.arrive("p"))
    policy.decisions = [Pause(P)]
    driver.arrive("q")
    assert driver.program("p").origin == A
    driver.send(BackendFailed(A, "gone"))
    assert driver.program("p").origin is None


def test_removed_backend_that_is_added_again_starts_with_empty_books(driver: SchedulerDriver) -> None:
    """A turn still running on the former one is not charged to the new one, nor given back by it."""
    turn = driver.arrive("p", 500)
    driver.send(BackendRemoved(A))
    driver.send(BackendRemoved(B))
    driver.add("A", 10_000)
    assert driver.accounted() == {"A": 0}
    other = driver.arrive("p", 300, branch="sub")
    assert driver.accounted() == {"A": 300}
    driver.finish(turn, 500, 0)
    assert driver.accounted() == {"A": 800}
    driver.finish(other)
    driver.close()


def test_backend_that_drops_a_model_keeps_no_turn_of_it(driver: SchedulerDriver, policy: Scripted) -> None:
    """Neither a turn held at its place nor a new one is sent to where its model is no longer served."""
    driver.finish(driver.arrive("p", model="m"))
    policy.answer = hold
    held = driver.arrive("p", model="m")
    policy.answer = anywhere
    driver.send(BackendObserved(A, ("n",)))
    assert driver.where == {held: B}
    assert driver.where[driver.arrive("p", model="m")] == B


def test_observation_of_nothing_changes_nothing(driver: SchedulerDriver) -> None:
    """None means that the backend did not say."""
    driver.send(BackendObserved(A, ("m",), 5_000, 0.5, 3, 1))
    driver.send(BackendObserved(A))
    backend = driver.backend("A")
    assert (backend.models, backend.capacity_tokens, backend.kv_usage_ratio) == (frozenset({"m"}), 5_000, 0.5)
    assert (backend.requests_running, backend.requests_waiting) == (3, 1)


def test_second_model_of_a_program_runs_as_a_guest(driver: SchedulerDriver) -> None:
    """A sub-agent on another model does not move its program, and leaves nothing at a place that never held it."""
    driver.send(BackendObserved(A, ("m",)))
    driver.send(BackendObserved(B, ("n",)))
    driver.arrive("p", 500, model="m")
    turn = driver.arrive("p", 300, branch="sub", model="n")
    assert driver.where[turn] == B
    assert driver.backend("B").guest_tokens == 300
    driver.finish(turn, 300, 50)
    assert driver.accounted() == {"A": 500, "B": 0}
    assert driver.told(ProgramMoved) == []
    driver.close()


def test_turn_larger_than_every_backend_is_sent_on(driver: SchedulerDriver, policy: Scripted) -> None:
    """No wait makes it fit: the engine says so best, and the estimate may be wrong."""
    policy.answer = hold
    assert driver.arrive("p", 10_001) in driver.running
    assert driver.arrive("q", 10_000) in driver.held
