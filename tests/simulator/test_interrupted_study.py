"""Runs in several processes end with the process that asked for them, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

COMMAND = (*("simulate", "--pressure", "1.6", "--seconds", "400000", "--seeds", "3", "--workers", "2"),)


def _children(parent: int) -> list[int]:
    with open(f"/proc/{parent}/task/{parent}/children", encoding="ascii") as listed:
        return [int(child) for child in listed.read().split()]


def _is_alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat", encoding="ascii") as told:
            return told.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until(is_so: Callable[[], bool]) -> bool:
    until = time.monotonic() + 30.0
    while time.monotonic() < until:
        if is_so():
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def study() -> Iterator[subprocess.Popen[str]]:
    """``thunderagent simulate`` with two workers at work, in a process group of its own."""
    command = [sys.executable, "-m", "thunderagent", *COMMAND]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert _until(lambda: len(_children(process.pid)) >= 2)
        time.sleep(2.0)
        yield process
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_ends_all_at_once(study: subprocess.Popen[str]) -> None:
    """The terminal sends it to the whole group; one line, no traceback, and the status that shells have for it."""
    workers = _children(study.pid)
    os.killpg(study.pid, signal.SIGINT)
    _, err = study.communicate(timeout=30)
    assert err.strip() == "thunderagent simulate: interrupted"
    assert study.returncode == 130
    assert _until(lambda: not any(map(_is_alive, workers)))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("with_signal", [signal.SIGTERM, signal.SIGKILL])
def test_workers_do_not_outlive_their_parent(study: subprocess.Popen[str], with_signal: signal.Signals) -> None:
    """Whatever it was ended with."""
    workers = _children(study.pid)
    study.send_signal(with_signal)
    study.wait(timeout=30)
    assert _until(lambda: not any(map(_is_alive, workers)))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_killed_worker_is_told(study: subprocess.Popen[str]) -> None:
    """One line, no traceback, and the others end too: the system kills one where memory runs out."""
    workers = _children(study.pid)
    os.kill(workers[-1], signal.SIGKILL)
    _, err = study.communicate(timeout=30)
    told = "a worker process was killed (out of memory?); try --workers 1"
    assert (study.returncode, err.strip()) == (1, f"thunderagent simulate: {told}")
    assert _until(lambda: not any(map(_is_alive, workers)))
