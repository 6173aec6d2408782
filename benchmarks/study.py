"""Which policy for which agents? All built-in policies and their main options, over workloads, pressure and replicas.

    python -m benchmarks.study [--full | --ablation | --perturbed | --many | --aside]
                              [--output DIR] [--docs PAGE] [--goals PAGE]

Simulated. Each run is kept under DIR/cells: a study that was broken off goes on where it stood. Fails where a run
comes over the upper bound, which no schedule can. ``--docs`` writes tables and picture into a page.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
from attrs import evolve, frozen

from benchmarks.study_cells import Cells
from benchmarks.study_goals import write_ablation, write_goals
from benchmarks.study_report import Cell, around, over_the_bound, write_docs, write_results
from thunderagent.emulator.timing import H100_GLM_355B, H100_QWEN3_CODER_30B, PRESETS
from thunderagent.policy import ROTATION_RATIO
from thunderagent.simulator.perturbation import parse_perturbation
from thunderagent.simulator.scenario import Arm, Scenario, parse_arm
from thunderagent.simulator.study import Task, WorkerKilled
from thunderagent.simulator.workloads import WORKLOADS

ARMS = {
    "round-robin": "round-robin",
    "affinity": "affinity",
    "least-kv": "least-kv",
    "published": "pause-resume:preset=paper",
    "published, decay": "pause-resume:preset=paper,resume_decay=true",
    "pause-resume": "pause-resume",
    "first-come": "pause-resume:resume_order=first-come",
    "lease 30 s": "pause-resume:idle_lease_seconds=30",
    "reserve 0.2": "pause-resume:growth_reserve=0.2",
    "quantum 20": "pause-resume:quantum_turns=20",
    "batch": "working-set:dial=batch",
    "balanced": "working-set:dial=balanced",
    "interactive": "working-set",
}
"""What they are called in tables, and what they are."""

MORE_ARMS = {
    "no reserve": "pause-resume:growth_reserve=0",
    "no lease": "pause-resume:idle_lease_seconds=0",
    "lease 120 s": "pause-resume:idle_lease_seconds=120",
    "smallest": "pause-resume:resume_order=smallest",
    "smallest, ageing": "pause-resume:resume_order=smallest,ageing_seconds=60",
    "first-come, last out": "pause-resume:resume_order=first-come,pause_order=last-come",
    "quantum 10": "pause-resume:quantum_turns=10",
    "quantum 60 s": "pause-resume:quantum_seconds=60",
    "roomiest": "pause-resume:resume_on=roomiest",
    "tightest": "pause-resume:resume_on=tightest",
    "origin": "pause-resume:resume_on=origin",
    "resident": "pause-resume:resume_on=resident",
    "largest out": "pause-resume:pause_order=largest",
    "no shared": "pause-resume:shared_correction=none",
    "acting half": "pause-resume:acting_weight=0.5",
    "both decays": "pause-resume:resume_decay=true,pause_decay=true",
    "watermarks": "pause-resume:low_watermark=0.85,high_watermark=0.95",
    "ticks": "pause-resume:react=false,tick_seconds=5",
}
"""Besides, with --full."""

_BARE = f"pause-resume:rotation_ratio={ROTATION_RATIO},turns_per_program=32"
_PARTS = f"{_BARE},pace_prefills=true"
ABLATION = {
    "interactive": "working-set",
    "batch": "working-set:dial=batch",
    "no rotation": "pause-resume:turns_per_program=32,pace_prefills=true",
    "no lease": f"{_PARTS},idle_lease_seconds=0",
    "lease 30 s": f"{_PARTS},idle_lease_seconds=30",
    "prefills at once": _BARE,
    "no guests": f"{_PARTS},guest_ratio=0",
    "no reserve": f"{_PARTS},growth_reserve=0",
    "each beginning counted": f"{_PARTS},shared_correction=none",
    "ticks of 5 s": f"{_PARTS},react=false,tick_seconds=5",
    "smallest first": f"{_PARTS},resume_order=smallest",
    "largest out": f"{_PARTS},pause_order=largest",
}
"""The interactive end of ``working-set``, and the same with one of its parts other than it is."""

PERTURBED: Mapping[str, tuple[tuple[str, ...], float]] = {
    "estimates 25 % off": (("estimate=0.25",), 0.0),
    "capacity 10 % too large": (("capacity=0.1",), 0.0),
    "capacity 10 % too small": (("capacity=-0.1",), 0.0),
    "metrics 10 s late": (("metrics-delay=10",), 0.0),
    "no metrics": (("metrics=off",), 0.0),
    "a tenth vanishes": ((), 0.1),
    "burst of 64": (("burst=64",), 0.0),
    "tools 100 times": (("tools=100",), 0.0),
}
"""What each is called, and its perturbations and share of clients that vanish."""

_ON_REPLICAS = frozenset({"round-robin", "resident", "roomiest", "tightest", "origin"})
"""Differ from others only where there are several replicas."""

_ON_ONE = frozenset({"published, decay", "first-come", "lease 30 s", "reserve 0.2", "quantum 20", "balanced"})
"""Of which ``make study`` looks at one replica only."""


@frozen
class Grid:
    """What is compared: every arm on every load of every workload, on so many replicas, with so many seeds."""

    arms: Mapping[str, str]
    replicas: tuple[int, ...]
    loads: tuple[tuple[float, float], ...]
    """(pressure, share of programs that are released)."""
    seeds: int
    workloads: tuple[str, ...] = tuple(WORKLOADS)
    window_seconds: tuple[float, float] = (1200.0, 15_000.0)
    """What is counted: three cycles of rotation under the interactive end of ``working-set``, but at least and at
    most so long. A cycle lasts as long as p programs have the place of one, each for K/R seconds over a tenth."""
    several_window_seconds: float = 15_000.0
    """The most with several replicas, which make as many turns sooner."""
    warmup_seconds: tuple[float, float] = (600.0, 1800.0)
    """Nothing is counted as long as the programs that were there first may last, under pressure: those who wait for
    room are in the middle of their programs at first, and are at the beginning later where programs run to their
    end. At least and at most so long."""
    on_one: frozenset[str] = frozenset()
    """Arms that are left out where there are several replicas."""
    ending_horizon_seconds: float = 6 * 3600.0
    """For workloads that end by themselves, which have no warm-up."""
    perturbed: Mapping[str, tuple[tuple[str, ...], float]] = {"": ((), 0.0)}
    """As ``PERTURBED``; by default nothing is."""
    engines: Mapping[str, str] = {}
    """By workload, the preset that it runs on with all its KV cache; its own where it is not named."""
    first_seed: int = 0
    mark: str = "goals"
    """Between which marks of a page ``--goals`` writes."""

    def cells(self) -> Iterator[Cell]:
        """Each scenario with its arms."""
        arms = {name: parse_arm(text) for name, text in self.arms.items()}
        for workload in self.workloads:
            for replicas in self.replicas:
                for pressure, release_ratio in self.loads:
                    plain = self._scenario(workload, replicas, pressure, release_ratio)
                    left_out = _ON_REPLICAS if replicas == 1 else self.on_one
                    names = [name for name in arms if name not in left_out]
                    for perturbed, (texts, vanish_ratio) in self.perturbed.items():
                        scenario = evolve(plain, perturbation=parse_perturbation(texts), vanish_ratio=vanish_ratio)
                        tasks = {name: self._tasks(scenario, arms[name]) for name in names}
                        yield Cell(workload, replicas, pressure, release_ratio, tasks, perturbed)

    def _scenario(self, workload: str, replicas: int, pressure: float, release_ratio: float) -> Scenario:
        engine = self.engines.get(workload)
        scenario = Scenario(
            workload,
            preset=None if engine is None else PRESETS[engine],
            replicas=replicas,
            release_ratio=release_ratio,
            horizon_seconds=self.ending_horizon_seconds,
            warmup_seconds=0.0,
        ).at_pressure(pressure)
        if WORKLOADS[workload].ends:
            return scenario
        warmup_seconds = round(_within(pressure * scenario.program_seconds, *self.warmup_seconds))
        cycle_seconds = pressure * scenario.refill_seconds / ROTATION_RATIO
        least, most = self.window_seconds
        window_seconds = _within(3 * cycle_seconds, least, most if replicas == 1 else self.several_window_seconds)
        return evolve(scenario, warmup_seconds=warmup_seconds, horizon_seconds=round(warmup_seconds + window_seconds))

    def _tasks(self, scenario: Scenario, arm: Arm) -> tuple[Task, ...]:
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return tuple(Task(evolve(scenario, seed=seed), arm) for seed in seeds)


STUDY = Grid(
    ARMS,
    (1, 4),
    ((0.5, 1.0), (1.2, 1.0), (2.4, 1.0), (4.0, 1.0), (2.4, 0.0)),
    3,
    several_window_seconds=9000.0,
    on_one=_ON_ONE,
)
FULL = Grid(
    {**ARMS, **MORE_ARMS},
    (1, 4, 16),
    tuple((pressure, release) for release in (1.0, 0.5, 0.0) for pressure in (0.5, 0.8, 1.2, 1.6, 2.4, 4.0)),
    5,
)
PARTS = Grid(ABLATION, (1,), ((2.0, 1.0), (2.0, 0.0)), 3, window_seconds=(2400.0, 2400.0), mark="ablation")
_FRONT = {name: ARMS[name] for name in ("affinity", "published", "first-come", "batch", "balanced", "interactive")}
ROBUST = Grid(_FRONT, (1,), ((1.6, 1.0),), 3, perturbed=PERTURBED, mark="perturbed")
_ENDS = {name: ARMS[name] for name in ("affinity", "published", "batch", "interactive")}
MANY = Grid(_ENDS, (16,), ((1.6, 0.5),), 1, mark="many")
_GLM, _QWEN = H100_GLM_355B.name, H100_QWEN3_CODER_30B.name
ASIDE = Grid(
    _FRONT,
    (1,),
    ((1.8, 1.0),),
    2,
    engines={name: _GLM if workload.preset == _QWEN else _QWEN for name, workload in WORKLOADS.items()},
    first_seed=100,
    mark="aside",
)
"""Nothing was chosen by what comes out here: each workload has the engine and cache that those of the others are, at
another pressure and with other seeds."""
SMOKE = Grid(
    {name: ARMS[name] for name in ("affinity", "pause-resume")},
    (1,),
    ((0.5, 1.0), (2.0, 1.0)),
    1,
    ("swe-agent",),
    (240.0, 240.0),
    warmup_seconds=(60.0, 60.0),
)

GRIDS = {"full": FULL, "smoke": SMOKE, "ablation": PARTS, "perturbed": ROBUST, "many": MANY, "aside": ASIDE}
"""By option."""


def _within(value: float, least: float, most: float) -> float:
    return max(least, min(value, most))


def _run(cells: Sequence[Cell], kept: Cells, workers: int | None) -> list[Cell]:
    """The cells with their figures, progress on stderr."""
    tasks = [task for cell in cells for each in cell.tasks.values() for task in each]
    with click.progressbar(length=len(tasks), label="simulating", file=sys.stderr, show_pos=True) as bar:

        def on_done(_: Task) -> None:
            bar.update(1)
            if not sys.stderr.isatty() and bar.pos % max(1, len(tasks) // 20) == 0:
                print(f"{bar.pos:,} of {len(tasks):,} runs", file=sys.stderr, flush=True)

        results = kept.run(tasks, workers=workers, on_done=on_done)
    return [cell.with_figures(results) for cell in cells]


def main() -> int:
    """Exit status 1 where a run comes over the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--full", action="store_true", help="16 replicas too, all options, five seeds: days of computing"
    )
    which.add_argument("--ablation", action="store_true", help="what each part of working-set brings")
    which.add_argument("--perturbed", action="store_true", help="what the router does not see, at a pressure of 1.6")
    which.add_argument("--many", action="store_true", help="16 replicas, half of the programs released")
    which.add_argument("--aside", action="store_true", help="each workload on an engine that it was not tuned on")
    which.add_argument("--smoke", action="store_true", help="two arms, some seconds")
    parser.add_argument("--workload", action="append", choices=list(WORKLOADS), help="only this one; repeatable")
    parser.add_argument("--output", type=Path, metavar="DIR", help="outputs/study, or outputs/study-GRID")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="write tables and picture there, between marks")
    parser.add_argument("--goals", type=Path, metavar="PAGE", help="write which goals the dial meets there, likewise")
    parser.add_argument("--workers", type=int, help="processes (one per core)")
    options = parser.parse_args()
    chosen = next((name for name in GRIDS if getattr(options, name)), None)
    grid = STUDY if chosen is None else GRIDS[chosen]
    if options.workers is not None and options.workers < 1:
        parser.error(f"--workers must be at least 1, got {options.workers}")
    if options.workload:
        grid = evolve(grid, workloads=tuple(options.workload))
    began_at = time.perf_counter()
    output = options.output or Path("outputs") / ("study" if chosen is None else f"study-{chosen}")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output {output}: {error.strerror}")
    for page, mark in ((options.docs, "study"), (options.goals, grid.mark)):
        if page is not None:
            around(page, mark)  # what cannot be written is told before it is computed
    cells = list(grid.cells())
    try:
        cells = _run(cells, Cells(output / "cells"), options.workers)
    except KeyboardInterrupt:
        print(f"\nbroken off; what was computed is kept in {output}: the same command goes on", file=sys.stderr)
        return 130
    except WorkerKilled as error:
        print(f"{error}; what was computed is kept in {output}: the same command goes on", file=sys.stderr)
        return 1
    write_results(output, cells)
    seconds, cores = time.perf_counter() - began_at, options.workers or os.cpu_count()
    print(f"{sum(len(cell.tasks) for cell in cells) * grid.seeds:,} runs, {seconds:,.0f} s on {cores} cores")
    print(f"tables, pictures and all figures: {output}")
    if options.docs is not None:
        write_docs(options.docs, output, grid.arms, cells)
    if options.goals is not None:
        if chosen == "ablation":
            write_ablation(options.goals, cells)
        else:
            write_goals(options.goals, grid.mark, cells)
    over = over_the_bound(cells)
    for line in over:
        print(line, file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
