"""One test for each defect seen in schedulers of this kind, by the name of the defect."""

from __future__ import annotations

import random

import pytest
from core_policies import Scripted, where_it_fits

from policies.least_kv import LeastKv
from policies.pause_resume import PauseResume
from thunderagent.core.backend import Backend
from thunderagent.core.commands import Forward, ProgramForced, ProgramYielding, Refuse, RefuseCode
from thunderagent.core.events import BackendFailed, BackendRemoved, Prefix, Tick, TurnProgressed
from thunderagent.core.program import Status
from thunderagent.core.settings import OnHoldLimit, SchedulerSettings
from thunderagent.core.usage import Outcome
from thunderagent.policy import BackendId, Pause, Policy, PrefixKey, ProgramId, Standing, Yield
from thunderagent.testing.scheduler_driver import BYTES_PER_TOKEN, SchedulerDriver

A, B, P = BackendId("A"), BackendId("B"), ProgramId("p")


def test_pause_during_admission_finds_every_request_a_backend() -> None:
    """A program paused by the event before its next request: the request waits or goes, it is never an error."""
    policy = Scripted(where_it_fits)
    driver = SchedulerDriver(policy)
    driver.add("A", 10_000)
    driver.finish(driver.arrive("p", 1_000))
    for decision in (Pause(P), Yield(P)):
        policy.decisions = [decision]
        driver.finish(driver.arrive(None, 1))
        turn = driver.arrive("p", 1_000)
        assert driver.where == {turn: A}
        driver.finish(turn)
    assert driver.told(Refuse) == []


@pytest.mark.parametrize("outcome", list(Outcome))
def test_answer_without_usage_ends_the_reasoning(outcome: Outcome) -> None:
    """The program acts from then on, and may be paused and expire."""
    driver = SchedulerDriver(Scripted())
    driver.add("A", 10_000)
    driver.finish(driver.arrive("p", 500), outcome=outcome)
    assert driver.program("p").standing is Standing.ACTING
    assert driver.backend("A").reasoning_tokens == 0
    assert driver.scheduler.next_deadline() == 3600.0


def test_requests_without_an_id_share_no_program() -> None:
    """Each is by itself, and leaves nothing."""
    driver = SchedulerDriver(Scripted())
    driver.add("A", 10_000)
    turns = [driver.arrive(None, 100) for _ in range(3)]
    assert driver.cluster.program_by_id == {}
    for turn in turns:
        driver.finish(turn)
    driver.check_empty()


def test_paused_program_released_while_waiting_is_not_forwarded() -> None:
    """Its request is answered; it does not go on to some backend without being accounted."""
    policy = Scripted(where_it_fits)
    driver = SchedulerDriver(policy)
    driver.add("A", 1_000)
    driver.finish(driver.arrive("p", 900))
    policy.decisions = [Pause(P)]
    driver.arrive("q", 900)
    turn = driver.arrive("p", 900)
    commands = driver.release("p")
    assert commands == [Refuse(turn, RefuseCode.PROGRAM_RELEASED, "program 'p' was released")]
    driver.advance(2_000.0)
    assert turn not in driver.where
    assert [entry for entry in driver.told(Forward) if entry.turn == turn] == []


def test_marked_tokens_are_taken_off_as_they_were_put_on() -> None:
    """A yielding program whose turn goes on growing leaves no rest behind."""
    policy = Scripted()
    driver = SchedulerDriver(policy)
    driver.add("A", 10_000)
    turn = driver.arrive("p", 500)
    policy.decisions = [Yield(P)]
    driver.arrive("q", 100)
    assert driver.backend("A").yielding_tokens == 500
    driver.send(TurnProgressed(turn, 300))
    assert driver.backend("A").yielding_tokens == 800
    policy.answer = lambda turn, cluster: None
    driver.finish(turn, 700, 900)
    assert driver.backend("A").yielding_tokens == 0
    assert driver.program("p").status is Status.PAUSED


def test_overflow_marks_as_many_as_it_takes_not_everybody() -> None:
    """Four reasoning programs outgrow the cache by one: one yields, and no further one at the next look."""
    driver = SchedulerDriver(PauseResume.from_options({"growth_reserve": "0", "buffer_tokens": "0"}))
    driver.add("A", 10_000)
    turns = [driver.arrive(f"p{index}", 2_500) for index in range(4)]
    driver.send(TurnProgressed(turns[3], 100))
    assert len(driver.told(ProgramYielding)) == 1
    driver.advance(20.0)
    assert len(driver.told(ProgramYielding)) == 1


def test_shared_tokens_are_corrected_for() -> None:
    """Programs on one prefix fit where their sum would not."""
    prefix = Prefix(PrefixKey("system"), 4_000 * BYTES_PER_TOKEN)
    driver = SchedulerDriver(LeastKv.from_options({"growth_reserve": "0"}))
    driver.add("A", 10_000)
    turns = [driver.arrive(f"p{index}", 5_000, prefixes=[prefix]) for index in range(6)]
    assert set(turns) == set(driver.running)
    assert driver.accounted() == {"A": 10_000}
    assert driver.arrive("late", 5_000, prefixes=[prefix]) in driver.held


@pytest.mark.parametrize("loss", [BackendFailed(A, "dead"), BackendRemoved(A)])
def test_programs_of_a_dead_or_removed_backend_are_not_stranded(loss: BackendFailed | BackendRemoved) -> None:
    """Idle and paused ones go elsewhere with their next turn, at once."""
    policy = Scripted()
    driver = SchedulerDriver(policy)
    driver.add("A", 10_000)
    driver.add("B", 10_000)
    driver.finish(driver.arrive("idle", 500))
    driver.finish(driver.arrive("p", 500))
    policy.decisions = [Pause(P)]
    driver.finish(driver.arrive(None, 1))
    driver.send(loss)
    for program in ("idle", "p"):
        assert driver.where[driver.arrive(program, 500)] == B


def test_cancelled_wait_leaves_no_phantom_capacity() -> None:
    """Whatever was reserved for a turn that reached the limit is free once its client has left."""
    driver = SchedulerDriver(Scripted(where_it_fits), SchedulerSettings(max_hold_seconds=10.0))
    driver.add("A", 1_000)
    driver.arrive("p", 900)
    for index in range(20):
        turn = driver.arrive(f"w{index}", 800)
        driver.advance(15.0)
        driver.abandon(turn)
    assert driver.backend("A").reserved_tokens == 0
    assert driver.accounted() == {"A": 900}
    driver.close()


def test_cancelled_queued_turn_leaks_no_permit() -> None:
    """A queue of two takes any number of turns one after the other."""
    driver = SchedulerDriver(Scripted(lambda turn, cluster: None), SchedulerSettings(max_held_turns=2))
    driver.add("A", 1_000)
    for index in range(50):
        first, second = driver.arrive("p"), driver.arrive(f"q{index}")
        driver.abandon(first)
        driver.abandon(second)
    assert driver.told(Refuse) == []
    driver.close()


def test_counters_never_go_below_zero() -> None:
    """Turns that fail, are tried elsewhere and end there are given back once on each backend."""
    driver = SchedulerDriver(Scripted())
    driver.add("A", 10_000)
    driver.add("B", 10_000)
    for index in range(20):
        turn = driver.arrive(f"p{index % 3}", 100 + index)
        driver.fail(turn, sent=True)
        if index % 2:
            driver.abandon(turn)
        else:
            driver.finish(turn)
        for backend in driver.cluster.backend_by_id.values():
            assert min(*(group.tokens for group in backend.groups), backend.guest_tokens, backend.shared_tokens) >= 0
    driver.close()


def test_pause_looks_at_few_of_many_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2,000 idle programs the one to pause is found without sorting or summing them all."""
    driver = SchedulerDriver(PauseResume.from_options({"growth_reserve": "0"}))
    monkeypatch.setattr(SchedulerDriver, "verify", lambda self: None)  # a recount after each event takes too long
    driver.add("A", 2_000 * 1_100)
    for index in range(2_000):
        driver.finish(driver.arrive(f"p{index}", 1_000))
    looked_at = 0
    smallest_first = Backend.smallest_first

    def counted(self, standing):
        nonlocal looked_at
        for program in smallest_first(self, standing):
            looked_at += 1
            yield program

    monkeypatch.setattr(Backend, "smallest_first", counted)
    turn = driver.arrive("p7", 3_500)
    driver.send(TurnProgressed(turn, 10))
    assert 1 <= looked_at <= 10


class Untouchable(list):
    """Has a length, and fails the test that looks inside."""

    def __iter__(self):
        pytest.fail("it looked at the programs one by one")


def test_reading_room_sums_over_no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2,000 programs none is looked at to say what is accounted, free, acting or waiting."""
    driver = SchedulerDriver(Scripted(where_it_fits))
    monkeypatch.setattr(SchedulerDriver, "verify", lambda self: None)  # a recount after each event takes too long
    driver.add("A", 2_000 * 1_000)
    for index in range(2_500):
        driver.arrive(f"p{index}", 1_000)
    backend, cluster = driver.backend("A"), driver.cluster
    for group in backend.groups:
        group.by_size, group.by_time = Untouchable(group.by_size), Untouchable(group.by_time)
    read = (backend.accounted_tokens, backend.free_tokens, backend.reasoning_tokens, backend.acting_tokens)
    assert read == (2_000_000, 0, 2_000_000, 0)
    assert (backend.program_count, backend.turn_count, cluster.program_count) == (2_000, 2_000, 2_500)
    assert (cluster.waiting_count, len(cluster.paused)) == (500, 0)


def test_two_thousand_programs_in_groups_hang_and_leak_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,048 at once in groups of 8 on one prompt, clients that leave at random: all end, nothing leaks."""
    draw, driver = random.Random(1), SchedulerDriver(PauseResume())
    monkeypatch.setattr(SchedulerDriver, "verify", lambda self: None)  # a recount after each event takes too long
    driver.add("A", 60_000)
    driver.add("B", 60_000)
    for index in range(2_048):
        prompt = Prefix(PrefixKey(f"task-{index // 8}"), 400 * BYTES_PER_TOKEN)
        driver.arrive(f"p{index}", draw.randint(500, 2_000), prefixes=[prompt])
    while driver.running:
        turn = draw.choice(list(driver.running))
        program = driver.running[turn].program
        if draw.random() < 0.2:
            driver.abandon(turn, after=0.01)
        else:
            driver.finish(turn, after=0.01)
        if driver.held and draw.random() < 0.2:
            driver.abandon(draw.choice(list(driver.held)))
        if program in driver.cluster.program_by_id:
            driver.release(program)
    monkeypatch.undo()
    driver.verify()
    assert driver.held == {}
    driver.close()


def test_forced_resume_time_is_the_operators() -> None:
    """1,800 s is a default, not a constant."""
    settings = SchedulerSettings(max_hold_seconds=3.0, on_hold_limit=OnHoldLimit.FORCE)
    driver = SchedulerDriver(Scripted(lambda turn, cluster: None), settings)
    driver.add("A", 1_000)
    turn = driver.arrive("p")
    assert driver.advance(2.9) == []
    driver.advance(0.1)
    assert driver.told(ProgramForced) == [ProgramForced(P, A)]
    assert driver.where == {turn: A}


@pytest.mark.parametrize(
    "policy",
    [
        LeastKv(),
        PauseResume.from_options({"half_life_seconds": "5"}),
        PauseResume(),
    ],
    ids=["least-kv", "pause-resume with decay", "pause-resume"],
)
def test_clients_that_never_release_do_not_block_for_ever(policy: Policy) -> None:
    """Finished programs keep their tokens until room is needed, not until they expire."""
    driver = SchedulerDriver(policy)
    driver.add("A", 10_000)
    for index in range(20):
        turn = driver.arrive(f"p{index}", 3_000, after=1.0)
        driver.advance(30.0)
        assert turn in driver.running, f"program {index} is held by finished ones"
        driver.finish(turn)


def test_small_ones_do_not_starve_a_large_one() -> None:
    """One of 8,000 among agents of 1,000 that keep coming has its place before the hold limit."""
    driver = SchedulerDriver(PauseResume())
    driver.add("A", 10_000)
    for index in range(6):
        driver.arrive(f"p{index}", 1_000)
    large = driver.arrive("large", 8_000)
    late = [driver.arrive(f"late{index}", 1_000) for index in range(6)]
    assert set(late) <= set(driver.held)
    for index in range(6):
        driver.release(f"p{index}")
        driver.finish(min(driver.running))
    assert large in driver.running
    driver.send(Tick(), after=1.0)
