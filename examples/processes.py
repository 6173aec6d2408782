"""Child processes of the runners: started with a log file, waited for until ready, stopped on every path."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType

REPOSITORY = Path(__file__).parents[1]
_POLL_SECONDS = 0.05
_TAIL_LINES = 20
_HTTP_SECONDS = 5.0
_TERMINATING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ChildFailed(Exception):
    """A child ended or did not get ready; ``name``, ``reason`` and the end of its log say more."""

    def __init__(self, name: str, reason: str, log: Path, tail: str) -> None:
        super().__init__(name, reason, log, tail)
        self.name = name
        self.reason = reason
        self.log = log
        self.tail = tail

    def __str__(self) -> str:
        shown = f"; the end of its log ({self.log}):\n{self.tail}" if self.tail else f"; its log {self.log} is empty"
        return f"{self.name} {self.reason}{shown}"


class Child:
    """One started process. Its output goes to ``log``, or to this process's own where that is asked for.

    It runs in a session of its own, so that a Ctrl-C in the terminal reaches only the runner, which then stops
    its children in the right order.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str], *, inherit: bool = False
    ) -> None:
        self.name = name
        self.command = tuple(command)
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                self.command,
                cwd=REPOSITORY,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=None if inherit else output,
                stderr=None if inherit else subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """The exit status, or None where it still runs after ``seconds``."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def tail(self) -> str:
        """The last lines of the log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])

    def failed(self, reason: str) -> ChildFailed:
        """The error that tells what happened to it."""
        return ChildFailed(self.name, reason, self.log, self.tail())

    def check(self) -> None:
        """Raises ChildFailed where the process has ended."""
        if self.returncode is not None:
            raise self.failed(f"ended with status {self.returncode}")

    def wait_ready(self, url: str, seconds: float) -> None:
        """Wait until ``url`` answers 200.

        Raises:
            ChildFailed: the process ended before, or ``seconds`` have passed.
        """
        deadline = time.monotonic() + seconds
        while not answers(url):
            self.check()
            if time.monotonic() > deadline:
                raise self.failed(f"was not ready at {url} after {seconds:g} s")
            time.sleep(_POLL_SECONDS)
        self.check()

    def stop(self, seconds: float) -> int:
        """Ask the process group to end, kill it after ``seconds``, reap it; the exit status."""
        if self.returncode is None:
            self._signal(signal.SIGTERM)
            self.wait(seconds)
        # Also what the child itself may have left in its session; its own end does not take them along.
        return self.kill()

    def kill(self) -> int:
        """End the process group at once and reap it; the exit status."""
        self._signal(signal.SIGKILL)
        return self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


class Children:
    """The children of one run: leaving the block stops them, the last started first."""

    def __init__(self, logs: Path, stop_seconds: float = 10.0) -> None:
        self._logs = logs
        self._stop_seconds = stop_seconds
        self._children: list[Child] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt) and self._children:
            print(f"\ninterrupted: stopping {len(self._children)} processes", file=sys.stderr, flush=True)
        with _no_interruption():
            while self._children:
                self._children.pop().stop(self._stop_seconds)

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], *, inherit: bool = False
    ) -> Child:
        """Start a child whose output goes to ``<logs>/<name>.log``. Raises ChildFailed where it can't start."""
        log = self._logs / f"{name}.log"
        try:
            child = Child(name, command, log, environment, inherit=inherit)
        except OSError as error:
            raise ChildFailed(name, f"could not be started: {error}", log, "") from error
        self._children.append(child)
        return child

    def check(self, but: Child) -> None:
        """Raises ChildFailed where one of them has ended, ``but`` left out: its end is no failure."""
        for child in self._children:
            if child is not but:
                child.check()

    def kill(self, child: Child) -> int:
        """End one child's processes at once, as a crash does; its exit status."""
        self._children.remove(child)
        return child.kill()

    def stop(self, child: Child) -> int:
        """Stop one child now; its exit status."""
        self._children.remove(child)
        return child.stop(self._stop_seconds)


@contextlib.contextmanager
def _no_interruption() -> Iterator[None]:
    """Ignore SIGINT, SIGTERM and SIGHUP for the block, so that a second Ctrl-C can't leave children behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in _TERMINATING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def interrupt_on_termination() -> None:
    """Make SIGTERM and SIGHUP end this process as Ctrl-C does, so that ``Children`` stops what runs.

    A SIGHUP that is ignored (nohup) stays ignored. Main thread only.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, interrupt)


def free_port() -> int:
    """A loopback port that is free now. Another process may take it before it is used; then the start fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(url: str, seconds: float = _HTTP_SECONDS, headers: Mapping[str, str] | None = None) -> str:
    """The text of a 200 answer, without any proxy.

    Raises:
        OSError: no connection, no answer in time, or another status (``urllib.error.HTTPError``).
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers=dict(headers or {}))
    try:
        with opener.open(request, timeout=seconds) as answer:
            body: bytes = answer.read()
            return body.decode("utf-8", errors="replace")
    except ValueError as error:  # http.client's InvalidURL and the like
        raise OSError(str(error)) from error


def answers(url: str) -> bool:
    """True where the address answers 200."""
    try:
        get(url)
    except (OSError, urllib.error.URLError):
        return False
    return True


def shell_line(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """The command as a line that can be pasted into a shell, with its environment variables in front."""
    settings = [f"{name}={shlex.quote(value)}" for name, value in (environment or {}).items()]
    return " ".join([*settings, *(shlex.quote(part) for part in command)])
