"""The loop on the virtual clock: what agents, scheduler and engines do to one another."""

from __future__ import annotations

import pytest
from simulations import arrival, simulate, talk

from thunderagent.core.settings import OnHoldLimit, SchedulerSettings
from thunderagent.emulator.timing import PRESETS
from thunderagent.registry import make_policy
from thunderagent.simulator.programs import Conversation, Program, Shared, TurnPlan
from thunderagent.simulator.records import OpenTurn
from thunderagent.simulator.workloads import WORKLOADS


def test_times_of_one_program_are_those_of_its_turns() -> None:
    """A step per prompt and per further token: 1.01 s + 9 x 0.01 s, 2 s of tool, and the same for the rest."""
    _, records = simulate([arrival(talk((1000, 10, 2.0), (90, 5, 0.0)), at=1.0)])
    assert list(records.arrived_at) == pytest.approx([1.0, 4.1])
    assert list(records.first_token_at) == pytest.approx([2.01, 4.1 + 0.01 + (1100 - 1008) / 1000])
    assert list(records.ended_at) == pytest.approx([2.1, 4.1 + 0.01 + 0.092 + 0.04])
    assert list(records.prompt_tokens) == [1000, 1100]
    assert list(records.cached_tokens) == [0, 1008]
    assert list(records.known_tokens) == [0, 1010]
    assert list(records.output_tokens) == [10, 5]
    assert records.programs[0].ended_at == pytest.approx(records.ended_at[-1])
    assert records.end_seconds == pytest.approx(records.ended_at[-1])


def test_requests_run_together_and_an_arrival_cuts_what_was_jumped_over() -> None:
    """The second comes while the first decodes: it begins after the token then under way, and slows that one down."""
    _, records = simulate([arrival(talk((16, 1000, 0.0))), arrival(talk((500, 1, 0.0)), at=1.0, session=1)])
    assert records.first_token_at[0] == pytest.approx(1.006 + 0.51, abs=0.011)
    assert records.ended_at[1] == pytest.approx(0.026 + 999 * 0.01 + 0.5)


def test_shared_beginning_is_computed_once() -> None:
    """Two programs one after the other begin with the same 512 tokens."""
    shared = (Shared("system", 512),)
    _, records = simulate([arrival(talk((88, 4, 0.0), shared=shared), talk((88, 4, 0.0), shared=shared))])
    assert list(records.cached_tokens) == [0, 512]


def test_compacted_history_is_new_to_the_engine() -> None:
    """But for the beginning that it shares with others."""
    plan = Conversation((TurnPlan(1000, 10), TurnPlan(100, 10, kept_tokens=600)), (Shared("system", 320),))
    _, records = simulate([arrival(plan)])
    assert list(records.prompt_tokens) == [1320, 700]
    assert list(records.cached_tokens) == [0, 320]
    assert list(records.known_tokens) == [0, 320]


def test_sub_agents_run_side_by_side_and_are_waited_for() -> None:
    """Two of 1 and 3 s after a tool of 2 s; the next turn comes 1 s after the later one. One is not waited for."""
    short, long, lasting = talk((16, 98, 0.0)), talk((16, 298, 0.0)), talk((16, 998, 0.0), is_awaited=False)
    first = TurnPlan(16, 1, 2.0, sub_agents=(short, long, lasting), after_seconds=1.0)
    _, records = simulate([arrival(Conversation((first, TurnPlan(16, 1))))])
    by_output = dict(zip(records.output_tokens, records.arrived_at, strict=True))
    ends = dict(zip(records.output_tokens, records.ended_at, strict=True))
    assert by_output[98] == by_output[298] == by_output[998] == pytest.approx(2.026)
    assert max(records.arrived_at) == pytest.approx(ends[298] + 1.0)
    assert records.programs[0].ended_at == pytest.approx(ends[998]), (
        "the program lasts as long as its last conversation"
    )
    assert len(records.programs) == 1


def test_turn_that_no_engine_holds_ends_its_program() -> None:
    """Answered with an error, as vLLM does; the session goes on with the next program."""
    _, records = simulate([arrival(talk((20_000, 10, 0.0), (5, 5, 0.0)), talk((10, 10, 0.0)))])
    assert records.totals.rejected_turns == 1
    assert list(records.prompt_tokens) == [10]
    assert [program.ended_at is not None for program in records.programs] == [True, True]
    assert [program.is_given_up for program in records.programs] == [True, False]


def test_refused_turn_is_sent_again_and_has_waited_all_the_time() -> None:
    """The router refuses after 20 s of holding, again and again, until the first program is released."""
    first = arrival(talk((9000, 10, 90.0), (10, 10, 0.0)))
    second = arrival(talk((9000, 10, 0.0)), at=1.0, session=1)
    settings = SchedulerSettings(max_hold_seconds=20.0, on_hold_limit=OnHoldLimit.REFUSE)
    policy = make_policy("pause-resume", {"idle_lease_seconds": "0"})
    _, records = simulate([first, second], policy=policy, settings=settings)
    assert records.totals.refused_turns > 2
    waited = [end - begin for begin, end in zip(records.arrived_at, records.forwarded_at, strict=True)]
    assert max(waited) > 95.0


def test_turn_that_waits_to_be_sent_again_is_open() -> None:
    """At the end it has waited since it first came."""
    first = arrival(talk((9000, 10, 1000.0), (10, 10, 0.0)))
    second = arrival(talk((9000, 10, 0.0)), at=1.0, session=1)
    settings = SchedulerSettings(max_hold_seconds=20.0, on_hold_limit=OnHoldLimit.REFUSE)
    policy = make_policy("pause-resume", {"idle_lease_seconds": "0"})
    _, records = simulate([first, second], policy=policy, settings=settings, horizon_seconds=100.0)
    assert OpenTurn(1, 1.0, None, None) in records.open_turns


def test_beginnings_behind_one_another_are_counted_once_each() -> None:
    """Two shared stretches: the second program of the group takes its own tokens only."""
    shared = (Shared("system", 512), Shared("task", 1024))
    programs = [
        arrival(talk((64, 8, 500.0), (8, 8, 0.0), shared=shared), at=5.0 * number, session=number)
        for number in range(2)
    ]
    simulation, records = simulate(programs, horizon_seconds=100.0, policy="pause-resume")
    (backend,) = simulation._scheduler.cluster.backends
    assert backend.accounted_tokens == 512 + 1024 + 2 * (64 + 8)
    assert records.cached_tokens[1] == 512 + 1024


def test_history_that_was_cut_is_found_as_far_as_it_is_the_same() -> None:
    """600 tokens of the former prompt are left, the rest is new; the turn after finds all of that."""
    plans = (TurnPlan(1000, 10), TurnPlan(200, 10, kept_tokens=600, same_tokens=600), TurnPlan(100, 10))
    _, records = simulate([arrival(Conversation(plans))])
    assert list(records.prompt_tokens) == [1000, 800, 910]
    assert list(records.cached_tokens) == [0, 592, 800]


def test_running_turns_are_told_of_as_they_grow() -> None:
    """Once a second, though nothing else happens: the accounts grow with the answer."""
    simulation, _ = simulate([arrival(talk((100, 2000, 0.0)))], horizon_seconds=10.5, progress_seconds=1.0)
    (backend,) = simulation._scheduler.cluster.backends
    assert backend.accounted_tokens == pytest.approx(100 + 1000, abs=110)


def test_held_turns_are_told_with_their_wait() -> None:
    """Two programs of 9,000 on 16,000: the second waits for the first one's release."""
    turns = ((9000, 10, 1.0), (10, 10, 1.0))
    _, records = simulate([arrival(talk(*turns)), arrival(talk(*turns), at=0.5, session=1)], policy="pause-resume")
    holds = [after - before for before, after in zip(records.arrived_at, records.forwarded_at, strict=True)]
    assert sorted(holds)[:3] == pytest.approx([0.0] * 3)
    assert max(holds) == pytest.approx(records.programs[0].ended_at - 0.5 if records.programs[0].ended_at else 0)


def test_open_holds_count_until_the_horizon() -> None:
    """The second program is never served."""
    arrivals = [arrival(talk((9000, 10, 1000.0), (5, 5, 0.0))), arrival(talk((9000, 10, 0.0)), at=5.0, session=1)]
    policy = make_policy("pause-resume", {"idle_lease_seconds": "0"})
    _, records = simulate(
        arrivals, policy=policy, settings=SchedulerSettings(max_hold_seconds=0.0), horizon_seconds=100.0
    )
    assert [turn for turn in records.open_turns if turn.forwarded_at is None] == [OpenTurn(1, 5.0, None, None)]
    assert records.end_seconds == 100.0


def test_programs_that_nobody_releases_expire() -> None:
    """And their place goes to the next."""
    settings = SchedulerSettings(program_ttl_seconds=60.0)
    policy = make_policy("pause-resume", {"idle_lease_seconds": "0"})
    turns = [talk((9000, 10, 0.0)) for _ in range(3)]
    _, records = simulate([arrival(*turns, releases=False)], policy=policy, settings=settings, horizon_seconds=1000.0)
    assert records.totals.notices["ProgramExpired"] >= 1
    assert [program.ended_at is not None for program in records.programs] == [True] * 3


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("policy", ["pause-resume", "affinity"])
def test_same_seed_same_story(name: str, policy: str) -> None:
    """Whatever the workload; and every turn that ended is one of its program's."""

    def story() -> list[tuple[float, ...]]:
        workload = WORKLOADS[name]
        arrivals = workload.arrivals(12, 7, release_ratio=0.5)
        preset = PRESETS[workload.preset]
        _, records = simulate(arrivals, policy=policy, kv_tokens=300_000, horizon_seconds=240.0, preset=preset)
        return list(zip(records.arrived_at, records.ended_at, records.prompt_tokens, records.replica, strict=True))

    first = story()
    assert first == story()
    assert len(first) > 10


def test_replicas_share_the_work() -> None:
    """Four of them, a program each time where the fewest tokens are."""
    programs = [arrival(talk((100, 100, 0.0)), at=number * 0.001, session=number) for number in range(8)]
    _, records = simulate(programs, replicas=4)
    assert sorted(records.replica) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_one_off_turns_have_no_program() -> None:
    """They are scheduled each by itself."""
    simulation, records = simulate([arrival(Program(talk((100, 10, 0.0)), is_one_off=True))])
    assert records.programs[0].is_one_off
    assert not simulation._scheduler.cluster.program_by_id
