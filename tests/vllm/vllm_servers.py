"""vLLM servers and routers as processes, and what the tests ask them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from attrs import define, field

sys.path.insert(0, str(Path(__file__).parents[1]))

from daemons import Daemon
from daemons import router as start_router

from examples.processes import Child, Children, free_port
from examples.vllm_cpu.server import MODEL_NAME, START_SECONDS, server_command, server_environment
from thunderagent.upstream.reading import BackendObservation
from thunderagent.upstream.vllm import read_metrics

CHAT = "/v1/chat/completions"
_TURN_SECONDS = 120.0


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until the condition holds; AssertionError when it does not in time."""
    deadline_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_at, "the condition did not come true"
        time.sleep(0.02)


@define(eq=False)
class Server:
    """One vLLM process with KV events on ports of its own."""

    children: Children
    name: str
    command: list[str]
    port: int
    kv_tokens: int
    process: Child

    @classmethod
    def start(cls, children: Children, name: str, kv_tokens: int, *flags: str) -> Server:
        port = free_port()
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{free_port()}",
            "replay_endpoint": f"tcp://*:{free_port()}",
            "topic": "kv",
        }
        command = server_command(port, kv_tokens, "--kv-events-config", json.dumps(events), *flags)
        process = children.start(name, command, server_environment())
        server = cls(children, name, command, port, kv_tokens, process)
        server.wait_ready()
        return server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_ready(self) -> None:
        self.process.wait_ready(f"{self.url}/health", START_SECONDS)

    def kill(self) -> None:
        """As the kernel ends a process that is out of memory."""
        self.children.kill(self.process)

    def start_again(self) -> None:
        """The same command; not ready yet."""
        self.process = self.children.start(f"{self.name}-again", self.command, server_environment())

    def seen(self) -> BackendObservation:
        """Its counters and gauges now."""
        return read_metrics(httpx.get(f"{self.url}/metrics", trust_env=False).content)

    def reset_cache(self) -> None:
        """Empty its prefix cache, which it refuses while a request's blocks are held."""
        until(lambda: httpx.post(f"{self.url}/reset_prefix_cache", trust_env=False).json()["success"])


def chat(text: str, program: str | None = None, **fields: Any) -> dict[str, Any]:
    """A body with one user message; answers are as long as ``max_tokens`` says, and always the same."""
    body: dict[str, Any] = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 8,
        "temperature": 0,
        "ignore_eos": True,
        **fields,
    }
    if program is not None:
        body["program_id"] = program
    return body


def words(count: int, first: int = 0) -> str:
    """About 1.5 to 3 tokens each."""
    return " ".join(f"value{number}" for number in range(first, first + count))


@define(eq=False)
class Router:
    """A router process and a client of it."""

    daemon: Daemon
    client: httpx.Client = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.daemon.url, timeout=_TURN_SECONDS, trust_env=False)

    @classmethod
    def start(cls, backends: Sequence[str], *arguments: str) -> Router:
        return cls(start_router(backends, "--metrics-interval-seconds", "0.5", *arguments).wait_ready())

    def post(self, path: str, body: Any) -> httpx.Response:
        """A POST of JSON, or of bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(path, content=content, headers={"Content-Type": "application/json"})

    def answer(self, path: str, body: Any) -> dict[str, Any]:
        """The JSON of a 200."""
        answer = self.post(path, body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[str]:
        """The lines of a stream as they come."""
        with self.client.stream("POST", path, json={**body, "stream": True}) as answer:
            assert answer.status_code == 200, answer.read()
            yield from answer.iter_lines()

    def get(self, path: str) -> Any:
        return self.client.get(path).json()

    def backend(self) -> dict[str, Any]:
        """The first backend, as ``GET /backends`` shows it."""
        found: dict[str, Any] = self.get("/backends")["backends"][0]
        return found

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def release_all(self) -> None:
        for program in self.get("/programs"):
            assert self.answer("/programs/release", {"program_id": program})["released"]

    def close(self) -> None:
        """End it; it must be empty, balanced, and end with 0."""
        try:
            until(lambda: self.get("/health")["turns_running"] == 0)
            self.release_all()
            assert self.get("/debug/invariants") == {"violations": []}
            assert all(entry["accounted_tokens"] == 0 for entry in self.get("/backends")["backends"])
            assert self.daemon.stop() == 0
        finally:
            self.client.close()
            self.daemon.kill()


def events_of(lines: Iterator[str]) -> list[Any]:
    """The JSON events of a stream, without its end mark."""
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ") and line != "data: [DONE]"]
