"""Stand-ins for the tests of the patch: a router on loopback, and mini-swe-agent's two layouts."""

from __future__ import annotations

import json
import sys
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import pytest

RUNNER_PARAMETERS = "instance, output_dir, config, progress_manager"

_SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT; echo the patch"


class RouterStub:
    """A router's two endpoints on loopback; keeps what it was sent.

    Attributes:
        releases: (path, program id, Authorization header or None) per release, in order.
        calls: the body of each model call, in order.
        order: "call <id>" and "release <id>" as they arrived.
        answers: statuses for the next releases; 200 when empty.
        hang: set it to None to answer releases, to an Event to wait for it first.
    """

    def __init__(self) -> None:
        self.releases: list[tuple[str, str, str | None]] = []
        self.calls: list[dict[str, Any]] = []
        self.order: list[str] = []
        self.answers: deque[int] = deque()
        self.hang: threading.Event | None = None
        self._lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = stub.respond(self.path, body, self.headers.get("Authorization"))
                payload = json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(payload)))
                    if status in (302, 307):
                        self.send_header("Location", "/elsewhere")
                    self.end_headers()
                    self.wfile.write(payload)
                except ConnectionError:  # a client that gave up
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                return None

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128  # with 5, a burst of releases waits 1 s for a repeated SYN

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def api_base(self) -> str:
        """What a client sets as its API base."""
        return f"{self.url}/v1"

    @property
    def released_ids(self) -> list[str]:
        """The released program ids, in order."""
        return [program_id for _, program_id, _ in self.releases]

    def respond(self, path: str, body: dict[str, Any], key: str | None) -> tuple[int, dict[str, Any]]:
        if path.endswith("/chat/completions"):
            with self._lock:
                self.calls.append(body)
                self.order.append(f"call {body.get('program_id')}")
            return 200, _completion(body)
        with self._lock:
            self.releases.append((path, body["program_id"], key))
            self.order.append(f"release {body['program_id']}")
            status = self.answers.popleft() if self.answers else 200
        if self.hang is not None:
            self.hang.wait(10)
        return status, {"program_id": body["program_id"], "released": True}

    def __enter__(self) -> RouterStub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.hang is not None:
            self.hang.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _completion(body: dict[str, Any]) -> dict[str, Any]:
    """A bash call first, then the command that submits."""
    turn = sum(message["role"] == "assistant" for message in body["messages"])
    command = _SUBMIT if turn else "echo hello"
    call = {
        "id": f"call_{turn}",
        "type": "function",
        "function": {"name": "bash", "arguments": json.dumps({"command": command})},
    }
    message: dict[str, Any] = {"role": "assistant", "content": "working", "tool_calls": [call]}
    if not body.get("tools"):  # mini-swe-agent 1.x: the action stands in the text
        message = {"role": "assistant", "content": f"THOUGHT: working\n\n```bash\n{command}\n```"}
    return {
        "id": "chatcmpl-stub",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


def fake_mini_swe_agent(
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    runner: Callable[..., Any] | None = None,
    programbench: bool = False,
) -> ModuleType:
    """Put a mini-swe-agent of ``version`` into ``sys.modules``; returns the module of its batch runner."""
    for name in [name for name in sys.modules if name.split(".")[0] == "minisweagent"]:
        monkeypatch.delitem(sys.modules, name)
    package = _add_module(monkeypatch, "minisweagent")
    package.__version__ = version  # type: ignore[attr-defined]
    place = "extra" if version.startswith("1.") else "benchmarks"
    for name in ("run", f"run.{place}"):
        _add_module(monkeypatch, f"minisweagent.{name}")
    module = _add_module(monkeypatch, f"minisweagent.run.{place}.swebench")
    module.process_instance = runner or recording_runner()  # type: ignore[attr-defined]
    if programbench:
        other = _add_module(monkeypatch, f"minisweagent.run.{place}.programbench")
        other.process_instance = recording_runner()  # type: ignore[attr-defined]
    return module


def recording_runner(error: BaseException | None = None) -> Callable[..., Any]:
    """A ``process_instance`` that keeps its calls in its attribute ``seen`` and then raises or returns."""
    seen: list[dict[str, Any]] = []

    def process_instance(instance: Any, output_dir: Any, config: Any, progress_manager: Any) -> str:
        seen.append({"instance": instance, "output_dir": output_dir, "config": config, "pm": progress_manager})
        if error is not None:
            raise error
        return "done"

    process_instance.seen = seen  # type: ignore[attr-defined]
    return process_instance


def program_id_of(config: dict[str, Any]) -> str:
    """The program id that a configuration carries."""
    program_id = config["model"]["model_kwargs"]["extra_body"]["program_id"]
    assert isinstance(program_id, str)
    return program_id


def _add_module(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = []
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)
    return module


def write_tree(root: Path, files: dict[str, str]) -> Path:
    """Write a package tree (path: source) under ``root``; every folder becomes a package."""
    for path, source in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        for folder in target.relative_to(root).parents:
            if folder != Path("."):
                (root / folder / "__init__.py").touch()
        target.write_text(source)
    return root
