"""``pause-resume``: ``turns_per_program``, the bound on turns of one program that run at once."""

from __future__ import annotations

from pause_resume_cases import A, B, act, admitted, driver_of, forwarded, paper, paused, resize, yielding

from thunderagent.core.commands import HoldReason, Refuse, RefuseCode, TurnHeld
from thunderagent.core.events import BackendFailed
from thunderagent.core.settings import SchedulerSettings
from thunderagent.policy import ProgramId, TurnId
from thunderagent.testing import SchedulerDriver


def parallel(driver: SchedulerDriver, program: str, turns: int, tokens: int = 1_000) -> list[TurnId]:
    """So many turns of one program, each of another conversation."""
    return [driver.arrive(program, tokens, branch=f"sub{index}") for index in range(turns)]


def test_third_parallel_turn_waits_at_its_programs_place() -> None:
    """Two run; the third and the fourth follow in their order, each when one ends."""
    driver = driver_of(10_000, turns_per_program="2")
    turns = parallel(driver, "p", 4)
    assert (sorted(driver.running), sorted(driver.held)) == (turns[:2], turns[2:])
    driver.finish(turns[1])
    assert (sorted(driver.running), sorted(driver.held)) == ([turns[0], turns[2]], turns[3:])
    driver.finish(turns[0])
    assert (sorted(driver.running), sorted(driver.held)) == (turns[2:], [])
    assert forwarded(driver) == [turns[0], turns[1], turns[2], turns[3]]
    driver.close()


def test_no_bound_lets_all_turns_run() -> None:
    """The default."""
    driver = driver_of(10_000)
    assert parallel(driver, "p", 8) == sorted(driver.running)


def test_nobody_else_is_blocked_by_turns_beyond_the_bound() -> None:
    """A newcomer, another program's next turn and a one-off turn pass."""
    driver = driver_of(10_000, turns_per_program="1")
    act(driver, ("q", 1_000))
    turns = parallel(driver, "p", 3)
    others = [driver.arrive("n", 1_000), driver.arrive("q", 1_000), driver.arrive(None, 500)]
    assert (sorted(driver.held), sorted(driver.running)) == (turns[1:], [turns[0], *others])


def test_each_program_has_its_own_bound() -> None:
    """One turn each of p and q runs."""
    driver = driver_of(10_000, turns_per_program="1")
    turns = [*parallel(driver, "p", 2), *parallel(driver, "q", 2)]
    assert sorted(driver.running) == [turns[0], turns[2]]
    driver.finish(turns[2])
    assert sorted(driver.running) == [turns[0], turns[3]]


def test_turns_held_before_the_admission_go_up_to_the_bound() -> None:
    """Three turns of p waited for room; two go when there is some, the third when one of them ends."""
    driver = driver_of(10_000, turns_per_program="2")
    first = driver.arrive("z", 9_000)
    turns = parallel(driver, "p", 3)
    assert sorted(driver.held) == turns
    driver.finish(first)
    driver.release("z")
    assert (sorted(driver.running), sorted(driver.held)) == (turns[:2], turns[2:])
    driver.finish(turns[0])
    assert sorted(driver.running) == turns[1:]
    driver.close()


def test_paper_frees_turns_with_the_event() -> None:
    """Turns of an admitted program do not wait for the tick."""
    driver = paper(10_000, turns_per_program="1")
    turns = parallel(driver, "p", 2)
    driver.finish(turns[0])
    assert sorted(driver.running) == turns[1:]


def test_abandoned_turns_make_room_for_the_next() -> None:
    """A held one is just gone; a running one makes room."""
    driver = driver_of(10_000, turns_per_program="1")
    turns = parallel(driver, "p", 4)
    driver.abandon(turns[1])
    assert (sorted(driver.running), sorted(driver.held)) == (turns[:1], turns[2:])
    driver.abandon(turns[0])
    assert (sorted(driver.running), sorted(driver.held)) == (turns[2:3], turns[3:])
    driver.close()


def test_released_program_has_its_held_turns_refused() -> None:
    """The running one goes on; nothing is left behind."""
    driver = driver_of(10_000, turns_per_program="1")
    turns = parallel(driver, "p", 3)
    driver.release("p")
    assert [(refusal.turn, refusal.code) for refusal in driver.told(Refuse)] == [
        (turn, RefuseCode.PROGRAM_RELEASED) for turn in turns[1:]
    ]
    driver.finish(turns[0])
    driver.check_empty()


def test_paused_program_keeps_its_held_turns() -> None:
    """p yields with one turn running and two held: none of them starts. At the boundary it is paused; when there is
    room it comes back with the first of them, and then the second."""
    driver = driver_of(20_000, turns_per_program="1")
    driver.arrive("z", 5_000)
    turns = parallel(driver, "p", 3)
    resize(driver, 5_300)
    assert (yielding(driver), sorted(driver.held)) == (["p"], turns[1:])
    driver.finish(turns[0])
    assert (paused(driver), sorted(driver.held)) == (["p"], turns[1:])
    resize(driver, 20_000)
    assert (sorted(driver.running)[1:], sorted(driver.held)) == (turns[1:2], turns[2:])
    driver.finish(turns[1])
    assert (sorted(driver.running)[1:], sorted(driver.held)) == (turns[2:], [])
    driver.close()


def test_turns_beyond_the_bound_go_elsewhere_when_their_backend_is_lost() -> None:
    """p has its place on B then. The turn that ran on A still counts; when it fails it is held again behind those who
    wait, and the first of these goes."""
    driver = driver_of(10_000, turns_per_program="1")
    turns = parallel(driver, "p", 3)
    driver.add("B", 10_000)
    driver.send(BackendFailed(A, "no answer"))
    assert (admitted(driver)[1:], driver.where, sorted(driver.held)) == ([("p", B)], {turns[0]: A}, turns[1:])
    driver.fail(turns[0])
    assert len(driver.running) == 1
    for _ in range(3):
        driver.finish(min(driver.running))
    assert sorted(forwarded(driver)) == [turns[0], *turns]
    driver.close()


def test_turn_beyond_the_bound_goes_at_the_hold_limit() -> None:
    """It waited for its program's other turn for 60 s; its program has a place, so it is not made to wait longer."""
    driver = driver_of(10_000, turns_per_program="1", settings=SchedulerSettings(max_hold_seconds=60.0))
    turns = parallel(driver, "p", 2)
    assert driver.told(TurnHeld) == [TurnHeld(turns[1], ProgramId("p"), HoldReason.POLICY, 60.0)]
    driver.advance(59.9)
    assert sorted(driver.held) == turns[1:]
    driver.advance(0.1)
    assert sorted(driver.running) == turns
