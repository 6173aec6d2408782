"""What the scheduler learns from the stream: tool times, bytes per token, and what stayed in a backend's cache."""

from __future__ import annotations

import pytest
from core_policies import Scripted

from thunderagent.core.commands import PrefixLost
from thunderagent.core.events import BackendFailed, BackendRecovered, BackendRemoved, CachedPrefix, PrefixesObserved
from thunderagent.core.usage import Outcome
from thunderagent.policy import BackendId, Move, Pause, ProgramId
from thunderagent.testing.scheduler_driver import SchedulerDriver

A, B, P = BackendId("A"), BackendId("B"), ProgramId("p")


def others_use(driver: SchedulerDriver, tokens: int) -> None:
    """One-off turns that write so many tokens to the cache of A."""
    for _ in range(tokens // 1_000):
        driver.finish(driver.arrive(None, 1_000), 1_000, 0, cached=0)


# Tool times


def test_time_between_turns_is_learned_per_program_and_for_all(driver: SchedulerDriver) -> None:
    """p's tools take 2 s, q's 30 s: each has its own median, between them lies everybody's."""
    for program, seconds in (("p", 2.0), ("q", 30.0)):
        driver.finish(driver.arrive(program, after=1.0), 100)
        for _ in range(4):
            driver.finish(driver.arrive(program, after=seconds), 100, after=5.0)
    own, others = driver.program("p").tool_times, driver.program("q").tool_times
    assert own is not None
    assert others is not None
    assert (own.count, others.count, driver.cluster.tool_times.count) == (4, 4, 8)
    assert own.quantile_seconds(0.5) == pytest.approx(2.0, rel=0.3)
    assert others.quantile_seconds(0.5) == pytest.approx(30.0, rel=0.3)
    assert driver.cluster.tool_times.quantile_seconds(0.25) == pytest.approx(2.0, rel=0.3)
    assert driver.cluster.tool_times.quantile_seconds(0.75) == pytest.approx(30.0, rel=0.3)


def test_first_turn_and_turn_sent_again_teach_no_tool_time(driver: SchedulerDriver, policy: Scripted) -> None:
    """A client that gives up on a held turn and sends it again was in no tool meanwhile."""
    driver.finish(driver.arrive("p"), 100)
    policy.answer = lambda turn, cluster: None
    policy.decisions = [Pause(P)]
    driver.abandon(driver.arrive(None))
    driver.abandon(driver.arrive("p", after=3.0), after=600.0)
    driver.arrive("p", after=1.0)
    times = driver.program("p").tool_times
    assert times is not None
    assert times.count == 1
    assert times.quantile_seconds(1.0) == pytest.approx(3.0, rel=0.4)


def test_overlapping_conversations_have_their_own_tool_times(driver: SchedulerDriver) -> None:
    """A sub-agent's first turn is no end of the main one's tool."""
    driver.finish(driver.arrive("p"), 100)
    driver.finish(driver.arrive("p", branch="sub", after=5.0), 100)
    assert driver.program("p").tool_times is None
    driver.arrive("p", after=5.0)
    assert driver.cluster.tool_times.count == 1


# The cache


def test_prefix_that_comes_back_is_not_lost(driver: SchedulerDriver) -> None:
    """1,000 of 1,000 tokens of the former prompt were cached."""
    driver.finish(driver.arrive("p", 1_000), 1_000, 100, cached=0)
    driver.finish(driver.arrive("p", 1_300), 1_300, 100, cached=1_000)
    assert driver.told(PrefixLost) == []
    assert driver.cluster.resident_ratio(driver.program("p")) == 1.0


def test_prefix_that_comes_back_cold_was_evicted(driver: SchedulerDriver) -> None:
    """16 of 1,000 tokens of the former prompt were cached; half of it would not be told."""
    driver.finish(driver.arrive("p", 1_000), 1_000, 100, cached=0)
    driver.finish(driver.arrive("p", 1_300), 1_300, 100, cached=500)
    assert driver.told(PrefixLost) == []
    driver.finish(driver.arrive("p", 1_600), 1_600, 100, cached=16)
    assert driver.told(PrefixLost) == [PrefixLost(P, A, 1_300, 16)]


@pytest.mark.parametrize("case", ["moved", "lost backend", "compacted", "not told", "rejected"])
def test_prefix_that_nobody_evicted_is_not_told(driver: SchedulerDriver, policy: Scripted, case: str) -> None:
    """Another backend, a restarted one, a rewritten history, a server that tells no cached tokens, an error."""
    driver.finish(driver.arrive("p", 1_000), 1_000, 100, cached=0)
    tokens, cached, outcome = 1_300, 0, Outcome.COMPLETED
    if case == "moved":
        policy.decisions = [Move(P, B)]
        driver.abandon(driver.arrive(None))
    elif case == "lost backend":
        driver.send(BackendFailed(A, "restart"))
        driver.send(BackendRecovered(A))
    elif case == "compacted":
        tokens = 700
    turn = driver.arrive("p", tokens)
    if case == "rejected":
        driver.finish(turn, outcome=Outcome.BACKEND_REJECTED)
    else:
        driver.finish(turn, tokens, 100, cached=None if case == "not told" else cached, outcome=outcome)
    assert driver.told(PrefixLost) == []


def test_second_turn_at_once_is_measured_by_what_was_there_when_it_began(driver: SchedulerDriver) -> None:
    """Two turns of one conversation that overlap: what the first leaves was not there for the second."""
    driver.finish(driver.arrive("p", 1_000), 1_000, 0, cached=0)
    first, second = driver.arrive("p", 5_000), driver.arrive("p", 5_200)
    driver.finish(first, 5_000, 0, cached=1_000)
    driver.finish(second, 5_200, 0, cached=1_000)
    assert driver.told(PrefixLost) == []


def test_residency_falls_with_what_others_write_and_is_gone_with_the_backend(driver: SchedulerDriver) -> None:
    """All of 1,000 tokens while 3,000 were written to 10,000, none after 25,000, and none after a restart."""
    driver.finish(driver.arrive("p", 1_000), 1_000, 0, cached=0)
    program = driver.program("p")
    others_use(driver, 3_000)
    assert driver.cluster.resident_ratio(program) == 1.0
    others_use(driver, 22_000)
    assert driver.cluster.resident_ratio(program) == 0.0
    driver.finish(driver.arrive("p", 1_200), 1_200, 0, cached=0)
    assert driver.cluster.resident_ratio(program) == 1.0
    driver.send(BackendFailed(A, "restart"))
    assert driver.cluster.resident_ratio(program) == 0.0


def test_residency_is_learned_from_what_came_back(driver: SchedulerDriver) -> None:
    """Programs that were away for 4,000 tokens come back cold, though 10,000 would hold them: the cliff is nearer."""
    for index in range(6):
        name = f"q{index}"
        driver.finish(driver.arrive(name, 1_000), 1_000, 0, cached=0)
        others_use(driver, 4_000)
        driver.finish(driver.arrive(name, 1_100), 1_100, 0, cached=0)
        driver.release(name)
    driver.finish(driver.arrive("p", 1_000), 1_000, 0, cached=0)
    assert driver.cluster.resident_ratio(driver.program("p")) == 1.0
    others_use(driver, 5_000)
    assert driver.cluster.resident_ratio(driver.program("p")) < 0.15


def test_program_that_left_nothing_has_nothing_resident(driver: SchedulerDriver) -> None:
    """Before its first turn ended."""
    driver.arrive("p", 1_000)
    assert driver.cluster.resident_ratio(driver.program("p")) == 0.0


@pytest.mark.parametrize("outcome", [Outcome.CLIENT_GONE, Outcome.SHUTDOWN])
def test_cancelled_turn_without_output_is_not_taken_to_be_in_the_cache(outcome: Outcome) -> None:
    """The engine may not have begun it; one that has given output it has."""
    driver = SchedulerDriver(Scripted())
    driver.add("A", 100_000)
    driver.finish(driver.arrive("p", 10_000), 10_000, 10)
    residency = driver.backend("A").residency
    for _ in range(30):
        driver.finish(driver.arrive(None, 10_000), outcome=outcome)
    assert residency.turnover_tokens == 10_010
    assert driver.cluster.resident_ratio(driver.program("p")) == 1.0
    driver.finish(driver.arrive(None, 10_000), outcome=outcome, output_tokens=1)
    assert residency.turnover_tokens == 20_011


# What an engine's KV events say


def observe(driver: SchedulerDriver, prefix_tokens: int | None, held_tokens: int = 0, program: str = "p") -> None:
    """The events of A tell of a program."""
    driver.send(PrefixesObserved(A, (CachedPrefix(ProgramId(program), prefix_tokens, held_tokens),)))


def test_engine_s_word_goes_before_the_judgement(driver: SchedulerDriver) -> None:
    """Whatever was written since; and the judgement stands again when nothing is known any more."""
    driver.finish(driver.arrive("p", 1_000), 1_000, 0, cached=0)
    program = driver.program("p")
    observe(driver, 250, 900)
    assert driver.cluster.resident_ratio(program) == 0.25
    observe(driver, 0, 900)
    assert driver.cluster.resident_ratio(program) == 0.0
    observe(driver, 1_008, 1_008)
    assert driver.cluster.resident_ratio(program) == 1.0
    others_use(driver, 25_000)
    assert driver.cluster.resident_ratio(program) == 1.0
    observe(driver, None)
    assert (driver.cluster.resident_ratio(program), program.cached) == (0.0, None)


def test_backend_that_is_removed_is_forgotten(driver: SchedulerDriver) -> None:
    """Nothing comes of its events any more that would take it out."""
    driver.finish(driver.arrive("p", 1_000), 1_000, 0, cached=0)
    program = driver.program("p")
    observe(driver, 250, 900)
    driver.send(BackendRemoved(A))
    assert program.cached is None


def test_of_several_conversations_all_that_is_cached_counts(driver: SchedulerDriver) -> None:
    """The beginning told is that of the one which ran last."""
    driver.finish(driver.arrive("p", 1_000), 1_000, 0, cached=0)
    driver.finish(driver.arrive("p", 3_000, branch="sub"), 3_000, 0, cached=0)
    observe(driver, 500, 2_000)
    assert driver.cluster.resident_ratio(driver.program("p")) == 0.5


def test_unknown_programs_change_nothing(driver: SchedulerDriver) -> None:
    """Sessions of clients that go past the router, and programs that were released meanwhile."""
    observe(driver, 250, program="a stranger")
    assert driver.cluster.program_count == 0
