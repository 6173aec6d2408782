"""A command line that cannot work ends with one line on stderr and status 2, never a traceback."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import daemons
import pytest

from thunderagent.cli import main

SERVE = ("serve", "--backends", "http://127.0.0.1:9", "--host", "127.0.0.1", "--port", "0")
INSTALLED = "affinity, least-kv, pause-resume, round-robin, working-set"

REFUSED_BEFORE_ANYTHING_RUNS: dict[str, tuple[tuple[str, ...], str]] = {
    "no backends": (
        ("serve",),
        "thunderagent serve: no backends: give --backends URL[,URL...], THUNDERAGENT_BACKENDS, "
        "or backends in --config\n",
    ),
    "bad URL": (
        ("serve", "--backends", "localhost:8000"),
        "thunderagent serve: option --backends has a wrong entry: "
        "backend URL must begin with http:// or https://: 'localhost:8000'",
    ),
    "duplicate backends": (
        ("serve", "--backends", "http://a:1,http://a:1/v1"),
        "thunderagent serve: option --backends names http://a:1 twice; give each backend once",
    ),
    "unknown type of backends": (
        (*SERVE, "--backend-type", "trt"),
        "thunderagent serve: option --backend-type must be one of vllm, sglang, skyrl, openai, got 'trt'",
    ),
    "policy option without a value": (
        (*SERVE, "--policy-option", "preset"),
        "thunderagent serve: option --policy-option must be key=value, got 'preset'",
    ),
    "bad number": (
        (*SERVE, "--max-hold-seconds", "soon"),
        "thunderagent serve: option --max-hold-seconds must be a number of at least 0, got 'soon'",
    ),
    "missing file": (
        (*SERVE, "--config", "/nonexistent/router.toml"),
        "thunderagent serve: config file /nonexistent/router.toml: No such file or directory",
    ),
    "surplus argument": (
        ("serve", "http://a:1"),
        "thunderagent serve: Got unexpected extra argument (http://a:1); see `thunderagent serve --help`",
    ),
    "flag without its value": (("serve", "--port"), "thunderagent serve: Option '--port' requires an argument"),
    "unknown command": (
        ("nosuch",),
        "thunderagent: No such command 'nosuch'; see `thunderagent --help`",
    ),
    "unknown flag of the engine": (("engine", "--kv", "5"), "thunderagent engine: No such option"),
    "no router's URL": (
        ("programs", "--url", "localhost"),
        "thunderagent programs: Invalid value for --url: must begin with http:// or https://, got 'localhost'; "
        "see `thunderagent programs --help`",
    ),
}
"""Told by the reading of flags, environment and file; tried within this process."""

REFUSED_BY_THE_PROCESS: dict[str, tuple[tuple[str, ...], str]] = {
    "option of a policy without any": (
        (*SERVE, "--policy", "affinity", "--policy-option", "a=1"),
        "thunderagent serve: policy 'affinity' takes no options, got a",
    ),
    "unknown policy": (
        (*SERVE, "--policy", "nosuch"),
        f"thunderagent serve: unknown policy 'nosuch'; installed: {INSTALLED}",
    ),
    "unknown policy option": (
        (*SERVE, "--policy-option", "colour=red"),
        "thunderagent serve: policy 'working-set' has no option 'colour'; it has: dial, growth_reserve, guest_ratio, "
        "turns_per_program",
    ),
    "option of another policy": (
        (*SERVE, "--policy-option", "preset=paper"),
        "thunderagent serve: policy 'working-set' has no option 'preset'; it has: dial, growth_reserve, guest_ratio, "
        "turns_per_program; 'preset' is an option of policy 'pause-resume'",
    ),
    "profile folder that cannot be made": (
        (*SERVE, "--profile", "--profile-dir", "/dev/null/profiles"),
        "thunderagent serve: --profile-dir /dev/null/profiles: Not a directory",
    ),
    "unknown flag": (
        ("serve", "--bogus"),
        "thunderagent serve: No such option",
    ),
    "flags without a command": (("--port", "1"), "thunderagent serve: no backends: "),
    "host that does not exist": (
        ("serve", "--backends", "http://127.0.0.1:9", "--host", "no.such.host.invalid"),
        "thunderagent serve: cannot listen on no.such.host.invalid:8300: ",
    ),
}
"""Told by the daemon's start, or worth the real process."""


@pytest.mark.parametrize("case", REFUSED_BEFORE_ANYTHING_RUNS)
def test_unusable_arguments_give_one_line_and_status_two(
    case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that begins with the command and says what is wrong; nothing on stdout, nothing started."""
    monkeypatch.setattr("thunderagent.cli.serve.configure_logging", lambda *_: pytest.fail("it goes on"))
    arguments, message = REFUSED_BEFORE_ANYTHING_RUNS[case]
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    printed = capsys.readouterr()
    assert (raised.value.code, printed.out, printed.err.count("\n")) == (2, "", 1), printed.err
    assert printed.err.startswith(message)


@pytest.mark.parametrize("case", REFUSED_BY_THE_PROCESS)
def test_daemon_that_cannot_start_gives_one_line_and_status_two(case: str) -> None:
    """The same of a process; log lines aside, it prints that line only."""
    arguments, message = REFUSED_BY_THE_PROCESS[case]
    result = daemons.command(*arguments)
    told = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert (result.returncode, result.stdout, len(told)) == (2, "", 1), result.stderr
    assert told[0].startswith(message)


def test_busy_port_names_the_port_and_the_remedy() -> None:
    """Two routers on one port: the second says so, and its log shows no failure beside."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = daemons.command(*SERVE[:-1], str(port))
    told = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert result.returncode == 2
    assert told == [f"thunderagent serve: port {port} on 127.0.0.1 is in use; choose another with --port"]


def test_secrets_are_in_no_message(tmp_path: Path) -> None:
    """Whatever else is wrong, keys given in any source stay out of what is printed."""
    file = tmp_path / "router.toml"
    file.write_text('backends = [{url = "http://a:1", api_key = "sk-file", port = 1}]\nadmin_token = "sk-admin"\n')
    secrets = {"THUNDERAGENT_BACKEND_API_KEY": "sk-variable"}
    flags = ("--api-token", "sk-flag", "--config", str(file))
    for arguments in (("serve", *flags), (*SERVE, *flags, "--bogus")):
        result = daemons.command(*arguments, extra=secrets)
        assert result.returncode == 2
        assert "sk-" not in result.stdout + result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no such device")
def test_full_device_gives_one_line_and_status_one() -> None:
    """Where the output went; no traceback."""
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "thunderagent", "policies"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    assert (result.returncode, result.stderr) == (
        1,
        "thunderagent policies: output: no space left on the device\n",
    )
