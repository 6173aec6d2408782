"""What a schedule can reach, and which goals a policy meets: the tables of docs/scheduling.md.

Waiting is conserved. Programs that need p times the KV cache wait (p - 1) S each time when each has its place for S
seconds, and a place that changes hands costs a prefill, which is a share L = (K/R) / S of the engine, K/R being the
time to fill the cache with prompts. So L x H / ((p - 1) K/R), the *merit* M of a schedule, is 1 for plain rotation:
less is better. L is counted from the best throughput that any arm reaches in the cell, H is the 95th percentile over
programs of their longest hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import frozen

from benchmarks.study_front import DIAL, draw_front
from benchmarks.study_report import Cell, arms_of, images_beside, markdown, save, write_between
from thunderagent.policy import ROTATION_RATIO
from thunderagent.simulator.shown import JAIN, LONGEST_HOLD, TURNS, Shown

__all__ = ["goals_tables", "merit", "write_ablation", "write_goals"]

_PUBLISHED = ("published", "published, decay")
_BATCH, _, _INTERACTIVE = DIAL

_MOST_MERIT, _MOST_MERIT_BELOW = 0.7, 1.2
"""Asked of every position of the dial at a pressure of 1.6 and above, and below that."""

_LEAST_LOST = 0.01
"""Of the throughput: seeds differ by as much, and somebody is always the best."""
_LEAST_HOLD_SECONDS = 10.0
"""Shorter holds are nothing that others are compared with: they count as this."""

_LONGEST = Shown("hold max s", lambda figures: figures.hold_seconds.most)
_SMALL = Shown("mean hold of the smallest quarter, s", lambda figures: figures.small_hold_seconds)
_LARGE = Shown("mean hold of the largest quarter, s", lambda figures: figures.large_hold_seconds)
_KV_SPREAD = Shown("fullest less emptiest replica, tokens", lambda figures: figures.kv_spread_tokens)
_CHAT = Shown("one-off first token p99 s", lambda figures: figures.one_off_first_token_seconds.p99)
_FIRST = Shown("first token mean s", lambda figures: figures.first_token_seconds.mean)
_TURN = Shown("turn mean s", lambda figures: figures.turn_seconds.mean)
_PROGRAM = Shown(
    "program mean s",
    lambda figures: math.inf if figures.mean_program_seconds is None else figures.mean_program_seconds,
)
_MAKESPAN = Shown("makespan s", lambda figures: figures.makespan_seconds or math.inf)
_GROUP = Shown("slowest group s", lambda figures: figures.group_seconds.most)


def merit(cell: Cell, name: str) -> float:
    """M of an arm; NaN where the programs fit."""
    waits_seconds = cell.rotation_seconds
    if waits_seconds <= 0.0:
        return math.nan
    lost = max(_LEAST_LOST, 1.0 - cell.ratio(name))
    return lost * cell.mean(name, LONGEST_HOLD) / waits_seconds


@frozen
class _Goal:
    """A value of arms in cells that should not be above ``most``."""

    title: str
    arms: tuple[str, ...]
    most: float
    applies: Callable[[Cell], bool]
    value: Callable[[Cell, str], float]
    """NaN where it says nothing."""


def _is_free(cell: Cell) -> bool:
    return cell.pressure <= 0.5


def _is_pressed(cell: Cell) -> bool:
    return cell.pressure > 1.0 and not cell.perturbed


def _is_rollout(cell: Cell) -> bool:
    return cell.workload == "rl-rollout" and not cell.perturbed


def _is_perturbed(cell: Cell) -> bool:
    return bool(cell.perturbed)


def _to(name: str, shown: Shown) -> Callable[[Cell, str], float]:
    """An arm's value to another one's, which must not be 0."""

    def ratio(cell: Cell, arm: str) -> float:
        if name not in cell.figures:
            return math.nan
        base = cell.mean(name, shown)
        return cell.mean(arm, shown) / base if base else math.nan

    return ratio


def _lost_to_none(cell: Cell, name: str) -> float:
    return 1.0 - _to("affinity", TURNS)(cell, name)


def _lost(cell: Cell, name: str) -> float:
    return 1.0 - cell.ratio(name)


def _jain_missing(cell: Cell, name: str) -> float:
    """NaN where its window is too short for every program to have its place three times."""
    scenario = cell.scenario
    cycle_seconds = cell.pressure * scenario.refill_seconds / ROTATION_RATIO
    window_seconds = scenario.horizon_seconds - scenario.warmup_seconds
    if scenario.ends:
        window_seconds = cell.mean(name, _MAKESPAN)
    return 1.0 - cell.mean(name, JAIN) if window_seconds >= 3 * cycle_seconds - 1.0 else math.nan


def _longest_to_usual(cell: Cell, name: str) -> float:
    return cell.mean(name, _LONGEST) / max(_LEAST_HOLD_SECONDS, cell.mean(name, LONGEST_HOLD))


def _large_to_small(cell: Cell, name: str) -> float:
    return cell.mean(name, _LARGE) / max(_LEAST_HOLD_SECONDS, cell.mean(name, _SMALL))


def _ahead(cell: Cell, name: str) -> float:
    """By how much more of the ceiling a published arm makes that holds no longer either; 0: there is none such."""
    hold = cell.mean(name, LONGEST_HOLD)
    better = [cell.ratio(arm) for arm in _PUBLISHED if arm in cell.figures and cell.mean(arm, LONGEST_HOLD) <= hold]
    return max(0.0, max(better, default=0.0) - cell.ratio(name))


def _spread(cell: Cell, name: str) -> float:
    tokens = cell.mean(name, _KV_SPREAD)
    return tokens / cell.scenario.footprint_tokens if tokens else math.nan


def _to_best(shown: Shown) -> Callable[[Cell, str], float]:
    def ratio(cell: Cell, name: str) -> float:
        least, found = min(cell.mean(arm, shown) for arm in cell.figures), cell.mean(name, shown)
        return math.inf if math.isinf(found) else found / max(1.0, least)

    return ratio


def _chat_seconds(cell: Cell, name: str) -> float:
    """p99 of the first tokens of one-off turns, in prefills of a mean program."""
    found = cell.mean(name, _CHAT)
    return found / cell.scenario.prefill_seconds if found else math.nan


GOALS = (
    _Goal(
        "1. no pressure: throughput lost to no admission",
        DIAL,
        0.01,
        _is_free,
        _lost_to_none,
    ),
    _Goal(
        "1. no pressure: mean time to the first token, to no admission's",
        DIAL,
        1.01,
        _is_free,
        _to("affinity", _FIRST),
    ),
    _Goal(
        "1. no pressure: mean time of a turn, to no admission's",
        DIAL,
        1.01,
        _is_free,
        _to("affinity", _TURN),
    ),
    _Goal("2. batch: throughput lost to the ceiling", (_BATCH,), 0.02, _is_pressed, _lost),
    _Goal("2. interactive: throughput lost to the ceiling", (_INTERACTIVE,), 0.10, _is_pressed, _lost),
    _Goal(
        "3. M at pressure 1.6 and above",
        DIAL,
        _MOST_MERIT,
        lambda cell: cell.pressure >= 1.6 and _is_pressed(cell),
        merit,
    ),
    _Goal(
        "3. M at pressure 1.2",
        DIAL,
        _MOST_MERIT_BELOW,
        lambda cell: cell.pressure < 1.6 and _is_pressed(cell),
        merit,
    ),
    _Goal("3. longest hold to H", DIAL, 2.0, _is_pressed, _longest_to_usual),
    _Goal(
        "3. interactive: 1 - Jain's index of progress, over three rotations or more",
        (_INTERACTIVE,),
        0.05,
        _is_pressed,
        _jain_missing,
    ),
    _Goal("3. holds of the largest quarter to the smallest's", DIAL, 1.5, _is_pressed, _large_to_small),
    _Goal(
        "4. throughput lost to a published arm that holds no longer",
        DIAL,
        0.0,
        _is_pressed,
        _ahead,
    ),
    _Goal(
        "5. batch: mean time of a program to first-come's",
        (_BATCH,),
        1.01,
        _is_pressed,
        _to("first-come", _PROGRAM),
    ),
    _Goal(
        "5. batch, rollouts: makespan to the best arm's",
        (_BATCH,),
        1.05,
        _is_rollout,
        _to_best(_MAKESPAN),
    ),
    _Goal(
        "5. batch, rollouts: slowest group to the best arm's",
        (_BATCH,),
        1.05,
        _is_rollout,
        _to_best(_GROUP),
    ),
    _Goal(
        "6. replicas: accounted KV, fullest less emptiest, in mean programs",
        DIAL,
        1.0,
        lambda cell: cell.replicas > 1 and _is_pressed(cell),
        _spread,
    ),
    _Goal(
        "6. chat beside agents: p99 of first tokens, in prefills of a mean program",
        DIAL,
        2.0,
        lambda cell: cell.workload == "chat-mix" and _is_pressed(cell),
        _chat_seconds,
    ),
    _Goal("7. perturbed, batch: throughput lost to the ceiling", (_BATCH,), 0.07, _is_perturbed, _lost),
    _Goal("7. perturbed, interactive: throughput lost to the ceiling", (_INTERACTIVE,), 0.15, _is_perturbed, _lost),
    _Goal("7. perturbed: M", DIAL, 1.4, _is_perturbed, merit),
)


def _judged(cells: Sequence[Cell], goal: _Goal) -> list[tuple[float, str, Cell]]:
    return [
        (value, name, cell)
        for cell in cells
        if goal.applies(cell)
        for name in goal.arms
        if name in cell.figures and not math.isnan(value := goal.value(cell, name))
    ]


def goals_tables(cells: Sequence[Cell]) -> str:
    """Each goal with the worst cells, and each cell under pressure with L, H and M."""
    rows = []
    for goal in GOALS:
        judged = sorted(_judged(cells, goal), key=lambda entry: -entry[0])
        if not judged:
            if any(goal.applies(cell) for cell in cells):
                rows.append([goal.title, f"{goal.most:g}", "not judged", "-"])
            continue
        met = sum(value <= goal.most for value, _, _ in judged)
        worst = "; ".join(f"{value:.2f} {name}, {cell}" for value, name, cell in judged[:2])
        rows.append([goal.title, f"{goal.most:g}", f"{met} of {len(judged)}", worst])
    lines = ["### Goals", "", *markdown(("what", "at most", "met in", "worst"), rows), ""]
    is_perturbed = any(cell.perturbed for cell in cells)
    for workload in dict.fromkeys(cell.workload for cell in cells):
        pressed = [cell for cell in cells if cell.workload == workload and cell.pressure > 1.0]
        names = [name for name in ("published", "pause-resume", *DIAL) if name in arms_of(pressed)]
        heads = (
            "replicas",
            "pressure",
            "released",
            *(("perturbed",) if is_perturbed else ()),
            "K/R",
            "ceiling, turns/min",
            *names,
        )
        lines += [f"### {workload}: L, H, M, Jain", "", *markdown(heads, [_row(cell, names) for cell in pressed]), ""]
    return "\n".join(lines)


def _row(cell: Cell, names: Sequence[str]) -> list[str]:
    told = []
    for name in names:
        if name not in cell.figures:
            told.append("-")
            continue
        lost, jain = 100 * _lost(cell, name), cell.mean(name, JAIN)
        told.append(f"{lost:.1f} %, {cell.mean(name, LONGEST_HOLD):,.0f} s, {merit(cell, name):.2f}, {jain:.2f}")
    refill = f"{cell.scenario.refill_seconds:.0f} s"
    load = [
        str(cell.replicas),
        f"{cell.scenario.pressure or 0.0:.2f}",
        cell.released,
        *([cell.perturbed] if cell.perturbed else []),
    ]
    return [*load, refill, f"{cell.best:.1f}", *told]


def _ablation_tables(cells: Sequence[Cell]) -> str:
    """A workload per column: turns and longest holds of each arm to those of the interactive end."""
    workloads = list(dict.fromkeys(cell.workload for cell in cells))
    lines = list[str]()
    for replicas, release_ratio in dict.fromkeys((cell.replicas, cell.release_ratio) for cell in cells):
        those = {c.workload: c for c in cells if (c.replicas, c.release_ratio) == (replicas, release_ratio)}
        rows = [[name, *(_to_whole(those.get(each), name) for each in workloads)] for name in arms_of(those.values())]
        some = next(iter(those.values()))
        lines += [f"{some.load[0].upper()}{some.load[1:]}:", "", *markdown(("arm", *workloads), rows), ""]
    return "\n".join(lines)


def _to_whole(cell: Cell | None, name: str) -> str:
    if cell is None or name not in cell.figures:
        return "-"
    turns, hold = (_to(_INTERACTIVE, shown)(cell, name) for shown in (TURNS, LONGEST_HOLD))
    return f"{turns:.2f}, {'-' if math.isnan(hold) else f'{hold:.1f}'}"


def write_ablation(page: Path, cells: Sequence[Cell]) -> None:
    """Put what parts bring between the marks ``ablation`` of the page. Raises SystemExit as ``write_between``."""
    write_between(page, "ablation", _ablation_tables(cells))


def write_goals(page: Path, mark: str, cells: Sequence[Cell]) -> None:
    """Put the tables between these marks of the page, and the front of cells under pressure in which programs are
    released beside it, as ``images/front-MARK.svg``. Raises SystemExit as ``write_between``."""
    write_between(page, mark, goals_tables(cells))
    drawn = [cell for cell in cells if _is_pressed(cell) and cell.release_ratio]
    if drawn:
        save(draw_front(drawn, _MOST_MERIT), images_beside(page) / f"front-{mark}.svg")
