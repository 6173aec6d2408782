"""The daemon's settings, and the one reader of flags, environment (THUNDERAGENT_*) and TOML file.

Precedence: flag, environment, file, default. Every option has one name: ``--max-hold-seconds`` is
``THUNDERAGENT_MAX_HOLD_SECONDS`` and ``max_hold_seconds = ...``.
"""

from __future__ import annotations

import re
import ssl
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen

from thunderagent.backends import BACKEND_TYPES, BackendConfig
from thunderagent.core.settings import OnHoldLimit, SchedulerSettings
from thunderagent.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["OPTIONS", "Option", "Settings", "read_settings"]

ENVIRONMENT_PREFIX = "THUNDERAGENT_"
_SCHEDULER_NAMES = frozenset(entry.name for entry in attrs.fields(SchedulerSettings))


@frozen
class Settings:
    """Everything that ``serve`` can be told. Times are seconds, of the wall clock unless they are the scheduler's."""

    backends: tuple[BackendConfig, ...] = ()
    backend_type: str = "vllm"
    host: str = "0.0.0.0"
    port: int = 8300
    policy: str = "working-set"
    policy_options: Mapping[str, str] = field(factory=dict)
    scheduler: SchedulerSettings = field(factory=SchedulerSettings)
    capacity_tokens: int | None = None
    clock_speed: float = 1.0
    drain_seconds: float = 30.0
    metrics_interval_seconds: float = 5.0
    health_failures: int = 3
    inject_usage: bool = False
    kv_events: bool = False
    hold_keepalive_seconds: float = 0.0
    identify_by: tuple[str, ...] = ()
    max_body_bytes: int = 64 * 1024 * 1024
    api_token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    profile: bool = False
    profile_dir: str = "thunderagent_profiles"
    record: str | None = None
    """File for a line per turn."""
    log_level: str = "info"
    log_format: str = "auto"


@frozen
class Option:
    """One setting as the user writes it. ``read`` turns text or a TOML value into the value; raises ValueError."""

    name: str
    read: Callable[[Any], Any]
    help: str
    metavar: str = ""
    is_flag: bool = False
    is_secret: bool = False
    """Its value is a key or may hold one: errors do not show it."""
    is_repeatable: bool = False
    """A flag for each entry, named in the singular."""

    @property
    def flag(self) -> str:
        name = self.name.removesuffix("s") if self.is_repeatable else self.name
        return "--" + name.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.upper()


def _number(kind: type, at_least: float, at_most: float = float("inf")) -> Callable[[Any], Any]:
    noun = "a whole number" if kind is int else "a number"
    limits = f"from {at_least:g} to {at_most:g}" if at_most != float("inf") else f"of at least {at_least:g}"

    def read(value: Any) -> Any:
        try:
            number = kind(value)
            if isinstance(value, bool) or (isinstance(value, float) and number != value):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"must be {noun} {limits}") from None
        if not at_least <= number <= at_most or number == float("inf"):
            raise ValueError(f"must be {noun} {limits}")
        return number

    return read


def _positive(value: Any) -> float:
    number: float = _number(float, 0)(value)
    if number == 0:
        raise ValueError("must be a number above 0")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be text")
    return value


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in ("true", "1", "yes", "on"):
        return True
    if text in ("false", "0", "no", "off"):
        return False
    raise ValueError("must be true or false")


def _choice(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return str(value)

    return read


def _names(value: Any) -> tuple[str, ...]:
    entries = value.split(",") if isinstance(value, str) else value
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise ValueError("must be names, separated by commas")
    return tuple(entry.strip() for entry in entries if entry.strip())


def _backends(value: Any) -> tuple[BackendConfig, ...]:
    """``URL[,URL...]``, or in a file a list of URLs and tables with url, api_key, verify_tls, ca_file, type."""
    entries = value.split(",") if isinstance(value, str) else value
    if not isinstance(entries, list):
        raise ValueError("must be URLs separated by commas, or a list")
    backends = [_backend(entry) for entry in entries if entry != ""]
    urls = [backend.url for backend in backends]
    twice = sorted({url for url in urls if urls.count(url) > 1})
    if twice:
        raise ValueError(f"names {', '.join(twice)} twice; give each backend once")
    return tuple(backends)


_BACKEND_SETTINGS: Mapping[str, type] = {"url": str, "api_key": str, "verify_tls": bool, "ca_file": str, "type": str}


def _backend(entry: Any) -> BackendConfig:
    if isinstance(entry, str):
        entry = {"url": entry}
    if not isinstance(entry, dict) or "url" not in entry:
        raise ValueError("must have a URL or a table with a url for each backend")
    for name, value in entry.items():
        if name not in _BACKEND_SETTINGS:
            raise ValueError(f"has no setting {name!r} of a backend; there are {', '.join(_BACKEND_SETTINGS)}")
        if not isinstance(value, _BACKEND_SETTINGS[name]) or value == "":
            noun = "true or false" if _BACKEND_SETTINGS[name] is bool else "text"
            raise ValueError(f"must give {noun} as a backend's {name}")
    try:
        backend = BackendConfig(**entry)
    except ValueError as error:
        raise ValueError(f"has a wrong entry: {_without_credentials(str(error))}") from None
    if backend.ca_file is not None:
        _check_authorities(backend.ca_file)
    return backend


def _without_credentials(text: str) -> str:
    return re.sub(r"//[^/\s]*@", "//***@", text)


def _check_authorities(path: str) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:  # SSLError is one: the file is no certificate
        raise ValueError(f"has a ca_file that cannot be used: {path}: {error.strerror or error}") from None


def _pairs(value: Any) -> dict[str, str]:
    """``key=value`` texts, or a TOML table."""
    if isinstance(value, dict):
        return {key: _scalar(entry) for key, entry in value.items()}
    entries = value.split(",") if isinstance(value, str) else value
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise ValueError("must be key=value or a table")
    pairs = {}
    for entry in entries:
        key, equals, text = entry.partition("=")
        if not equals or not key.strip():
            raise ValueError("must be key=value")
        pairs[key.strip()] = text.strip()
    return pairs


def _scalar(value: Any) -> str:
    if not isinstance(value, (str, int, float)):
        raise ValueError("must be a table of texts, numbers, true and false")
    return str(value).lower() if isinstance(value, bool) else str(value)


_seconds = _number(float, 0)
_count = _number(int, 1)

OPTIONS: tuple[Option, ...] = (
    Option("backends", _backends, "Backends, separated by commas; http or https.", "URL[,URL...]", is_secret=True),
    Option(
        "backend_type",
        _choice(*BACKEND_TYPES),
        "What the backends are, unless a backend says its own type. Default vllm.",
        "|".join(BACKEND_TYPES),
    ),
    Option("host", _text, "Address to listen on. Default 0.0.0.0: other nodes must reach it."),
    Option("port", _number(int, 0, 65535), "Port to listen on; 0 takes a free one. Default 8300."),
    Option("policy", _text, "Scheduling policy; see `thunderagent policies`. Default working-set.", "NAME"),
    Option("policy_options", _pairs, "An option of the policy; may be repeated.", "KEY=VALUE", is_repeatable=True),
    Option("capacity_tokens", _count, "Usable KV tokens per backend, instead of what each reports."),
    Option("backend_api_key", _text, "Key sent to the backends instead of the client's.", is_secret=True),
    Option("api_token", _text, "Token that clients must send for inference and release.", is_secret=True),
    Option("admin_token", _text, "Token for admin calls; without one they work from loopback only.", is_secret=True),
    Option("max_hold_seconds", _seconds, "Longest wait for a place; 0: no limit. Default 1800."),
    Option(
        "on_hold_limit",
        lambda value: OnHoldLimit(_choice(*(limit.value for limit in OnHoldLimit))(value)),
        "What then: head (make room, never overcommit), force, refuse. Unset: as the policy has it.",
        "|".join(limit.value for limit in OnHoldLimit),
    ),
    Option("program_ttl_seconds", _seconds, "Idle programs are forgotten after this; 0: never. Default 3600."),
    Option("branch_ttl_seconds", _seconds, "Idle conversations of busy programs likewise. Default 600."),
    Option("max_held_turns", _count, "Turns that may wait at once. Default 16384."),
    Option("max_programs", _count, "Programs tracked at once. Default 100000."),
    Option("max_body_bytes", _count, "Largest request body. Default 67108864."),
    Option("hold_keepalive_seconds", _seconds, "Send keep-alive bytes during holds this often. Default 0: off."),
    Option("inject_usage", _boolean, "Ask backends for usage in streams on the client's behalf.", is_flag=True),
    Option("kv_events", _boolean, "Follow the KV events of vLLM: what is cached of each program.", is_flag=True),
    Option("identify_by", _names, "Body fields that name a program, e.g. user,prompt_cache_key.", "FIELD[,FIELD...]"),
    Option("drain_seconds", _seconds, "How long running turns may take to finish at the end. Default 30."),
    Option(
        "metrics_interval_seconds",
        _positive,
        "How often backends are looked at; failing ones each second. Default 5.",
    ),
    Option("health_failures", _count, "Failures in a row that make a backend failed. Default 3."),
    Option("clock_speed", _positive, "Run the scheduler's clock faster, for demos and tests. Default 1."),
    Option("profile", _boolean, "Keep timings per program and write them as CSV.", is_flag=True),
    Option("profile_dir", _text, "Where to. Default thunderagent_profiles."),
    Option("record", _text, "New file for a line per turn, for `thunderagent simulate --trace`.", "FILE"),
    Option("log_level", _choice("debug", "info", "warning", "error"), "Default info.", "debug|info|warning|error"),
    Option(
        "log_format",
        _choice("auto", "console", "json"),
        "Default auto: JSON unless stderr is a terminal.",
        "auto|console|json",
    ),
)


def read_settings(flags: Mapping[str, Any], environment: Mapping[str, str], config_file: Path | None) -> Settings:
    """Merge the sources.

    ``flags``: given options by name, None for those not given.

    Raises:
        ConfigError: naming the source, the setting and what is wrong with it.
    """
    from_file = {} if config_file is None else _read_file(config_file)
    values: dict[str, Any] = {}
    for option in OPTIONS:
        sources = (
            (f"option {option.flag}", flags.get(option.name)),
            (f"environment variable {option.variable}", environment.get(option.variable) or None),
            (f"config file {config_file}: {option.name}", from_file.get(option.name)),
        )
        for source, value in sources:
            if value is None or value == ():
                continue
            try:
                values[option.name] = option.read(list(value) if isinstance(value, tuple) else value)
            except ValueError as error:
                shown = "" if option.is_secret else f", got {_shown(value)}"
                raise ConfigError(f"{source} {error}{shown}") from None
            break
    return _build(values)


def _shown(value: Any) -> str:
    return ", ".join(map(repr, value)) if isinstance(value, tuple) else repr(value)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {path}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"config file {path}: {error}") from None
    known = [option.name for option in OPTIONS]
    for name in found:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else "`thunderagent serve --help` lists them, with _ for -"
            raise ConfigError(f"config file {path}: unknown setting {name!r}; {remedy}")
    return found


def _build(values: dict[str, Any]) -> Settings:
    key = values.pop("backend_api_key", None)
    backends = values.pop("backends", None)
    if not backends:
        raise ConfigError("no backends: give --backends URL[,URL...], THUNDERAGENT_BACKENDS, or backends in --config")
    if key is not None:
        backends = tuple(attrs.evolve(entry, api_key=entry.api_key or key) for entry in backends)
    scheduler = {name: values.pop(name) for name in list(values) if name in _SCHEDULER_NAMES}
    return Settings(backends=backends, scheduler=SchedulerSettings(**scheduler), **values)
