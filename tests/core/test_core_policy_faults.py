"""A policy that raises, answers nonsense or decides what is not legal costs no turn and is told."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from core_policies import Scripted, hold

from thunderagent.core.commands import DecisionRejected, PolicyFailed, ProgramMoved, TurnHeld
from thunderagent.core.events import BackendDraining, BackendObserved
from thunderagent.policy import Admit, AdmitTurn, BackendId, Move, Pause, Policy, ProgramId, TurnId, Yield
from thunderagent.testing.scheduler_driver import SchedulerDriver

A, B, P, Q = BackendId("A"), BackendId("B"), ProgramId("p"), ProgramId("q")


@pytest.fixture
def policy() -> Scripted:
    """The place, else the first backend."""
    return Scripted(reconsiders=False)


@pytest.fixture
def driver(policy: Scripted) -> SchedulerDriver:
    """Two backends; p acts on A."""
    driver = SchedulerDriver(policy)
    driver.add("A", 10_000)
    driver.add("B", 10_000)
    driver.finish(driver.arrive("p", 500))
    return driver


def fail(turn: object, cluster: object) -> None:
    """An answer that raises."""
    raise ValueError("no idea")


def rejected(driver: SchedulerDriver, policy: Scripted, *decisions: Any) -> list[str]:
    """The reasons for which decisions are dropped; the trigger is a turn that comes and goes."""
    policy.decisions = list(decisions)
    before = len(driver.told(DecisionRejected))
    driver.abandon(driver.arrive(None, 1))
    return [notice.reason for notice in driver.told(DecisionRejected)[before:]]


def test_admit_that_raises_forwards_to_the_place(driver: SchedulerDriver, policy: Scripted) -> None:
    """An admitted program goes on; the failure is told."""
    policy.answer = fail
    assert driver.where[driver.arrive("p")] == A
    assert driver.told(PolicyFailed) == [PolicyFailed("admit", "ValueError: no idea")]
    assert re.fullmatch(r".*test_core_policy_faults\.py:\d+ in \w+", driver.told(PolicyFailed)[0].at)


def test_admit_that_raises_holds_a_newcomer(driver: SchedulerDriver, policy: Scripted) -> None:
    """Without a decision it waits, and is offered again later."""
    policy.answer = fail
    turn = driver.arrive("q")
    assert turn in driver.held
    assert driver.told(TurnHeld)[0].deadline_at == 1800.0
    policy.answer, policy.reconsiders = (lambda turn, cluster: "B"), True
    driver.advance(0.0)
    driver.finish(driver.arrive("p"))
    assert driver.where == {turn: B}


def test_policy_is_told_of_turns_that_it_did_not_place(driver: SchedulerDriver, policy: Scripted) -> None:
    """Of one that fits nowhere, before it is sent on; not of those that go to their place. That it raises costs no
    request."""
    placed = []

    def note(turn: Any, backend: Any, cluster: object) -> None:
        placed.append((turn.id, backend.id, turn.place, turn.backend))
        raise ValueError("no idea")

    policy.answer = lambda turn, cluster: None
    policy.placed = note  # type: ignore[method-assign]
    for name in (A, B):
        driver.send(BackendObserved(name, capacity_tokens=2_000))
    at_place, nowhere = driver.arrive("p", 5_000), driver.arrive("q", 5_000)
    assert (driver.where[at_place], driver.where[nowhere]) == (A, B)
    assert placed == [(nowhere, B, None, None)]
    assert driver.told(PolicyFailed) == [PolicyFailed("placed", "ValueError: no idea")]


@pytest.mark.parametrize("answer", ["nowhere", 7, object(), ["A"], True])
def test_admit_that_answers_nonsense_is_no_decision(driver: SchedulerDriver, policy: Scripted, answer: Any) -> None:
    """The program's turn goes to its place, a newcomer's waits."""
    policy.answer = lambda turn, cluster: answer
    assert driver.where[driver.arrive("p")] == A
    assert driver.arrive("q") in driver.held
    expected = DecisionRejected(f"admit -> {answer!r}", "not an eligible backend of the turn")
    assert driver.told(DecisionRejected) == [expected, expected]


def test_admit_to_a_backend_that_drains_is_rejected(driver: SchedulerDriver, policy: Scripted) -> None:
    """It is not among the eligible ones."""
    driver.send(BackendDraining(B))
    policy.answer = lambda turn, cluster: "B"
    assert driver.arrive("q") in driver.held


@pytest.mark.parametrize("answer", ["for ever", math.nan])
def test_keep_seconds_that_is_no_number_keeps_all(driver: SchedulerDriver, answer: Any) -> None:
    """The turn goes on; what its program's other conversations left counts as before."""
    driver.policy.keep_seconds = lambda backend, cluster: answer  # type: ignore
    driver.finish(driver.arrive("p", 500, branch="other"))
    accounted_tokens = driver.backend("A").accounted_tokens
    assert driver.where[driver.arrive("p", branch="another")] == A
    told = driver.told(PolicyFailed) if answer == "for ever" else driver.told(DecisionRejected)
    assert len(told) == 2
    assert driver.backend("A").accounted_tokens > accounted_tokens


@pytest.mark.parametrize("answer", [None, 7])
def test_rebalance_that_answers_no_sequence_is_a_failure(driver: SchedulerDriver, answer: Any) -> None:
    """It counts as no decisions."""
    driver.policy.rebalance = lambda cluster, trigger: answer  # type: ignore[method-assign]
    driver.arrive("q")
    assert [notice.where for notice in driver.told(PolicyFailed)] == ["rebalance"]


@pytest.mark.parametrize("decision", [None, "pause p", 7])
def test_decision_of_another_kind_is_dropped(driver: SchedulerDriver, policy: Scripted, decision: Any) -> None:
    """The others of the same batch count all the same."""
    assert rejected(driver, policy, decision, Pause(P)) == ["not a decision"]
    assert driver.program("p").place is None


@pytest.mark.parametrize(
    ("decision", "reason"),
    [
        (Admit(ProgramId("x"), A), "the program is not known"),
        (Pause(ProgramId("x")), "the program is not known"),
        (Admit(P, BackendId("nowhere")), "the backend takes no turns"),
        (Admit(P, B), "the program has another place: move it"),
        (Move(P, BackendId("nowhere")), "the backend takes no turns"),
        (Move(P, A), "the program is there already"),
        (AdmitTurn(TurnId(99), A), "the turn is not held"),
    ],
)
def test_illegal_decision_is_dropped_with_its_reason(
    driver: SchedulerDriver, policy: Scripted, decision: Any, reason: str
) -> None:
    """Nothing changes."""
    assert rejected(driver, policy, decision) == [reason]
    assert driver.program("p").place is driver.backend("A")


def test_program_without_a_place_cannot_leave_it(driver: SchedulerDriver, policy: Scripted) -> None:
    """Pause, yield and move are for admitted programs."""
    decisions = [Pause(P), Pause(P), Yield(P), Move(P, B)]
    assert rejected(driver, policy, *decisions) == ["the program has no place"] * 3


def test_running_program_can_only_yield(driver: SchedulerDriver, policy: Scripted) -> None:
    """No turn is cut off."""
    driver.arrive("p")
    assert rejected(driver, policy, Pause(P)) == ["a turn of the program runs: it can only yield"]


def test_yielding_program_may_stay_but_not_move(driver: SchedulerDriver, policy: Scripted) -> None:
    """``Admit`` on its own place takes the yielding back, and its held turns go on."""
    driver.arrive("p")
    assert rejected(driver, policy, Yield(P), Yield(P), Move(P, B)) == ["the program is yielding"]
    held = driver.arrive("p")
    assert rejected(driver, policy, Admit(P, A)) == []
    assert driver.where[held] == A


def test_program_is_not_admitted_where_its_turn_cannot_run(driver: SchedulerDriver, policy: Scripted) -> None:
    """The backend does not serve the model."""
    driver.send(BackendObserved(A, ("m",)))
    driver.send(BackendObserved(B, ("n",)))
    policy.answer = hold
    driver.arrive("q", model="n")
    assert rejected(driver, policy, Admit(Q, A)) == ["the backend is not eligible for the program's turn"]


def test_turn_of_a_program_is_not_admitted_alone(driver: SchedulerDriver, policy: Scripted) -> None:
    """It waits for its program's place."""
    policy.answer = hold
    turn = driver.arrive("q")
    reasons = rejected(driver, policy, AdmitTurn(turn, A), AdmitTurn(turn, BackendId("nowhere")))
    assert reasons == [
        "the turn waits for its program's place: admit the program",
        "the backend is not eligible for the turn",
    ]


def test_move_brings_the_held_turns_along(driver: SchedulerDriver, policy: Scripted) -> None:
    """They are offered for the new place at once."""
    policy.answer = hold
    turn = driver.arrive("p")
    policy.answer = lambda turn, cluster: None if turn.place is None else turn.place.id
    assert rejected(driver, policy, Move(P, B)) == []
    assert driver.where[turn] == B
    assert driver.told(ProgramMoved) == [ProgramMoved(P, A, B)]


def test_observer_that_raises_is_told_at_once() -> None:
    """Once for the event and once for each notice; nothing is lost or late."""

    class Nosy(Scripted):
        def observe(self, event: object, cluster: object) -> None:
            raise KeyError("x")

    driver = SchedulerDriver(Nosy())
    driver.add("A")
    turn = driver.arrive("p")
    assert turn in driver.running
    assert driver.told(PolicyFailed) == [PolicyFailed("observe", "KeyError: 'x'")] * 3


def test_observer_sees_events_and_notices() -> None:
    """Not the commands, which say nothing new."""
    seen: list[str] = []

    class Nosy(Scripted):
        def observe(self, event: object, cluster: object) -> None:
            seen.append(type(event).__name__)

    driver = SchedulerDriver(Nosy())
    driver.add("A")
    driver.arrive("p")
    assert seen == ["BackendAdded", "TurnArrived", "ProgramAdmitted"]


def test_policy_takes_no_options_by_default() -> None:
    """The message names the policy and the options."""
    with pytest.raises(ValueError, match=r"^policy 'scripted' takes no options, got a, b$"):
        Scripted.from_options({"b": "1", "a": "2"})
    assert isinstance(Scripted.from_options({}), Policy)
