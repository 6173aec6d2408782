"""Does a live daemon track 10,000 programs under overflow without a request waiting 100 ms behind scheduling?

Command: ``python -m benchmarks.overflow [--programs 10000] [--seconds 60] [--smoke]``

Eight stub backends, whose cache holds 1/1.6 of what the programs need, run in one process, the router (``thunderagent
serve``, default policy and logs) in another, a probe in a third, the agents in this one. Each agent takes turns over
connections of their own with a tool in between; they arrive over the first third of the time and none is released, so
that all stay tracked while some are held, paused and resumed. The tools' mean is such that all agents together would
offer 350 turns a second if none was held. Turns and CPU count after the arrivals; scheduling events from the start to
after the agents' leaving. The probe's latencies, of ``GET /livez`` over a new connection every 100 ms, contain what
the machine adds where its cores are fewer than the processes. Linux only.

Fails when an agent is answered an error, when programs are missing, when none was held or paused, when a scheduling
event took over 100 ms, when the accounts do not add up afterwards, or when the router does not end as it should.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import platform
import random
import resource
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import IO, Any

from attrs import define, field, frozen
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.processes import cpu_seconds, free_port, json_answer, resident_bytes, start_router

BACKENDS, PRESSURE, OFFERED_TURNS_PER_SECOND = 8, 1.6, 350
BYTES_PER_TOKEN, COMPLETION_TOKENS, BLOCK_TOKENS = 4, 20, 16
START_BYTES, STEP_BYTES = (1000, 2000), 100
HEADROOM_TOKENS = 100
"""That the default policy counts beside each program's own tokens (``buffer_tokens``)."""
TOOL_SIGMA = 1.0
PROBE_SECONDS = 0.1
EVENT_LIMIT_SECONDS = 0.1
DRAIN_SECONDS = 30.0


# Backends


def _pages(capacity_tokens: int) -> dict[bytes, bytes]:
    labels = f'block_size="{BLOCK_TOKENS}",engine="0",num_gpu_blocks="{capacity_tokens // BLOCK_TOKENS + 1}"'
    return {
        b"/health": json_answer(b""),
        b"/v1/models": json_answer(b'{"object":"list","data":[{"id":"stub","object":"model"}]}'),
        b"/metrics": json_answer(b"vllm:cache_config_info{%s} 1.0\n" % labels.encode()),
    }


def _chat_answer(body_bytes: int) -> bytes:
    prompt_tokens = body_bytes // BYTES_PER_TOKEN
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": COMPLETION_TOKENS,
        "total_tokens": prompt_tokens + COMPLETION_TOKENS,
        "prompt_tokens_details": {"cached_tokens": prompt_tokens * 9 // 10},
    }
    choice = {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
    answer = {"id": "c", "object": "chat.completion", "model": "stub", "choices": [choice], "usage": usage}
    return json_answer(json.dumps(answer).encode())


class _Stub(asyncio.Protocol):
    """A vLLM's pages at once, its answers after 0.2 to 1 s."""

    def __init__(self, pages: dict[bytes, bytes]) -> None:
        self._pages, self._buffer = pages, bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end])
        found = head.lower().partition(b"content-length:")[2]
        size = int(found.split(b"\r\n", 1)[0]) if found else 0
        if len(self._buffer) < end + 4 + size:
            return
        del self._buffer[: end + 4 + size]
        method, target, _ = head.split(b" ", 2)
        if method == b"GET":
            self._transport.write(self._pages[target])
        else:
            delay_seconds = random.uniform(0.2, 1.0)
            asyncio.get_running_loop().call_later(delay_seconds, self._answer, _chat_answer(size))

    def _answer(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)


async def _serve_stubs(control: Connection, capacity_tokens: int) -> None:
    loop, factory = asyncio.get_running_loop(), partial(_Stub, _pages(capacity_tokens))
    servers = [await loop.create_server(factory, "127.0.0.1", 0, backlog=2048) for _ in range(BACKENDS)]
    control.send([server.sockets[0].getsockname()[1] for server in servers])
    await asyncio.to_thread(control.recv)


def _stub_process(control: Connection, capacity_tokens: int) -> None:
    asyncio.run(_serve_stubs(control, capacity_tokens))


# Probe


def _probe_process(control: Connection, port: int) -> None:
    """Send the milliseconds of every probe when the parent says stop; a failed one is infinite."""
    latencies_ms: list[float] = []
    next_at = time.perf_counter()
    while not control.poll(max(0.0, next_at - time.perf_counter())):
        began_at = time.perf_counter()
        answered = _is_alive(port)
        now = time.perf_counter()
        latencies_ms.append((now - began_at) * 1000 if answered else math.inf)
        next_at = max(next_at + PROBE_SECONDS, now)
    control.send(latencies_ms)


def _is_alive(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False


# Agents


@define
class Agents:
    """The closed loop: every agent's turns and tools, until it is cancelled."""

    port: int
    programs: int
    arrival_seconds: float
    turns: int = 0
    errors: list[str] = field(factory=list)

    @property
    def tool_seconds(self) -> float:
        """Mean time in a tool."""
        return self.programs / OFFERED_TURNS_PER_SECOND

    async def run(self, number: int) -> None:
        """One agent."""
        draw = random.Random(number)
        await asyncio.sleep(self.arrival_seconds * number / self.programs)
        task = f"task {number} " * 400
        messages = [
            {"role": "system", "content": "You are an agent."},
            {"role": "user", "content": task[: draw.randint(*START_BYTES)]},
        ]
        while True:
            body = {"model": "stub", "messages": messages, "program_id": f"agent-{number:06d}"}
            try:
                await self._turn(json.dumps(body).encode())
            except (OSError, EOFError) as error:
                self.errors.append(repr(error))
            messages += [{"role": "assistant", "content": "ok"}, {"role": "user", "content": "x" * STEP_BYTES}]
            await asyncio.sleep(draw.lognormvariate(math.log(self.tool_seconds) - TOOL_SIGMA**2 / 2, TOOL_SIGMA))

    async def _turn(self, body: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            writer.write(head + body)
            answered = await reader.readuntil(b"\r\n\r\n")
            size = int(answered.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            page = await reader.readexactly(size)
        finally:
            writer.close()
        if answered.startswith(b"HTTP/1.1 200 "):
            self.turns += 1
        else:
            self.errors.append(f"{answered[:12].decode()} {page[:200].decode()}")


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
    totals: dict[str, float] = {}
    within: dict[float, float] = {}
    for family in text_string_to_metric_families(_page(port, "/metrics").decode()):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
            if sample.name == "thunderagent_scheduling_seconds_bucket":
                within[float(sample.labels["le"])] = sample.value
    events = totals["thunderagent_scheduling_seconds_count"]
    return Scheduling(
        events=int(events),
        mean_us=1e6 * totals["thunderagent_scheduling_seconds_sum"] / events,
        at_most_seconds=min(bound for bound, count in within.items() if count == events),
        quick_share=within[0.001] / events,
        holds=int(totals["thunderagent_holds_total"]),
        pauses=int(totals.get("thunderagent_pauses_total", 0)),
        resumes=int(totals["thunderagent_resumes_total"]),
    )


def _settled(port: int) -> list[str]:
    """Wait until no turn is left after the agents' leaving; what a recount then finds wrong."""
    for _ in range(100):
        health = json.loads(_page(port, "/health"))
        if health["turns_held"] == health["turns_running"] == 0:
            violations: list[str] = json.loads(_page(port, "/debug/invariants"))["violations"]
            return violations
        time.sleep(0.1)
    return [f"{health['turns_held']} turns are held and {health['turns_running']} run after all agents left"]


# A run


@define
class Run:
    """What is measured; ``failures`` are texts of what must not be."""

    programs: int
    seconds: float
    port: int
    router: subprocess.Popen[bytes]
    health: dict[str, Any] = field(factory=dict)
    turns_per_second: float = 0.0
    cpu_share: float = 0.0
    resident_mb: float = 0.0
    loaded: Scheduling | None = None
    latencies_ms: list[float] = field(factory=list)
    failures: list[str] = field(factory=list)

    async def load(self) -> None:
        """Let the agents work, and read the pages while they still do."""
        agents = Agents(self.port, self.programs, self.seconds / 3)
        tasks = [asyncio.create_task(agents.run(number)) for number in range(self.programs)]
        await asyncio.sleep(agents.arrival_seconds)
        began_at, turns, cpu = time.monotonic(), agents.turns, cpu_seconds(self.router.pid)
        await asyncio.sleep(self.seconds - agents.arrival_seconds)
        passed_seconds = time.monotonic() - began_at
        self.turns_per_second = (agents.turns - turns) / passed_seconds
        self.cpu_share = (cpu_seconds(self.router.pid) - cpu) / passed_seconds
        self.resident_mb = resident_bytes(self.router.pid) / 1e6
        self.health = json.loads(await asyncio.to_thread(_page, self.port, "/health"))
        self.loaded = await asyncio.to_thread(_scheduling, self.port)
        if agents.errors:
            self.failures.append(f"{len(agents.errors)} turns failed, the first: {agents.errors[0]}")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def check(self) -> None:
        """Find what must not be."""
        assert self.loaded is not None
        if self.health["programs_count"] < self.programs:
            self.failures.append(f"only {self.health['programs_count']} programs are tracked")
        if not self.loaded.holds or not self.loaded.pauses:
            self.failures.append("no turn was held or no program paused: this was no overflow")
        self.failures += [f"the accounts do not add up: {violation}" for violation in _settled(self.port)]
        slowest_seconds = _scheduling(self.port).at_most_seconds
        if slowest_seconds > EVENT_LIMIT_SECONDS:
            self.failures.append(f"a scheduling event took over {EVENT_LIMIT_SECONDS} s (at most {slowest_seconds})")

    def table(self) -> Iterator[str]:
        """For docs/benchmarks.md."""
        assert self.loaded is not None
        loaded, probes = self.loaded, sorted(self.latencies_ms)
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
    run.router.terminate()
    try:
        status = run.router.wait(DRAIN_SECONDS)
    except subprocess.TimeoutExpired:
        run.router.kill()
        run.failures.append(f"the router did not end within {DRAIN_SECONDS:g} s of SIGTERM")
    else:
        if status != 0:
            run.failures.append(f"the router ended with status {status}")


def measure(programs: int, seconds: float, log: IO[bytes]) -> Run:
    """Start everything, let it work, stop everything."""
    spawn = multiprocessing.get_context("spawn")
    mean_tokens = sum(START_BYTES) / 2 / BYTES_PER_TOKEN + COMPLETION_TOKENS + HEADROOM_TOKENS
    capacity_tokens = round(programs * mean_tokens / PRESSURE / BACKENDS)
    stubs, stubs_end = multiprocessing.Pipe()
    spawn.Process(target=_stub_process, args=(stubs_end, capacity_tokens), daemon=True).start()
    port = free_port()
    run = Run(programs, seconds, port, start_router(stubs.recv(), port, log=log))
    try:
        probe, probe_end = multiprocessing.Pipe()
        spawn.Process(target=_probe_process, args=(probe_end, port), daemon=True).start()
        asyncio.run(run.load())
        probe.send(None)
        run.latencies_ms = probe.recv()
        run.check()
    finally:
        _stop(run)
        stubs.send(None)
    return run


def main() -> None:
    """Run the benchmark; ``--smoke`` is the same in small."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--programs", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--smoke", action="store_true", help="300 programs, 6 seconds")
    options = parser.parse_args()
    programs, seconds = (300, 6.0) if options.smoke else (options.programs, options.seconds)
    _raise_file_limit(programs)
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {seconds:g} s")
    with tempfile.TemporaryFile() as log:
        run = measure(programs, seconds, log)
        print("\n".join(run.table()))
        if run.failures:
            log.seek(0)
            warnings = [line for line in log.read().splitlines() if b'"level": "info"' not in line]
            print(*(line.decode(errors="replace")[:5000] for line in warnings[-20:]), sep="\n")
            raise SystemExit("failed: " + "; ".join(run.failures[:10]))


if __name__ == "__main__":
    main()
