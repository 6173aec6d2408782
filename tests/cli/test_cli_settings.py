"""Where settings come from: flag before environment before file before default, for every option."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import click
import pytest
from click.testing import CliRunner

from thunderagent.backends import BackendConfig
from thunderagent.cli.serve import serve
from thunderagent.config import OPTIONS, Option, Settings, read_settings
from thunderagent.core.settings import OnHoldLimit, SchedulerSettings

BACKEND = {"backends": "http://b:1"}


@attrs.frozen
class Sample:
    """One option in three sources: what is written there, and the value it stands for."""

    flag: Any
    variable: str
    toml: str
    values: tuple[Any, Any, Any]


def _numbers(first: float, second: float, third: float) -> Sample:
    return Sample(str(first), str(second), str(third), (first, second, third))


def _words(first: str, second: str, third: str) -> Sample:
    return Sample(first, second, f'"{third}"', (first, second, third))


SAMPLES = {
    "backends": Sample(
        "http://a:1,https://b/v1/",
        "http://c:2",
        '["http://d:3", {url = "http://e:4", api_key = "k", verify_tls = false, type = "sglang"}]',
        (
            (BackendConfig("http://a:1"), BackendConfig("https://b")),
            (BackendConfig("http://c:2"),),
            (BackendConfig("http://d:3"), BackendConfig("http://e:4", "k", False, type="sglang")),
        ),
    ),
    "backend_type": _words("sglang", "skyrl", "openai"),
    "host": _words("127.0.0.1", "::1", "10.0.0.1"),
    "port": _numbers(1, 0, 65535),
    "policy": _words("affinity", "least-kv", "round-robin"),
    "policy_options": Sample(
        ("preset=paper", "resume_order=a=b"),
        "preset=default, react=false",
        "{react = true, buffer_tokens = 7, half_life_seconds = 0.5, resume_order = 'smallest'}",
        (
            {"preset": "paper", "resume_order": "a=b"},
            {"preset": "default", "react": "false"},
            {"react": "true", "buffer_tokens": "7", "half_life_seconds": "0.5", "resume_order": "smallest"},
        ),
    ),
    "capacity_tokens": _numbers(1, 2, 3),
    "backend_api_key": _words("key-a", "key-b", "key-c"),
    "api_token": _words("token-a", "token-b", "token-c"),
    "admin_token": _words("token-a", "token-b", "token-c"),
    "max_hold_seconds": _numbers(0.0, 2.5, 3.0),
    "on_hold_limit": Sample("force", "refuse", '"head"', (OnHoldLimit.FORCE, OnHoldLimit.REFUSE, OnHoldLimit.HEAD)),
    "program_ttl_seconds": _numbers(0.0, 2.5, 3.0),
    "branch_ttl_seconds": _numbers(0.0, 2.5, 3.0),
    "max_held_turns": _numbers(1, 2, 3),
    "max_programs": _numbers(1, 2, 3),
    "max_body_bytes": _numbers(1, 2, 3),
    "hold_keepalive_seconds": _numbers(0.0, 2.5, 3.0),
    "inject_usage": Sample(False, "true", "false", (False, True, False)),
    "kv_events": Sample(False, "true", "false", (False, True, False)),
    "identify_by": Sample("user, a", "b", '["c", "d"]', (("user", "a"), ("b",), ("c", "d"))),
    "drain_seconds": _numbers(0.0, 2.5, 3.0),
    "metrics_interval_seconds": _numbers(0.5, 2.5, 3.0),
    "health_failures": _numbers(1, 2, 4),
    "clock_speed": _numbers(0.5, 2.5, 3.0),
    "profile": Sample(False, "on", "false", (False, True, False)),
    "profile_dir": _words("a", "b", "c"),
    "record": _words("a", "b", "c"),
    "log_level": _words("debug", "error", "warning"),
    "log_format": _words("console", "json", "auto"),
}
BY_NAME = {option.name: option for option in OPTIONS}


def _value(settings: Settings, name: str) -> Any:
    if name == "backend_api_key":
        return settings.backends[0].api_key
    holder = settings.scheduler if hasattr(settings.scheduler, name) else settings
    return getattr(holder, name)


def _file(folder: Path, text: str) -> Path:
    path = folder / "router.toml"
    path.write_text(text, encoding="utf-8")
    return path


def _of_file(option: str, folder: Path) -> Path:
    rest = "" if option == "backends" else 'backends = ["http://b:1"]\n'
    return _file(folder, f"{rest}{option} = {SAMPLES[option].toml}\n")


def test_table_of_samples_covers_every_option() -> None:
    """An option that is added without a sample fails here, and a sample without an option too."""
    assert list(SAMPLES) == [option.name for option in OPTIONS]


@pytest.mark.parametrize("name", SAMPLES)
def test_every_option_flag_before_environment_before_file(name: str, tmp_path: Path) -> None:
    """The same option in all sources: the flag's value is taken, without it the environment's, then the file's."""
    sample, option, path = SAMPLES[name], BY_NAME[name], _of_file(name, tmp_path)
    flags = {**BACKEND, name: sample.flag}
    without = {} if name == "backends" else BACKEND
    variable = {option.variable: sample.variable}
    read = (
        read_settings(flags, variable, path),
        read_settings(without, variable, path),
        read_settings(without, {}, path),
    )
    assert tuple(_value(settings, name) for settings in read) == sample.values


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "backends"])
def test_option_in_one_source_leaves_all_others_at_their_defaults(name: str) -> None:
    """Reading one option changes nothing but that option."""
    read = read_settings({**BACKEND, name: SAMPLES[name].flag}, {}, None)
    plain = Settings(backends=(BackendConfig("http://b:1"),))
    others = [other for other in SAMPLES if other not in (name, "backends")]
    assert {other: _value(read, other) for other in others} == {other: _value(plain, other) for other in others}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_flag_and_environment_reach_the_daemon_from_the_command_line(
    option: Option, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``serve`` hands its flags and its environment over; an on/off flag can also be turned off."""
    sample, seen = SAMPLES[option.name], []
    monkeypatch.setattr("thunderagent.cli.serve.run", seen.append)
    monkeypatch.setattr("thunderagent.cli.serve.configure_logging", lambda *_: None)
    arguments = [] if option.name == "backends" else ["--backends", "http://b:1"]
    if isinstance(sample.flag, bool):
        given = ["--no-" + option.flag[2:]]
    elif isinstance(sample.flag, tuple):
        given = [part for pair in sample.flag for part in ("--policy-option", pair)]
    else:
        given = [option.flag, sample.flag]
    for extra, variables in ((given, {}), ([], {option.variable: sample.variable})):
        result = CliRunner().invoke(serve, [*arguments, *extra], env=variables)
        assert (result.exit_code, result.output) == (0, "")
    assert [_value(settings, option.name) for settings in seen] == list(sample.values[:2])


def test_backend_api_key_is_for_backends_without_one_of_their_own(tmp_path: Path) -> None:
    """The key of a backend's own entry in the file is not replaced by the common key."""
    path = _file(tmp_path, 'backends = [{url = "http://a:1", api_key = "own"}, "http://b:1"]')
    settings = read_settings({"backend_api_key": "common"}, {}, path)
    assert [backend.api_key for backend in settings.backends] == ["own", "common"]


def test_no_source_gives_the_documented_defaults() -> None:
    """Only backends are needed; the rest is what ``Settings`` says."""
    assert read_settings(BACKEND, {}, None) == Settings(backends=(BackendConfig("http://b:1"),))


def test_empty_environment_variable_counts_as_not_given() -> None:
    """A variable that is set to nothing, as compose files leave them, is no value."""
    settings = read_settings(BACKEND, {"THUNDERAGENT_PORT": "", "THUNDERAGENT_API_TOKEN": ""}, None)
    assert (settings.port, settings.api_token) == (8300, None)


def test_settings_shown_as_text_hide_their_secrets() -> None:
    """A settings object in a log or a traceback gives no key away."""
    secrets = {"backend_api_key": "sk-1", "api_token": "sk-2", "admin_token": "sk-3"}
    assert "sk-" not in repr(read_settings({**BACKEND, **secrets}, {}, None))


def _help_of(command: click.Command, name: str) -> str:
    option = next(each for each in command.params if each.name == name)
    assert isinstance(option, click.Option)
    return option.help or ""


_STATED = re.compile(r"Default (\S+?)[.:]? *(?:$|[A-Z]|other nodes|off|JSON)")


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_default_stated_in_help_is_the_default(option: Option) -> None:
    """What the help calls the default is what an empty command line gives; a number default is always stated."""
    default = _value(Settings(backends=(BackendConfig("http://b:1"),)), option.name)
    help_text = _help_of(serve, option.name)
    if "Default" not in help_text:
        assert default in (None, False, {}, ()) or option.name == "backends", help_text
        return
    stated = _STATED.search(help_text)
    assert stated is not None, help_text
    assert option.read(stated.group(1)) == default


def test_every_scheduler_limit_but_the_internal_ones_is_an_option() -> None:
    """A limit that is added to the scheduler gets an option, or a reason to stand here."""
    fields = {field.name for field in attrs.fields(SchedulerSettings)} | {
        field.name for field in attrs.fields(Settings)
    }
    internal = {"scheduler", "max_branches", "max_failed_sends", "retry_seconds", "resend_seconds"}
    assert fields - internal == {option.name for option in OPTIONS} - {"backend_api_key"}
