"""The demo's edges: its options, its output directory and what it calls a failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from examples.swebench import checkouts, dataset, demo
from examples.swebench.demo_run import DemoSettings, PolicyRun, with_place
from examples.swebench.report import EngineCounts, Report, RouterCounts, Trajectories

_SETTINGS = DemoSettings(dataset.SAMPLES[:1], 1, 2, 4000, 1.0, "small-gpu", 60.0)
_GOOD = Report(
    policy="working-set",
    instances=1,
    empty_patches=0,
    resolved=1,
    trajectories=Trajectories({"Submitted": 1}, 12, 1000, 1000, 0),
    engines=EngineCounts(1000, 9000),
    router=RouterCounts(2, 1, 1, 0, {"http://a": 12}, 0),
    wall_seconds=3.0,
    backends=2,
    kv_tokens=4000,
)
_RESOLVED = checkouts.Verdict((), ())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "argument --workers: must be at least 1"),
        (["--speed", "nan"], "argument --speed: must be a positive number"),
        (["--compare", "--policy", "affinity"], "--compare runs its own policies; leave --policy out"),
        (["--polic", "affinity"], "unrecognized arguments: --polic affinity"),
    ],
)
def test_demo_when_options_are_wrong_exits_2_with_a_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Usage errors are found before anything is made or started."""
    with pytest.raises(SystemExit) as caught:
        demo.main(arguments)

    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"python -m examples.swebench.demo: error: {message}"


def test_output_when_not_from_a_demo_is_left_alone(tmp_path: Path) -> None:
    """A directory with other files is refused; one that an earlier demo wrote is replaced."""
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(demo.DemoError, match="is not empty and not from an earlier demo"):
        demo._prepare_output(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "x"

    mine = demo._prepare_output(tmp_path / "demo")
    (mine / "old").write_text("x")
    demo._prepare_output(mine)
    assert [path.name for path in mine.iterdir()] == [demo._MARKER]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "thesis.tex"]


def test_faults_when_all_is_well_are_none() -> None:
    """A quarter of an engine's KV is still allowed."""
    assert demo._faults(PolicyRun(_GOOD, {"a": _RESOLVED}), _SETTINGS) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"router": attrs.evolve(_GOOD.router, programs_left=2)}, "2 programs left at the router"),
        ({"router": attrs.evolve(_GOOD.router, pauses=0)}, "no pressure: 2 holds, 0 pauses"),
        ({"router": attrs.evolve(_GOOD.router, holds=0)}, "no pressure: 0 holds, 1 pauses"),
        (
            {"trajectories": attrs.evolve(_GOOD.trajectories, largest_tokens=1001)},
            "the largest program has 1,001 tokens, more than a quarter of an engine's 4,000: "
            "the pressure would come from a tiny cache",
        ),
    ],
)
def test_faults_when_a_figure_is_wrong_say_which(change: dict[str, Any], fault: str) -> None:
    """Each condition of the demo has its line."""
    report = attrs.evolve(_GOOD, **change)

    assert demo._faults(PolicyRun(report, {"a": _RESOLVED}), _SETTINGS) == [fault]


def test_faults_when_patches_fail_name_the_instances() -> None:
    """An empty patch and one that resolves nothing are faults of every policy; pressure is asked of one only."""
    report = attrs.evolve(_GOOD, policy="affinity", router=attrs.evolve(_GOOD.router, holds=0, pauses=0))
    verdicts = {
        "a": checkouts.Verdict((), (), "empty patch"),
        "b": _RESOLVED,
        "c": checkouts.Verdict(("t",), ()),
    }

    assert demo._faults(PolicyRun(report, verdicts), _SETTINGS) == [
        "a: empty patch",
        "c: 1 deciding tests still fail, 0 others broke",
    ]


def test_row_when_placed_names_its_checkout_at_the_end() -> None:
    """The statement stays as it is in front of the place."""
    sample = dataset.SAMPLES[0]
    row = dataset.load_rows()[sample.instance_id]

    placed = with_place(row)

    place = f"\n(The repository is checked out in ./{sample.instance_id} of the working directory.)\n"
    assert placed == {**row, "problem_statement": row["problem_statement"] + place}
