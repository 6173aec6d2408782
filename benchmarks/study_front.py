"""The dial's positions on the plane of throughput against holds, with what others make of the same load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.study_report import Cell, new_figure
from thunderagent.simulator.shown import LONGEST_HOLD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DIAL", "draw_front"]

DIAL = ("batch", "balanced", "interactive")
"""The arms that are positions of the dial."""
_OTHERS = {
    "published": ("x", "tab:blue"),
    "published, decay": ("+", "tab:cyan"),
    "first-come": ("v", "tab:green"),
    "pause-resume": ("s", "tab:orange"),
    "affinity": ("D", "tab:purple"),
}
"""Arms besides the dial's positions: their markers and colours."""


def draw_front(cells: Sequence[Cell], merit: float) -> Figure:
    """A panel per cell, a workload per column and a load per row: left and up is better.

    On the dotted line lie schedules of that merit: the share of turns lost times the hold is ``merit`` times
    (pressure - 1) times the time to fill the cache with prompts.
    """
    workloads = list(dict.fromkeys(cell.workload for cell in cells))
    loads = sorted(set(map(_load, cells)))
    figure = new_figure(2.6 * len(workloads), 2.2 * len(loads) + 0.6)
    panels = figure.subplots(len(loads), len(workloads), squeeze=False, sharey=True)
    for cell in cells:
        panel = panels[loads.index(_load(cell))][workloads.index(cell.workload)]
        panel.set_title(f"{cell.workload}\n{cell.load}", fontsize=6)
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=7)
        _draw_cell(panel, cell, merit)
    for row in panels:
        row[0].set_ylabel("of the ceiling", fontsize=8)
    for panel in panels[-1]:
        panel.set_xlabel(LONGEST_HOLD.title, fontsize=8)
    handles = dict[str, Any]()
    for panel in panels.flat:
        handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=9, fontsize=8)
    figure.suptitle("Simulated: share of the best arm's turns against holds; left and up is better", fontsize=10)
    return figure


def _load(cell: Cell) -> tuple[int, float, float]:
    """By which rows are ordered."""
    return cell.replicas, cell.pressure, -cell.release_ratio


def _draw_cell(panel: Any, cell: Cell, merit: float) -> None:
    for name, (marker, color) in _OTHERS.items():
        if name in cell.figures:
            panel.plot(cell.mean(name, LONGEST_HOLD), cell.ratio(name), marker, color=color, markersize=5, label=name)
    dial = [name for name in DIAL if name in cell.figures]
    holds = [cell.mean(name, LONGEST_HOLD) for name in dial]
    panel.plot(holds, [cell.ratio(name) for name in dial], color="black", linewidth=1)
    for name, color in zip(DIAL, ("black", "dimgray", "tab:red"), strict=True):
        if name in dial:
            panel.plot(holds[dial.index(name)], cell.ratio(name), "o", color=color, markersize=5, label=name)
    panel.set_ylim(0.0, 1.05)
    panel.set_xlim(left=0.0)
    most_seconds = panel.get_xlim()[1]
    waits = cell.rotation_seconds * merit
    places = [most_seconds * step / 100 for step in range(1, 101)]
    panel.plot(
        places,
        [1.0 - waits / seconds for seconds in places],
        ":",
        color="gray",
        linewidth=0.8,
        label=f"M = {merit:g}",
    )
    panel.set_xlim(0.0, most_seconds)
