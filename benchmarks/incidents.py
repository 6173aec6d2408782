"""How soon is a lost or an added replica absorbed? Simulated: turns per minute after it, in steps of K/R.

Command: ``python -m benchmarks.incidents [--workload NAME] [--policy ARM] [--replicas 4] [--pressure 1.6]
[--seeds 5]``, some minutes.

Machine: any; the figures are simulated. K/R is the time to fill a replica's KV cache with prompts. The agents are
those that press so on the replicas that are there in the end, so that both incidents end in the same state, whose
turns per minute are 1 in the table.
"""

from __future__ import annotations

import argparse
import math
import sys

from attrs import evolve

from benchmarks.study_report import markdown, markdown_row
from thunderagent.errors import ConfigError
from thunderagent.simulator.incidents import Addition, Failure, Incident
from thunderagent.simulator.scenario import Arm, Scenario, parse_arm, simulate
from thunderagent.simulator.workloads import WORKLOADS

STEPS = 10
"""Of K/R each, after the incident."""
_BEFORE_REFILLS = 100
"""K/R that pass before it: programs are of all ages by then."""
_SETTLED_REFILLS = 30
"""K/R over which the settled state is counted, from the time of the incident on."""


def scenarios(settled: Scenario) -> dict[str, Scenario]:
    """By name what ends in the same state: itself and each incident, which happens at the end of the warm-up."""
    at = _BEFORE_REFILLS * settled.refill_seconds
    longest = evolve(settled, warmup_seconds=at, horizon_seconds=at + _SETTLED_REFILLS * settled.refill_seconds)
    ends_at = at + STEPS * settled.refill_seconds
    count = settled.replicas
    incidents: dict[str, tuple[int, Incident]] = {
        "lost": (count + 1, Failure(count, at)),
        "added": (count - 1, Addition(1, at)),
    }
    return {
        "settled": longest,
        **{
            name: evolve(longest, replicas=replicas, incidents=(incident,), horizon_seconds=ends_at)
            for name, (replicas, incident) in incidents.items()
        },
    }


def turns_per_minute(scenario: Scenario, arm: Arm, seeds: int, step_seconds: float) -> list[float]:
    """In each step from the end of the warm-up on, mean over seeds."""
    steps = round((scenario.horizon_seconds - scenario.warmup_seconds) / step_seconds)
    turns = [0] * steps
    for seed in range(seeds):
        for ended_at in simulate(evolve(scenario, seed=seed), arm).ended_at:
            step = int((ended_at - scenario.warmup_seconds) // step_seconds)
            if 0 <= step < steps:
                turns[step] += 1
    return [60 * count / seeds / step_seconds for count in turns]


def rows(settled: Scenario, arm: Arm, seeds: int) -> list[str]:
    """A row per incident: turns per minute in each step to those of the settled state."""
    step_seconds = settled.refill_seconds
    found = {
        name: turns_per_minute(scenario, arm, seeds, step_seconds) for name, scenario in scenarios(settled).items()
    }
    whole = found.pop("settled")
    base = math.fsum(whole) / len(whole)
    return [
        markdown_row(
            [
                settled.workload,
                name,
                f"{step_seconds:.0f} s",
                f"{base:.1f}",
                *(f"{value / base:.2f}" for value in steps),
            ]
        )
        for name, steps in found.items()
    ]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    endless = [name for name, workload in WORKLOADS.items() if not workload.ends]
    parser.add_argument("--workload", action="append", choices=endless, help="repeatable")
    parser.add_argument(
        "--policy", default="working-set", metavar="ARM", help="as --compare of `thunderagent simulate`"
    )
    parser.add_argument("--replicas", type=int, default=4, help="that there are in the end, 2 at least (default: 4)")
    parser.add_argument("--pressure", type=float, default=1.6, help="on these (default: 1.6)")
    parser.add_argument("--seeds", type=int, default=5, help="(default: 5)")
    options = parser.parse_args()
    if options.replicas < 2 or options.seeds < 1:
        parser.error("there must be at least 2 replicas and 1 seed")
    try:
        arm = parse_arm(options.policy)
        loads = [
            Scenario(name, replicas=options.replicas).at_pressure(options.pressure)
            for name in options.workload or ("swe-agent", "coding-long")
        ]
        for load in loads:
            scenarios(load)  # so that what cannot be is told before anything is printed
        print(
            f"Simulated: {arm}, {options.replicas} replicas in the end, pressure {options.pressure:g} on these, "
            f"{options.seeds} seeds; turns per minute to those of the settled state:\n"
        )
        heads = [
            "workload",
            "replica",
            "K/R",
            "turns/min settled",
            *(f"{step}-{step + 1} K/R" for step in range(STEPS)),
        ]
        print("\n".join(markdown(heads, [])))
        for load in loads:
            for row in rows(load, arm, options.seeds):
                print(row, flush=True)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
