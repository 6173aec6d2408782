"""The router's log: one JSON object a line, one line a turn, and never a prompt, a key or a body."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import urllib.error
from urllib.parse import urlsplit

import daemons
import pytest
from daemons import Daemon

MARKER = "heliotrope-7731"

_LOG_A_FAILURE = """
import logging, sys
import structlog
from thunderagent.telemetry.logging import configure_logging

configure_logging("info", sys.argv[1])
def fail(body):
    raise ValueError("boom")
try:
    fail(sys.argv[2])
except ValueError:
    structlog.get_logger("thunderagent.server").exception("request.failed", path="/x")
    logging.getLogger("aiohttp.server").exception("of a library")
logging.getLogger("asyncio").warning("slow")
logging.getLogger("asyncio").info("never shown")
structlog.get_logger("thunderagent.server").debug("never shown")
"""


def _raw(router: Daemon, sent: bytes, *, leave: bool) -> bytes:
    """The first bytes of the answer to some bytes; ``leave``: hang up after sending them."""
    address = urlsplit(router.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(sent)
        if leave:
            connection.shutdown(socket.SHUT_WR)
        return connection.recv(65536)


def _status(router: Daemon, path: str, body: bytes, headers: dict[str, str]) -> int:
    address = urlsplit(router.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=10)
    connection.request("POST", path, body, {**router.headers, **headers})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def test_prompts_keys_and_bodies_reach_no_log_line_whatever_happens(router: Daemon) -> None:
    """Answered, refused, unparsable and broken requests that carry a marker: the debug log has none of it."""
    answered = router.chat(MARKER, program_id="logged", tools=[], max_tokens=3, user=MARKER)
    text = answered["choices"][0]["message"]["content"]
    secret = {"X-Api-Key": MARKER, "Cookie": MARKER, "X-Other": MARKER}
    good = json.dumps(
        {"model": "emulated", "messages": [{"role": "user", "content": MARKER}], "max_tokens": 2}
    ).encode()
    statuses = [
        _status(router, "/v1/chat/completions", good, secret),
        _status(router, "/v1/chat/completions", b'{"%s": ' % MARKER.encode(), secret),
        _status(router, "/v1/chat/completions", b'{"program_id": "\\u0000%s"}' % MARKER.encode(), secret),
        _status(router, "/v1/embeddings", good, secret),
        _status(router, "/programs/release", good, secret),
        _status(router, "/v1/chat/completions", good, {"Authorization": f"Bearer {MARKER}"}),
    ]
    broken = _raw(
        router, b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % MARKER.encode(), leave=False
    )
    cut = _raw(
        router, b"POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n%s" % MARKER.encode(), leave=True
    )
    router.post("/programs/release", {"program_id": "logged"})
    assert statuses[0] == 200
    assert statuses[1:3] == [400, 400]
    assert statuses[4:] == [400, 401]
    assert broken.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
    assert not cut.startswith(b"HTTP/1.1 200")
    router.wait_line("unreadable request")
    assert MARKER not in router.log
    assert "sk-of-the" not in router.log
    assert text not in router.log


def test_every_line_is_json_and_a_turn_has_exactly_one(router: Daemon, engine: Daemon) -> None:
    """``turn.finished`` says all of a turn in one line: who, where, how it ended, how long, how many tokens."""
    usage = router.chat("hello", program_id="one-line", max_tokens=3)["usage"]
    router.post("/programs/release", {"program_id": "one-line"})
    router.wait_line("turn.finished", "one-line")
    entries = [json.loads(line) for line in router.lines]
    assert entries[0]["event"] == "daemon.started"
    assert entries[0]["backends"] == [engine.url]
    (turn,) = [entry for entry in entries if entry["event"] == "turn.finished" and entry["program"] == "one-line"]
    shown = {name: turn[name] for name in ("level", "model", "backend", "status", "outcome", "error")}
    assert shown == {
        "level": "info",
        "model": "emulated",
        "backend": engine.url,
        "status": 200,
        "outcome": "completed",
        "error": None,
    }
    tokens = (turn["prompt_tokens"], turn["completion_tokens"])
    assert tokens == (usage["prompt_tokens"], usage["completion_tokens"])
    assert 0 <= turn["held_seconds"] <= turn["first_byte_seconds"] <= turn["total_seconds"]


def test_unknown_paths_are_not_logged_as_failures(router: Daemon) -> None:
    """Scanners find the port sooner or later: a 404 is no error of the router's."""
    with pytest.raises(urllib.error.HTTPError) as raised:
        router.get("/wp-login.php")
    raised.value.close()
    assert raised.value.code == 404
    assert [line for line in router.lines if json.loads(line)["level"] == "error"] == []


def _log_a_failure(log_format: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", _LOG_A_FAILURE, log_format, MARKER],
        capture_output=True,
        text=True,
        env=daemons.environment(),
    )
    assert (result.returncode, result.stdout) == (0, "")
    assert MARKER not in result.stderr
    return result.stderr.splitlines()


@pytest.mark.parametrize("log_format", ["json", "auto"])
def test_failures_in_json_are_one_line_each_without_local_variables(log_format: str) -> None:
    """Tracebacks stay within their line and show code, not values; what libraries log has the same form."""
    entries = [json.loads(line) for line in _log_a_failure(log_format)]
    assert [(entry["event"], entry["level"], entry.get("logger")) for entry in entries] == [
        ("request.failed", "error", None),
        ("of a library", "error", "aiohttp.server"),
        ("slow", "warning", "asyncio"),
    ]
    assert [entry.get("exception", "").splitlines()[-1:] for entry in entries[:2]] == [["ValueError: boom"]] * 2


def test_failures_on_the_console_show_no_local_variables() -> None:
    """The console's tracebacks are plain, also where rich is installed: its own would show bodies and keys."""
    lines = _log_a_failure("console")
    assert lines.count("ValueError: boom") == 2
    assert [line for line in lines if "slow" in line or "never shown" in line] == [lines[-1]]
