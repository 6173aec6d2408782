"""What has to be in place before a run over SWE-bench: each check says what is missing and what to do about it."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from examples.processes import get
from examples.swebench.launch import served_models
from minisweagent_patch.errors import PatchError
from minisweagent_patch.versions import installed_version, runner_modules
from thunderagent.errors import ConfigError
from thunderagent.registry import load_policy

GIB = 1024**3
IMAGE_BYTES = int(0.4 * GIB)
"""Disk per instance: the 300 images of lite take about 120 GiB, layers shared between them counted once."""
_LEAST_FREE_BYTES = 20 * GIB
_DOCKER_SECONDS = 20


@attrs.frozen
class Problem:
    """One thing that is wrong and what to do about it; a warning (``fatal`` False) does not stop the run."""

    what: str
    remedy: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.what}\n    {self.remedy}"


@attrs.frozen
class Wanted:
    """The run that is about to start. ``subset`` is a name of mini-swe-agent's or a path."""

    backends: tuple[str, ...]
    model: str
    host: str
    port: int
    subset: str
    split: str
    environment_class: str
    output: Path
    policy: str = "working-set"


def problems(wanted: Wanted) -> list[Problem]:
    """Run every check, side by side, and return all that is wrong, in a fixed order."""
    checks: list[Callable[[], list[Problem]]] = [
        lambda: check_given(wanted),
        *(lambda url=url: check_backend(url, wanted.model) for url in wanted.backends),
        lambda: check_port(wanted.host, wanted.port),
        check_agent,
        lambda: check_policy(wanted.policy),
        lambda: check_output(wanted.output),
        lambda: check_environment(wanted),
    ]
    with ThreadPoolExecutor(max_workers=8) as pool:
        found = list(pool.map(lambda check: check(), checks))
    return [problem for group in found for problem in group]


def check_given(wanted: Wanted) -> list[Problem]:
    """Backends and a model are named at all."""
    found = []
    if not wanted.backends:
        found.append(Problem("no backend is given", "give BACKENDS=http://HOST:PORT[,...], the vLLM servers"))
    if not wanted.model:
        found.append(Problem("no model is given", "give MODEL=NAME as the backends serve it (see /v1/models)"))
    return found


def check_backend(url: str, model: str) -> list[Problem]:
    """The backend answers and serves the model."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return [Problem(f"backend {url!r} is not an http address", "give BACKENDS=http://HOST:PORT[,...]")]
    try:
        get(f"{url}/health")
    except OSError as error:
        return [
            Problem(
                f"backend {url} does not answer /health: {error}",
                f"start it (vllm serve {model or 'MODEL'} --port {parts.port or 80}) or correct BACKENDS",
            )
        ]
    try:
        models = served_models(url)
    except (OSError, ValueError) as error:
        return [Problem(f"backend {url} does not list its models: {error}", "it has to speak the OpenAI API")]
    if model in models or not model:
        return []
    names = ", ".join(models) or "none"
    wanted = model or "NAME"
    return [
        Problem(
            f"backend {url} does not serve {model!r} but {names}",
            f"give MODEL={models[0] if models else 'NAME'}, or serve it there (--served-model-name {wanted})",
        )
    ]


def check_port(host: str, port: int) -> list[Problem]:
    """The router's port can be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            return [
                Problem(
                    f"the router can't listen on {host}:{port}: {error.strerror or error}",
                    "stop what listens there, or give another PORT" if taken else "give another PORT",
                )
            ]
    return []


def check_agent() -> list[Problem]:
    """mini-swe-agent is installed in a version that the patch knows, and litellm and datasets with it."""
    remedy = "install the extra: pip install -e '.[swebench]'"
    try:
        installed_version()
        runner_modules()
    except PatchError as error:
        return [Problem(str(error), remedy)]
    except ImportError as error:
        return [Problem(f"mini-swe-agent can't be imported: {error}", remedy)]
    missing = [name for name in ("litellm", "datasets") if importlib.util.find_spec(name) is None]
    return [Problem(f"{' and '.join(missing)} not installed", remedy)] if missing else []


def check_policy(policy: str) -> list[Problem]:
    """The scheduling policy is installed and loads."""
    try:
        load_policy(policy)
    except ConfigError as error:
        return [Problem(str(error), "give POLICY=NAME, one that `thunderagent policies` lists")]
    return []


def check_output(output: Path) -> list[Problem]:
    """The output directory can be written to."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return [Problem(f"can't make {output}: {error.strerror or error}", "give another OUTPUT")]
    if not os.access(output, os.W_OK):
        return [Problem(f"{output} can't be written to", "give another OUTPUT, or change its owner")]
    return []


def check_environment(wanted: Wanted) -> list[Problem]:
    """The data set can be loaded and, for Docker, the daemon is there with room for its images."""
    instances, found = check_dataset(wanted.subset, wanted.split)
    if wanted.environment_class != "docker":
        return found
    root, docker = check_docker()
    return [*found, *docker, *(check_disk(root, instances) if root is not None else [])]


def check_dataset(subset: str, split: str) -> tuple[int, list[Problem]]:
    """(number of instances, problems), by loading it as mini-swe-agent does."""
    try:
        from datasets import load_dataset
        from minisweagent.run.benchmarks.swebench import DATASET_MAPPING
    except ImportError:
        return 0, []  # check_agent says it
    for name in ("datasets", "huggingface_hub"):  # they log each retry, the problem below says it once
        logging.getLogger(name).setLevel(logging.CRITICAL)
    path = DATASET_MAPPING.get(subset, subset)
    try:
        rows = load_dataset(path, split=split)
    except Exception as error:  # the loader raises what its many readers raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        remedy = (
            "correct SUBSET and SPLIT; a name is fetched from the hub once (HF_ENDPOINT for a mirror), "
            "a path needs a file SPLIT.jsonl"
        )
        return 0, [Problem(f"data set {path!r}, split {split!r}, can't be loaded: {reason}", remedy)]
    missing = [name for name in ("instance_id", "problem_statement") if name not in rows.column_names]
    if missing:
        return 0, [
            Problem(f"data set {path!r} has no column {', '.join(missing)}", "it has to be in SWE-bench's format")
        ]
    return len(rows), []


def check_docker() -> tuple[Path | None, list[Problem]]:
    """(where the daemon keeps its images, None: not on this machine; problems)."""
    docker = os.environ.get("MSWEA_DOCKER_EXECUTABLE", "docker")
    other = 'or run without containers (the sample data set only): LITE_ARGS="--environment-class local"'
    if shutil.which(docker) is None:
        return None, [Problem(f"no {docker} command", f"install Docker, {other}")]
    command = [docker, "info", "--format", "{{.DockerRootDir}}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOCKER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, [Problem(f"`{docker} info` failed: {error}", f"start the Docker daemon, {other}")]
    if done.returncode != 0:
        reason = " ".join((done.stderr or done.stdout).split())[:300]
        remedy = f"start the Docker daemon and let this user use it (group docker), {other}"
        return None, [Problem(f"the Docker daemon does not answer: {reason}", remedy)]
    root = Path(done.stdout.strip() or "/var/lib/docker")
    return (root if root.exists() else None), []


def check_disk(root: Path, instances: int) -> list[Problem]:
    """There is room for the images: too little for any is fatal, less than for all a warning."""
    needed = instances * IMAGE_BYTES
    free = shutil.disk_usage(root).free
    if free >= needed:
        return []
    return [
        Problem(
            f"{free / GIB:.0f} GiB free at {root}; the images of {instances} instances take about "
            f"{needed / GIB:.0f} GiB",
            "make room, move Docker's data-root, or take a part with --slice; images that are there already count",
            fatal=free < min(_LEAST_FREE_BYTES, needed),
        )
    ]


def report(found: Sequence[Problem]) -> str:
    """All problems as text, the fatal ones first."""
    ordered = sorted(found, key=lambda problem: not problem.fatal)
    return "\n".join(f"{'missing' if problem.fatal else 'warning'}: {problem}" for problem in ordered)
