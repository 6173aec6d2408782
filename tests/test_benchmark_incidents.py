"""``benchmarks.incidents``: what happens to turns per minute after a replica is lost or added."""

from __future__ import annotations

from benchmarks.incidents import STEPS, rows, scenarios
from thunderagent.simulator.incidents import Addition, Failure
from thunderagent.simulator.scenario import Arm, Scenario

LOAD = Scenario("swe-agent", replicas=2).at_pressure(1.2)


def test_both_incidents_end_in_the_settled_state() -> None:
    """With as many agents and replicas as that has; their steps lie end to end from the incident on."""
    found = scenarios(LOAD)
    (settled,) = found.pop("settled")
    assert {name: steps[0].incidents for name, steps in found.items()} == {
        "lost": (Failure(2, settled.warmup_seconds),),
        "added": (Addition(1, settled.warmup_seconds),),
    }
    assert {name: steps[0].replicas for name, steps in found.items()} == {"lost": 3, "added": 1}
    for steps in found.values():
        assert len(steps) == STEPS
        assert steps[0].warmup_seconds == settled.warmup_seconds
        assert steps[-1].horizon_seconds == settled.horizon_seconds
        assert all(a.horizon_seconds == b.warmup_seconds for a, b in zip(steps, steps[1:], strict=False))
        assert {step.sessions for step in steps} == {LOAD.sessions}


def test_a_row_tells_turns_to_those_of_the_settled_state() -> None:
    """Right after a replica joins there are fewer, after one is lost at most as many and some that ended before."""
    lost, added = (
        [float(cell) for cell in row.split("|")[5:-1]] for row in rows(LOAD, Arm("working-set"), seeds=1, workers=1)
    )
    assert len(lost) == len(added) == STEPS
    assert all(0.0 < ratio < 2.0 for ratio in (*lost, *added))
    assert added[0] < 1.0
