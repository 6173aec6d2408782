"""Clients that vanish amid their programs."""

from __future__ import annotations

from itertools import islice

import pytest
from attrs import evolve
from simulations import arrival, simulate, talk

from thunderagent.core.ids import ProgramId
from thunderagent.core.settings import SchedulerSettings
from thunderagent.errors import ConfigError
from thunderagent.registry import make_policy
from thunderagent.simulator.programs import Conversation, Program, TurnPlan
from thunderagent.simulator.scenario import Scenario, parse_arm, run
from thunderagent.simulator.vanishing import with_vanishing
from thunderagent.simulator.workloads import WORKLOADS

SMALL = Scenario(
    sessions=10, kv_tokens=150_000, horizon_seconds=900.0, warmup_seconds=20.0, program_ttl_seconds=200.0
)


def test_program_stops_silently_and_the_session_goes_on() -> None:
    """Without the tool and sub-agents of its last turn, and without a release; the next one begins at once."""
    plan = TurnPlan(100, 10, 50.0, sub_agents=(talk((16, 5, 0.0)),), after_seconds=20.0)
    (session,) = with_vanishing([arrival(Conversation((plan,)), talk((16, 4, 1.0)))], 1.0, seed=0)
    simulation, records = simulate([session])
    assert list(records.output_tokens) == [10, 4]
    assert records.arrived_at[1] == records.ended_at[0]
    assert [program.is_abandoned for program in records.programs] == [True, True]
    assert set(simulation._scheduler.cluster.program_by_id) == {ProgramId("program-0"), ProgramId("program-1")}


def test_what_they_hold_is_theirs_until_it_expires() -> None:
    """Two of 9,000 do not fit 16,000: the second is served when the first one's time is over."""
    (session,) = with_vanishing([arrival(talk((9000, 10, 0.0)))], 1.0, seed=0)
    second = arrival(talk((9000, 10, 0.0)), at=20.0, session=1)
    settings = SchedulerSettings(program_ttl_seconds=300.0)
    policy = make_policy("pause-resume", {"idle_lease_seconds": "0"})
    _, records = simulate([session, second], policy=policy, settings=settings)
    assert records.totals.notices["ProgramExpired"] == 1
    assert records.forwarded_at[1] >= 300.0


def test_share_and_turn_are_drawn_from_the_seed() -> None:
    """Any turn may be the last one; who does not vanish is as before, as are one-off turns."""
    plain = Program(talk(*[(16, 4, 1.0)] * 8))
    one_off = Program(talk((16, 4, 1.0)), is_one_off=True)

    def drawn(seed: int) -> list[Program]:
        (session,) = with_vanishing([arrival(*[plain, one_off] * 2000)], 0.25, seed)
        return list(session.programs)

    programs = drawn(3)
    assert programs == drawn(3) != drawn(4)
    assert programs[1::2] == [one_off] * 2000
    vanishing = [program for program in programs if program.is_abandoned]
    assert len(vanishing) == pytest.approx(500, rel=0.15)
    lengths = [len(program.conversation.turns) for program in vanishing]
    assert {lengths.count(turns) > 30 for turns in range(1, 9)} == {True}
    assert [program for program in programs[::2] if not program.is_abandoned] == [plain] * (2000 - len(vanishing))


def test_nobody_vanishes_unless_told() -> None:
    """The arrivals are those of the workload."""
    (ours,), (theirs,) = (
        evolve(SMALL, sessions=1).arrivals(),
        WORKLOADS[SMALL.workload].arrivals(1, 0),
    )
    assert list(islice(ours.programs, 5)) == list(islice(theirs.programs, 5))


@pytest.mark.parametrize("arm", ["pause-resume", "affinity"])
def test_same_seed_same_figures(arm: str) -> None:
    """Those that vanished are counted, and are not among the programs that ended."""
    scenario = evolve(SMALL, vanish_ratio=0.5)
    found = run(scenario, parse_arm(arm))
    assert found == run(scenario, parse_arm(arm))
    assert found.programs_vanished > 3
    assert found.expired > 0
    assert found.bound_share <= 1.0
    everyone = run(evolve(SMALL, vanish_ratio=1.0), parse_arm(arm))
    assert (everyone.programs_ended, everyone.mean_program_seconds) == (0, None)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_share_that_is_none(ratio: float) -> None:
    """Says what is allowed."""
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Scenario(vanish_ratio=ratio)
