"""What the command line says of itself: quick, and complete."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points, version

import click
import daemons
import pytest
from click.testing import CliRunner

from thunderagent import __version__
from thunderagent.cli import _COMMANDS, _group, main
from thunderagent.config import OPTIONS

_HELP_AND_IMPORTS = """
import sys
from thunderagent.cli import main
try:
    main(["--help"])
except SystemExit as end:
    print(end.code, sorted({"aiohttp", "asyncio", "prometheus_client", "thunderagent.config"} & set(sys.modules)))
"""


def _command(name: str) -> click.Command:
    found = _group.get_command(click.Context(_group), name)
    assert found is not None
    return found


def test_list_of_commands_imports_none_of_them() -> None:
    """``--help`` names every command and stays quick: nothing of the server is imported for it."""
    result = subprocess.run(
        [sys.executable, "-c", _HELP_AND_IMPORTS], capture_output=True, text=True, env=daemons.environment()
    )
    *shown, last = result.stdout.splitlines()
    assert (last, result.stderr) == ("0 []", "")
    listed = [line.split()[0] for line in shown[shown.index("Commands:") + 1 :] if line]
    assert listed == ["serve", "engine", "simulate", "calibrate", "policies", "programs"]


@pytest.mark.parametrize("name", _COMMANDS)
def test_help_of_a_command_explains_every_option(name: str) -> None:
    """Each option stands in the help with a text of its own."""
    command = _command(name)
    for option in command.params:
        assert isinstance(option, click.Option)
        assert option.help, f"{name} {option.opts}"
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0
    assert all(flag in result.output for option in command.params for flag in option.opts)


@pytest.mark.parametrize("name", _COMMANDS)
def test_line_in_the_list_of_commands_begins_as_the_command_does(name: str) -> None:
    """The list has lines of its own, so that it needs no import: they say what the commands say."""
    summary, help_text = _COMMANDS[name].summary, _command(name).help
    assert help_text is not None
    assert summary.split()[0] == help_text.split()[0]


def test_help_of_serve_tells_every_setting_and_its_variable_rule() -> None:
    """All options, and how their environment variables are named."""
    output = CliRunner().invoke(_command("serve"), ["--help"], terminal_width=200).output
    flags = {option.flag for option in OPTIONS} | {"--config"}
    assert [flag for flag in sorted(flags) if f"  {flag} " not in output and f"  {flag}," not in output] == []
    assert "--inject-usage / --no-inject-usage" in output
    assert "--log-format auto|console|json" in output
    assert "--max-hold-seconds is THUNDERAGENT_MAX_HOLD_SECONDS" in output


def test_help_and_version_without_a_command_are_the_group_s() -> None:
    """``python -m thunderagent --help`` lists the commands rather than the flags of serve; -h is the same."""
    long, short = daemons.command("--help"), daemons.command("-h")
    assert (long.returncode, long.stdout) == (0, short.stdout)
    assert "programs" in long.stdout


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    """One version: of the module, of the distribution, and on the command line."""
    with pytest.raises(SystemExit) as raised:
        main(["--version"])
    assert (raised.value.code, capsys.readouterr().out) == (0, f"thunderagent, version {__version__}\n")
    assert version("thunderagent") == __version__


def test_console_script_is_the_command_line() -> None:
    """``thunderagent`` on the path calls the same function as ``python -m thunderagent``."""
    (script,) = entry_points(group="console_scripts", name="thunderagent")
    assert script.load() is main
