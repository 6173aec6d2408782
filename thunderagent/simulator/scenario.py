"""What is simulated, as one value that can be sent to another process; and the policies to be compared on it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from statistics import median

from attrs import evolve, field, frozen

from thunderagent.core.settings import OnHoldLimit, SchedulerSettings
from thunderagent.emulator.timing import PRESETS, Preset
from thunderagent.errors import ConfigError
from thunderagent.registry import make_policy
from thunderagent.simulator.counting import figures_of
from thunderagent.simulator.figures import Figures
from thunderagent.simulator.incidents import MOST_REPLICAS, Incident, check_incidents
from thunderagent.simulator.perturbation import Perturbation
from thunderagent.simulator.programs import Arrival
from thunderagent.simulator.rare_tools import with_rare_tools
from thunderagent.simulator.records import Records
from thunderagent.simulator.replay import programs_of
from thunderagent.simulator.simulation import Cluster, Simulation
from thunderagent.simulator.vanishing import with_vanishing
from thunderagent.simulator.workloads import WORKLOADS, MeanProgram, Workload, mean_program
from thunderagent.trace import read_trace

_LEAST_KV_TOKENS = 1_024
_MOST = {"replicas": MOST_REPLICAS, "sessions": 1_000_000}
MOST_SECONDS = 10_000_000
"""Over a hundred days; a trace may last as long."""
_TIMES = {
    "warmup_seconds": "--warmup",
    "target_seconds": "--target",
    "max_hold_seconds": "--max-hold-seconds",
}
"""What the command calls them."""
_SAMPLE = 100
_FIRST_OF_BURST = 1_000_000_000
"""Its sessions are numbered on from here: no workload has as many."""

__all__ = ["MOST_SECONDS", "Arm", "Scenario", "parse_arm", "run", "simulate"]


@frozen
class Arm:
    """A policy with its options."""

    policy: str
    options: tuple[tuple[str, str], ...] = ()
    """(name, value) of each that is set."""

    def __str__(self) -> str:
        told = ",".join(f"{name}={value}" for name, value in self.options)
        return f"{self.policy}:{told}" if told else self.policy


def parse_arm(text: str) -> Arm:
    """``NAME`` or ``NAME:OPTION=VALUE[,OPTION=VALUE...]``, checked.

    Raises:
        ConfigError: it is not of this form, or no such policy or option is installed.
    """
    name, _, rest = text.partition(":")
    options: dict[str, str] = {}
    for part in rest.split(",") if rest else ():
        option, is_given, value = part.partition("=")
        if not is_given or not option.strip():
            raise ConfigError(f"{text!r}: {part!r} is not OPTION=VALUE")
        options[option.strip()] = value.strip()
    make_policy(name.strip(), options)
    return Arm(name.strip(), tuple(options.items()))


@frozen
class Scenario:
    """A workload on machines for some time. Raises ConfigError for what cannot be."""

    workload: str = "swe-agent"
    """A workload's name, or with ``trace`` what to call that."""
    trace: Path | None = None
    """Programs of a recorded trace instead of the workload's."""
    preset: Preset | None = None
    """None: the workload's."""
    replicas: int = 1
    kv_tokens: int | None = None
    """Per replica. None: the workload's with its own preset, otherwise the preset's."""
    sessions: int = 16
    """Programs at a time, all replicas together."""
    release_ratio: float = 1.0
    """Of the programs, those that are released at their end."""
    vanish_ratio: float = 0.0
    """Of the programs, those whose client vanishes amid them."""
    horizon_seconds: float = 3600.0
    """Above 0, ``MOST_SECONDS`` at most."""
    warmup_seconds: float = 600.0
    """What happens before is not counted."""
    seed: int = 0
    target_seconds: float = 5.0
    """Within which a first token should come."""
    max_hold_seconds: float = 1800.0
    on_hold_limit: OnHoldLimit | None = None
    program_ttl_seconds: float = 3600.0
    incidents: tuple[Incident, ...] = ()
    """Replicas that die, come back and join."""
    perturbation: Perturbation = field(factory=Perturbation)

    def __attrs_post_init__(self) -> None:
        if self.trace is None and self.workload not in WORKLOADS:
            raise ConfigError(f"unknown workload {self.workload!r}; there are {', '.join(WORKLOADS)}")
        for name, most in _MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"--{name} must be between 1 and {most:,}, got {getattr(self, name)}")
        kv_tokens = self.kv_tokens_per_replica
        if kv_tokens < _LEAST_KV_TOKENS:
            raise ConfigError(f"a replica has at least {_LEAST_KV_TOKENS} KV tokens, got {kv_tokens}")
        if self.trace is None and kv_tokens < shortest_tokens(self.workload):
            raise ConfigError(
                f"no program of {self.workload} fits a replica of {kv_tokens:,} KV tokens: of {_SAMPLE}, the "
                f"shortest has {shortest_tokens(self.workload):,}"
            )
        if not self.horizon_seconds > 0:
            raise ConfigError(f"--seconds must be above 0, got {self.horizon_seconds:g}")
        if self.horizon_seconds > MOST_SECONDS:
            raise ConfigError(f"--seconds must be at most {MOST_SECONDS:,}, got {self.horizon_seconds:g}")
        for name, option in _TIMES.items():
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{option} must be a number of at least 0, got {getattr(self, name):g}")
        if self.warmup_seconds >= self.horizon_seconds:
            raise ConfigError(
                f"the warm-up must be over before the end: {self.warmup_seconds:g} s of {self.horizon_seconds:g} s"
            )
        if not 0 <= self.release_ratio <= 1:
            raise ConfigError(f"the share of released programs is between 0 and 1, got {self.release_ratio:g}")
        if not 0 <= self.vanish_ratio <= 1:
            raise ConfigError(f"the share of clients that vanish is between 0 and 1, got {self.vanish_ratio:g}")
        if self.trace is not None and self.perturbation.burst_programs:
            raise ConfigError("perturbation burst: a trace has its own programs")
        check_incidents(self.incidents, self.replicas)

    @property
    def ends(self) -> bool:
        """Whether its programs come to an end by themselves."""
        return self.trace is not None or WORKLOADS[self.workload].ends

    @property
    def machine(self) -> Preset:
        """The engines' preset."""
        if self.preset is not None:
            return self.preset
        return PRESETS["small-gpu" if self.trace is not None else WORKLOADS[self.workload].preset]

    @property
    def kv_tokens_per_replica(self) -> int:
        """As set, or as the workload's figures have it on their own machine, or the preset's."""
        if self.kv_tokens is not None:
            return self.kv_tokens
        if self.trace is None and self.preset is None:
            return WORKLOADS[self.workload].kv_tokens or self.machine.kv_tokens
        return self.machine.kv_tokens

    @property
    def turn_limit(self) -> str:
        """What keeps a turn from being longer than it may be, in words."""
        machine, kv_tokens = self.machine, self.kv_tokens_per_replica
        if machine.max_model_len < kv_tokens:
            return f"max_model_len of preset {machine.name}, {machine.max_model_len:,} tokens"
        return f"a replica of {kv_tokens:,} KV tokens"

    @property
    def footprint_tokens(self) -> float:
        """Of a program of the workload, mean over time, what it shares included."""
        return self._mean_program.own_tokens + shared_by_all_tokens(self.workload)

    @property
    def program_seconds(self) -> float:
        """How long a program of the workload lasts where nobody waits, mean."""
        return self._mean_program.seconds

    @property
    def _mean_program(self) -> MeanProgram:
        return mean_program(WORKLOADS[self.workload], self.machine)

    @property
    def prefill_seconds(self) -> float:
        """Of a mean program on an engine of its own."""
        tokens, machine = round(self.footprint_tokens), self.machine
        return machine.timing.prompt_seconds(tokens, machine.max_num_batched_tokens, 0)

    @property
    def refill_seconds(self) -> float:
        """K/R: the time to prefill as many mean programs as a replica's cache holds."""
        return self.kv_tokens_per_replica / self.footprint_tokens * self.prefill_seconds

    @property
    def pressure(self) -> float | None:
        """Mean tokens of all programs, what they share once per replica, over all KV tokens; None for a trace."""
        if self.trace is not None:
            return None
        own_tokens, shared_tokens = self._mean_program.own_tokens, shared_by_all_tokens(self.workload)
        return (self.sessions * own_tokens / self.replicas + shared_tokens) / self.kv_tokens_per_replica

    def at_pressure(self, pressure: float) -> Scenario:
        """With as many sessions as make it. Raises ConfigError for what is none, and for a trace."""
        if not 0 < pressure < 1000:
            raise ConfigError(f"pressure is above 0 and below 1000, got {pressure:g}")
        if self.trace is not None:
            raise ConfigError("a trace has its own programs: pressure is set by --kv-tokens and --replicas")
        room_tokens = pressure * self.kv_tokens_per_replica - shared_by_all_tokens(self.workload)
        return evolve(self, sessions=max(1, round(room_tokens * self.replicas / self._mean_program.own_tokens)))

    def arrivals(self) -> Sequence[Arrival]:
        """The programs, fresh. Raises TraceError."""
        factor = self.perturbation.tools
        if self.trace is not None:
            turns = list(read_trace(self.trace))
            arrivals = programs_of(turns, release_ratio=self.release_ratio)
            # Without a program a turn is one-off, and no tool follows it.
            gaps = [turn.tool_seconds for turn in turns if turn.program is not None and turn.tool_seconds]
            tool_seconds = median(gaps) if gaps else 0.0
        else:
            workload = WORKLOADS[self.workload]
            arrivals = [
                *workload.arrivals(self.sessions, self.seed, release_ratio=self.release_ratio),
                *self._burst(workload),
            ]
            tool_seconds = workload.median_tool_seconds
        if factor is not None:
            arrivals = with_rare_tools(arrivals, factor * tool_seconds, self.seed)
        return with_vanishing(arrivals, self.vanish_ratio, self.seed)

    def _burst(self, workload: Workload) -> Iterator[Arrival]:
        at = self.horizon_seconds / 2
        for number in range(self.perturbation.burst_programs):
            chance = random.Random(f"{workload.name} {self.seed} burst {number}")
            program = workload.program(chance)
            yield Arrival(
                at, _FIRST_OF_BURST + number, iter((program,)), repeat(chance.random() < self.release_ratio)
            )


@lru_cache
def shortest_tokens(workload: str) -> int:
    """Of a sample of a workload's programs, the least that one holds when it holds most."""
    chance = random.Random(f"{workload} shortest")
    return min(WORKLOADS[workload].program(chance).conversation.peak_tokens for _ in range(_SAMPLE))


@lru_cache
def shared_by_all_tokens(workload: str) -> int:
    """Tokens that all programs of a workload begin with."""
    shared = WORKLOADS[workload].program(random.Random(0)).conversation.shared
    return sum(part.tokens for part in shared)


def run(scenario: Scenario, arm: Arm, on_time: Callable[[float], None] = lambda _: None) -> Figures:
    """Simulate it. ``on_time`` is called now and then with the clock's reading.

    Raises:
        ConfigError: the policy cannot be made, all was over before the warm-up was, or no turn fits the cache.
        TraceError: the trace cannot be read.
    """
    return figures_of(
        simulate(scenario, arm, on_time),
        scenario.machine,
        kv_tokens=scenario.kv_tokens_per_replica,
        warmup_seconds=scenario.warmup_seconds,
        target_seconds=scenario.target_seconds,
    )


def simulate(scenario: Scenario, arm: Arm, on_time: Callable[[float], None] = lambda _: None) -> Records:
    """What happens, turn by turn. Parameters and errors as of ``run``."""
    settings = SchedulerSettings(
        max_hold_seconds=scenario.max_hold_seconds,
        on_hold_limit=scenario.on_hold_limit,
        program_ttl_seconds=scenario.program_ttl_seconds,
    )
    cluster = Cluster(scenario.machine, scenario.replicas, scenario.kv_tokens_per_replica)
    simulation = Simulation(
        cluster,
        make_policy(arm.policy, dict(arm.options)),
        scenario.arrivals(),
        settings,
        scenario.horizon_seconds,
        scenario.warmup_seconds,
        on_time=on_time,
        incidents=scenario.incidents,
        perturbation=scenario.perturbation,
    )
    records = simulation.run()
    if records.totals.rejected_turns and not records.totals.busy_seconds:
        raise ConfigError(f"every turn was too long for {scenario.turn_limit}")
    if records.end_seconds <= scenario.warmup_seconds:
        raise ConfigError(
            f"under {arm} all programs were done after {records.end_seconds:.0f} s, before the warm-up of "
            f"{scenario.warmup_seconds:g} s was over"
        )
    return records
