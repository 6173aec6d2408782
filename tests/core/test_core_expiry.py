"""What is forgotten with time and number: idle programs, old branches; and what is refused at the limits."""

from __future__ import annotations

import pytest
from core_policies import Scripted, hold

from thunderagent.core.commands import ProgramExpired, Refuse, RefuseCode
from thunderagent.core.events import BackendDraining, BackendFailed, Prefix
from thunderagent.core.settings import SchedulerSettings
from thunderagent.policy import BackendId, PrefixKey, ProgramId
from thunderagent.testing.scheduler_driver import SchedulerDriver

A = BackendId("A")
SYSTEM = Prefix(PrefixKey("system"), 400)


def driver_with(policy: Scripted | None = None, **settings: float) -> SchedulerDriver:
    """One backend of 10,000 tokens."""
    driver = SchedulerDriver(policy or Scripted(), SchedulerSettings(**settings))  # type: ignore[arg-type]
    driver.add("A", 10_000)
    return driver


def test_idle_program_expires_after_its_ttl() -> None:
    """3,600 s after its last turn it is forgotten with everything that it took."""
    driver = driver_with()
    driver.finish(driver.arrive("p", 1000, prefixes=[SYSTEM]), after=10.0)
    assert driver.scheduler.next_deadline() == 3610.0
    driver.advance(3600.0)
    assert driver.told(ProgramExpired) == [ProgramExpired(ProgramId("p"), 3600.0)]
    driver.check_empty()


def test_late_tick_expires_all_that_are_due() -> None:
    """The notice tells the time that it really was idle."""
    driver = driver_with(program_ttl_seconds=60.0)
    for program in ("p", "q"):
        driver.finish(driver.arrive(program))
    driver.now = 100.0
    driver.advance(0.0)
    assert driver.told(ProgramExpired) == [
        ProgramExpired(ProgramId("p"), 100.0),
        ProgramExpired(ProgramId("q"), 100.0),
    ]


def test_expiry_counts_from_the_last_turn() -> None:
    """A program that works on does not expire, nor one whose turn runs or is held for long."""
    driver = driver_with(program_ttl_seconds=60.0, max_hold_seconds=0.0)
    for _ in range(5):
        driver.finish(driver.arrive("p", after=50.0))
    driver.arrive("p")
    driver.advance(500.0)
    driver.policy.answer = hold  # type: ignore[attr-defined]
    driver.arrive("q")
    driver.advance(500.0)
    assert driver.told(ProgramExpired) == []


def test_no_ttl_keeps_programs_for_ever() -> None:
    """``program_ttl_seconds=0``: nothing is due."""
    driver = driver_with(program_ttl_seconds=0.0)
    driver.finish(driver.arrive("p"))
    assert driver.scheduler.next_deadline() is None


def test_program_that_only_gave_up_expires_as_well() -> None:
    """A new program whose client left before it had a place is not kept for ever."""
    driver = driver_with(Scripted(hold))
    driver.abandon(driver.arrive("p", prefixes=[SYSTEM]))
    driver.advance(3600.0)
    driver.check_empty()


def test_branch_that_rests_no_longer_counts_when_others_go_on() -> None:
    """A sub-agent's conversation that ended 600 s ago is let go at the next turn of the main one."""
    driver = driver_with()
    driver.finish(driver.arrive("p", 1000))
    driver.finish(driver.arrive("p", 500, branch="sub", prefixes=[SYSTEM]))
    turn = driver.arrive("p", 1000, after=599.0)
    assert driver.accounted() == {"A": 1500}
    driver.finish(turn)
    driver.arrive("p", 1000, after=1.0)
    assert driver.accounted() == {"A": 1000}
    assert driver.cluster.ledger.prefixes == {}


def test_branch_ttl_of_zero_keeps_branches() -> None:
    """Only their number bounds them then."""
    driver = driver_with(branch_ttl_seconds=0.0)
    driver.finish(driver.arrive("p", 500, branch="sub"))
    driver.arrive("p", 1000, after=3000.0)
    assert driver.accounted() == {"A": 1500}


def test_branches_past_the_limit_push_out_the_one_unused_for_longest() -> None:
    """Two are remembered; a running one is never forgotten."""
    driver = driver_with(max_branches=2)
    running = driver.arrive("p", 100, branch="first")
    for index, branch in enumerate(("second", "third", "fourth")):
        driver.finish(driver.arrive("p", 200 + index, branch=branch, after=1.0))
    assert set(driver.program("p").branches) == {"first", "fourth"}
    assert driver.accounted() == {"A": 302}
    driver.finish(running)
    driver.close()


def test_full_queue_refuses_and_keeps_nothing() -> None:
    """503 with Retry-After; the refused program leaves no state."""
    driver = driver_with(Scripted(hold), max_held_turns=2)
    driver.arrive("p")
    driver.arrive("p")
    turn = driver.arrive("q", prefixes=[SYSTEM])
    assert driver.told(Refuse) == [Refuse(turn, RefuseCode.QUEUE_FULL, "2 turns wait already", 5.0)]
    assert set(driver.cluster.program_by_id) == {"p"}
    assert driver.cluster.ledger.prefixes == {}


def test_full_queue_still_forwards_what_need_not_wait() -> None:
    """Only waiting is limited."""
    driver = driver_with(Scripted(hold), max_held_turns=1)
    driver.arrive("p")
    driver.policy.answer = lambda turn, cluster: "A" if turn.program.id == "q" else None  # type: ignore[attr-defined]
    assert driver.arrive("q") in driver.running


def test_too_many_programs_refuses_new_ones_only() -> None:
    """Known programs go on; the refused one leaves no state."""
    driver = driver_with(max_programs=1)
    driver.finish(driver.arrive("p"))
    turn = driver.arrive("q", prefixes=[SYSTEM])
    expected = Refuse(turn, RefuseCode.TOO_MANY_PROGRAMS, "the router already tracks 1 programs", 5.0)
    assert driver.told(Refuse) == [expected]
    assert set(driver.cluster.program_by_id) == {"p"}
    assert driver.cluster.ledger.prefixes == {}
    assert driver.arrive("p") in driver.running
    assert driver.arrive(None) in driver.running


@pytest.mark.parametrize(
    ("served", "message"),
    [
        ((("m",), ("n", "k")), "The model `x` does not exist. Valid aliases: k, m, n."),
        (((), ()), "The model `x` does not exist. Valid aliases: none."),
    ],
)
def test_unknown_model_is_refused_with_the_served_names(served: tuple[tuple[str, ...], ...], message: str) -> None:
    """404 as the engine answers, without Retry-After, and nothing is kept of the program."""
    driver = SchedulerDriver(Scripted())
    for name, models in zip("AB", served, strict=True):
        driver.add(name, None, models)
    turn = driver.arrive("p", model="x")
    assert driver.told(Refuse) == [Refuse(turn, RefuseCode.MODEL_NOT_FOUND, message)]
    driver.check_empty()


@pytest.mark.parametrize("change", [BackendFailed(A, "gone"), BackendDraining(A)])
def test_model_of_a_lost_backend_waits_rather_than_404(change: BackendFailed | BackendDraining) -> None:
    """It is configured and may come back."""
    driver = SchedulerDriver(Scripted())
    driver.add("A", None, ["m"])
    driver.add("B", None, ["n"])
    driver.send(change)
    assert driver.arrive("p", model="m") in driver.held


def test_backend_of_unknown_models_is_asked_for_any() -> None:
    """Until it has said what it serves."""
    driver = SchedulerDriver(Scripted())
    driver.add("A", None, ["m"])
    driver.add("B")
    assert driver.where[driver.arrive("p", model="x")] == "B"
    assert driver.where[driver.arrive("q")] == "A"
