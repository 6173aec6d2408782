"""The benchmark of admission runs from end to end; here against emulated engines, so that its figures say nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import ROOT, Daemon, engine, environment

from benchmarks.vllm import Result, main, ratios
from benchmarks.vllm_counters import EngineCounts
from examples.vllm_cpu import prepare

SMALL = ("--repetitions", "1", "--turns", "3", "--tool-seconds", "0.01", "0.02", "--demands", "2")


def run(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.vllm", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment({} if path is None else {"PATH": path}),
        timeout=90,
    )


@pytest.fixture
def emulated() -> Iterator[Daemon]:
    daemon = engine("--kv-tokens", "16384", "--preset", "cpu-tiny").wait_ready()
    yield daemon
    daemon.kill()


def test_arms_against_running_servers(emulated: Daemon, tmp_path: Path) -> None:
    """Every arm's agents get all of their turns; what is counted is the engine's."""
    told = tmp_path / "results.json"
    arms = "direct,pause-resume,requests"
    done = run("--backends", emulated.url, "--model", "emulated", "--arms", arms, *SMALL, "--json", str(told))
    assert done.returncode == 0, done.stdout + done.stderr
    results = {result["arm"]: result for result in json.loads(told.read_text())}
    assert list(results) == arms.split(",")
    for result in results.values():
        assert result["turns"] == 3 * result["agents"]
        assert result["errors"] == []
        assert result["engine"]["queried_tokens"] > 1_000 * result["turns"]
        assert result["engine"]["output_tokens"] == 48 * result["turns"]
    assert results["pause-resume"]["holds"] > 0
    assert results["pause-resume"]["engine"]["computed_tokens"] < results["direct"]["engine"]["computed_tokens"]
    assert "1 server(s), demand 2: pause-resume" in done.stdout
    assert "vLLM 0.32.0-emulated" in done.stdout


def test_servers_are_started_and_ended(tmp_path: Path) -> None:
    """As on a GPU, with a ``vllm`` command that starts an emulated engine: its flags, and an end without a trace."""
    command = tmp_path / "vllm"
    command.write_text(
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/asked
exec {sys.executable} -m thunderagent engine --port "$4" --model "$2" --kv-tokens 16384 --speed 20
"""
    )
    command.chmod(0o755)
    arguments = ("--serve", "some/model", "--arms", "affinity", "--servers", "2", *SMALL, "--", "--max-num-seqs", "9")
    done = run(*arguments, path=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stdout + done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 2
    for line in asked:
        assert line.startswith("serve some/model --port ")
        assert "--enable-prefix-caching --enable-prompt-tokens-details" in line
        assert line.endswith("--max-num-seqs 9")
    assert "2 x vLLM 0.32.0-emulated, some/model, 16,384 KV tokens each" in done.stdout
    left = subprocess.run(["pgrep", "-f", "--", "--model some/model"], capture_output=True, text=True).stdout
    assert left == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--backends", "http://127.0.0.1:9"), "--backends and --model go together"),
        (("--serve", "a", "--backends", "http://127.0.0.1:9"), "not allowed with"),
        (("--", "--max-num-seqs", "9"), "need --serve MODEL"),
    ],
)
def test_wrong_options(arguments: tuple[str, ...], text: str) -> None:
    """Status 2, and what is wrong."""
    done = run(*arguments)
    assert (done.returncode, text in done.stderr) == (2, True)


@pytest.mark.parametrize("url", ["X", "http://127.0.0.1:9"])
def test_backend_that_is_not_there_is_told_in_a_line(url: str) -> None:
    """No scheme, or nobody listens."""
    done = run("--backends", url, "--model", "m", *SMALL)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "a server could not be asked" in done.stderr


def test_missing_cpu_build_is_told_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What to run first; neither the machine nor the logs of a run that there is none of."""
    monkeypatch.setattr(prepare, "_STAMP", tmp_path / "prepared")
    monkeypatch.setattr("benchmarks.vllm.interrupt_on_termination", lambda: None)
    monkeypatch.setattr(sys, "argv", ["vllm"])
    with pytest.raises(SystemExit, match="run `make vllm-cpu` first"):
        main()
    assert capsys.readouterr().out == ""


def test_server_that_does_not_start_is_told_with_its_log(tmp_path: Path) -> None:
    """The end of what it wrote."""
    command = tmp_path / "vllm"
    command.write_text("#!/bin/sh\necho no GPU found; exit 3\n")
    command.chmod(0o755)
    done = run("--serve", "m", *SMALL, path=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "ended with status 3" in done.stderr
    assert "no GPU found" in done.stderr


def result(arm: str, repetition: int, seconds: float, *errors: str) -> Result:
    return Result(1, arm, 2.0, repetition, 8, 80, seconds, EngineCounts(), 1.0, 2.0, 0, 0, errors)


def test_runs_with_errors_are_left_out_of_the_ratios() -> None:
    """With the pair of the same repetition; an arm that has no other says just that."""
    results = [
        result("direct", 1, 80.0),
        result("pause-resume", 1, 40.0),
        result("requests", 1, 10.0, "a-1: gone"),
        result("pause-resume", 2, 32.0),
        result("direct", 2, 20.0, "b-1: gone"),
    ]
    assert list(ratios(results)) == [
        "1 server(s), demand 2: pause-resume 2.00 x direct in turns/s (2.00); 1 left out, with errors",
        "1 server(s), demand 2: requests 1 left out, with errors",
    ]
    assert list(ratios(results[1:2])) == [], "nothing to compare with"
