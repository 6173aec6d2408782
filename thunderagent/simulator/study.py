"""Many runs at once: arms side by side on the same programs, over seeds, and what can be said of their difference."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from attrs import evolve, frozen

from thunderagent.simulator.figures import Figures
from thunderagent.simulator.scenario import Arm, Scenario, run

__all__ = ["Estimate", "Task", "WorkerKilled", "estimate", "paired_ratio", "run_all", "tasks_of"]

_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
"""Student's t, two-sided 95 %, for 1 to 20 degrees of freedom; beyond, the last is a little too wide."""


class WorkerKilled(Exception):
    """A process that computed runs was ended from outside; the message says what to do."""

    def __init__(self) -> None:
        super().__init__("a worker process was killed (out of memory?); try --workers 1")


@frozen
class Task:
    """One run."""

    scenario: Scenario
    arm: Arm


@frozen
class Estimate:
    """A mean over seeds and half the width of its 95 % confidence interval; None for a single seed."""

    mean: float
    half_width: float | None

    def __str__(self) -> str:
        digits = 3 if abs(self.mean) < 10 else 1 if abs(self.mean) < 1000 else 0
        told = f"{self.mean:,.{digits}f}"
        return told if self.half_width is None else f"{told} ±{self.half_width:,.{digits}f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Of independent samples. Raises ValueError for none."""
    if not values:
        raise ValueError("no samples")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean, None)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Estimate(mean, _T95[min(len(values) - 2, len(_T95) - 1)] * math.sqrt(variance / len(values)))


def paired_ratio(values: Sequence[float], base: Sequence[float]) -> Estimate | None:
    """Of samples to those of another arm on the same programs; None where one of these is 0."""
    if any(other == 0 for other in base):
        return None
    return estimate([value / other for value, other in zip(values, base, strict=True)])


def tasks_of(scenarios: Sequence[Scenario], arms: Sequence[Arm], seeds: int) -> list[Task]:
    """Every arm on every scenario with ``seeds`` seeds from the scenario's on; arms of one seed get the same
    programs."""
    return [
        Task(evolve(scenario, seed=scenario.seed + number), arm)
        for scenario in scenarios
        for number in range(seeds)
        for arm in arms
    ]


def run_all(
    tasks: Sequence[Task], *, workers: int | None = None, on_time: Callable[[float], None] = lambda _: None
) -> Iterator[tuple[Task, Figures]]:
    """Results as they come. ``workers`` None: one process per core; with one, this process does the work and
    ``on_time`` hears its clock.

    Raises:
        WorkerKilled: a process was ended from outside; the runs that it and the others had are lost.
        What ``run`` raises, when that run's turn comes.
    """
    workers = min(len(tasks), workers or os.cpu_count() or 1)
    if workers <= 1:
        for task in tasks:
            yield task, run(task.scenario, task.arm, on_time)
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, initializer=_begin_worker)
    try:
        running = {pool.submit(run, task.scenario, task.arm): task for task in tasks}
        for done in as_completed(running):
            yield running[done], done.result()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        if isinstance(error, BrokenProcessPool):
            raise WorkerKilled from None
        raise
    pool.shutdown()


def _begin_worker() -> None:
    """Ctrl-C is for the parent, which ends its workers; they do not outlive it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
