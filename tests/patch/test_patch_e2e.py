"""The real mini-swe-agent and litellm, as processes, against the router stub on loopback."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from patch_stubs import RouterStub

IS_INSTALLED = all(importlib.util.find_spec(name) is not None for name in ("minisweagent", "datasets"))
"""Not by importing them: that takes a second, of each process that runs any tests."""
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not IS_INSTALLED, reason="needs the swebench extra")]

ROOT = Path(__file__).parents[2]
INSTANCES = ("repo__one-1", "repo__two-2")
DOCUMENTATION = ROOT / "docs" / "minisweagent.md"

_LAUNCHER = ("-m", "minisweagent_patch", "swebench")
_STOCK = ("-c", "from minisweagent.run.utilities.mini_extra import main; main()", "swebench")


@dataclass
class Run:
    """One process that has ended, the stub it talked to, and its folder."""

    router: RouterStub
    folder: Path
    returncode: int
    log: str


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """The three real processes, run side by side since each spends seconds in importing litellm."""
    with ExitStack() as stack:
        started = {}
        for name in ("launcher", "stock", "documentation"):
            folder = tmp_path_factory.mktemp(name)
            router = stack.enter_context(RouterStub())
            started[name] = router, folder, _start(name, folder, router)
        finished = {}
        for name, (router, folder, process) in started.items():
            log, _ = process.communicate(timeout=110)
            finished[name] = Run(router, folder, process.returncode, log)
        yield finished


def _start(name: str, folder: Path, router: RouterStub) -> subprocess.Popen[str]:
    data = folder / "tinyds"
    data.mkdir()
    lines = [{"instance_id": each, "repo": "repo", "problem_statement": f"solve {each}"} for each in INSTANCES]
    (data / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if name == "documentation":
        command = ["-c", _documented_code(router)]
    else:
        command = [*(_LAUNCHER if name == "launcher" else _STOCK), *_options(data, folder, router)]
        if name == "stock":
            command += ["--model-class", "minisweagent_patch.ProgramModel"]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("THUNDERAGENT_", "MSWEA_"))},
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "MSWEA_SILENT_STARTUP": "1",
        "MSWEA_GLOBAL_CONFIG_DIR": str(folder / "config"),
        "MSWEA_COST_TRACKING": "ignore_errors",
        "MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT": "1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _options(data: Path, folder: Path, router: RouterStub) -> list[str]:
    settings = {
        "model.model_name": "hosted_vllm/stub",
        "model.model_kwargs.api_base": router.api_base,
        "model.model_kwargs.extra_body.top_k": "20",
        "environment.cwd": folder,
    }
    options = ["--subset", str(data), "--split", "test", "--environment-class", "local", "--workers", "128"]
    options += ["--output", "out", "-c", "swebench.yaml"]
    for key, value in settings.items():
        options += ["-c", f"{key}={value}"]
    return options


def _documented_code(router: RouterStub) -> str:
    blocks = DOCUMENTATION.read_text().split("```python\n")[1:]
    assert len(blocks) == 3
    code = "\n".join(block.split("```")[0] for block in blocks)
    return code.replace("http://localhost:8300", router.url)


@pytest.mark.parametrize("name", ["launcher", "stock"])
def test_real_run_announces_and_releases_each_instance(name: str, runs: dict[str, Run]) -> None:
    """On the wire: one distinct top-level program_id per instance on all its calls, released once; all submitted."""
    run = runs[name]
    assert run.returncode == 0, run.log
    assert [(call["top_k"], "extra_body" in call) for call in run.router.calls] == [(20, False)] * 4
    ids = {
        instance: {call["program_id"] for call in run.router.calls if f"solve {instance}" in str(call["messages"])}
        for instance in INSTANCES
    }
    assert [len(each) for each in ids.values()] == [1, 1], ids
    flat = [program_id for each in ids.values() for program_id in each]
    assert len(set(flat)) == 2
    assert Counter(run.router.released_ids) == Counter(flat)
    assert {path for path, _, _ in run.router.releases} == {"/programs/release"}
    for program_id in flat:  # released after its last call
        assert run.router.order.index(f"release {program_id}") > max(
            index for index, each in enumerate(run.router.order) if each == f"call {program_id}"
        )
    predictions = json.loads((run.folder / "out" / "preds.json").read_text())
    assert {key: value["model_patch"] for key, value in predictions.items()} == dict.fromkeys(
        INSTANCES, "the patch\n"
    )


def test_launcher_sets_names_and_timeout(runs: dict[str, Run]) -> None:
    """The launcher's ids carry the instance's name, and the trajectory shows the client timeout in use."""
    run = runs["launcher"]
    assert sorted(each.rpartition("-")[0] for each in run.router.released_ids) == [
        f"swe-{instance}" for instance in INSTANCES
    ]
    trajectory = json.loads((run.folder / "out" / INSTANCES[0] / f"{INSTANCES[0]}.traj.json").read_text())
    assert trajectory["info"]["config"]["model"]["model_kwargs"]["timeout"] == 7200


def test_documented_examples_run(runs: dict[str, Run]) -> None:
    """Every Python example of the documentation works as it stands and releases each of its programs once."""
    run = runs["documentation"]
    assert run.returncode == 0, run.log
    called = {call["program_id"] for call in run.router.calls}
    assert len(called) == 5
    assert Counter(run.router.released_ids) == Counter(called)
