"""Small simulations for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

from thunderagent.core import invariants
from thunderagent.emulator.timing import Preset, TimingModel
from thunderagent.policy import Policy
from thunderagent.registry import make_policy
from thunderagent.simulator.programs import Arrival, Conversation, Program, TurnPlan
from thunderagent.simulator.records import Records
from thunderagent.simulator.simulation import Cluster, Simulation

PLAIN = Preset(
    name="plain",
    title="simulated, round numbers",
    timing=TimingModel(0.01, 0.001, 0.0, 0.0, 0.0),
    kv_tokens=16_000,
    max_model_len=100_000,
    max_num_seqs=64,
    max_num_batched_tokens=1_000_000,
)
"""A step takes 10 ms, and 1 ms more for each prompt token: decoding gives 100 tokens/s to each."""


def talk(*turns: tuple[int, int, float], **options: Any) -> Conversation:
    """Turns of (new tokens, output tokens, tool seconds)."""
    return Conversation(tuple(TurnPlan(*turn) for turn in turns), **options)


def arrival(*programs: Program | Conversation, at: float = 0.0, session: int = 0, releases: bool = True) -> Arrival:
    """A session with these programs."""
    each = (program if isinstance(program, Program) else Program(program) for program in programs)
    return Arrival(at, session, each, repeat(releases))


def simulate(
    arrivals: Sequence[Arrival], *, policy: str | Policy = "affinity", replicas: int = 1, **options: Any
) -> tuple[Simulation, Records]:
    """Run to the end; the scheduler's books must balance then."""
    kv_tokens = options.pop("kv_tokens", None)
    preset = options.pop("preset", PLAIN)
    made = make_policy(policy, {}) if isinstance(policy, str) else policy
    simulation = Simulation(Cluster(preset, replicas, kv_tokens), made, arrivals, **options)
    records = simulation.run()
    invariants.check(simulation._scheduler.cluster)
    for replica in simulation._replicas:
        replica.engine.check()
    return simulation, records
