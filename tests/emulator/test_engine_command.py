"""``thunderagent engine`` as a process: what it prints, how it stops, how it fails."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from thunderagent.cli.engine import engine

COMMAND = "from thunderagent.cli.engine import engine; engine()"


@pytest.fixture
def running() -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A started engine: process, first line, URL of its ready line."""
    arguments = ["--port", "0", "--speed", "1000", "--model", "tiny", "--model", "other", "--kv-tokens", "4096"]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    banner, ready = process.stdout.readline(), process.stdout.readline()
    found = re.search(r"http://\S+", ready)
    assert found is not None, process.stderr.read()
    yield process, banner, found.group()
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()


def ask(url: str, body: Any = None) -> Any:
    """The JSON answer to a GET, or to a POST of ``body``."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as reply:
        return json.load(reply)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_engine_serves_until_a_signal(
    running: tuple[subprocess.Popen[str], str, str], number: signal.Signals
) -> None:
    """It says what it is and where, answers on the port it found, and ends with status 0 and no noise."""
    process, banner, url = running
    assert banner.startswith("emulated engine: timings are simulated, no model runs. preset small-gpu")
    assert "speed 1000; KV cache 4096 tokens; max model length 4096; models tiny, other" in banner
    assert [model["id"] for model in ask(f"{url}/v1/models")["data"]] == ["tiny", "other"]
    body = {"model": "other", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    assert ask(f"{url}/v1/chat/completions", body)["usage"]["completion_tokens"] == 3
    process.send_signal(number)
    assert process.wait(timeout=5) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--script", "/nowhere/script.json"], "script /nowhere/script.json: No such file or directory"),
        (["--fault", "explode"], "unknown fault kind 'explode'"),
        (
            ["--kv-tokens", "100", "--max-model-len", "200"],
            "--max-model-len 200 does not fit the KV cache of 96 tokens",
        ),
        (["--speed", "0"], "--speed must be a positive number, got 0.0"),
    ],
)
def test_bad_setting_is_one_line_and_status_2(arguments: list[str], reason: str) -> None:
    """What is wrong, on stderr, without a traceback."""
    result = CliRunner().invoke(engine, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"thunderagent engine: {reason}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("flag", "value", "limits"),
    [
        ("--kv-tokens", "abc", "of at least 1"),
        ("--kv-tokens", "0", "of at least 1"),
        ("--port", "x", "from 0 to 65535"),
    ],
)
def test_what_is_no_whole_number_is_told_with_the_limits(flag: str, value: str, limits: str) -> None:
    """In plain words, whether it is no number or not within them."""
    result = CliRunner().invoke(engine, [flag, value])
    assert result.exit_code == 2
    assert f"Invalid value for '{flag}': must be a whole number {limits}, got '{value}'" in result.stderr


def test_bad_script_names_the_place(tmp_path: Path) -> None:
    """File, path within it and reason."""
    script = tmp_path / "script.json"
    script.write_text('{"conversations": [{"match": "x", "turns": [{}]}]}')
    result = CliRunner().invoke(engine, ["--script", str(script)])
    expected = f"thunderagent engine: script {script} at conversations[0].turns[0]: needs content or tool_calls\n"
    assert (result.exit_code, result.stderr) == (2, expected)


def test_busy_port_is_one_line_and_status_2() -> None:
    """The port, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(engine, ["--port", str(port)])
    assert result.exit_code == 2
    remedy = "choose another with --port"
    assert result.stderr == f"thunderagent engine: port {port} on 127.0.0.1 is in use; {remedy}\n"
