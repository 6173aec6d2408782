"""The reader of the log goes away, as when a terminal is closed or with ``2>&1 | head``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from daemons import environment

from examples.processes import free_port


@pytest.fixture
def router() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A router whose log nobody reads any more, and whose backend is not there."""
    port, gone = free_port(), free_port()
    reader, writer = os.pipe()
    arguments = ("--backends", f"http://127.0.0.1:{gone}", "--port", str(port), "--max-hold-seconds", "0.5")
    process = subprocess.Popen(
        [sys.executable, "-m", "thunderagent", "serve", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=writer,
        env=environment(),
    )
    os.close(writer)
    url = f"http://127.0.0.1:{port}"
    for _ in range(200):
        try:
            urllib.request.urlopen(f"{url}/livez", timeout=5).close()
            break
        except OSError:
            time.sleep(0.1)
    os.close(reader)
    yield process, url
    process.kill()
    process.wait()


def test_lost_log_costs_no_turn_and_no_exit_status(router: tuple[subprocess.Popen[bytes], str]) -> None:
    """The turn is refused at its deadline as if somebody read that, and takes nothing; Ctrl-C ends all with 0."""
    process, url = router
    body = {"model": "m", "program_id": "p", "messages": [{"role": "user", "content": "x"}]}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=20)
    answer: Any = json.loads(raised.value.read())
    assert (raised.value.code, "error" in answer) == (503, True)
    with urllib.request.urlopen(f"{url}/programs", timeout=5) as programs:
        assert json.loads(programs.read())["p"]["footprint_tokens"] == 0
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
