"""What happens to a turn that waited for ``max_hold_seconds``, in each of the three modes."""

from __future__ import annotations

import pytest
from core_policies import Scripted, hold, where_it_fits

from thunderagent.core.commands import (
    Forward,
    PauseReason,
    ProgramAdmitted,
    ProgramForced,
    ProgramPaused,
    ProgramYielding,
    Refuse,
    RefuseCode,
    TurnHeld,
)
from thunderagent.core.events import BackendFailed, BackendObserved, BackendRecovered, Prefix, Tick
from thunderagent.core.settings import OnHoldLimit, SchedulerSettings
from thunderagent.core.unfinished import STEPS_PER_EVENT
from thunderagent.policy import Admit, AdmitTurn, BackendId, PrefixKey, ProgramId
from thunderagent.testing.scheduler_driver import SchedulerDriver

A, B, P, Q, R = BackendId("A"), BackendId("B"), ProgramId("p"), ProgramId("q"), ProgramId("r")


def full_driver(on_hold_limit: OnHoldLimit = OnHoldLimit.HEAD, limit_seconds: float = 100.0) -> SchedulerDriver:
    """One backend of 10,000 tokens; p (6,000, served for 10 s) and q (3,000, served for 5 s) act on it at 15 s."""
    settings = SchedulerSettings(max_hold_seconds=limit_seconds, on_hold_limit=on_hold_limit)
    driver = SchedulerDriver(Scripted(where_it_fits), settings)
    driver.add("A", 10_000)
    driver.finish(driver.arrive("p", 6_000), 6_000, after=10.0)
    driver.finish(driver.arrive("q", 3_000), 3_000, after=5.0)
    return driver


def test_head_displaces_the_idle_program_served_for_longest() -> None:
    """p leaves at once, since no turn of it runs, and r has its place; q stays."""
    driver = full_driver()
    turn = driver.arrive("r", 5_000)
    driver.advance(99.0)
    before = len(driver.commands)
    driver.advance(1.0)
    assert driver.commands[before:] == [
        ProgramPaused(P, A, PauseReason.HOLD_LIMIT),
        ProgramAdmitted(R, A, 100.0, False),
        Forward(turn, A),
    ]
    assert driver.accounted() == {"A": 8_000}


def test_head_waits_for_the_boundary_of_a_running_program() -> None:
    """The displaced program's turn finishes first; at no time is more accounted than there is."""
    driver = full_driver()
    running = driver.arrive("p", 6_000)
    turn = driver.arrive("r", 5_000)
    driver.advance(100.0)
    assert driver.told(ProgramYielding) == [ProgramYielding(P, A)]
    assert turn in driver.held
    assert driver.backend("A").free_tokens == 10_000 - 9_000 - 5_000
    driver.finish(running, 6_000, after=1.0)
    assert driver.told(ProgramPaused) == [ProgramPaused(P, A, PauseReason.HOLD_LIMIT)]
    assert driver.where[turn] == A
    assert driver.accounted() == {"A": 8_000}
    assert driver.backend("A").reserved_tokens == 0


def test_head_displaces_more_than_one_where_needed() -> None:
    """A turn of 9,000 needs the room of both, the one served for longest first."""
    driver = full_driver()
    turn = driver.arrive("r", 9_000)
    driver.advance(100.0)
    assert [notice.program for notice in driver.told(ProgramPaused)] == [P, Q]
    assert driver.where[turn] == A


def test_head_keeps_newcomers_out_of_the_reserved_room() -> None:
    """A policy sees reserved tokens as taken, so the room grows until the urgent turn has it."""
    driver = full_driver()
    running = driver.arrive("p", 6_000)
    turn = driver.arrive("r", 5_000)
    driver.advance(100.0)
    late = driver.arrive("s", 500)
    assert late in driver.held
    driver.finish(running, 6_000)
    assert {turn, late} == set(driver.running)


def test_head_gives_the_reservation_back_when_the_client_leaves() -> None:
    """No phantom tokens stay behind, and others use the room."""
    driver = full_driver()
    driver.arrive("p", 6_000)
    turn = driver.arrive("r", 5_000)
    driver.advance(100.0)
    assert driver.backend("A").reserved_tokens == 5_000
    driver.abandon(turn)
    assert driver.backend("A").reserved_tokens == 0
    assert driver.arrive("s", 500) in driver.running
    driver.close()


def test_head_gives_the_reservation_back_on_release() -> None:
    """The held turn is answered, the room is free."""
    driver = full_driver()
    driver.arrive("p", 6_000)
    turn = driver.arrive("r", 5_000)
    driver.advance(100.0)
    driver.release("r")
    assert [refused.code for refused in driver.told(Refuse)] == [RefuseCode.PROGRAM_RELEASED]
    assert turn not in driver.held
    assert driver.backend("A").reserved_tokens == 0


def test_head_keeps_the_order_of_those_that_reached_the_limit() -> None:
    """A small turn behind a large one does not take the room that is made for the first."""
    driver = full_driver()
    running = [driver.arrive("p", 6_000), driver.arrive("q", 3_000)]
    large, small = driver.arrive("r", 9_500), driver.arrive("s", 2_000, after=1.0)
    driver.advance(100.0)
    assert {large, small} <= set(driver.held)
    driver.finish(running[1], 3_000)
    assert {large, small} <= set(driver.held)
    driver.finish(running[0], 6_000)
    assert driver.where == {large: A}
    driver.finish(large, 9_500)
    assert driver.where == {small: A}


def test_head_with_two_turns_of_one_program_reserves_once() -> None:
    """Both reached the limit together; the program's room is what its turns need."""
    driver = full_driver()
    driver.arrive("p", 6_000)
    turns = [driver.arrive("r", 4_000), driver.arrive("r", 1_000, branch="sub")]
    driver.advance(100.0)
    assert driver.backend("A").reserved_tokens == 5_000
    driver.finish(next(iter(driver.running)), 6_000)
    assert sorted(driver.running) == turns


def test_head_reserves_elsewhere_when_the_backend_is_lost() -> None:
    """The reservation goes with its backend; the turns look again at once, and none is left without an end."""
    driver = full_driver()
    driver.add("B", 20_000)
    driver.arrive("x", 20_000)
    running = driver.arrive("p", 6_000)
    turns = [driver.arrive("r", 9_000, model="m"), driver.arrive("r", 500, branch="sub", model="m")]
    driver.advance(100.0)
    origin = next(name for name in "AB" if driver.backend(name).reserved_tokens)
    driver.send(BackendFailed(BackendId(origin), "gone"))
    other = "B" if origin == "A" else "A"
    driver.advance(0.0)
    assert driver.backend(origin).reserved_tokens == 0
    assert set(turns) <= {*driver.held, *driver.running}
    driver.send(BackendFailed(BackendId(other), "gone"))
    driver.advance(0.0)
    assert [refused.code for refused in driver.told(Refuse)] == [RefuseCode.BACKEND_UNAVAILABLE] * 2
    driver.finish(running)
    driver.close()


def test_head_looks_again_when_the_backend_no_longer_serves_the_model() -> None:
    """A reservation for a model that the backend has dropped is never used."""
    driver = full_driver()
    driver.arrive("p", 6_000)
    turn = driver.arrive("r", 5_000, model="m")
    driver.advance(100.0)
    driver.send(BackendObserved(A, ("n",)))
    assert driver.backend("A").reserved_tokens == 0
    driver.advance(0.0)
    expected = Refuse(
        turn, RefuseCode.BACKEND_UNAVAILABLE, "no place within 100 s: no backend takes turns of this model", 5.0
    )
    assert driver.told(Refuse) == [expected]


def test_policy_may_not_admit_who_reached_the_limit() -> None:
    """The scheduler makes the room itself; a decision on the program is rejected."""
    driver = full_driver()
    driver.arrive("p", 6_000)
    driver.arrive("r", 5_000)
    driver.advance(100.0)
    driver.policy.decisions = [Admit(R, A)]  # type: ignore[attr-defined]
    driver.arrive("s", 1)
    assert [notice.reason for notice in driver.commands if type(notice).__name__ == "DecisionRejected"] == [
        "the scheduler makes room for the program"
    ]


def test_force_forwards_to_the_roomiest_without_regard_to_room() -> None:
    """The published way: it overcommits, and says so."""
    driver = full_driver(OnHoldLimit.FORCE)
    driver.add("B", 1_000)
    driver.arrive("s", 900)
    turn = driver.arrive("r", 5_000)
    before = len(driver.commands)
    driver.advance(100.0)
    assert driver.commands[before:] == [ProgramForced(R, A), ProgramAdmitted(R, A, 100.0, False), Forward(turn, A)]
    assert driver.backend("A").free_tokens is not None
    assert driver.backend("A").free_tokens < 0


def test_force_prefers_the_former_backend() -> None:
    """Where its prefix may still lie."""
    settings = SchedulerSettings(max_hold_seconds=100.0, on_hold_limit=OnHoldLimit.FORCE)
    policy = Scripted(lambda turn, cluster: "B")
    driver = SchedulerDriver(policy, settings)
    driver.add("A", 50_000)
    driver.add("B", 10_000)
    driver.finish(driver.arrive("p", 2_000))
    driver.send(BackendFailed(B, "gone"))
    driver.send(BackendRecovered(B))
    policy.answer = hold
    driver.arrive("p", 2_000)
    driver.advance(100.0)
    assert driver.told(ProgramForced) == [ProgramForced(P, A)]
    driver.close()


def test_force_sends_each_turn_only_where_its_model_is_served() -> None:
    """Two turns of one program for different models each go to their own backend."""
    settings = SchedulerSettings(max_hold_seconds=100.0, on_hold_limit=OnHoldLimit.FORCE)
    driver = SchedulerDriver(Scripted(hold), settings)
    driver.add("A", 50_000, ["m"])
    driver.add("B", 10_000, ["n"])
    first, second = driver.arrive("p", model="m"), driver.arrive("p", branch="sub", model="n")
    driver.advance(200.0)
    assert driver.where == {first: A, second: B}


def test_refuse_answers_after_the_limit() -> None:
    """503 with Retry-After; the other programs are left alone."""
    driver = full_driver(OnHoldLimit.REFUSE)
    turn = driver.arrive("r", 5_000)
    driver.advance(100.0)
    assert driver.told(Refuse) == [Refuse(turn, RefuseCode.HOLD_LIMIT, "no place within 100 s", 5.0)]
    assert driver.told(ProgramPaused) == []


def test_refused_turn_that_is_sent_again_waits_anew_at_its_former_age() -> None:
    """A retry that were refused at once would never find a place."""
    driver = full_driver(OnHoldLimit.REFUSE)
    driver.arrive("r", 5_000)
    driver.advance(100.0)
    turn = driver.arrive("r", 5_000, after=5.0)
    assert driver.told(TurnHeld)[-1].deadline_at == 15.0 + 100.0 + 5.0 + 100.0
    assert driver.program("r").waiting_since == 15.0
    driver.advance(50.0)
    driver.release("p")
    assert driver.where == {turn: A}


@pytest.mark.parametrize("mode", list(OnHoldLimit))
def test_no_backend_until_the_limit_refuses_in_every_mode(mode: OnHoldLimit) -> None:
    """There is nowhere to make room."""
    driver = full_driver(mode)
    driver.send(BackendFailed(A, "gone"))
    turn = driver.arrive("r", 5_000)
    driver.advance(100.0)
    message = "no place within 100 s: no backend takes turns of this model"
    assert driver.told(Refuse) == [Refuse(turn, RefuseCode.BACKEND_UNAVAILABLE, message, 5.0)]


@pytest.mark.parametrize("mode", [OnHoldLimit.HEAD, OnHoldLimit.FORCE])
def test_turn_held_at_its_own_place_is_forwarded_there(mode: OnHoldLimit) -> None:
    """Its program has room all along; the policy just did not say so."""
    driver = full_driver(mode)
    driver.policy.answer = hold  # type: ignore[attr-defined]
    turn = driver.arrive("p", 6_500)
    driver.advance(100.0)
    assert driver.where == {turn: A}
    assert driver.told(ProgramForced) == []


def test_no_limit_holds_without_deadline() -> None:
    """``max_hold_seconds=0``: the turn waits as long as it takes."""
    driver = full_driver(limit_seconds=0.0)
    turn = driver.arrive("r", 5_000)
    assert driver.told(TurnHeld)[-1].deadline_at is None
    driver.advance(3_000.0)
    assert turn in driver.held


def test_unknown_capacity_makes_room_at_once() -> None:
    """Where nobody knows what fits nothing is displaced."""
    settings = SchedulerSettings(max_hold_seconds=100.0)
    driver = SchedulerDriver(Scripted(hold), settings)
    driver.add("A")
    turn = driver.arrive("p")
    driver.advance(100.0)
    assert driver.where == {turn: A}


def test_deadlines_of_turns_placed_afresh_do_not_pile_up() -> None:
    """A backend that comes and goes for half an hour leaves no more deadlines than turns."""
    driver = SchedulerDriver(Scripted())
    driver.add("A", 10_000, ["m"])
    driver.send(BackendFailed(A, "gone"))
    for _ in range(5):
        driver.arrive("p", model="m")
        driver.arrive(None, model="m")
    for _ in range(100):
        driver.send(BackendObserved(A, ("m", "n")))
        driver.send(BackendObserved(A, ("m",)))
    assert len(driver.scheduler._placement._deadlines) <= 4 * 10 + 65


def test_reservation_moves_to_a_backend_that_becomes_free() -> None:
    """Room on one backend is no reason to wait while another stands empty."""
    settings = SchedulerSettings(max_hold_seconds=100.0)
    driver = SchedulerDriver(Scripted(where_it_fits), settings)
    driver.add("A", 10_000)
    driver.add("B", 9_000)
    driver.arrive("p", 9_000)
    on_b = driver.arrive("q", 9_000)
    turn = driver.arrive("r", 8_000)
    driver.advance(100.0)
    assert turn in driver.held
    driver.finish(on_b, 9_000)
    driver.release("q")
    assert driver.where[turn] == B
    assert driver.backend("A").reserved_tokens == 0
    driver.close()


def test_reservation_grows_with_its_waiter() -> None:
    """Another conversation of the waiting program needs room as well: nothing is overcommitted."""
    driver = full_driver()
    running = driver.arrive("p", 6_000)
    driver.arrive("r", 2_000)
    driver.advance(100.0)
    driver.arrive("r", 4_000, branch="sub")
    driver.finish(running, 6_000, after=1.0)
    assert driver.backend("A").accounted_tokens <= 10_000
    driver.close()


def test_age_ends_with_a_client_that_stays_away() -> None:
    """A turn sent again soon keeps its place in the queue; one after an hour begins a new wait."""
    for away_seconds, waited_seconds in ((60.0, 160.0), (500.0, 0.0)):
        driver = full_driver(limit_seconds=10_000.0)
        turn = driver.arrive("r", 9_500)
        driver.advance(100.0)
        driver.abandon(turn)
        driver.advance(away_seconds)
        driver.arrive("r", 9_500)
        since = driver.program("r").waiting_since
        assert since is not None
        assert driver.now - since == pytest.approx(waited_seconds, abs=1.0)


def test_head_displaces_a_bounded_number_of_programs_per_event() -> None:
    """300 make room for one that needs it all, those served for longest first, 64 at a time."""
    driver = SchedulerDriver(Scripted(where_it_fits), SchedulerSettings(max_hold_seconds=100.0))
    driver.add("A", 30_000)
    for index in range(300):
        driver.finish(driver.arrive(f"p{index}", 100), 100, after=float(index % 7))
    turn = driver.arrive("r", 30_000)
    driver.now += 100.0
    served = [program.service_seconds for program in driver.cluster.program_by_id.values()]
    commands = driver.send(Tick())
    paused = [notice.program for notice in commands if isinstance(notice, ProgramPaused)]
    assert len(paused) == STEPS_PER_EVENT
    assert [driver.program(name).service_seconds for name in paused] == sorted(served, reverse=True)[:STEPS_PER_EVENT]
    driver.arrive(None, 10)
    driver.advance(0.0)
    assert driver.where[turn] == A
    assert len(driver.told(ProgramPaused)) == 300


def test_reservation_of_nothing_is_looked_at() -> None:
    """All that the turn needs is another one's beginning: it goes at the limit, though no account changed."""
    driver = SchedulerDriver(
        Scripted(lambda turn, cluster: A if turn.id == 1 else None, reconsiders=False),
        SchedulerSettings(max_hold_seconds=100.0),
    )
    driver.add("A", 10_000)
    prefixes = [Prefix(PrefixKey("system"), 400)]
    driver.arrive("p", 200, prefixes=prefixes)
    turn = driver.arrive("q", 100, prefixes=prefixes)
    driver.advance(100.0)
    assert turn in driver.running
    driver.close()


def test_reservation_ends_when_its_program_gets_a_place_otherwise() -> None:
    """A third turn brings the program to X: the room on Y is given back, and does not drag the program there."""
    answers = {"big1": "Y", "big2": "Y"}
    policy = Scripted(lambda turn, cluster: "X" if turn.id == 5 else answers.get(turn.program.id), reconsiders=False)
    driver = SchedulerDriver(policy, SchedulerSettings(max_hold_seconds=100.0))
    driver.add("Y", 10_000)
    running = [driver.arrive("big1", 4_500), driver.arrive("big2", 4_500)]
    held = [driver.arrive("p", 2_000, after=1.0), driver.arrive("p", 2_000, branch="sub")]
    driver.advance(100.0)
    assert driver.backend("Y").reserved_tokens == 4_000
    driver.add("X", 2_050)
    third = driver.arrive("p", 100, branch="third")
    assert driver.where[third] == "X"
    assert driver.backend("Y").reserved_tokens == 0
    policy.decisions = [AdmitTurn(held[0], BackendId("X"))]
    driver.finish(third, 100, 5)
    assert driver.where[held[0]] == "X"
    driver.finish(running[0])
    driver.advance(0.0)
    assert {driver.where[turn] for turn in held} == {"X"}
    driver.check_policy()
    driver.close()
