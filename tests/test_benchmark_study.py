"""``benchmarks.study``: runs are kept and used again, tables say what runs gave, and what cannot be is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attrs import evolve

from benchmarks import study, study_cells
from benchmarks.study import Grid
from benchmarks.study_cells import Cells
from benchmarks.study_report import Cell, over_the_bound, write_docs, write_results
from thunderagent.simulator.figures import Figures
from thunderagent.simulator.scenario import Arm, Scenario
from thunderagent.simulator.scenario import run as simulate
from thunderagent.simulator.study import WorkerKilled

TINY = Grid(
    {"none": "affinity", "ours": "pause-resume"},
    (1,),
    ((0.5, 1.0), (2.0, 0.0)),
    1,
    ("swe-agent",),
    (100.0, 100.0),
    warmup_seconds=(20.0, 20.0),
)


def run(folder: Path, grid: Grid = TINY) -> list[Cell]:
    """The grid's cells with their figures."""
    cells = list(grid.cells())
    tasks = [task for cell in cells for each in cell.tasks.values() for task in each]
    results = Cells(folder).run(tasks, workers=1, on_done=lambda _: None)
    return [cell.with_figures(results) for cell in cells]


def test_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time nothing is computed, and the figures are the same."""
    first = run(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a run was computed again")

    monkeypatch.setattr(study_cells, "run_all", fail)
    assert run(tmp_path) == first


def test_runs_of_other_sources_are_not_used(tmp_path: Path) -> None:
    """They are computed afresh when a source changed."""
    run(tmp_path)
    kept = len(list(tmp_path.iterdir()))
    cells = Cells(tmp_path, sources="other")
    task = next(iter(next(iter(TINY.cells())).tasks.values()))[0]
    assert cells.known(task) is None
    cells.run([task], workers=1, on_done=lambda _: None)
    assert len(list(tmp_path.iterdir())) == kept + 1


def test_tables_and_lines_say_what_runs_gave(tmp_path: Path) -> None:
    """Turns relative to the best arm of the row; one line per run."""
    cells = run(tmp_path / "cells")
    write_results(tmp_path, cells)
    table = (tmp_path / "tables.md").read_text()
    pressed = cells[1]
    assert pressed.release_ratio == 0.0
    assert max(pressed.ratio(name) for name in ("none", "ours")) == 1.0
    hold = pressed.figures["ours"][0].longest_hold_p95_seconds
    assert f"| {pressed.ratio('ours'):.2f}, {hold:,.0f} s |" in table
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["arm"] for line in lines] == ["affinity", "pause-resume"] * 2
    assert lines[3]["turns"] == pressed.figures["ours"][0].turns
    assert (tmp_path / "study-1.svg").read_text().count("<svg") == 1


def test_no_picture_is_drawn_where_no_cell_is_of_clients_that_release(tmp_path: Path) -> None:
    """Tables and lines are written all the same."""
    cells = [cell for cell in run(tmp_path / "cells") if cell.release_ratio == 0.0]
    write_results(tmp_path, cells)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells", "results.jsonl", "tables.md"]


def test_runs_over_the_bound_are_found(tmp_path: Path) -> None:
    """Named with arm and seed."""
    cells = run(tmp_path)
    assert over_the_bound(cells) == []
    too_good = evolve(cells[0].figures["ours"][0], bound_share=1.01)
    bad = evolve(cells[0], figures={**cells[0].figures, "ours": (too_good,)})
    (line,) = over_the_bound([bad, cells[1]])
    assert "ours, seed 0: 1.0100" in line


def test_study_fails_where_a_run_comes_over_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1, and 0 otherwise."""
    monkeypatch.setitem(study.GRIDS, "smoke", TINY)
    monkeypatch.setattr("sys.argv", ["study", "--smoke", "--workers", "1", "--output", str(tmp_path)])
    assert study.main() == 0
    monkeypatch.setattr("benchmarks.study_report._BOUND", 0.0)
    assert study.main() == 1
    assert "of the upper bound" in capsys.readouterr().err


def test_study_whose_worker_is_killed_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a line, exit status 1."""

    def killed(*_: object) -> None:
        raise WorkerKilled

    monkeypatch.setattr(study, "_run", killed)
    monkeypatch.setattr("sys.argv", ["study", "--smoke", "--output", str(tmp_path)])
    assert study.main() == 1
    err = capsys.readouterr().err
    assert err.startswith("a worker process was killed (out of memory?); try --workers 1; what was computed is kept")
    assert err.count("\n") == 1


def test_page_gets_tables_between_its_marks(tmp_path: Path) -> None:
    """What stands around them stays; a page without marks is refused."""
    cells = run(tmp_path / "cells")
    write_results(tmp_path, cells)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- study: begin -->\nformer\n<!-- study: end -->\nafter\n")
    write_docs(page, tmp_path, TINY.arms, cells)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "former" not in text
    assert "| ours | `pause-resume` |" in text
    assert (tmp_path / "images" / "study-1.svg").exists()
    (tmp_path / "bare.md").write_text("nothing")
    with pytest.raises(SystemExit, match="there must be one line"):
        write_docs(tmp_path / "bare.md", tmp_path, TINY.arms, cells)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--docs", "none.md"), "none.md: cannot be read"),
        (("--goals", "bare.md"), "bare.md: there must be one line <!-- goals: begin -->"),
        (("--output", "bare.md"), "--output bare.md: File exists"),
        (("--workers", "0"), "--workers must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_written_is_told_before_anything_is_computed(
    arguments: tuple[str, ...],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a line, and no picture is left."""
    monkeypatch.chdir(tmp_path)
    Path("bare.md").write_text("nothing")
    monkeypatch.setattr(study, "_run", lambda *_: pytest.fail("computed"))
    monkeypatch.setattr("sys.argv", ["study", "--smoke", *arguments])
    with pytest.raises(SystemExit) as raised:
        study.main()
    assert reason in f"{raised.value}\n{capsys.readouterr().err}"
    assert not list(tmp_path.rglob("*.svg"))


def test_every_arm_of_both_studies_can_be_made() -> None:
    """And each studies clients that release and clients that do not, with and without pressure."""
    for grid in (study.STUDY, study.FULL):
        cells = list(grid.cells())
        assert {cell.release_ratio for cell in cells} >= {0.0, 1.0}
        assert min(cell.pressure for cell in cells) < 1 < 4 <= max(cell.pressure for cell in cells)
        assert {name for cell in cells for name in cell.tasks} == set(grid.arms)


def test_figures_survive_json() -> None:
    """As they are kept."""
    figures = simulate(Scenario(sessions=2, horizon_seconds=60.0, warmup_seconds=10.0), Arm("affinity"))
    assert Figures.from_dict(json.loads(json.dumps(figures.as_dict()))) == figures
