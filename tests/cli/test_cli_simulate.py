"""``thunderagent simulate``: its tables, its JSON, and what it says of wrong input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from attrs import evolve

from thunderagent.cli import main
from thunderagent.emulator.preset_file import write_preset
from thunderagent.emulator.timing import CPU_TINY
from thunderagent.trace import TraceTurn, encode_turn

SMALL = ("simulate", "--seconds", "120", "--warmup", "20", "--kv-tokens", "200000", "--workers", "1")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    told = capsys.readouterr()
    return int(raised.value.code or 0), told.out, told.err


def trace(path: Path) -> Path:
    turns = [
        TraceTurn(program=f"p{number % 4}", arrival=float(number), end=number + 0.5, prompt_tokens=500 + 100 * number,
                  output_tokens=20)
        for number in range(20)
    ]  # fmt: skip
    path.write_bytes(b"".join(map(encode_turn, turns)))
    return path


def test_policies_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    """A column each, the first one the measure; the engine's title stands above."""
    status, out, err = run(capsys, *SMALL, "--sessions", "14", "--compare", "affinity", "--seeds", "2")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("Engine: simulated, ")
    assert "14 sessions on 1 x 200,000 KV tokens, pressure 1." in lines[2]
    assert lines[3].split() == ["working-set", "affinity"]
    rows = {line[:34].strip(): line[34:].split() for line in lines[4:]}
    assert float(rows["turns/min"][0]) > 1.5 * float(rows["turns/min"][2])
    assert rows["to working-set"][0] == "1.000"
    assert "±" in out


def test_counts_are_whole_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """Of one seed all of them, and of several those that are the same in each: here where nobody is in the way."""
    counts = ("recomputed tokens", "holds", "held at the end", "pauses", "moves")
    _, crowded, _ = run(capsys, *SMALL, "--sessions", "14")
    _, alone, _ = run(capsys, *SMALL, "--sessions", "1", "--seeds", "2")
    for title in counts:
        assert re.search(rf"^{title} +[0-9,]+$", crowded, flags=re.MULTILINE), title
    assert re.search(r"^holds +[1-9][0-9,]*$", crowded, flags=re.MULTILINE)
    assert re.search(r"^pauses +0 ±0$", alone, flags=re.MULTILINE)
    assert re.search(r"^hold max s +0\.000 ±0\.000$", alone, flags=re.MULTILINE)


def test_json_has_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    """On stdout with -, and nothing else there; the same seed gives the same figures."""
    _, out, _ = run(capsys, *SMALL, "--seeds", "2", "--sweep", "sessions=4,8", "--json", "-")
    told = json.loads(out)
    assert [(entry["sessions"], entry["seed"]) for entry in told] == [(4, 0), (4, 1), (8, 0), (8, 1)]
    assert all(entry["turns"] > 10 and 0 < entry["hit_rate"] < 1 for entry in told)
    assert told[0]["engine"].startswith("simulated, ")
    assert run(capsys, *SMALL, "--seeds", "2", "--sweep", "sessions=4,8", "--json", "-")[1] == out


def test_processes_give_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """Two of them."""
    arguments = ("simulate", "--seconds", "60", "--warmup", "10", "--seeds", "2", "--json", "-")
    assert run(capsys, *arguments, "--workers", "2")[1] == run(capsys, *arguments, "--workers", "1")[1]


def test_trace_is_replayed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With what it says of programs; the engine is the small one unless told otherwise."""
    path = trace(tmp_path / "trace.jsonl")
    status, out, _ = run(capsys, "simulate", "--trace", str(path), "--warmup", "0")
    assert status == 0
    assert "trace.jsonl: recorded programs on 1 x 65,536 KV tokens" in out


def test_preset_of_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As calibrate writes it."""
    write_preset(tmp_path / "mine.json", CPU_TINY)
    path, lines = tmp_path / "mine.json", trace(tmp_path / "trace.jsonl")
    status, out, _ = run(capsys, "simulate", "--trace", str(lines), "--warmup", "0", "--preset", str(path))
    assert (status, CPU_TINY.title in out) == (0, True)


def test_what_is_too_long_for_the_engine_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody wonders why so few turns ended."""
    _, _, err = run(capsys, "simulate", "--seconds", "60", "--warmup", "0", "--kv-tokens", "24000")
    assert "turns were too long for a replica of 24,000 KV tokens; their programs were given up" in err


def test_what_is_too_long_for_the_model_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The limit that binds is named, of each value of a sweep its own."""
    path, lines = tmp_path / "mine.json", trace(tmp_path / "trace.jsonl")
    write_preset(path, evolve(CPU_TINY, max_model_len=2000))
    arguments = ("--trace", str(lines), "--preset", str(path), "--workers", "1", "--sweep", "kv-tokens=1600,9000")
    status, _, err = run(capsys, "simulate", *arguments)
    assert status == 0
    assert "turns were too long for a replica of 1,600 KV tokens; their programs were given up" in err
    assert "turns were too long for max_model_len of preset cpu-tiny, 2,000 tokens; their programs were given" in err


def test_curves_are_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As a picture, and as a page that loads nothing."""
    page, picture = tmp_path / "page.html", tmp_path / "curves.png"
    arguments = ("--sweep", "sessions=4,8", "--seeds", "2", "--html", str(page), "--plot", str(picture))
    assert run(capsys, *SMALL, *arguments, "--compare", "affinity")[0] == 0
    text = page.read_text()
    assert text.count("<table>") == 2
    assert "<svg" in text
    assert "working-set" in text
    assert not re.search(r'(src|href)="(?!#)', text.replace("xlink:href", "")), "it refers to something outside"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_replicas_that_die_and_join_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """In the heading, the figures and the JSON."""
    incidents = ("--fail", "0@41-70", "--fail", "1@90", "--add", "2@60")
    arguments = (*SMALL, "--replicas", "2", "--sessions", "28", *incidents)
    _, out, _ = run(capsys, *arguments)
    assert "replica 0 dead from 41 to 70 s, replica 1 dead from 90 s on, 2 more at 60 s; 120 s" in out
    assert re.search(r"^turns cut off, asked again +[1-9]", out, flags=re.MULTILINE)
    assert re.search(r"^turns sent elsewhere +[1-9]", out, flags=re.MULTILINE)
    (told,) = json.loads(run(capsys, *arguments, "--json", "-")[1])
    assert told["incidents"] == [
        {"replica": 0, "at": 41.0, "until": 70.0},
        {"replica": 1, "at": 90.0, "until": None},
        {"replicas": 2, "at": 60.0},
    ]
    assert len(told["per_replica_turns"]) == 4


def test_clients_that_vanish_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """In the heading, the figures and the JSON."""
    _, out, _ = run(capsys, *SMALL, "--vanish", "0.5")
    assert "50 % of clients vanish; 120 s" in out
    assert re.search(r"^clients vanished +[1-9]", out, flags=re.MULTILINE)
    (told,) = json.loads(run(capsys, *SMALL, "--vanish", "0.5", "--json", "-")[1])
    assert told["vanish_ratio"] == 0.5


def test_perturbations_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Those that are other than ever in the heading, all of them in the JSON."""
    arguments = (*SMALL, "--perturb", "capacity=-0.1", "--perturb", "metrics=off", "--perturb", "burst=2")
    assert ", perturbed: capacity=-0.1, metrics=off, burst=2; 120 s" in run(capsys, *arguments)[1]
    (told,) = json.loads(run(capsys, *arguments, "--json", "-")[1])
    assert told["perturbation"] == {
        "estimate": 0.15,
        "capacity": -0.1,
        "metrics_delay_seconds": 0.0,
        "has_metrics": False,
        "burst_programs": 2,
        "tools": None,
    }


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown preset": (("--preset", "tpu"), "unknown preset 'tpu'; there are small-gpu, cpu-tiny,"),
    "preset of no file": (("--preset", "none/at.json"), "none/at.json: No such file or directory"),
    "unknown policy": (("--policy", "best"), "unknown policy 'best'; installed: affinity,"),
    "option of no form": (("--policy", "affinity:fast"), "'fast' is not OPTION=VALUE"),
    "unknown option": (("--policy", "pause-resume:speed=2"), "speed"),
    "twice the same": (("--compare", "working-set"), "given twice"),
    "two ways to say it": (("--sessions", "4", "--pressure", "1"), "--sessions and --pressure set the same thing"),
    "no pressure": (("--pressure", "0"), "pressure is above 0"),
    "too small a cache": (("--kv-tokens", "10"), "at least 1024 KV tokens"),
    "for ever": (("--seconds", "inf"), "--seconds must be at most 10,000,000, got inf"),
    "as good as for ever": (("--seconds", "1e18"), "--seconds must be at most 10,000,000, got 1e+18"),
    "for no time": (("--seconds", "0"), "--seconds must be above 0, got 0"),
    "for no number": (("--seconds", "nan"), "--seconds must be above 0, got nan"),
    "sweep of what is set": (
        ("--sweep", "sessions=2,4", "--sessions", "3"),
        "--sessions: --sweep sessions sets the same thing; give one",
    ),
    "sweep of what pressure sets": (
        ("--sweep", "sessions=2,4", "--pressure", "1"),
        "--pressure: --sweep sessions sets the same thing; give one",
    ),
    "sweep of what sessions set": (
        ("--sweep", "pressure=1,2", "--sessions", "16"),
        "--sessions: --sweep pressure sets the same thing; give one",
    ),
    "sweep of the set share": (
        ("--sweep", "release=0,1", "--release", "1"),
        "--release: --sweep release sets the same thing; give one",
    ),
    "no limit": (("--max-hold-seconds", "nan"), "--max-hold-seconds must be a number"),
    "pressure of nobody": (("--sweep", "pressure=nan"), "must be above 0"),
    "warm-up too long": (("--warmup", "3600"), "the warm-up must be over before the end: 3600 s of 3600 s"),
    "unknown sweep": (("--sweep", "speed=1"), "WHAT one of sessions"),
    "sweep of no number": (("--sweep", "sessions=many"), "'many' is no number"),
    "sweep of nothing": (("--sweep", "sessions=0"), "must be above 0"),
    "failure of no form": (("--fail", "first@60"), "--fail first@60: give REPLICA@SECONDS"),
    "failure of no replica": (("--fail", "1@60"), "--fail 1@60: there is only replica 0 then"),
    "failure after the end": (("--fail", "0@3600"), "--fail 0@3600: the simulation ends at 3600 s"),
    "addition after the end": (("--add", "1@9999"), "--add 1@9999: the simulation ends at 3600 s"),
    "addition of too many": (("--add", "10000@60"), "--add 10000@60: there can be 10,000 replicas"),
    "too many replicas": (("--replicas", "99999999"), "--replicas must be between 1 and 10,000, got 99999999"),
    "too many sessions": (("--sessions", "99999999999"), "--sessions must be between 1 and 1,000,000"),
    "sweep of too many": (("--sweep", "replicas=1,99999999"), "--replicas must be between 1 and 10,000"),
    "sweep twice the same": (("--sweep", "sessions=4,4"), "--sweep sessions: 4 is given twice"),
    "sweep of no share": (("--sweep", "release=-1"), "--sweep release: -1 must be between 0 and 1"),
    "sweep of no pressure": (("--sweep", "pressure=0.5,-1"), "--sweep pressure: -1 must be above 0"),
    "warm-up of no time": (("--warmup", "-1"), "--warmup must be a number of at least 0, got -1"),
    "no program fits": (("--kv-tokens", "5000"), "no program of swe-agent fits a replica of 5,000 KV tokens"),
    "sweep of what fits none": (
        ("--workload", "coding-long", "--sweep", "kv-tokens=20000,200000"),
        "no program of coding-long fits a replica of 20,000 KV tokens",
    ),
    "addition of no form": (("--add", "2"), "--add 2: give N@SECONDS"),
    "addition of nobody": (("--add", "0@60"), "--add 0@60: at least 1 replica joins"),
    "unknown perturbation": (("--perturb", "weather=1"), "NAME one of estimate, capacity"),
    "perturbation of no number": (("--perturb", "tools=slow"), "--perturb tools=slow: 'slow' is not a factor"),
    "perturbation too large": (("--perturb", "estimate=2"), "estimate is at least 0 and below 1, got 2"),
    "no trace": (("--trace", "none.jsonl"), "none.jsonl: No such file or directory"),
    "no such picture": (
        ("--seconds", "20", "--warmup", "1", "--plot", "curves.gif"),
        "must end in .png",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_ends_with_one_line_and_status_2(capsys: pytest.CaptureFixture[str], case: str) -> None:
    """What is wrong, and where."""
    arguments, text = WRONG[case]
    status, _, err = run(capsys, "simulate", *arguments)
    assert status == 2
    assert err.startswith("thunderagent simulate: ")
    assert text in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (("--json", "none/at.json"), "No such file or directory"),
        (("--html", "none/at.html"), "No such file or directory"),
        (("--plot", "none/at.png"), "No such file or directory"),
        (("--json", "."), "Is a directory"),
    ],
)
def test_output_that_cannot_be_written_is_told_before_anything_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, output: tuple[str, str], reason: str
) -> None:
    """A run may take hours."""
    monkeypatch.setattr("thunderagent.cli.simulate.run_all", None)
    status, _, err = run(capsys, "simulate", *output)
    assert (status, err) == (2, f"thunderagent simulate: {' '.join(output)}: {reason}\n")


def test_trace_without_a_turn_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Such as one of a router that nobody asked anything."""
    path = tmp_path / "trace.jsonl"
    path.touch()
    status, _, err = run(capsys, "simulate", "--trace", str(path))
    assert (status, err) == (2, f"thunderagent simulate: {path}: the trace has no turn\n")


def test_trace_of_which_nothing_fits_has_no_figures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Rather than a table of zeros."""
    path = tmp_path / "trace.jsonl"
    path.write_bytes(encode_turn(TraceTurn(program="p", arrival=0.0, end=1.0, prompt_tokens=2000, output_tokens=20)))
    status, _, err = run(capsys, "simulate", "--trace", str(path), "--kv-tokens", "1024")
    assert (status, err.count("\n")) == (2, 1)
    assert "every turn was too long for a replica of 1,024 KV tokens" in err
    write_preset(tmp_path / "mine.json", evolve(CPU_TINY, max_model_len=1500))
    status, _, err = run(capsys, "simulate", "--trace", str(path), "--preset", str(tmp_path / "mine.json"))
    assert (status, err.count("\n")) == (2, 1)
    assert "every turn was too long for max_model_len of preset cpu-tiny, 1,500 tokens" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--sessions", "4"),
        ("--pressure", "1"),
        ("--seeds", "2"),
        ("--sweep", "sessions=1,2"),
        ("--workload", "swe-agent"),
    ],
)
def test_what_a_trace_has_itself_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """Rather than doing nothing."""
    path = trace(tmp_path / "trace.jsonl")
    status, _, err = run(capsys, "simulate", "--trace", str(path), *arguments)
    assert (status, "a trace" in err) == (2, True)


def test_programs_that_are_not_done_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """And a makespan that nobody knows is none."""
    arguments = ("--workload", "rl-rollout", "--sessions", "8", "--seconds", "30", "--workers", "1")
    _, out, err = run(capsys, "simulate", *arguments)
    assert "8 programs were not done after 30 s" in err
    assert "makespan" not in out


def test_line_of_a_trace_that_is_no_turn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """File and line."""
    path = trace(tmp_path / "trace.jsonl")
    path.write_bytes(path.read_bytes() + b'{"program": 5}\n')
    status, _, err = run(capsys, "simulate", "--trace", str(path))
    assert (status, f"{path}, line 21: " in err) == (2, True)


def test_cut_line_of_a_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As a router leaves that was killed while it wrote: what to do is told."""
    path = trace(tmp_path / "trace.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    status, _, err = run(capsys, "simulate", "--trace", str(path))
    assert (status, err) == (2, f"thunderagent simulate: {path}, line 20: the line is cut off: delete it\n")


@pytest.mark.parametrize("line", ['{"timestamp": 0, "input_length": 5}', "program,arrival", "[]", "{"])
def test_file_that_is_no_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path, line: str) -> None:
    """Where traces come from is told."""
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{line}\n{line}\n")
    status, _, err = run(capsys, "simulate", "--trace", str(path))
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"thunderagent simulate: {path}, line 1: ")
    assert err.endswith("; a trace is a file that `thunderagent serve --record` wrote\n")


def test_means_of_nothing_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Where no program and no turn ended."""
    short = ("simulate", "--sessions", "2", "--warmup", "0", "--workers", "1", "--workload", "coding-long")
    _, out, _ = run(capsys, *short, "--seconds", "60")
    assert re.search(r"^program mean s +-$", out, flags=re.MULTILINE)
    assert re.search(r"^turn max s +[0-9.]+$", out, flags=re.MULTILINE)
    _, out, _ = run(capsys, *short, "--seconds", "0.01")
    assert len(re.findall(r"^turn (?:p50|p90|p99|max) s +-$", out, flags=re.MULTILINE)) == 4
    (told,) = json.loads(run(capsys, *short, "--seconds", "60", "--json", "-")[1])
    assert (told["programs_ended"], told["mean_program_seconds"]) == (0, None)


def test_target_stands_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """In the rows that are about it."""
    _, out, _ = run(capsys, *SMALL, "--target", "2.5")
    assert re.search(r"^turns within the target, 2.5 s +[0-9.]+$", out, flags=re.MULTILINE)
    assert re.search(r"^programs within the target, 2.5 s +[0-9.]+$", out, flags=re.MULTILINE)
