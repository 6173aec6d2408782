"""Children of the runners: readiness, early death, orderly and forced stops."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.processes import REPOSITORY, Child, ChildFailed, Children, answers, free_port, shell_line

_SERVER = (
    "import http.server, sys; http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), {handler}).serve_forever()"
)
_SERVE = [sys.executable, "-c", _SERVER.format(handler="http.server.SimpleHTTPRequestHandler")]
_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
)


def _gone(child: Child) -> bool:
    """True when no process of the child's session is left."""
    try:
        os.killpg(child._process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_child_when_it_answers_is_ready_and_stopped_at_the_end(tmp_path: Path) -> None:
    """Leaving the block ends the child and reaps it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with Children(tmp_path) as children:
        child = children.start("web", [*_SERVE, str(port)], dict(os.environ))
        child.wait_ready(url, 20)
        assert child.wait(0) is None
        assert answers(url)

    assert child.returncode == -signal.SIGTERM
    assert _gone(child)
    assert not answers(url)


def test_child_when_it_dies_early_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    """The error holds the status, the log's place and its last lines."""
    command = [sys.executable, "-c", "print('no such policy'); raise SystemExit(2)"]
    with Children(tmp_path) as children:
        child = children.start("router", command, dict(os.environ))
        with pytest.raises(ChildFailed) as caught:
            child.wait_ready(f"http://127.0.0.1:{free_port()}", 20)

    log = tmp_path / "router.log"
    assert str(caught.value) == f"router ended with status 2; the end of its log ({log}):\nno such policy"


def test_child_when_never_ready_is_given_up(tmp_path: Path) -> None:
    """A process that runs but does not answer is a failure after the time given."""
    with Children(tmp_path, stop_seconds=0.2) as children:
        child = children.start("mute", [sys.executable, "-c", _STUBBORN], dict(os.environ))
        with pytest.raises(ChildFailed, match="was not ready at"):
            child.wait_ready(f"http://127.0.0.1:{free_port()}", 0.1)

    assert _gone(child)


def test_child_when_it_ignores_sigterm_is_killed_with_its_own_children(tmp_path: Path) -> None:
    """Whatever the block is left by, nothing of the session stays: nobody holds the pipe's other end open."""
    pipe = tmp_path / "alive"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    stubborn = f"end = open({str(pipe)!r}, 'w'); {_STUBBORN}"
    spawn = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {stubborn!r}]); {stubborn}"
    children = Children(tmp_path, stop_seconds=0.1)

    child = _interrupted_once_up(children, [sys.executable, "-c", spawn])

    assert child.returncode == -signal.SIGKILL
    assert _ended(reader)
    os.close(reader)


def _ended(reader: int) -> bool:
    """Whether nobody holds the other end any more, within a second: a killed process takes a moment to be gone."""
    deadline_at = time.monotonic() + 1.0
    while time.monotonic() < deadline_at:
        with contextlib.suppress(BlockingIOError):
            return os.read(reader, 1) == b""
        time.sleep(0.01)
    return False


def _interrupted_once_up(children: Children, command: list[str]) -> Child:
    """Start the command, leave the block by an interruption once two processes have said that they are up."""
    with contextlib.suppress(KeyboardInterrupt), children:
        child = children.start("stubborn", command, dict(os.environ))
        while child.tail().count("up") < 2:
            time.sleep(0.01)
        raise KeyboardInterrupt
    return child


def test_child_when_the_program_is_missing_cannot_start(tmp_path: Path) -> None:
    """A command that does not exist is the same kind of failure."""
    with Children(tmp_path) as children, pytest.raises(ChildFailed, match="nope could not be started"):
        children.start("nope", ["/no/such/program"], {})


def test_shell_line_when_pasted_runs_the_same_command() -> None:
    """Quotes hold what the shell would take apart."""
    command = [
        sys.executable,
        "-c",
        "import os, sys; print(os.environ['A B'.replace(' ', '')], sys.argv[1])",
        "x 'y' $z",
    ]

    line = shell_line(command, {"AB": "1; 2"})

    assert subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout == "1; 2 x 'y' $z\n"
    assert (REPOSITORY / "pyproject.toml").is_file()
