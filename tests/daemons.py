"""Starts ``thunderagent`` commands as processes, as a user does, and stops them again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
START_SECONDS = 30.0
_ENGINE_READY = re.compile(r"emulated engine ready on (http://\S+)")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without the settings of a router that happens to run here."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("THUNDERAGENT_")}
    paths = [str(ROOT), kept.get("PYTHONPATH", "")]
    kept["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    kept["NO_PROXY"] = "*"
    return {**kept, **(extra or {})}


def command(
    *arguments: str, extra: Mapping[str, str] | None = None, timeout: float = 30
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m thunderagent`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "thunderagent", *arguments],
        capture_output=True,
        text=True,
        env=environment(extra),
        timeout=timeout,
    )


class Daemon:
    """A running command; ``url`` is where it listens, ``lines`` what it has written so far."""

    def __init__(self, arguments: Sequence[str], extra: Mapping[str, str] | None = None) -> None:
        self.lines: list[str] = []
        self.url = ""
        self.headers = {"Content-Type": "application/json"}
        self._ready = threading.Event()
        self._written = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "thunderagent", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(extra),
        )
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    def wait_ready(self) -> Daemon:
        """Wait for the line that says where it listens."""
        if not self._ready.wait(START_SECONDS) or not self.url:
            self.kill()
            raise AssertionError("not started:\n" + "".join(self.lines))
        return self

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            with self._written:
                self.lines.append(line)
                self._written.notify_all()
            found = _address(line)
            if found:
                self.url = found
                self._ready.set()
        stream.close()
        self._ready.set()

    @property
    def log(self) -> str:
        """All that it has written."""
        return "".join(self.lines)

    def wait_line(self, *parts: str) -> str:
        """The first line with all of these parts, when it is written; lines come after the answers they tell of."""

        def found() -> str | None:
            return next((line for line in self.lines if all(part in line for part in parts)), None)

        with self._written:
            line = self._written.wait_for(found, timeout=10)
        assert line is not None, f"no line with {parts} in:\n{self.log}"
        return line

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        return self._ask(urllib.request.Request(self.url + path, headers=self.headers))

    def post(self, path: str, body: object) -> Any:
        """The JSON that a POST of JSON is answered with."""
        return self._ask(urllib.request.Request(self.url + path, json.dumps(body).encode(), self.headers))

    def chat(self, text: str, **fields: object) -> Any:
        """One chat turn's answer."""
        messages = [{"role": "user", "content": text}]
        return self.post("/v1/chat/completions", {"model": "emulated", "messages": messages, **fields})

    def _ask(self, request: urllib.request.Request) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            return json.load(answer)

    def stop(self) -> int:
        """SIGTERM; the exit status, when all its output was read."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=30)
        self._reader.join(timeout=5)
        return status

    def kill(self) -> None:
        """End it at once, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=30)
        self._reader.join(timeout=5)


def _address(line: str) -> str | None:
    engine = _ENGINE_READY.search(line)
    if engine:
        return engine.group(1)
    if "daemon.started" in line:
        found = re.search(r"http://[0-9.a-z]+:\d+", line)
        return None if found is None else found.group(0)
    return None


def engine(*arguments: str) -> Daemon:
    """An emulated engine on a free port; it is quick, and its cache is large unless told otherwise."""
    return Daemon(["engine", "--port", "0", "--kv-tokens", "200000", "--speed", "20", *arguments])


def router(backends: Sequence[str], *arguments: str, extra: Mapping[str, str] | None = None) -> Daemon:
    """A router on a free port of loopback in front of the backends, which must listen already."""
    known = ["--backends", ",".join(backends), "--host", "127.0.0.1", "--port", "0"]
    return Daemon(["serve", *known, "--log-format", "json", *arguments], extra)
