"""``benchmarks.incidents``: what happens to turns per minute after a replica is lost or added."""

from __future__ import annotations

from attrs import evolve

from benchmarks.incidents import STEPS, rows, scenarios, turns_per_minute
from thunderagent.simulator.incidents import Addition, Failure
from thunderagent.simulator.scenario import Arm, Scenario, run

LOAD = Scenario("swe-agent", replicas=2).at_pressure(1.2)
SEEDS = 4
"""Of a load so small that one of them may say anything."""


def test_both_incidents_end_in_the_settled_state() -> None:
    """With as many agents and replicas as that has, and they happen when counting begins."""
    found = scenarios(LOAD)
    settled = found.pop("settled")
    at = settled.warmup_seconds
    assert {name: (each.replicas, each.incidents) for name, each in found.items()} == {
        "lost": (3, (Failure(2, at),)),
        "added": (1, (Addition(1, at),)),
    }
    assert {each.warmup_seconds for each in found.values()} == {at}
    assert {each.sessions for each in found.values()} == {settled.sessions} == {LOAD.sessions}


def test_turns_are_counted_per_step_from_the_warm_up_on() -> None:
    """Together they are those of the figures."""
    load = evolve(LOAD, warmup_seconds=100.0, horizon_seconds=400.0)
    steps = turns_per_minute(load, Arm("affinity"), 2, 100.0)
    whole = [run(evolve(load, seed=seed), Arm("affinity")).turns_per_minute for seed in range(2)]
    assert len(steps) == 3
    assert abs(sum(steps) / 3 - sum(whole) / 2) < 0.5


def test_a_row_tells_turns_to_those_of_the_settled_state() -> None:
    """Fewer after a replica is lost than if it were not, more after one joins."""
    load = Scenario("swe-agent", replicas=2, kv_tokens=60_000).at_pressure(1.2)
    found = scenarios(load)
    arm, step_seconds = Arm("working-set"), load.refill_seconds
    settled = turns_per_minute(found["settled"], arm, SEEDS, step_seconds)
    base = sum(settled) / len(settled)
    lost, added = ([float(cell) for cell in row.split("|")[5:-1]] for row in rows(load, arm, seeds=SEEDS))
    assert len(lost) == len(added) == STEPS
    for name, ratios, change in (("lost", lost, -0.2), ("added", added, 0.2)):
        unchanged = turns_per_minute(evolve(found[name], incidents=()), arm, SEEDS, step_seconds)
        mean = sum(unchanged) / len(unchanged) / base
        assert (sum(ratios) / STEPS - mean) / change > 1.0, name
