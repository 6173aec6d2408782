"""``python -m minisweagent_patch`` as a process, over a stand-in for mini-swe-agent on disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from patch_stubs import RouterStub, write_tree

from minisweagent_patch.launcher import _batch_run, _Run

ROOT = Path(__file__).parents[2]

RUNNER = """
import threading
from concurrent.futures import ThreadPoolExecutor

STARTED = threading.Event()

def process_instance(instance, output_dir, config, progress_manager):
    STARTED.set()
    print("started", instance["instance_id"], flush=True)
    if config.get("mode") == "hang":
        threading.Event().wait()

def app(args, prog_name):
    import os, litellm
    print(prog_name, args, flush=True)
    print("pool", litellm.client_session is not None, flush=True)
    mode, base = os.environ["MODE"], os.environ["ROUTER"]
    config = {"mode": mode.removeprefix("abandoned "), "model": {"model_kwargs": {"api_base": base}}}
    if mode.startswith("abandoned"):
        thread = threading.Thread(target=process_instance, args=({"instance_id": "i0"}, "out", config, None))
        thread.start()
        while not STARTED.wait(1):
            pass
        raise SystemExit(130)
    with ThreadPoolExecutor(2) as executor:
        runs = [executor.submit(process_instance, {"instance_id": f"i{n}"}, "out", config, None) for n in range(3)]
        for run in runs:
            run.result()
"""

MINI_EXTRA = """
import sys
from importlib import import_module

def main():
    module = import_module("MODULE")
    return module.app(sys.argv[2:], prog_name=f"mini-extra {sys.argv[1]}")
"""

LITELLM = """
client_session = None
sync_transport = None

def completion(**arguments):
    import os
    if "tools" in arguments and os.environ["MODE"] == "broken":
        raise ModuleNotFoundError("No module named 'mcp'", name="mcp")
"""


def mini_swe_agent(root: Path, version: str) -> Path:
    """A tiny mini-swe-agent of either layout, with a litellm beside it."""
    extra, utilities = ("extra", "") if version[0] == "1" else ("benchmarks", "utilities/")
    module = f"minisweagent.run.{extra}.swebench"
    write_tree(
        root,
        {
            f"minisweagent/run/{extra}/swebench.py": RUNNER,
            f"minisweagent/run/{utilities}mini_extra.py": MINI_EXTRA.replace("MODULE", module),
            "litellm.py": LITELLM,
        },
    )
    (root / "minisweagent/__init__.py").write_text(f"__version__ = {version!r}\n")
    return root


def start(
    root: Path, router: RouterStub, mode: str, arguments: Sequence[str] = ("swebench",)
) -> subprocess.Popen[str]:
    """Start the launcher over the packages in ``root``."""
    environment = {**os.environ, "MODE": mode, "ROUTER": router.api_base, "PYTHONPATH": f"{root}:{ROOT}"}
    return subprocess.Popen(
        [sys.executable, "-m", "minisweagent_patch", *arguments],
        env=environment,
        cwd=root,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("version", ["1.17.5", "2.4.6"])
def test_launcher_runs_mini_extra_with_the_patch(version: str, tmp_path: Path, router: RouterStub) -> None:
    """Arguments go through unchanged, the pool is raised, each instance is released once."""
    process = start(mini_swe_agent(tmp_path, version), router, "ok", ["swebench", "-w", "128", "--slice", "0:3"])
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[:2] == [
        "mini-extra swebench ['-w', '128', '--slice', '0:3']",
        "pool True",
    ]
    assert sorted(each.split("-")[1] for each in router.released_ids) == ["i0", "i1", "i2"]


def test_broken_litellm_ends_with_status_2(tmp_path: Path, router: RouterStub) -> None:
    """One line on stderr with the remedy, before any instance starts."""
    process = start(mini_swe_agent(tmp_path, "2.4.6"), router, "broken")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("minisweagent_patch: litellm ")
    assert err.endswith("No module named 'mcp'. Install a version that can: pip install 'litellm>=1.101,<1.105', "
                        "or pip install mcp\n")  # fmt: skip
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("version", "arguments"),
    [
        ("1.17.5", ["swebench"]),
        ("2.4.6", ["swebench", "--model-class", "litellm_textbased"]),
        ("2.4.6", ["swebench", "--model-class", "openrouter"]),
        ("2.4.6", ["--no-check", "swebench"]),
        ("2.4.6", ["swebench", "--help"]),
    ],
)
def test_run_without_tools_calls_is_not_refused(
    version: str, arguments: list[str], tmp_path: Path, router: RouterStub
) -> None:
    """A litellm that fails only for tools serves 1.x and the classes that pass none."""
    process = start(mini_swe_agent(tmp_path, version), router, "broken", arguments)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")


def test_unsupported_version_ends_with_status_2(tmp_path: Path, router: RouterStub) -> None:
    """One line names the installed and the supported versions."""
    process = start(mini_swe_agent(tmp_path, "3.0.0"), router, "ok")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err.startswith("minisweagent_patch: mini-swe-agent 3.0.0 is installed; the patch supports 1.8.0")


def test_help_of_the_launcher_needs_no_mini_swe_agent(tmp_path: Path) -> None:
    """--help explains the launcher's own options."""
    done = subprocess.run(
        [sys.executable, "-m", "minisweagent_patch", "--help"], capture_output=True, text=True, timeout=30, cwd=ROOT
    )
    assert done.returncode == 0
    assert "--client-timeout SECONDS" in done.stdout


def test_second_sigterm_releases_and_ends_at_once(tmp_path: Path, router: RouterStub) -> None:
    """With every thread hanging, the running programs are released and the third instance never starts."""
    process = start(mini_swe_agent(tmp_path, "2.4.6"), router, "hang")
    assert process.stdout is not None
    assert process.stderr is not None
    lines = [process.stdout.readline() for _ in range(4)]
    assert sorted(lines[2:]) == ["started i0\n", "started i1\n"]
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "SIGTERM: ending; 2 programs active\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + signal.SIGTERM, "")
    assert sorted(each.split("-")[1] for each in router.released_ids) == ["i0", "i1"]


def test_interrupted_run_ends_without_its_threads(tmp_path: Path, router: RouterStub) -> None:
    """Where mini-extra gives up on threads that hang (repeated Ctrl-C), they are released and not waited for."""
    process = start(mini_swe_agent(tmp_path, "2.4.6"), router, "abandoned hang")
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert [each.split("-")[1] for each in router.released_ids] == ["i0"]


def test_sigterm_ends_a_hanging_run_after_the_grace(router: RouterStub) -> None:
    """One signal is enough: after the grace what is active is released, once, and the process ends."""
    script = f"""
import threading
from minisweagent_patch import release_on_termination, wrap
release_on_termination(grace_seconds=0.2)
def work(instance, config):
    print("started", flush=True)
    threading.Event().wait()
config = {{"model": {{"model_kwargs": {{"api_base": "{router.api_base}"}}}}}}
thread = threading.Thread(target=wrap(work), args=({{"instance_id": "i"}}, config))
thread.start()
thread.join()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert len(router.releases) == 1


def test_sigterm_in_the_main_threads_run_releases_it(router: RouterStub) -> None:
    """SystemExit unwinds a run on the main thread, whose block releases it."""
    script = f"""
import threading
from minisweagent_patch import program, release_on_termination
release_on_termination()
with program("main", api_base="{router.api_base}"):
    print("started", flush=True)
    threading.Event().wait()
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert len(router.releases) == 1


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ([], None),
        (["config"], None),
        (["swebench", "--help"], None),
        (["swebench"], _Run(1, "")),
        (["swebench", "-w", "128"], _Run(128, "")),
        (["swebench", "-w128"], _Run(128, "")),
        (["swebench", "--workers=200", "--filter", "x"], _Run(200, "")),
        (["programbench", "--workers", "many"], _Run(1, "")),
        (["swebench", "--model-class", "litellm_response"], _Run(1, "litellm_response")),
        (["swebench", "-w"], None),
    ],
)
def test_batch_command_line_is_understood(command: list[str], expected: _Run | None) -> None:
    """The launcher reads workers and model class, and leaves all else to mini-extra."""
    assert _batch_run(command) == expected
