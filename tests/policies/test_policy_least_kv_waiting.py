"""``least-kv``: who waits behind whom, who makes room, and what that costs."""

from __future__ import annotations

from typing import Any

import pytest
from simple_cases import A, B, driver_of, places

from policies.least_kv import LeastKv
from thunderagent.core.backend import Backend
from thunderagent.core.commands import PauseReason, ProgramMoved, ProgramPaused
from thunderagent.core.events import BackendFailed, BackendRecovered, TurnProgressed
from thunderagent.policy import ClusterView, ProgramId, Trigger
from thunderagent.testing import Agent, ClosedLoop, SchedulerDriver


def idle(driver: SchedulerDriver, program: str, tokens: int, model: str | None = None) -> None:
    """A program whose turn of so many tokens has just ended."""
    driver.finish(driver.arrive(program, tokens, model=model), tokens)


def paused(driver: SchedulerDriver) -> list[str]:
    return [notice.program for notice in driver.told(ProgramPaused)]


# Behind whom


def test_newcomer_that_fits_waits_behind_a_program_that_does_not() -> None:
    """4,000 of 10,000 are free: ``large`` waits with 5,000, and ``small`` behind it with 100."""
    driver = driver_of(LeastKv(), 10_000)
    running = driver.arrive("p", 6_000)
    large, small = driver.arrive("large", 5_000), driver.arrive("small", 100)
    assert places(driver, large, small) == ["held", "held"]
    driver.finish(running)
    driver.release("p")
    assert places(driver, large, small) == ["A", "A"]
    driver.check_policy()


def test_newcomer_waits_behind_others_on_another_backend_too() -> None:
    """``large`` fits on neither; B has 3,000 free and yet ``small`` waits behind it."""
    driver = driver_of(LeastKv(), 10_000, 8_000)
    driver.arrive("p", 8_000)
    driver.arrive("q", 5_000)
    assert places(driver, driver.arrive("large", 5_000), driver.arrive("small", 100)) == ["held", "held"]


def test_newcomer_of_another_model_waits_behind_nobody() -> None:
    """``large`` waits for A of ``one``; ``small`` of ``two`` goes to B."""
    driver = SchedulerDriver(LeastKv())
    driver.add("A", 10_000, ["one"])
    driver.add("B", 10_000, ["two"])
    driver.arrive("p", 6_000, model="one")
    large = driver.arrive("large", 5_000, model="one")
    assert places(driver, large, driver.arrive("small", 100, model="two")) == ["held", "B"]


def test_one_off_turn_passes_programs_but_not_another_that_waits() -> None:
    """Beside 6,000 of 10,000, 100 pass a program of 5,000; behind a one-off turn of 4,500, 100 more wait."""
    driver = driver_of(LeastKv(), 10_000)
    running = driver.arrive("p", 6_000)
    turns = [driver.arrive("large", 5_000), driver.arrive(None, 100), driver.arrive(None, 4_500)]
    turns.append(driver.arrive(None, 100))
    assert places(driver, *turns) == ["held", "A", "held", "held"]
    driver.abandon(turns[2])
    driver.finish(running, 6_000)
    assert places(driver, turns[3]) == ["A"]


def test_placed_program_passes_those_that_wait_for_a_place() -> None:
    """Its growth of 500 goes on while ``large`` waits, and a move frees as much as it takes."""
    driver = driver_of(LeastKv(), 10_000)
    idle(driver, "p", 1_000)
    driver.arrive("q", 6_000)
    assert places(driver, driver.arrive("large", 5_000), driver.arrive("p", 1_500)) == ["held", "A"]


def test_head_of_the_line_does_not_hold_itself_back() -> None:
    """Three of 4,000 wait behind each other; as 9,000 come free two go, in their order."""
    driver = driver_of(LeastKv(), 10_000)
    running = driver.arrive("p", 9_000)
    turns = [driver.arrive(f"q{index}", 4_000, after=1.0) for index in range(3)]
    driver.finish(running)
    driver.release("p")
    assert places(driver, *turns) == ["A", "A", "held"]
    driver.check_policy()


def test_second_turn_of_the_first_waiter_is_not_late() -> None:
    """``q`` waits with 5,000 while 6,000 of 10,000 run; its second turn waits with it, and both go together."""
    driver = driver_of(LeastKv(), 10_000)
    running = driver.arrive("p", 6_000)
    turns = [driver.arrive("q", 5_000), driver.arrive("q", 1_000, branch="sub")]
    driver.finish(running)
    driver.release("p")
    assert places(driver, *turns) == ["A", "A"]


def test_turn_sent_again_keeps_its_age() -> None:
    """The first of two gives up after 10 s and comes again: it is in front of the other, which waits since 5 s."""
    driver = driver_of(LeastKv(), 10_000)
    running = driver.arrive("p", 9_000)
    first = driver.arrive("first", 8_000)
    arrived = driver.held[first]
    second = driver.arrive("second", 8_000, after=5.0)
    driver.abandon(first, after=5.0)
    again = driver.arrive_again(arrived, after=1.0)
    driver.finish(running)
    driver.release("p")
    assert places(driver, again, second) == ["A", "held"]


def test_those_behind_go_on_when_the_first_leaves() -> None:
    """``large`` gives up; ``small``, which fits all along, goes at once although no account changed."""
    driver = driver_of(LeastKv(), 10_000)
    driver.arrive("p", 6_000)
    large, small = driver.arrive("large", 5_000), driver.arrive("small", 100)
    driver.abandon(large)
    assert places(driver, small) == ["A"]


def test_waiter_without_a_backend_blocks_nobody() -> None:
    """The oldest waits for another model's backend; idle programs still make room for the next."""
    driver = SchedulerDriver(LeastKv())
    driver.add("A", 10_000, ["m"])
    driver.add("B", 10_000, ["n"])
    idle(driver, "p", 8_000, "m")
    driver.send(BackendFailed(B, "gone"))
    dead = driver.arrive("q", model="n")
    assert places(driver, dead, driver.arrive("r", 8_000, model="m")) == ["held", "A"]


def test_backend_that_comes_takes_those_who_wait_in_their_order() -> None:
    """Three of 6,000 wait for anybody; A of 10,000 takes the first, B the second."""
    driver = SchedulerDriver(LeastKv())
    turns = [driver.arrive(f"p{index}", 6_000) for index in range(3)]
    driver.add("A", 10_000)
    assert places(driver, *turns) == ["A", "held", "held"]
    driver.add("B", 10_000)
    assert places(driver, *turns) == ["A", "B", "held"]
    driver.finish(turns[0])
    driver.send(BackendFailed(A, "gone"))
    driver.send(BackendRecovered(A))
    assert places(driver, turns[2]) == ["A"]
    driver.check_policy()


# Growth that waits at its place


def test_growth_waits_at_its_place_and_goes_when_it_fits() -> None:
    """``p`` of 2,000 grows by 3,000 beside 7,000 of 10,000: it goes on when ``q`` turns out to hold 4,000 only."""
    driver = driver_of(LeastKv(), 10_000)
    idle(driver, "p", 2_000)
    running = driver.arrive("q", 7_000)
    turn = driver.arrive("p", 5_000)
    assert places(driver, turn) == ["held"]
    driver.finish(running, 4_000)
    assert places(driver, turn) == ["A"]
    assert paused(driver) == []


def test_growth_that_waits_on_one_backend_does_not_stop_another() -> None:
    """``p`` waits on A since longer; ``q`` goes on when B has room, though it stands behind in the line."""
    driver = driver_of(LeastKv(), 10_000, 9_000)
    idle(driver, "p", 2_000)
    idle(driver, "q", 2_000)
    on_a, on_b = driver.arrive("x", 7_000), driver.arrive("y", 6_500)
    assert places(driver, on_a, on_b) == ["A", "B"]
    first, second = driver.arrive("p", 6_000), driver.arrive("q", 5_000)
    assert places(driver, first, second) == ["held", "held"]
    driver.finish(on_b, 3_000)
    assert places(driver, first, second) == ["held", "B"]
    driver.check_policy()


def test_all_growth_that_fits_goes_on_at_once() -> None:
    """Three wait with 1,500 more each; 5,000 come free, and all three go."""
    driver = driver_of(LeastKv(), 10_000)
    for name in ("p", "q", "r"):
        idle(driver, name, 1_000)
    running = driver.arrive("x", 6_000)
    turns = [driver.arrive(name, 2_500) for name in ("p", "q", "r")]
    assert places(driver, *turns) == ["held", "held", "held"]
    driver.finish(running, 1_000)
    assert places(driver, *turns) == ["A", "A", "A"]
    driver.check_policy()


def test_programs_that_grow_against_each_other_do_not_lock() -> None:
    """Both fill the cache, and neither runs: ``q``, which is idle, is paused, and ``p`` goes on."""
    driver = driver_of(LeastKv.from_options({"growth_reserve": "0"}), 10_000)
    first, second = driver.arrive("p", 5_000), driver.arrive("q", 5_000)
    driver.finish(first, 5_000)
    held = driver.arrive("p", 6_000)
    assert places(driver, held) == ["held"]
    driver.finish(second, 5_000)
    assert places(driver, held) == ["A"]
    assert driver.told(ProgramPaused) == [ProgramPaused(ProgramId("q"), A, PauseReason.POLICY)]


def test_of_those_who_all_wait_to_grow_the_last_is_paused() -> None:
    """``p``, ``q`` and ``r`` hold 3,000 of 10,000 and want 4,500: as ``x`` ends ``r`` leaves, and two go on."""
    driver = driver_of(LeastKv(), 10_000)
    for name in ("p", "q", "r"):
        idle(driver, name, 3_000)
    running = driver.arrive(None, 500)
    turns = [driver.arrive(name, 4_500, after=1.0) for name in ("p", "q", "r")]
    assert places(driver, *turns) == ["held", "held", "held"]
    driver.finish(running)
    assert (places(driver, turns[0]), paused(driver)) == (["A"], ["r"])
    driver.advance(1.0)
    assert places(driver, *turns) == ["A", "A", "held"]
    driver.check_policy()


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
    """300 backends and one that waits: events read the room of the backend that changed, twice at most."""
    policy = Counting(monkeypatch)
    driver = SchedulerDriver(policy)
    for index in range(300):
        driver.add(f"backend-{index}", 10_000)
    turns = [driver.arrive(f"p{index}", 9_000) for index in range(300)]
    driver.arrive("waits", 9_900)
    assert policy.reads[-1] >= 300
    policy.reads.clear()
    driver.arrive(None, 100)
    for turn in turns[1:6]:
        driver.send(TurnProgressed(turn, 100))
    assert 0 < max(policy.reads) <= 2
    driver.advance(1.0)
    assert policy.reads[-1] >= 300


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
