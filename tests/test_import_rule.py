"""Which part may import which: the arrows of docs/architecture.md, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("thunderagent", "policies", "minisweagent_patch", "examples", "benchmarks", "tests")

# For each part of the daemon, the parts that it may import beside itself. A part is a package below
# ``thunderagent`` or a module of it. Reading upwards: server -> gateway -> core.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "policy": {"core"},
    "errors": {"core"},
    "clock": set(),
    "garbage": set(),
    "health": set(),
    "identity": {"core", "errors"},
    "registry": {"errors", "policy"},
    "upstream": {"core"},
    "trace": set(),
    "telemetry": {"core", "errors", "trace"},
    "backends": {"core", "health", "upstream"},
    "kv_events": {"core", "upstream"},
    "config": {"backends", "core", "errors"},
    "gateway": {"clock", "core", "errors", "identity", "telemetry"},
    "server": {
        *("backends", "clock", "config", "core", "errors", "gateway", "identity"),
        *("kv_events", "registry", "telemetry", "upstream"),
    },
    "daemon": {"config", "errors", "garbage", "server", "telemetry"},
    "emulator": set(),
    "simulator": {"core", "emulator", "errors", "garbage", "health", "registry", "trace"},
    "calibration": {"emulator"},
    "cli": {
        *("calibration", "config", "core", "daemon", "emulator", "errors"),
        *("registry", "simulator", "telemetry", "trace", "upstream"),
    },
    "testing": {"clock", "core", "emulator", "policy", "registry", "server", "upstream"},
    "__main__": {"cli"},
}
EVERYONE = {"__init__"}
"""``thunderagent`` itself holds the version only."""

PURE = {
    *("__future__", "abc", "attrs", "bisect", "collections", "dataclasses", "enum", "functools", "heapq"),
    *("itertools", "math", "operator", "sortedcontainers", "typing", "weakref"),
}
"""All that the core imports: no clock, no I/O, no event loop, no logging, no chance."""


@lru_cache
def _imports(folder: str) -> tuple[tuple[str, int, str], ...]:
    """File, line and dotted name of each import, those within functions and type checks included."""
    return tuple(_walk(folder))


def _walk(folder: str) -> Iterator[tuple[str, int, str]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        shown = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), shown)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield shown, node.lineno, alias.name
            elif isinstance(node, ast.ImportFrom):
                assert node.module is not None, f"{shown}:{node.lineno}: imports are absolute"
                for alias in node.names:
                    yield shown, node.lineno, f"{node.module}.{alias.name}"


def _part(dotted: str) -> str:
    """The part of the daemon that a name below ``thunderagent`` belongs to."""
    name = dotted.split(".")[1] if "." in dotted else "__init__"
    below = ROOT / "thunderagent" / name
    return name if below.is_dir() or below.with_suffix(".py").exists() else "__init__"


def _part_of_file(shown: str) -> str:
    return Path(shown).parts[1].removesuffix(".py")


def test_every_part_of_the_daemon_has_a_row() -> None:
    """A new package or module gets its arrows when it is made."""
    entries = (ROOT / "thunderagent").iterdir()
    parts = {entry.stem for entry in entries if entry.suffix == ".py" or (entry / "__init__.py").exists()}
    assert parts - EVERYONE - set(MAY_IMPORT) == set()


def test_daemon_s_parts_import_only_what_their_row_allows() -> None:
    """No arrow points up: the gateway knows no server, the core knows nobody."""
    wrong = [
        f"{shown}:{line}: {_part_of_file(shown)} imports {name}"
        for shown, line, name in _imports("thunderagent")
        if name.split(".")[0] == "thunderagent"
        and _part(name) not in {_part_of_file(shown), *EVERYONE, *MAY_IMPORT.get(_part_of_file(shown), set())}
    ]
    assert wrong == []


def test_rows_have_no_cycle() -> None:
    """Seen from any part, what it imports never leads back to it."""
    for part in MAY_IMPORT:
        reached, ahead = set(), set(MAY_IMPORT[part])
        while ahead:
            reached |= ahead
            ahead = set().union(*(MAY_IMPORT[name] for name in ahead)) - reached
        assert part not in reached


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("thunderagent/core", {*PURE, "thunderagent.core"}),
        ("policies", {*PURE, "policies", "thunderagent.policy"}),
    ],
)
def test_pure_packages_import_neither_clock_nor_input_nor_chance(folder: str, allowed: set[str]) -> None:
    """Core and policies run on a virtual clock as they do live: all they know is handed to them."""
    wrong = [
        f"{shown}:{line}: {name}"
        for shown, line, name in _imports(folder)
        if not any(name == prefix or name.startswith(prefix + ".") for prefix in allowed)
    ]
    assert wrong == []


def test_patch_imports_nothing_of_the_daemon_and_no_server_library() -> None:
    """It is installed next to agents, alone: the standard library, and what mini-swe-agent brings."""
    allowed = {"minisweagent_patch", "minisweagent", "litellm"}
    outside = {*OURS, "aiohttp", "attrs", "click", "msgspec", "prometheus_client", "sortedcontainers", "structlog"}
    wrong = [
        f"{shown}:{line}: {name}"
        for shown, line, name in _imports("minisweagent_patch")
        if name.split(".")[0] in outside - allowed
    ]
    assert wrong == []


def test_what_is_installed_imports_nothing_of_the_checkout() -> None:
    """Tests, examples and benchmarks are not in the wheel."""
    wrong = [
        f"{shown}:{line}: {name}"
        for folder in ("thunderagent", "policies", "minisweagent_patch")
        for shown, line, name in _imports(folder)
        if name.split(".")[0] in ("tests", "examples", "benchmarks")
    ]
    assert wrong == []


def test_daemon_names_no_policy() -> None:
    """Built-in policies come through their entry points: the daemon imports none of them."""
    wrong = [
        f"{shown}:{line}: {name}"
        for shown, line, name in _imports("thunderagent")
        if name.split(".")[0] == "policies"
    ]
    assert wrong == []
