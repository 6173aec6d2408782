"""How fast does the simulator go, and how does that grow with replicas and sessions?

Command: ``python -m benchmarks.simulator [--replicas 1,4,16,64] [--turns 200000] [--policy NAME] [--smoke]``

``swe-agent`` programs at a pressure of 1.6 under the default policy, until that many turns have ended. Seconds are of
one core, of this process alone; the peak of memory is the process's, so that rows run from small to large.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time

from thunderagent.emulator.timing import PRESETS
from thunderagent.registry import make_policy
from thunderagent.simulator.scenario import Scenario
from thunderagent.simulator.simulation import Cluster, Simulation
from thunderagent.simulator.workloads import WORKLOADS

WORKLOAD = "swe-agent"


class _Enough(Exception):
    """As many turns ended as were asked for."""


def measure(policy: str, replicas: int, turns: int) -> str:
    """A row of the table."""
    scenario = Scenario(WORKLOAD, replicas=replicas).at_pressure(1.6)
    preset = PRESETS[WORKLOADS[WORKLOAD].preset]

    def check(_: float) -> None:
        if simulation.turns_ended >= turns:
            raise _Enough

    simulation = Simulation(
        Cluster(preset, replicas, scenario.kv_tokens_per_replica),
        make_policy(policy, {}),
        scenario.arrivals(),
        horizon_seconds=float("inf"),
        on_time=check,
    )
    began_at = time.process_time()
    try:
        simulation.run()
    except _Enough:
        pass
    seconds = time.process_time() - began_at
    ended = simulation.turns_ended
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        f"| {replicas} | {scenario.sessions} | {ended:,} | {simulation.now:,.0f} | {seconds:.1f} "
        f"| {1e6 * seconds / ended:.0f} | {simulation.now / seconds:,.0f} | {peak:.0f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--replicas", default="1,4,16,64", metavar="N[,N]")
    parser.add_argument("--turns", type=int, default=200_000, help="ended turns per row")
    parser.add_argument("--policy", default="working-set")
    parser.add_argument("--smoke", action="store_true", help="a moment each")
    options = parser.parse_args()
    turns = 500 if options.smoke else options.turns
    print(f"machine: {platform.machine()}, Python {platform.python_version()}; policy {options.policy}")
    print("| replicas | sessions | turns | simulated s | seconds | us/turn | times real time | peak MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for replicas in (int(count) for count in options.replicas.split(",")):
        print(measure(options.policy, replicas, turns), flush=True)


if __name__ == "__main__":
    main()
