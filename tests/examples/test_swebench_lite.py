"""The swebench-lite runner: everything that is missing at once, the dry run, and the whole way on the samples."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from examples.processes import REPOSITORY, Children, free_port
from examples.swebench import dataset, launch
from examples.swebench.demo_run import agent_options, judge, local_environment, prepare
from examples.swebench.launch import engine_command
from examples.swebench.predictions import read_predictions

_SAMPLES = dataset.SAMPLES[::12]


def _lite(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.swebench.lite", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


def test_lite_when_everything_is_missing_lists_it_all_and_exits_2(tmp_path: Path) -> None:
    """Backends, model, data set and Docker are checked in one go; nothing is started."""
    environment = {**local_environment(tmp_path), "MSWEA_DOCKER_EXECUTABLE": "no-such-docker"}
    port = str(free_port())
    options = ["--backends", "http://127.0.0.1:9,gpu", "--port", port, "--output", str(tmp_path / "out")]

    done = _lite([*options, "--subset", str(tmp_path / "nothing")], environment)

    assert done.returncode == 2
    assert done.stdout == ""
    missing = [line for line in done.stderr.splitlines() if line.startswith("missing: ")]
    starts = (
        "missing: no model is given",
        "missing: backend http://127.0.0.1:9 does not answer /health",
        "missing: backend 'gpu' is not an http address",
        f"missing: data set '{tmp_path / 'nothing'}', split 'test', can't be loaded",
        "missing: no no-such-docker command",
    )
    assert [line[: len(start)] for line, start in zip(missing, starts, strict=True)] == list(starts)
    assert not (tmp_path / "out" / "logs").exists()


def test_lite_when_dry_run_prints_the_commands_it_would_run(tmp_path: Path) -> None:
    """The lines can be pasted into a shell: taken apart as a shell does, they are the commands."""
    environment = {**local_environment(tmp_path), "MSWEA_DOCKER_EXECUTABLE": "no-such-docker"}
    output = tmp_path / "out"
    options = ["--backends", "http://a:1/v1/, http://b:2", "--model", "q/w", "--output", str(output), "--dry-run"]
    options += ["--subset", str(dataset.DATASET), "--router-option=--max-hold-seconds=60"]

    done = _lite([*options, "--", "--slice", "0:3", "-c", "agent.step_limit=9"], environment)

    assert done.returncode == 2
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    router = [sys.executable, *["-m", "thunderagent", "serve", "--host", "127.0.0.1", "--port", "8300"]]
    router += ["--backends", "http://a:1,http://b:2", "--policy", "working-set", "--max-hold-seconds=60", "&"]
    agents = launch.agents_command(
        subset=str(dataset.DATASET),
        split="test",
        workers=128,
        model="q/w",
        router="http://127.0.0.1:8300",
        output=output,
        environment_class="docker",
        options=["--slice", "0:3", "-c", "agent.step_limit=9"],
    )
    assert shlex.split(lines[0]) == router
    shown = shlex.split(lines[1])
    assert shown[shown.index(sys.executable) :] == agents
    assert "LITELLM_LOCAL_MODEL_COST_MAP=True" in shown[: shown.index(sys.executable)]


def test_agents_command_when_built_sets_everything_on_the_command_line() -> None:
    """The published guide's command, with our settings and no edited configuration file."""
    command = launch.agents_command(
        subset="lite",
        split="test",
        workers=128,
        model="MODEL",
        router="http://127.0.0.1:8300",
        output=Path("/results"),
        environment_class="docker",
    )

    assert command == [
        sys.executable,
        *["-m", "minisweagent_patch", "swebench", "--subset", "lite", "--split", "test", "--workers", "128"],
        *["--environment-class", "docker", "--output", "/results", "-c", "swebench.yaml"],
        *("-c", "model.model_name=hosted_vllm/MODEL"),
        *("-c", "model.model_kwargs.api_base=http://127.0.0.1:8300/v1"),
        *("-c", "model.model_kwargs.timeout=7200", "-c", "model.cost_tracking=ignore_errors"),
    ]


@pytest.mark.e2e
def test_lite_when_run_on_the_samples_resolves_them_and_reports(tmp_path: Path) -> None:
    """The whole way: checks, router, the real mini-swe-agent, release, report; only the engine is emulated."""
    work = prepare(_SAMPLES, tmp_path)
    port = free_port()
    backend = f"http://127.0.0.1:{port}"
    command = engine_command(
        port, model="emulated", kv_tokens=65_536, speed=50, preset="small-gpu", script=tmp_path / "script.json"
    )
    options = ["--backends", backend, "--model", "emulated", "--port", str(free_port()), "--workers", "3"]
    options += [
        "--subset",
        str(tmp_path / "dataset"),
        "--environment-class",
        "local",
        "--output",
        str(tmp_path / "out"),
    ]
    with Children(tmp_path / "logs") as children:
        children.start("engine", command, dict(os.environ)).wait_ready(f"{backend}/health", 30)
        done = _lite([*options, "--", *agent_options(work)], local_environment(tmp_path))

    assert done.returncode == 0, done.stdout + done.stderr
    parts = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in done.stdout.splitlines()]
    figures = {part[0]: part[1] for part in parts if len(part) == 2}
    assert figures["exit status"] == "3 Submitted"
    assert figures["programs left behind"] == "0"
    assert figures["turns per backend"] == "100%"
    verdicts = judge(_SAMPLES, read_predictions(tmp_path / "out"))
    assert {name: str(verdict) for name, verdict in verdicts.items()} == {
        sample.instance_id: "resolved" for sample in _SAMPLES
    }
    trajectories = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/*.traj.json")]
    assert [trajectory["info"]["exit_status"] for trajectory in trajectories] == ["Submitted"] * 3
