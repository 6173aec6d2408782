"""``benchmarks.study_goals``: the merit of a schedule, and which goals are met where."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from benchmarks.study import ASIDE, FULL, MANY, PARTS, ROBUST, STUDY
from benchmarks.study_front import draw_front
from benchmarks.study_goals import goals_tables, merit, write_ablation, write_goals
from benchmarks.study_report import Cell
from thunderagent.policy import ROTATION_RATIO
from thunderagent.simulator.figures import Figures, Quantiles
from thunderagent.simulator.perturbation import Perturbation
from thunderagent.simulator.scenario import Arm, Scenario, run
from thunderagent.simulator.study import Task

LOAD = Scenario(horizon_seconds=60.0, warmup_seconds=10.0).at_pressure(2.4)


@pytest.fixture(scope="module")
def some() -> Figures:
    """Of any run, to be changed."""
    return run(evolve(LOAD, sessions=1), Arm("affinity"))


def cell_of(some: Figures, scenario: Scenario = LOAD, perturbed: str = "", **arms: dict[str, Any]) -> Cell:
    """Arms with these figures."""
    tasks = {name: (Task(scenario, Arm(name)),) for name in arms}
    figures = {name: (evolve(some, **changed),) for name, changed in arms.items()}
    pressure = scenario.pressure or 0.0
    return Cell(scenario.workload, scenario.replicas, pressure, scenario.release_ratio, tasks, perturbed, figures)


def rows(text: str, title: str) -> list[list[str]]:
    """Cells of the table rows that begin with the title."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {title}")]
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines]


def test_merit_is_the_price_times_the_wait(some: Figures) -> None:
    """10 % lost, held for 300 s: 30 s, of (p - 1) K/R. The best arm counts as losing 1 %."""
    cell = cell_of(
        some,
        best={"turns_per_minute": 80.0, "longest_hold_p95_seconds": 900.0},
        interactive={"turns_per_minute": 72.0, "longest_hold_p95_seconds": 300.0},
    )
    whole_seconds = (cell.pressure - 1.0) * LOAD.refill_seconds
    assert merit(cell, "best") == pytest.approx(9.0 / whole_seconds)
    assert merit(cell, "interactive") == pytest.approx(30.0 / whole_seconds)


def test_merit_says_nothing_where_programs_fit(some: Figures) -> None:
    """Nobody need wait."""
    assert math.isnan(merit(cell_of(some, LOAD.at_pressure(0.5), interactive={}), "interactive"))


def test_refilling_takes_as_long_as_the_prompts_of_all(some: Figures) -> None:
    """K/R by hand: as many mean prompts as the cache holds, each for its time."""
    machine = LOAD.machine
    tokens = round(LOAD.footprint_tokens)
    seconds = machine.timing.prompt_seconds(tokens, machine.max_num_batched_tokens, 0)
    assert LOAD.refill_seconds == pytest.approx(LOAD.kv_tokens_per_replica / LOAD.footprint_tokens * seconds)
    assert 20.0 < LOAD.refill_seconds < 40.0


def test_misses_are_counted_and_shown(some: Figures) -> None:
    """Of two cells one loses more than a tenth at the interactive end; it is named first."""
    turns = {"turns_per_minute": 100.0}
    met = cell_of(some, best=turns, interactive={"turns_per_minute": 95.0})
    missed = cell_of(some, LOAD.at_pressure(1.6), best=turns, interactive={"turns_per_minute": 80.0})
    ((_, most, share, worst),) = rows(goals_tables([met, missed]), "2. interactive")
    assert (most, share) == ("0.1", "1 of 2")
    assert worst.startswith("0.20 interactive, swe-agent, one replica, pressure 1.5")


def test_published_arm_that_is_better_in_both_is_ahead(some: Figures) -> None:
    """More turns and no longer holds; one that holds longer is not."""
    ours = {"turns_per_minute": 90.0, "longest_hold_p95_seconds": 300.0}
    ahead = {"turns_per_minute": 95.0, "longest_hold_p95_seconds": 200.0}
    longer = {"turns_per_minute": 95.0, "longest_hold_p95_seconds": 400.0}
    shares = [
        rows(goals_tables([cell_of(some, published=published, interactive=ours)]), "4.")[0][2]
        for published in (ahead, longer)
    ]
    assert shares == ["0 of 1", "1 of 1"]


@pytest.mark.parametrize(
    ("p95", "longest", "small", "large", "longest_met", "large_met"),
    [(100.0, 250.0, 20.0, 28.0, "0 of 1", "1 of 1"), (5.0, 1_800.0, 0.0, 1_500.0, "0 of 1", "0 of 1")],
    ids=["longer than usual", "only the large are held, and one of them for long"],
)
def test_holds_are_compared(
    some: Figures, p95: float, longest: float, small: float, large: float, longest_met: str, large_met: str
) -> None:
    """The longest of all with the usual longest, and those of large programs with those of small ones; also where
    hardly any program is held but those."""
    figures = {
        "longest_hold_p95_seconds": p95,
        "hold_seconds": Quantiles(most=longest),
        "small_hold_seconds": small,
        "large_hold_seconds": large,
    }
    text = goals_tables([cell_of(some, interactive=figures)])
    assert rows(text, "3. longest hold to H")[0][2] == longest_met
    assert rows(text, "3. holds of the largest")[0][2] == large_met


def test_batch_that_ends_no_program_misses(some: Figures) -> None:
    """A mean over none is no short time."""
    ended = {"programs_ended": 3, "mean_program_seconds": 100.0}
    none = {"programs_ended": 0, "mean_program_seconds": None}
    text = goals_tables([cell_of(some, **{"first-come": ended, "batch": none})])
    assert rows(text, "5. batch: mean time")[0][2] == "0 of 1"


def test_perturbed_cells_are_judged_by_their_own_goals(some: Figures) -> None:
    """12 % lost are too much for plain ones only."""
    scenario = evolve(LOAD, perturbation=Perturbation(estimate=0.25))
    arms = {"best": {"turns_per_minute": 100.0}, "interactive": {"turns_per_minute": 88.0}}
    text = goals_tables([cell_of(some, scenario, "estimates off", **arms)])
    assert rows(text, "2. interactive") == rows(text, "3.") == []
    assert rows(text, "7. perturbed, interactive")[0][2] == "1 of 1"
    assert "| estimates off |" in text


def test_pages_get_goals_and_parts_between_their_marks(some: Figures, tmp_path: Path) -> None:
    """Each its own; the other marks stay as they are."""
    page = tmp_path / "page.md"
    page.write_text(
        "".join(f"<!-- {mark}: begin -->\n<!-- {mark}: end -->\n" for mark in ("ablation", "goals", "perturbed"))
    )
    whole = {"turns_per_minute": 100.0, "longest_hold_p95_seconds": 200.0}
    part = {"turns_per_minute": 90.0, "longest_hold_p95_seconds": 300.0}
    write_ablation(page, [cell_of(some, interactive=whole, part=part)])
    write_goals(page, "goals", [cell_of(some, interactive=whole)])
    text = page.read_text()
    assert "| part | 0.90, 1.5 |" in text
    assert text.index("ablation: end") < text.index("2. interactive") < text.index("goals: end")
    assert text.endswith("<!-- perturbed: begin -->\n<!-- perturbed: end -->\n")


def test_fairness_is_judged_where_turns_can_go_round(some: Figures) -> None:
    """Three rotations are needed; programs that end by themselves have as long as they take."""
    arm = {"interactive": {"jain_of_progress": 0.9}}
    cycle_seconds = 2.4 * LOAD.refill_seconds / ROTATION_RATIO
    long = evolve(LOAD, horizon_seconds=LOAD.warmup_seconds + 3 * cycle_seconds)
    title = "3. interactive: 1 - Jain"
    assert rows(goals_tables([cell_of(some, LOAD, **arm)]), title)[0][2] == "not judged"
    assert rows(goals_tables([cell_of(some, long, **arm)]), title)[0][2] == "0 of 1"
    ending = Scenario("rl-rollout", warmup_seconds=0.0, horizon_seconds=21_600.0).at_pressure(2.4)
    for makespan, judged in ((100.0, "not judged"), (20_000.0, "0 of 1")):
        arm["interactive"]["makespan_seconds"] = makespan
        assert rows(goals_tables([cell_of(some, ending, **arm)]), title)[0][2] == judged


def test_the_front_is_drawn_beside_the_page(some: Figures, tmp_path: Path) -> None:
    """Of cells under pressure: a panel each, the dial's positions in it joined, and the same file each time."""
    page = tmp_path / "page.md"
    page.write_text("<!-- many: begin -->\n<!-- many: end -->\n")
    whole = {"turns_per_minute": 100.0, "longest_hold_p95_seconds": 200.0}
    less = {"turns_per_minute": 50.0, "longest_hold_p95_seconds": 100.0}
    cell = cell_of(some, batch=whole, interactive=less, published=less)
    write_goals(page, "many", [cell, cell_of(some, LOAD.at_pressure(0.5), batch=whole)])
    picture = (tmp_path / "images" / "front-many.svg").read_bytes()
    write_goals(page, "many", [cell])
    assert (tmp_path / "images" / "front-many.svg").read_bytes() == picture
    (panel,) = draw_front([cell], 0.7).axes
    dial, *_ = [line for line in panel.lines if line.get_color() == "black" and line.get_linestyle() == "-"]
    assert list(zip(*dial.get_data(), strict=True)) == [(200.0, 1.0), (100.0, 0.5)]


def test_no_front_is_drawn_of_what_the_router_does_not_see(some: Figures, tmp_path: Path) -> None:
    """There the holds are those of wrong beliefs."""
    page = tmp_path / "page.md"
    page.write_text("<!-- perturbed: begin -->\n<!-- perturbed: end -->\n")
    write_goals(page, "perturbed", [cell_of(some, LOAD, "estimates off", interactive={})])
    assert not (tmp_path / "images").exists()


def test_what_is_kept_aside_was_not_tuned_on() -> None:
    """Each workload on an engine that it has nowhere else, with seeds of its own."""
    tuned = {cell.workload: cell.scenario for cell in STUDY.cells()}
    for cell in ASIDE.cells():
        known = tuned[cell.workload]
        assert cell.scenario.machine.name != known.machine.name
        assert cell.scenario.kv_tokens_per_replica != known.kv_tokens_per_replica
        assert cell.scenario.seed >= FULL.seeds
    assert not {load[0] for load in ASIDE.loads} & {
        load[0] for grid in (STUDY, FULL, ROBUST, PARTS) for load in grid.loads
    }
    assert {(cell.replicas, cell.release_ratio) for cell in MANY.cells()} == {(16, 0.5)}


def test_arms_and_perturbations_of_the_grids_can_be_made() -> None:
    """Each perturbation changes its scenario, and each part its arm."""
    cells = list(ROBUST.cells())
    scenarios = {
        cell.perturbed: next(iter(cell.tasks.values()))[0].scenario for cell in cells[: len(ROBUST.perturbed)]
    }
    assert len(scenarios) == len(set(map(repr, scenarios.values()))) == len(ROBUST.perturbed)
    assert all(scenario.perturbation != Perturbation() or scenario.vanish_ratio for scenario in scenarios.values())
    parts = next(iter(PARTS.cells())).tasks
    assert len({repr(tasks[0].arm) for tasks in parts.values()}) == len(PARTS.arms)
