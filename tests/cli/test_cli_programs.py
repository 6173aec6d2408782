"""``thunderagent programs`` against a live router, and against what is none."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from click.testing import CliRunner, Result
from daemons import Daemon

from thunderagent.cli.programs import programs

TOKEN = {"THUNDERAGENT_API_TOKEN": "sk-of-the-router"}
HEADING = (
    "program                                      status     activity      tokens  turns   waits    idle  backend"
)


def _run(url: str, *arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(programs, ["--url", url, *arguments], env=TOKEN if env is None else env)


@contextmanager
def _answering(raw: bytes) -> Iterator[str]:
    """A server on loopback that answers one connection with some bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(raw)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_program_with_a_finished_turn_is_listed_released_and_gone(router: Daemon, engine: Daemon) -> None:
    """The life of a program as an operator sees it."""
    empty = _run(router.url)
    router.chat("hello", program_id="cli-1", max_tokens=4)
    listed, as_json = _run(router.url), _run(router.url, "--json")
    released = _run(router.url, "--release", "cli-1")
    again = _run(router.url, "--release", "cli-1", "--json")
    assert (empty.exit_code, empty.stdout) == (0, f"{HEADING}\n")
    heading, row = listed.stdout.splitlines()
    name, status, activity, tokens, turns, waits, *idle, backend = row.split()
    assert heading == HEADING
    assert (name, status, activity, turns, waits, backend) == ("cli-1", "admitted", "acting", "1", "-", engine.url)
    assert idle[-1] == "s"
    assert int(tokens) == json.loads(as_json.stdout)["cli-1"]["footprint_tokens"] > 0
    assert (released.exit_code, released.stdout) == (0, "cli-1: released\n")
    assert (again.exit_code, json.loads(again.stdout)) == (1, {"program_id": "cli-1", "released": False})


def test_unknown_program_is_told_and_the_others_are_released(router: Daemon) -> None:
    """A typo in a script shows; releasing by HTTP stays idempotent."""
    for name in ("cli-2", "cli-3"):
        router.chat("hello", program_id=name, max_tokens=4)
    where = router.url.removeprefix("http://")
    result = _run(router.url, "--release", "cli-2", "--release", "nope", "--release", "cli-3", "--release", "nix")
    assert (result.exit_code, result.stdout) == (1, "cli-2: released\ncli-3: released\n")
    assert result.stderr == f"thunderagent programs: {where} knows no program nope, nix: nothing to release\n"
    assert _run(router.url).stdout == f"{HEADING}\n"


@pytest.mark.parametrize(
    ("shown", "cells"),
    [
        ({"status": "reasoning", "turns_running": 1}, ["admitted", "reasoning", "-", "-"]),
        ({"status": "reasoning", "turns_held": 1, "waiting_seconds": 7.2}, ["admitted", "waiting", "7 s", "-"]),
        ({"status": "reasoning", "turns_running": 1, "turns_held": 1}, ["admitted", "reasoning", "-", "-"]),
        ({"scheduling_status": "paused", "idle_seconds": 60.0}, ["paused", "acting", "-", "60 s"]),
    ],
    ids=["runs", "held", "runs and held", "client left"],
)
def test_activity_says_what_a_program_s_turns_do(shown: dict[str, object], cells: list[str]) -> None:
    """One that is held waits, though the published status calls it reasoning; one without turns is idle."""
    program = {
        "scheduling_status": "admitted",
        "status": "acting",
        "footprint_tokens": 5,
        "step_count": 2,
        "turns_running": 0,
        "turns_held": 0,
        "waiting_seconds": None,
        "idle_seconds": None,
        "backend": None,
    }
    body = json.dumps({"p": {**program, **shown}}).encode()
    with _answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)) as url:
        row = _run(url).stdout.splitlines()[1]
    status, activity, waits, idle = cells
    assert row.split() == ["p", status, activity, "5", "2", *waits.split(), *idle.split(), "-"]


def test_missing_token_gives_the_router_s_words_and_status_one(router: Daemon) -> None:
    """What the router answers is passed on in one line."""
    result = _run(router.url, env={"THUNDERAGENT_API_TOKEN": ""})
    where = router.url.removeprefix("http://")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith(f"thunderagent programs: {where} answered 401: ")
    assert "token" in result.stderr
    assert "{" not in result.stderr


def test_empty_id_to_release_is_refused(router: Daemon) -> None:
    """A script's variable was empty: nobody is released, status 2."""
    result = _run(router.url, "--release", "some", "--release", "")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--release: an id is empty" in result.stderr


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'["no",\n "object"]', '["no", "object"]'),
        (b'{"error": {"message": null}}', '{"error": {"message": null}}'),
        (b"[" * 5_000, "[" * 2_000),
    ],
)
def test_answers_of_others_are_passed_on_as_they_are(body: bytes, told: str) -> None:
    """Whatever they say, in one line."""
    with _answering(b"HTTP/1.1 500 Oops\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)) as url:
        result = _run(url)
    assert result.stderr.endswith(f" answered 500: {told}\n")


def test_engine_instead_of_a_router_gives_its_refusal_and_status_one(engine: Daemon) -> None:
    """The wrong port is a usual mistake: the answer says 404."""
    result = _run(engine.url)
    assert result.exit_code == 1
    assert " answered 404: " in result.stderr


def test_nothing_that_listens_gives_one_line_and_status_one() -> None:
    """The address and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = _run(f"http://127.0.0.1:{port}")
    assert (result.exit_code, result.stdout) == (1, "")
    remedy = "nobody listens: start the router, or give its --url"
    assert result.stderr == f"thunderagent programs: 127.0.0.1:{port} {remedy}\n"


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"220 mail ready\r\n", "BadStatusLine: 220 mail ready"),
        (b"", "RemoteDisconnected: Remote end closed connection without response"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[]",
            "IncompleteRead: IncompleteRead(2 bytes read, 7 more expected)",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
        (b"HTTP/1.1 200 OK\r\n\r\n[]", "no JSON object"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"object": "list"}', "its programs lack fields"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"a": {"status": "x"}}', "its programs lack fields"),
    ],
)
def test_something_else_that_listens_gives_one_line_and_status_one(raw: bytes, what: str) -> None:
    """Another protocol, another service: no traceback."""
    with _answering(raw) as url:
        result = _run(url)
    where = url.removeprefix("http://")
    expected = f"thunderagent programs: {where} does not answer as a router: {what}\n"
    assert (result.exit_code, result.stderr) == (1, expected)
