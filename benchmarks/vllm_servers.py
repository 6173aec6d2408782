"""Starts the vLLM servers that ``benchmarks.vllm`` measures."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.vllm_counters import Engines
from examples.processes import Children, free_port
from examples.vllm_cpu.server import MODEL_NAME, START_SECONDS, server_command, server_environment

__all__ = ["cpu_servers", "gpus", "serving"]

_LOAD_SECONDS = 1800.0
"""A large model may have to be downloaded first."""
_FLAGS = ("--enable-prefix-caching", "--enable-prompt-tokens-details", "--host", "127.0.0.1")


def gpus() -> str:
    """Names of the GPUs, for the first line of a report; empty where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return "".join(f"; GPU: {line}" for line in told.splitlines())


@contextmanager
def cpu_servers(count: int, kv_tokens: int, logs: Path) -> Iterator[Engines]:
    """Servers of vLLM's CPU build. Raises NotPrepared, ChildFailed."""
    commands = [(port, server_command(port, kv_tokens)) for port in (free_port() for _ in range(count))]
    with _started(commands, server_environment(), logs, START_SECONDS) as urls:
        yield Engines(urls, MODEL_NAME)


@contextmanager
def serving(count: int, model: str, flags: Sequence[str], logs: Path) -> Iterator[Engines]:
    """``vllm serve MODEL``, several of them on the GPUs in turn. Raises ChildFailed."""
    commands = []
    for number in range(count):
        port = free_port()
        command = ["vllm", "serve", model, "--port", str(port), *_FLAGS, *flags]
        commands.append((port, command if count == 1 else ["env", f"CUDA_VISIBLE_DEVICES={number}", *command]))
    with _started(commands, {**os.environ, "VLLM_SERVER_DEV_MODE": "1"}, logs, _LOAD_SECONDS) as urls:
        yield Engines(urls, model)


@contextmanager
def _started(
    commands: Sequence[tuple[int, Sequence[str]]], environment: Mapping[str, str], logs: Path, seconds: float
) -> Iterator[tuple[str, ...]]:
    with Children(logs) as children:
        servers = [
            (port, children.start(f"vllm-{number}", command, environment))
            for number, (port, command) in enumerate(commands, 1)
        ]
        for port, server in servers:
            server.wait_ready(f"http://127.0.0.1:{port}/health", seconds)
        yield tuple(f"http://127.0.0.1:{port}" for port, _ in servers)
