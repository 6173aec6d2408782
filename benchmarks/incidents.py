"""How soon is a lost or an added replica absorbed? Simulated: turns per minute after it, in steps of K/R.

Command: ``python -m benchmarks.incidents [--workload NAME] [--policy ARM] [--replicas 4] [--pressure 1.6] [--seeds 5]``

K/R is the time to fill a replica's KV cache with prompts. The agents are those that press on the replicas that there
are in the end, so that both incidents end in the same state, whose turns per minute are 1 in the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from attrs import evolve

from thunderagent.errors import ConfigError
from thunderagent.simulator.incidents import Addition, Failure, Incident
from thunderagent.simulator.scenario import Arm, Scenario, parse_arm
from thunderagent.simulator.shown import TURNS
from thunderagent.simulator.study import Task, estimate, run_all
from thunderagent.simulator.workloads import WORKLOADS

STEPS = 5
"""Of K/R each, after the incident."""
_BEFORE_REFILLS = 20
"""K/R that pass before it."""


def scenarios(settled: Scenario) -> dict[str, tuple[Scenario, ...]]:
    """By name what ends as ``settled``: itself over all steps, and each incident with a scenario per step."""
    refill_seconds = settled.refill_seconds
    at = _BEFORE_REFILLS * refill_seconds
    found = {"settled": (evolve(settled, warmup_seconds=at, horizon_seconds=at + STEPS * refill_seconds),)}
    count = settled.replicas
    incidents: dict[str, tuple[int, Incident]] = {
        "lost": (count + 1, Failure(count, at)),
        "added": (count - 1, Addition(1, at)),
    }
    for name, (replicas, incident) in incidents.items():
        found[name] = tuple(
            evolve(
                settled,
                replicas=replicas,
                incidents=(incident,),
                warmup_seconds=at + step * refill_seconds,
                horizon_seconds=at + (step + 1) * refill_seconds,
            )
            for step in range(STEPS)
        )
    return found


def rows(settled: Scenario, arm: Arm, seeds: int, workers: int | None = None) -> list[str]:
    """A row per incident: turns per minute in each step to those of the settled state, over seeds."""
    tasks = {
        name: [[Task(evolve(scenario, seed=seed), arm) for seed in range(seeds)] for scenario in steps]
        for name, steps in scenarios(settled).items()
    }
    results = dict(run_all([task for steps in tasks.values() for step in steps for task in step], workers=workers))

    def turns_per_minute(step: Sequence[Task]) -> float:
        return estimate(TURNS.values([results[task] for task in step])).mean

    (whole,) = tasks.pop("settled")
    base = turns_per_minute(whole)
    return [
        f"| {settled.workload} | {name} | {settled.refill_seconds:.0f} s | {base:.1f} "
        f"| {' | '.join(f'{turns_per_minute(step) / base:.2f}' for step in steps)} |"
        for name, steps in tasks.items()
    ]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--workload", action="append", choices=[name for name in WORKLOADS if not WORKLOADS[name].ends]
    )
    parser.add_argument("--policy", default="working-set", metavar="ARM", help="as of `thunderagent simulate`")
    parser.add_argument("--replicas", type=int, default=4, help="that there are in the end")
    parser.add_argument("--pressure", type=float, default=1.6, help="on these")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, help="processes (one per core)")
    options = parser.parse_args()
    try:
        arm = parse_arm(options.policy)
        loads = [
            Scenario(name, replicas=options.replicas).at_pressure(options.pressure)
            for name in options.workload or ("swe-agent", "coding-long")
        ]
        print(
            "| workload | replica | K/R | turns/min settled |", *(f"{step}-{step + 1} K/R |" for step in range(STEPS))
        )
        print(f"| --- | --- | --- | --- |{' --- |' * STEPS}")
        for load in loads:
            for row in rows(load, arm, options.seeds, options.workers):
                print(row, flush=True)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
