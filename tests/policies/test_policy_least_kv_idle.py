"""``least-kv``: idle programs make room for who waits, and what all of it costs."""

from __future__ import annotations

from typing import Any

import pytest
from simple_cases import A, driver_of, idle, paused, places

from policies.least_kv import LeastKv
from thunderagent.core.backend import Backend
from thunderagent.core.commands import PauseReason, ProgramMoved, ProgramPaused
from thunderagent.core.events import TurnProgressed
from thunderagent.policy import ClusterView, ProgramId, Trigger
from thunderagent.testing import Agent, ClosedLoop, SchedulerDriver

# Idle programs


def test_idle_programs_go_where_nothing_runs() -> None:
    """The one idle for longest gives its 3,000 to a newcomer of 2,000, and no other leaves."""
    driver = driver_of(LeastKv(), 10_000)
    for program in ("p", "q", "r"):
        driver.finish(driver.arrive(program, 3_000, after=1.0))
    assert places(driver, driver.arrive("s", 2_000, after=1.0)) == ["A"]
    assert driver.told(ProgramPaused) == [ProgramPaused(ProgramId("p"), A, PauseReason.POLICY)]


def test_idle_programs_stay_where_others_run_until_the_lease_is_over() -> None:
    """``p`` of 4,000 is idle and ``q`` runs: ``r`` waits for 30 s, then ``p`` is paused; the lease is in seconds."""
    driver = driver_of(LeastKv(), 10_000)
    idle(driver, "p", 4_000)
    driver.arrive("q", 4_000)
    turn = driver.arrive("r", 4_000)
    driver.advance(29.5)
    assert (places(driver, turn), paused(driver)) == (["held"], [])
    driver.advance(1.0)
    assert (places(driver, turn), paused(driver)) == (["A"], ["p"])
    driver.check_policy()


def test_lease_of_zero_is_none() -> None:
    """``p`` keeps its place for the ten minutes in which ``q`` runs."""
    driver = driver_of(LeastKv.from_options({"idle_lease_seconds": "0"}), 10_000)
    idle(driver, "p", 4_000)
    driver.arrive("q", 4_000)
    turn = driver.arrive("r", 4_000)
    driver.advance(600.0)
    assert (places(driver, turn), paused(driver)) == (["held"], [])


def test_lease_pauses_the_longest_idle_and_no_more_than_needed() -> None:
    """``a``, ``b`` and ``c`` of 2,000 are idle beside 2,000 that run: 4,000 need two of them, ``a`` and ``b``."""
    driver = driver_of(LeastKv(), 10_000)
    for name in "abc":
        driver.finish(driver.arrive(name, 2_000, after=1.0), 2_000)
    driver.arrive("q", 2_000)
    driver.advance(60.0)
    assert places(driver, driver.arrive("r", 4_000)) == ["A"]
    assert paused(driver) == ["a", "b"]


def test_lease_takes_no_place_where_that_would_not_help() -> None:
    """``p`` of 1,000 is forgotten; beside 8,000 that run 5,000 do not fit without it either."""
    driver = driver_of(LeastKv(), 10_000)
    idle(driver, "p", 1_000)
    driver.arrive("q", 8_000)
    turn = driver.arrive("r", 5_000)
    driver.advance(120.0)
    assert (places(driver, turn), paused(driver)) == (["held"], [])


def test_lease_spares_a_program_whose_turn_waits() -> None:
    """``p`` waits to grow since a minute: it is not idle, and ``r`` waits behind the running ``q``."""
    driver = driver_of(LeastKv(), 10_000)
    idle(driver, "p", 4_000)
    driver.arrive("q", 4_000)
    turns = [driver.arrive("p", 8_000), driver.arrive("r", 4_000)]
    driver.advance(60.0)
    assert (places(driver, *turns), paused(driver)) == (["held", "held"], [])


def test_lease_spares_a_program_that_waits_to_grow_behind_another() -> None:
    """``p`` and ``s`` both want 3,000 more for a minute beside the running ``q``: neither is idle."""
    driver = driver_of(LeastKv(), 10_000)
    idle(driver, "p", 2_000)
    idle(driver, "s", 3_000)
    driver.arrive("q", 4_000)
    turns = [driver.arrive("p", 5_000), driver.arrive("s", 6_000)]
    driver.advance(60.0)
    assert (places(driver, *turns), paused(driver)) == (["held", "held"], [])


def test_lease_makes_no_room_for_a_newcomer_where_growth_waits() -> None:
    """``old`` of 2,000 would make room for ``new`` of 1,500, but not for the 5,500 that ``p`` waits for on A."""
    driver = driver_of(LeastKv(), 10_000)
    idle(driver, "old", 2_000)
    idle(driver, "p", 2_000)
    driver.arrive("q", 5_500)
    turns = [driver.arrive("p", 7_500), driver.arrive("new", 1_500)]
    driver.advance(60.0)
    assert (places(driver, *turns), paused(driver)) == (["held", "held"], [])


def test_forgotten_program_goes_before_one_that_was_used_just_now() -> None:
    """On B ``old`` is idle since a minute beside a turn; on A, where none runs, ``young`` stays."""
    driver = driver_of(LeastKv(), 10_000, 9_900)
    idle(driver, "young", 8_000)
    idle(driver, "old", 5_000)
    driver.arrive("q", 4_000)
    driver.advance(60.0)
    driver.finish(driver.arrive("young", 8_000), 8_000)
    assert places(driver, driver.arrive("r", 4_000)) == ["B"]
    assert paused(driver) == ["old"]


def test_lease_makes_room_for_growth_too() -> None:
    """``old`` of 4,000 is idle since 40 s; ``p`` grows from 3,000 to 6,000 beside the running ``q``."""
    driver = driver_of(LeastKv(), 10_000)
    idle(driver, "old", 4_000)
    driver.arrive("q", 2_000)
    idle(driver, "p", 3_000)
    driver.advance(40.0)
    assert places(driver, driver.arrive("p", 6_000)) == ["A"]
    assert paused(driver) == ["old"]
    assert driver.told(ProgramMoved) == []


def test_two_models_do_not_both_take_the_same_room() -> None:
    """Both wait for A with 6,000, where ``p`` is idle with 8,000: it is paused once, and one of them goes."""
    driver = driver_of(LeastKv(), 10_000)
    idle(driver, "p", 8_000)
    running = driver.arrive(None, 1_000)
    turns = [driver.arrive("q", 6_000, model="one"), driver.arrive("r", 6_000, model="two")]
    driver.finish(running)
    assert places(driver, *turns) == ["A", "held"]
    driver.check_policy()


# What it costs


class Counting(LeastKv):
    """Counts how often ``rebalance`` reads the room of a backend."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.reads = list[int]()
        """Of each call."""
        self._is_counting, read_room = False, Backend.free_tokens.fget
        assert read_room is not None

        def counted(backend: Backend) -> int | None:
            if self._is_counting:
                self.reads[-1] += 1
            return read_room(backend)

        monkeypatch.setattr(Backend, "free_tokens", property(counted))

    def rebalance(self, cluster: ClusterView, trigger: Trigger) -> Any:
        self.reads.append(0)
        self._is_counting = True
        decisions = super().rebalance(cluster, trigger)
        self._is_counting = False
        return decisions


def test_nothing_is_looked_at_where_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """On no event, and on no tick."""
    policy = Counting(monkeypatch)
    driver = driver_of(policy, 10_000, 10_000)
    driver.finish(driver.arrive("p", 5_000))
    driver.advance(5.0)
    driver.release("p")
    assert policy.reads == [0] * 10


def test_all_backends_are_looked_at_for_a_new_waiter_and_on_ticks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 backends and one that waits: events read the room of the backend that changed, twice at most."""
    policy = Counting(monkeypatch)
    driver = SchedulerDriver(policy)
    for index in range(100):
        driver.add(f"backend-{index}", 10_000)
    turns = [driver.arrive(f"p{index}", 9_000) for index in range(100)]
    driver.arrive("waits", 9_900)
    assert policy.reads[-1] >= 100
    policy.reads.clear()
    driver.arrive(None, 100)
    for turn in turns[1:6]:
        driver.send(TurnProgressed(turn, 100))
    assert 0 < max(policy.reads) <= 2
    driver.advance(1.0)
    assert policy.reads[-1] >= 100


@pytest.mark.parametrize("options", [{}, {"idle_lease_seconds": "0"}, {"growth_reserve": "0.3"}])
def test_agents_that_need_five_times_the_cache_come_to_an_end(options: dict[str, str]) -> None:
    """40 agents on two unequal backends, two of them larger than half of one: all are through, none overcommits."""
    driver = driver_of(LeastKv.from_options(options), 12_000, 8_000)
    agents = [Agent(f"a{index}", 800 + 170 * (index % 7), 250, 6, starts_at=index * 0.3) for index in range(38)]
    agents += [Agent("large", 7_000, 100, 3), Agent("larger", 11_000, 100, 3, starts_at=5.0)]
    loop = ClosedLoop(driver, agents)
    loop.run()
    assert loop.overcommitted == []
    assert loop.longest_hold_seconds < driver.scheduler.settings.max_hold_seconds
    driver.check_policy()
    driver.check_empty()
