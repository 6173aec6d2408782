"""Who waits, and in what order."""

from __future__ import annotations

import pytest
from core_policies import Scripted, hold

from policies.least_kv import LeastKv
from policies.pause_resume import PauseResume
from thunderagent.core.commands import DecisionRejected, Forward, HoldReason, PolicyFailed, ProgramAdmitted, TurnHeld
from thunderagent.core.events import BackendFailed, BackendObserved, BackendRecovered
from thunderagent.policy import Admit, AdmitTurn, BackendId, Policy, ProgramId, WaiterView, Yield
from thunderagent.testing.scheduler_driver import SchedulerDriver


def waiting(driver: SchedulerDriver) -> list[str | None]:
    """Programs in the queue, in the order in which they came."""
    return [None if entry.program is None else entry.program.id for entry in driver.cluster.waiting()]


def in_line(driver: SchedulerDriver) -> list[str | None]:
    """Programs in the one line that there is."""
    (line,) = driver.cluster.waiting_lines()
    return [None if entry.program is None else entry.program.id for entry in line]


def held_driver() -> tuple[SchedulerDriver, Scripted]:
    """One backend, and a policy that holds everything."""
    policy = Scripted(hold)
    driver = SchedulerDriver(policy)
    driver.add("A", 10_000)
    return driver, policy


def test_held_turn_is_told_once_with_its_deadline() -> None:
    """The notice names the program, the reason and the end of the wait."""
    driver, _ = held_driver()
    turn = driver.arrive("p", after=5.0)
    assert driver.told(TurnHeld) == [TurnHeld(turn, ProgramId("p"), HoldReason.POLICY, 1805.0)]
    driver.advance(100.0)
    assert len(driver.told(TurnHeld)) == 1


def test_waiters_come_oldest_first() -> None:
    """Programs by when they asked, one-off turns among them."""
    driver, _ = held_driver()
    for program in ("p", None, "q"):
        driver.arrive(program, after=1.0)
    assert waiting(driver) == ["p", None, "q"]


class Smallest(Scripted):
    """Holds everything, and has the smallest first in line."""

    def __init__(self) -> None:
        super().__init__(hold, reconsiders=False)

    def rank(self, waiter: WaiterView) -> float:
        return waiter.need_tokens


def test_line_stands_in_the_order_of_the_policys_rank() -> None:
    """Ties keep the order of arrival; a second turn makes its program larger, and so moves it back."""
    driver = SchedulerDriver(Smallest())
    driver.add("A", 10_000)
    for program, tokens in (("p", 300), ("q", 100), ("r", 100), ("s", 200)):
        driver.arrive(program, tokens)
    assert in_line(driver) == ["q", "r", "s", "p"]
    driver.arrive("q", 500, branch="sub")
    assert in_line(driver) == ["r", "s", "p", "q"]


def test_client_that_sends_again_keeps_its_age_among_ties_of_the_rank() -> None:
    """Both are of one size: the one that asks for longer is first, though it came to the queue last."""
    driver = SchedulerDriver(Smallest())
    driver.add("A", 10_000)
    first = driver.arrive("p", 100)
    driver.arrive("q", 100, after=1.0)
    driver.abandon(first, after=50.0)
    driver.arrive("p", 100, after=1.0)
    assert in_line(driver) == ["p", "q"]
    assert waiting(driver) == ["q", "p"]


@pytest.mark.parametrize("rank", [float("nan"), float("inf"), "first", None])
def test_rank_that_is_no_number_is_told_and_age_counts(rank: object) -> None:
    """A bug in a policy costs no turn its place in line."""
    policy = Smallest()
    policy.rank = lambda waiter: rank  # type: ignore[method-assign, return-value, assignment]
    driver = SchedulerDriver(policy)
    driver.add("A", 10_000)
    driver.arrive("p", 500)
    driver.arrive("q", 100, after=1.0)
    assert in_line(driver) == ["p", "q"]
    assert len(driver.told(DecisionRejected)) + len(driver.told(PolicyFailed)) == 2


def test_client_that_sends_again_keeps_its_programs_age() -> None:
    """It gave up at 2 s and came back at 3 s: its program has still asked since 0 s."""
    driver, policy = held_driver()
    first = driver.arrive("p")
    driver.arrive("q", after=1.0)
    driver.abandon(first, after=1.0)
    assert in_line(driver) == ["q"]
    driver.arrive("p", after=1.0)
    assert in_line(driver) == ["p", "q"]
    assert driver.program("p").waiting_since == 0.0
    policy.decisions = [Admit(ProgramId("p"), BackendId("A"))]
    policy.answer = lambda turn, cluster: None if turn.place is None else turn.place.id
    driver.abandon(driver.arrive(None, after=7.0))
    assert driver.told(ProgramAdmitted) == [ProgramAdmitted(ProgramId("p"), BackendId("A"), 10.0, False)]


def test_one_off_turn_that_comes_again_is_new() -> None:
    """Nothing ties it to the former."""
    driver, _ = held_driver()
    first = driver.arrive(None)
    driver.arrive("q", after=1.0)
    driver.abandon(first)
    driver.arrive(None, after=1.0)
    assert waiting(driver) == ["q", None]


def test_reconsider_stops_at_the_first_that_is_held() -> None:
    """The younger ones of the same model are not asked about: nobody overtakes."""
    driver, policy = held_driver()
    turns = [driver.arrive(program, model="m") for program in ("p", "q")]
    other = driver.arrive("r", model="n")
    policy.asked.clear()
    driver.advance(0.0)
    driver.abandon(driver.arrive(None, model="unasked"))
    assert turns[0] in policy.asked
    assert turns[1] not in policy.asked
    assert other in policy.asked


def test_reconsider_forwards_oldest_first() -> None:
    """When the policy lets go, all go in the order they asked."""
    driver, policy = held_driver()
    turns = [driver.arrive(program, after=1.0) for program in ("p", "q", None)]
    policy.answer = lambda turn, cluster: "A"
    driver.abandon(driver.arrive("s"))
    forwarded = [command.turn for command in driver.told(Forward)]
    assert [turn for turn in forwarded if turn in turns] == turns


def test_program_admitted_brings_all_its_turns() -> None:
    """One decision forwards every held turn of the program."""
    driver, policy = held_driver()
    turns = [driver.arrive("p"), driver.arrive("p", branch="sub")]
    policy.answer = lambda turn, cluster: None if turn.place is None else turn.place.id
    policy.decisions = [Admit(ProgramId("p"), BackendId("A"))]
    driver.arrive("q")
    assert sorted(driver.running) == turns


def test_one_off_turn_is_admitted_by_its_id() -> None:
    """``AdmitTurn`` forwards it alone."""
    driver, policy = held_driver()
    turn = driver.arrive(None)
    policy.decisions = [AdmitTurn(turn, BackendId("A"))]
    driver.arrive("q")
    assert list(driver.running) == [turn]


def test_turn_of_a_yielding_program_waits_for_the_boundary() -> None:
    """It is held, though the program has a place; after the boundary the program is paused and asks."""
    policy = Scripted()
    driver = SchedulerDriver(policy)
    driver.add("A", 10_000)
    running = driver.arrive("p")
    policy.decisions, policy.reconsiders = [Yield(ProgramId("p"))], False
    driver.arrive("q")
    held = driver.arrive("p")
    assert driver.told(TurnHeld) == [TurnHeld(held, ProgramId("p"), HoldReason.YIELDING, 1800.0)]
    driver.finish(running, after=3.0)
    assert waiting(driver) == ["p"]
    assert driver.program("p").place is None


def test_turn_of_a_yielding_program_bars_nobody() -> None:
    """It waits for its own boundary, which is no reason to hold the others of its model."""
    policy = Scripted()
    driver = SchedulerDriver(policy)
    driver.add("A", 10_000)
    driver.arrive("p")
    policy.decisions = [Yield(ProgramId("p"))]
    driver.arrive("q")
    driver.arrive("p")
    policy.answer = hold
    other = driver.arrive("r")
    policy.answer = lambda turn, cluster: "A"
    driver.abandon(driver.arrive("s"))
    assert other in driver.running


def test_program_with_a_thousand_held_turns_is_forwarded_without_recursion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many clients under one id: a policy that moves the program at each turn must not exhaust the stack."""
    policy = Scripted(hold)
    driver = SchedulerDriver(policy)
    monkeypatch.setattr(SchedulerDriver, "verify", lambda self: None)  # a recount after each event takes too long
    driver.add("A")
    driver.add("B")
    for _ in range(1000):
        driver.arrive("p")
    backends = iter(["A", "B"] * 1000)
    policy.answer = lambda turn, cluster: next(backends)
    driver.abandon(driver.arrive(None))
    driver.advance(0.0)
    monkeypatch.undo()
    driver.verify()
    assert len(driver.running) == 1000


@pytest.mark.parametrize("policy", [LeastKv, PauseResume])
def test_program_whose_first_turn_has_no_backend_goes_on_with_its_other_model(policy: type[Policy]) -> None:
    """``p`` waits with a turn of ``one``, which is down, and one of ``two``: when B has room, that goes there."""
    driver = SchedulerDriver(policy())
    driver.add("A", 10_000, ["one"])
    driver.add("B", 10_000, ["two"])
    driver.send(BackendFailed(BackendId("A"), "down"))
    running = driver.arrive("x", 9_000, model="two")
    first = driver.arrive("p", 1_000, model="one")
    second = driver.arrive("p", 5_000, model="two", branch="sub")
    driver.finish(running)
    driver.release("x")
    driver.advance(2.0)
    assert driver.where == {second: "B"}
    driver.send(BackendRecovered(BackendId("A")))
    driver.advance(2.0)
    assert driver.where == {second: "B", first: "A"}


def test_program_of_two_models_changes_lines_with_the_backends() -> None:
    """It stands in the line of the turn that a backend is there for, and of its oldest where all are."""
    driver, _ = held_driver()
    driver.send(BackendObserved(BackendId("A"), ("one",)))
    driver.add("B", 10_000, ["two"])
    driver.arrive("p", model="one")
    driver.arrive("p", model="two", branch="sub")
    assert [key.model for key in driver.cluster.queue.lines] == ["one"]
    driver.send(BackendFailed(BackendId("A"), "down"))
    assert [key.model for key in driver.cluster.queue.lines] == ["two"]
    driver.send(BackendRecovered(BackendId("A")))
    assert [key.model for key in driver.cluster.queue.lines] == ["one"]
