"""What is said about settings that cannot be used: the source, the rule, the value, and never a key."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from thunderagent.config import OPTIONS, read_settings
from thunderagent.errors import ConfigError

BACKEND = {"backends": "http://b:1"}
BY_NAME = {option.name: option for option in OPTIONS}


def _file(folder: Path, text: str) -> Path:
    path = folder / "router.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [("inject_usage", "perhaps"), ("port", "80.5"), ("port", "65536"), ("port", "-1"), ("clock_speed", "0")]
    + [(name, "nan") for name in ("max_hold_seconds", "clock_speed", "capacity_tokens")]
    + [(name, "inf") for name in ("drain_seconds", "health_failures", "metrics_interval_seconds")]
    + [(name, "0") for name in ("capacity_tokens", "max_body_bytes", "max_programs", "health_failures")]
    + [
        ("log_level", "INFO"),
        ("log_format", "xml"),
        ("on_hold_limit", "wait"),
        ("backend_type", "SGLang"),
        ("policy_options", "preset"),
    ],
)
def test_bad_text_in_the_environment_names_variable_rule_and_value(name: str, text: str) -> None:
    """The error says where the value stands, what it must be, and what it is."""
    with pytest.raises(ConfigError) as raised:
        read_settings(BACKEND, {BY_NAME[name].variable: text}, None)
    shown = re.escape(repr(text))
    assert re.fullmatch(
        rf"environment variable {BY_NAME[name].variable} must be [^\n]+, got {shown}", str(raised.value)
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("port = 80.5", "port must be a whole number from 0 to 65535, got 80.5"),
        ("port = true", "port must be a whole number from 0 to 65535, got True"),
        ("max_hold_seconds = nan", "max_hold_seconds must be a number of at least 0, got nan"),
        ("health_failures = inf", "health_failures must be a whole number of at least 1, got inf"),
        ("host = 5", "host must be text, got 5"),
        ('host = ""', "host must be text, got ''"),
        ("profile = 2", "profile must be true or false, got 2"),
        ("log_level = [1]", "log_level must be one of debug, info, warning, error, got [1]"),
        ("identify_by = 5", "identify_by must be names, separated by commas, got 5"),
        ("policy_options = 5", "policy_options must be key=value or a table, got 5"),
        ("policy_options = ['a=1', 5]", "policy_options must be key=value or a table, got ['a=1', 5]"),
        ("policy_options = ['=1']", "policy_options must be key=value, got ['=1']"),
        (
            "policy_options = {a = [1]}",
            "policy_options must be a table of texts, numbers, true and false, got {'a': [1]}",
        ),
        ("api_token = 5", "api_token must be text"),
    ],
)
def test_bad_value_in_file_names_file_rule_and_value(line: str, message: str, tmp_path: Path) -> None:
    """TOML has types: what does not fit is told with the file's path, and never rounded."""
    path = _file(tmp_path, f'backends = ["http://b:1"]\n{line}\n')
    with pytest.raises(ConfigError) as raised:
        read_settings({}, {}, path)
    assert str(raised.value) == f"config file {path}: {message}"


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("5", "must be URLs separated by commas, or a list"),
        ("[5]", "must have a URL or a table with a url for each backend"),
        ('[{api_key = "sk-1"}]', "must have a URL or a table with a url for each backend"),
        ("[{url = 5}]", "must give text as a backend's url"),
        ('[{url = "http://a:1", api_key = 5}]', "must give text as a backend's api_key"),
        ('[{url = "http://a:1", verify_tls = "no"}]', "must give true or false as a backend's verify_tls"),
        (
            '[{url = "http://a:1", key = "sk-1"}]',
            "has no setting 'key' of a backend; there are url, api_key, verify_tls, ca_file, type",
        ),
        (
            '[{url = "ftp://a", api_key = "sk-1"}]',
            "has a wrong entry: backend URL must begin with http:// or https://: 'ftp://a'",
        ),
        (
            '[{url = "http://a:1", type = "trt", api_key = "sk-1"}]',
            "has a wrong entry: type must be one of vllm, sglang, skyrl, openai, got 'trt'",
        ),
        ('[{url = "http://a:1", type = 5}]', "must give text as a backend's type"),
        ('["http://a:1/", "http://a:1/v1"]', "names http://a:1 twice; give each backend once"),
    ],
)
def test_bad_backend_in_file_is_told_without_its_key(toml: str, message: str, tmp_path: Path) -> None:
    """Whatever is wrong with an entry, its key is not shown."""
    path = _file(tmp_path, f"backends = {toml}\n")
    with pytest.raises(ConfigError) as raised:
        read_settings({}, {}, path)
    assert str(raised.value) == f"config file {path}: backends {message}"


@pytest.mark.parametrize("url", ["http://me:pw@host:1", "ftp://me:pw@host", "http://me:p@w@host:1?x=1"])
def test_credentials_in_a_backend_url_are_refused_and_not_shown(url: str) -> None:
    """A URL with a password is refused without the password in the message."""
    with pytest.raises(ConfigError) as raised:
        read_settings({"backends": url}, {}, None)
    assert "pw" not in str(raised.value)
    assert "p@w" not in str(raised.value)


def test_missing_or_bad_authority_file_is_told_at_the_start(tmp_path: Path) -> None:
    """A certificate file is read once with the settings, so that the daemon does not fail over it later."""
    bad = tmp_path / "ca.pem"
    bad.write_text("no certificate")
    for path, reason in ((tmp_path / "none.pem", os.strerror(2)), (bad, "")):
        toml = _file(tmp_path, f'backends = [{{url = "https://a:1", ca_file = "{path}"}}]')
        with pytest.raises(ConfigError) as raised:
            read_settings({}, {}, toml)
        begin = f"config file {toml}: backends has a ca_file that cannot be used: {path}: {reason}"
        assert str(raised.value).startswith(begin)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_hold = 5", "unknown setting 'max_hold'; did you mean 'max_hold_seconds'?"),
        ("policy-options = 5", "unknown setting 'policy-options'; did you mean 'policy_options'?"),
        ("zzz = 5", "unknown setting 'zzz'; `thunderagent serve --help` lists them, with _ for -"),
        ("[scheduler]\nport = 5", "unknown setting 'scheduler'"),
        ("port = \nhost = 5", "Invalid value (at line 1, column 8)"),
    ],
)
def test_unusable_file_names_file_and_place(text: str, message: str, tmp_path: Path) -> None:
    """An unknown setting gets the nearest known one; broken TOML its place."""
    path = _file(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        read_settings(BACKEND, {}, path)
    assert str(raised.value).startswith(f"config file {path}: {message}")


def test_file_that_cannot_be_read_names_it(tmp_path: Path) -> None:
    """Missing, a directory, or no text."""
    missing, binary = tmp_path / "none.toml", tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    for path, reason in ((missing, "No such file"), (tmp_path, "Is a directory"), (binary, "not UTF-8 text")):
        with pytest.raises(ConfigError) as raised:
            read_settings(BACKEND, {}, path)
        assert str(raised.value).startswith(f"config file {path}: {reason}")


@pytest.mark.parametrize("backends", [None, "", ","])
def test_no_backends_names_every_way_to_give_them(backends: str | None) -> None:
    """There is no default backend."""
    with pytest.raises(ConfigError) as raised:
        read_settings({}, {} if backends is None else {"THUNDERAGENT_BACKENDS": backends}, None)
    expected = "no backends: give --backends URL[,URL...], THUNDERAGENT_BACKENDS, or backends in --config"
    assert str(raised.value) == expected
