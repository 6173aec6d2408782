"""What a study found: tables and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from thunderagent.simulator.figures import Figures
from thunderagent.simulator.scenario import Scenario
from thunderagent.simulator.shown import BOUND, JAIN, LONGEST_HOLD, TURNS, Shown
from thunderagent.simulator.study import Task, estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Cell",
    "arms_of",
    "around",
    "images_beside",
    "markdown",
    "markdown_row",
    "new_figure",
    "over_the_bound",
    "save",
    "write_between",
    "write_docs",
    "write_results",
]

_BOUND = 1.0 + 1e-6


@frozen
class Cell:
    """Arms on one load: for each the runs, one per seed, and when these are done their figures."""

    workload: str
    replicas: int
    pressure: float
    release_ratio: float
    tasks: Mapping[str, tuple[Task, ...]]
    perturbed: str = ""
    """What is other than the router believes; empty: nothing."""
    figures: Mapping[str, tuple[Figures, ...]] = {}

    def with_figures(self, results: Mapping[Task, Figures]) -> Cell:
        """The same with what its runs gave."""
        return evolve(
            self, figures={name: tuple(results[task] for task in tasks) for name, tasks in self.tasks.items()}
        )

    def mean(self, name: str, shown: Shown) -> float:
        """Of an arm, over seeds."""
        return estimate(shown.values(self.figures[name])).mean

    @property
    def scenario(self) -> Scenario:
        """Of its first run: the others differ in their seed."""
        return next(iter(self.tasks.values()))[0].scenario

    @property
    def rotation_seconds(self) -> float:
        """(p - 1) K/R: what a plain rotation's lost share times its waits comes to; 0 or less where all fit."""
        scenario = self.scenario
        return ((scenario.pressure or 0.0) - 1.0) * scenario.refill_seconds

    @property
    def best(self) -> float:
        """Turns per minute of the arm that makes most."""
        return max(self.mean(name, TURNS) for name in self.figures)

    def ratio(self, name: str) -> float:
        """An arm's turns per minute to the best one's."""
        return self.mean(name, TURNS) / self.best

    @property
    def released(self) -> str:
        """Which programs are."""
        return {1.0: "all", 0.0: "none"}.get(self.release_ratio, f"{100 * self.release_ratio:g} %")

    @property
    def load(self) -> str:
        """All but the workload."""
        perturbed = f", {self.perturbed}" if self.perturbed else ""
        return f"{_engines(self.replicas)}, pressure {self.pressure:.3g}, {self.released} released{perturbed}"

    def __str__(self) -> str:
        return f"{self.workload}, {self.load}"


def arms_of(cells: Iterable[Cell]) -> list[str]:
    """Those that run in any of them, in the order in which they come."""
    return list(dict.fromkeys(name for cell in cells for name in cell.figures))


def over_the_bound(cells: Sequence[Cell]) -> list[str]:
    """A line for each run that did more than can be done."""
    return [
        f"{cell}: {name}, seed {task.scenario.seed}: {figures.bound_share:.4f} of the upper bound"
        for cell in cells
        for name, tasks in cell.tasks.items()
        for task, figures in zip(tasks, cell.figures[name], strict=True)
        if figures.bound_share > _BOUND
    ]


def write_results(folder: Path, cells: Sequence[Cell]) -> None:
    """``tables.md``, ``results.jsonl`` with all figures, and a picture per number of replicas, of clients that
    release."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tables.md").write_text(_tables(cells), encoding="utf-8")
    with (folder / "results.jsonl").open("w", encoding="utf-8") as lines:
        for cell in cells:
            for name, tasks in cell.tasks.items():
                for task, figures in zip(tasks, cell.figures[name], strict=True):
                    line = {
                        "workload": cell.workload,
                        "replicas": cell.replicas,
                        "pressure": cell.pressure,
                        "release_ratio": cell.release_ratio,
                        "perturbed": cell.perturbed,
                        "arm": str(task.arm),
                        "seed": task.scenario.seed,
                        "sessions": task.scenario.sessions,
                        **figures.as_dict(),
                    }
                    lines.write(json.dumps(line) + "\n")
    for replicas in _drawn(cells):
        save(_draw(cells, replicas), folder / _picture(replicas))


def write_docs(page: Path, folder: Path, arms: Mapping[str, str], cells: Sequence[Cell]) -> None:
    """Put tables and pictures between the marks ``study`` of the page; pictures beside it in ``images/``. Raises
    SystemExit as ``write_between``."""
    images = images_beside(page)
    pictures = []
    for replicas in _drawn(cells):
        name = _picture(replicas)
        (images / name).write_bytes((folder / name).read_bytes())
        pictures.append(f"![Policies on {_engines(replicas)}](images/{name})\n")
    names = "\n".join(markdown(["in the tables", "policy"], [[name, f"`{arm}`"] for name, arm in arms.items()]))
    write_between(page, "study", "\n".join([names, "", *pictures, _tables(cells)]))


def images_beside(page: Path) -> Path:
    """The folder of a page's pictures; it is made where it is missing."""
    images = page.parent / "images"
    images.mkdir(exist_ok=True)
    return images


def write_between(page: Path, mark: str, text: str) -> None:
    """Put the text between the comments ``MARK: begin`` and ``MARK: end`` of a page.

    Raises:
        SystemExit: as ``around``.
    """
    before, after = around(page, mark)
    begin, end = _marks(mark)
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")


def around(page: Path, mark: str) -> tuple[str, str]:
    """What stands before and behind the marks of a page.

    Raises:
        SystemExit: the page cannot be read, or has no such marks.
    """
    begin, end = _marks(mark)
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"{page}: cannot be read: {error}") from error
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"{page}: there must be one line {begin} and one {end}")
    before, _, rest = text.partition(begin)
    return before, rest.partition(end)[2]


def _marks(mark: str) -> tuple[str, str]:
    return f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"


# Tables


def _tables(cells: Sequence[Cell]) -> str:
    lines = ["### All cells", "", *_summary(cells), ""]
    for workload in dict.fromkeys(cell.workload for cell in cells):
        lines += [f"### {workload}", "", *_workload([cell for cell in cells if cell.workload == workload]), ""]
    return "\n".join(lines)


def _summary(cells: Sequence[Cell]) -> list[str]:
    """An arm per row, over all cells in which it runs."""
    rows = []
    for name in arms_of(cells):
        those = [cell for cell in cells if name in cell.figures]
        free = [cell.ratio(name) for cell in those if cell.pressure < 1]
        pressed = [cell for cell in those if cell.pressure >= 1]
        ratios = [cell.ratio(name) for cell in pressed]
        rows.append(
            [
                name,
                _ratio(min(free, default=None)),
                _ratio(min(ratios, default=None)),
                _ratio(_mean(ratios)),
                _ratio(_mean([cell.mean(name, BOUND) for cell in pressed])),
                _ratio(min((cell.mean(name, JAIN) for cell in pressed), default=None)),
                _ratio(_mean([cell.mean(name, JAIN) for cell in pressed])),
                _seconds(_mean([cell.mean(name, LONGEST_HOLD) for cell in pressed])),
            ]
        )
    heads = (
        "arm",
        "no pressure: least",
        "under it: least",
        "mean",
        "of the bound",
        "least Jain",
        "mean Jain",
        "mean longest hold",
    )
    return markdown(heads, rows)


def _workload(cells: Sequence[Cell]) -> list[str]:
    """A load per row, an arm per column: turns to the best, and the longest hold."""
    names = arms_of(cells)
    rows = []
    for cell in cells:
        sessions = cell.scenario.sessions
        row = [str(cell.replicas), f"{cell.pressure:g}", cell.released, str(sessions), f"{cell.best:.1f}"]
        for name in names:
            told = "-"
            if name in cell.figures:
                told = f"{cell.ratio(name):.2f}, {_seconds(cell.mean(name, LONGEST_HOLD))}"
            row.append(told)
        rows.append(row)
    return markdown(("replicas", "pressure", "released", "sessions", "best turns/min", *names), rows)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines."""
    return [markdown_row(heads), markdown_row(["---"] * len(heads)), *(markdown_row(row) for row in rows)]


def markdown_row(cells: Sequence[str]) -> str:
    """One of them."""
    return f"| {' | '.join(cells)} |"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} s"


def _engines(replicas: int) -> str:
    return "one replica" if replicas == 1 else f"{replicas} replicas"


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


# Pictures


def _drawn(cells: Sequence[Cell]) -> list[int]:
    """The numbers of replicas of which there is a picture."""
    return sorted({cell.replicas for cell in cells if cell.release_ratio == 1.0})


def _picture(replicas: int) -> str:
    return f"study-{replicas}.svg"


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """An empty one, whose file is the same each time that the same is drawn."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "study"
    from matplotlib.figure import Figure as NewFigure

    return NewFigure(figsize=(width_inches, height_inches), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """As a file that says no date."""
    figure.savefig(path, metadata={"Date": None})


def _draw(cells: Sequence[Cell], replicas: int) -> Figure:
    """Of clients that release: throughput above, longest holds below, a workload per column."""
    those = [cell for cell in cells if cell.replicas == replicas and cell.release_ratio == 1.0]
    workloads = list(dict.fromkeys(cell.workload for cell in those))
    figure = new_figure(3.0 * len(workloads), 5.6)
    panels = figure.subplots(2, len(workloads), squeeze=False, sharex=True)
    for column, workload in enumerate(workloads):
        of_it = sorted((cell for cell in those if cell.workload == workload), key=lambda cell: cell.pressure)
        for name in arms_of(of_it):
            drawn = [cell for cell in of_it if name in cell.figures]
            places = [cell.pressure for cell in drawn]
            panels[0][column].plot(places, [cell.mean(name, TURNS) for cell in drawn], marker=".", label=name)
            panels[1][column].plot(places, [cell.mean(name, LONGEST_HOLD) for cell in drawn], marker=".")
        panels[0][column].set_title(workload, fontsize=9)
        panels[1][column].set_xlabel("pressure")
        for row in (0, 1):
            panels[row][column].set_ylim(bottom=0.0)
            panels[row][column].grid(alpha=0.3)
    panels[0][0].set_ylabel(TURNS.title)
    panels[1][0].set_ylabel(LONGEST_HOLD.title)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    figure.suptitle(f"Simulated, {_engines(replicas)}, every program released", fontsize=10)
    return figure
