"""Does a live daemon track 10,000 programs under overflow without a request waiting 100 ms behind scheduling?

Command: ``python -m benchmarks.overflow [--programs 10000] [--seconds 120] [--smoke]``

Eight stub backends, whose cache holds 1/1.6 of what the programs need, run in one process, the router (``thunderagent
serve``, default policy and logs) in another, a probe in a third, the agents in this one. Each agent takes turns over
connections of their own with a tool in between; they arrive over the first third of the time and none is released, so
that all stay tracked while some are held, paused and resumed. The tools' mean is such that all agents together would
offer 350 turns a second if none was held. Turns, CPU and the probe count after the arrivals; scheduling events from
the start to after the agents' leaving, which is all at once. The probe's latencies, of ``GET /livez`` over a new
connection every 100 ms, contain what the machine adds where its cores are fewer than the processes. Linux only.

Fails when an agent is answered an error, when programs are missing, when none was held or paused, when a scheduling
event took over 100 ms (``--smoke`` does not judge times), when the accounts do not add up afterwards, or when the
router does not end as it should.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import platform
import resource
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import IO, Any

from attrs import define, field, frozen

from benchmarks.overflow_ends import BACKENDS, MEAN_TOKENS, Agents, run_probe, run_stubs
from benchmarks.processes import (
    cpu_seconds,
    free_port,
    resident_bytes,
    router_samples,
    start_router,
    stop_router,
    totals_of,
)

PRESSURE = 1.6
HEADROOM_TOKENS = 100
"""That the default policy counts beside each program's own tokens (``buffer_tokens``)."""
EVENT_LIMIT_SECONDS = 0.1
DRAIN_SECONDS = 30.0


# The router's own word


@frozen
class Scheduling:
    """The scheduler's events so far, from ``GET /metrics``."""

    events: int
    mean_us: float
    at_most_seconds: float
    """The least bound that all events are within."""
    quick_share: float
    """Under 1 ms."""
    holds: int
    pauses: int
    resumes: int


def _page(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        body: bytes = answer.read()
        return body


def _scheduling(port: int) -> Scheduling:
    samples = router_samples(f"http://127.0.0.1:{port}")
    totals = totals_of(samples)
    within = {
        float(sample.labels["le"]): sample.value
        for sample in samples
        if sample.name == "thunderagent_scheduling_seconds_bucket"
    }
    events = totals["thunderagent_scheduling_seconds_count"]
    return Scheduling(
        events=int(events),
        mean_us=1e6 * totals["thunderagent_scheduling_seconds_sum"] / events,
        at_most_seconds=min(bound for bound, count in within.items() if count == events),
        quick_share=within[0.001] / events,
        holds=int(totals["thunderagent_holds_total"]),
        pauses=int(totals["thunderagent_pauses_total"]),
        resumes=int(totals["thunderagent_resumes_total"]),
    )


def _turns_left(port: int) -> int:
    """Turns that the router still has 10 s after all agents left; it is asked ten times a second."""
    left = 0
    for _ in range(100):
        health = json.loads(_page(port, "/health"))
        left = health["turns_held"] + health["turns_running"]
        if left == 0:
            break
        time.sleep(0.1)
    return left


def _violations(port: int) -> list[str]:
    """What a recount finds wrong."""
    try:
        page = _page(port, "/debug/invariants")
    except urllib.error.HTTPError as error:
        page = error.read()
    violations: list[str] = json.loads(page)["violations"]
    return violations


# A run


@define
class Run:
    """What is measured; ``failures`` are texts of what must not be."""

    programs: int
    seconds: float
    port: int
    router: subprocess.Popen[bytes]
    probe: Connection
    event_limit_seconds: float
    health: dict[str, Any] = field(factory=dict)
    turns_per_second: float = 0.0
    cpu_share: float = 0.0
    resident_mb: float = 0.0
    loaded: Scheduling | None = None
    latencies_ms: list[float] = field(factory=list)
    leaving_ms: list[float] = field(factory=list)
    failures: list[str] = field(factory=list)

    async def load(self) -> None:
        """Let the agents work, and read the pages while they still do."""
        agents = Agents(self.port, self.programs, self.seconds / 3)
        tasks = [asyncio.create_task(agents.run(number)) for number in range(self.programs)]
        await asyncio.sleep(agents.arrival_seconds)
        await asyncio.to_thread(self.probed_ms)
        began_at, turns, cpu = time.monotonic(), agents.turns, cpu_seconds(self.router.pid)
        await asyncio.sleep(self.seconds - agents.arrival_seconds)
        passed_seconds = time.monotonic() - began_at
        self.turns_per_second = (agents.turns - turns) / passed_seconds
        self.cpu_share = (cpu_seconds(self.router.pid) - cpu) / passed_seconds
        self.latencies_ms = await asyncio.to_thread(self.probed_ms)
        self.resident_mb = resident_bytes(self.router.pid) / 1e6
        self.health = json.loads(await asyncio.to_thread(_page, self.port, "/health"))
        self.loaded = await asyncio.to_thread(_scheduling, self.port)
        if agents.errors:
            self.failures.append(f"{len(agents.errors)} turns failed, the first: {agents.errors[0]}")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def probed_ms(self) -> list[float]:
        """The probe's latencies since the last call."""
        self.probe.send("tell")
        latencies_ms: list[float] = self.probe.recv()
        return latencies_ms

    def check(self) -> None:
        """Find what must not be, once the agents have left."""
        left = _turns_left(self.port)
        self.leaving_ms = self.probed_ms()
        if left:
            self.failures.append(f"{left} turns are left after all agents left")
        assert self.loaded is not None
        if self.health["programs_count"] < self.programs:
            self.failures.append(f"only {self.health['programs_count']} programs are tracked")
        if not self.loaded.holds or not self.loaded.pauses:
            self.failures.append("no turn was held or no program paused: this was no overflow")
        self.failures += [f"the accounts do not add up: {violation}" for violation in _violations(self.port)]
        slowest_seconds = _scheduling(self.port).at_most_seconds
        if slowest_seconds > self.event_limit_seconds:
            self.failures.append(
                f"a scheduling event took over {self.event_limit_seconds} s (at most {slowest_seconds})"
            )

    def table(self) -> Iterator[str]:
        """For docs/benchmarks.md."""
        assert self.loaded is not None
        loaded, probes = self.loaded, sorted(self.latencies_ms)
        leaving_ms = max(self.leaving_ms)
        p50, p99, most = (probes[int(share * (len(probes) - 1))] for share in (0.5, 0.99, 1.0))
        yield "| measured | |"
        yield "| --- | --- |"
        yield f"| programs tracked | {self.health['programs_count']:,} |"
        yield f"| turns held at the end | {self.health['turns_held']:,} |"
        yield f"| turns/s | {self.turns_per_second:,.0f} |"
        yield f"| holds, pauses, resumes | {loaded.holds:,}, {loaded.pauses:,}, {loaded.resumes:,} |"
        yield f"| scheduling events | {loaded.events:,} |"
        yield f"| mean of an event | {loaded.mean_us:.0f} us |"
        yield f"| events under 1 ms | {loaded.quick_share:.3%} |"
        yield f"| longest event, at most | {1000 * loaded.at_most_seconds:g} ms |"
        yield f"| probe p50, p99, max | {p50:.1f}, {p99:.1f}, {most:.1f} ms |"
        yield f"| probe max while all clients leave at once | {leaving_ms:.1f} ms |"
        yield f"| router, share of a core | {self.cpu_share:.0%} |"
        yield f"| router, resident | {self.resident_mb:,.0f} MB |"


def _raise_file_limit(programs: int) -> None:
    """Each program may have a connection open, and each running turn another one; processes started later inherit."""
    needed = programs + programs // 4 + 500
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (resource.RLIM_INFINITY, -1) and hard < needed:
        raise SystemExit(f"{programs} programs need {needed} open files, the hard limit is {hard} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _stop(run: Run) -> None:
    """SIGTERM; the router must end with 0 within its drain time."""
    status = stop_router(run.router, DRAIN_SECONDS)
    if status is None:
        run.failures.append(f"the router did not end within {DRAIN_SECONDS:g} s of SIGTERM")
    elif status != 0:
        run.failures.append(f"the router ended with status {status}")


def measure(programs: int, seconds: float, event_limit_seconds: float, log: IO[bytes]) -> Run:
    """Start everything, let it work, stop everything."""
    spawn = multiprocessing.get_context("spawn")
    capacity_tokens = round(programs * (MEAN_TOKENS + HEADROOM_TOKENS) / PRESSURE / BACKENDS)
    stubs, stubs_end = multiprocessing.Pipe()
    spawn.Process(target=run_stubs, args=(stubs_end, capacity_tokens), daemon=True).start()
    port = free_port()
    backends = [f"http://127.0.0.1:{stub_port}" for stub_port in stubs.recv()]
    router = start_router(backends, port, log=log)
    probe, probe_end = multiprocessing.Pipe()
    spawn.Process(target=run_probe, args=(probe_end, port), daemon=True).start()
    run = Run(programs, seconds, port, router, probe, event_limit_seconds)
    try:
        asyncio.run(run.load())
        run.check()
    finally:
        probe.send(None)
        _stop(run)
        stubs.send(None)
    return run


def main() -> None:
    """Run the benchmark; ``--smoke`` is the same in small."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--programs", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--smoke", action="store_true", help="300 programs, 6 seconds")
    options = parser.parse_args()
    programs, seconds, limit_seconds = options.programs, options.seconds, EVENT_LIMIT_SECONDS
    if options.smoke:
        programs, seconds, limit_seconds = 300, 6.0, math.inf
    _raise_file_limit(programs)
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {seconds:g} s")
    with tempfile.TemporaryFile() as log:
        run = measure(programs, seconds, limit_seconds, log)
        print("\n".join(run.table()))
        if run.failures:
            log.seek(0)
            warnings = [line for line in log.read().splitlines() if b'"level": "info"' not in line]
            print(*(line.decode(errors="replace")[:5000] for line in warnings[-20:]), sep="\n")
            raise SystemExit("failed: " + "; ".join(run.failures[:10]))


if __name__ == "__main__":
    main()
