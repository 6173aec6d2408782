"""Where the installed mini-swe-agent keeps its runners and its command line."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

from minisweagent_patch.errors import NotInstalledError, UnsupportedVersionError

# (first supported, first not supported) -> modules with a process_instance, and the launcher's module.
# Below 1.8 process_instance reads its configuration itself. programbench came with 2.3.
_LAYOUTS: tuple[tuple[tuple[int, int], tuple[int, int], tuple[str, ...], str], ...] = (
    ((1, 8), (1, 18), ("minisweagent.run.extra.swebench",), "minisweagent.run.mini_extra"),
    (
        (2, 0),
        (2, 5),
        ("minisweagent.run.benchmarks.swebench", "minisweagent.run.benchmarks.programbench"),
        "minisweagent.run.utilities.mini_extra",
    ),
)


def installed_version() -> str:
    """The installed mini-swe-agent's version.

    Imports ``minisweagent`` (which prints its banner and reads its ``.env``), not litellm.

    Raises:
        NotInstalledError: there is none.
    """
    return str(getattr(_package(), "__version__", "unknown"))


def major_version() -> int:
    """The supported layout's major version, 1 or 2. Raises as ``runner_modules``."""
    return _layout()[0][0]


def runner_modules() -> list[ModuleType]:
    """The modules whose ``process_instance`` is to be patched, imported.

    Raises:
        NotInstalledError: there is no mini-swe-agent.
        UnsupportedVersionError: its version was never tested.
    """
    required, *optional = _layout()[2]
    found = [_optional_module(name) for name in optional]
    return [importlib.import_module(required), *(module for module in found if module is not None)]


def launcher_module() -> ModuleType:
    """The module whose ``main()`` is the ``mini-extra`` command. Raises as ``runner_modules``."""
    return importlib.import_module(_layout()[3])


def _layout() -> tuple[tuple[int, int], tuple[int, int], tuple[str, ...], str]:
    version = installed_version()
    if match := re.match(r"(\d+)\.(\d+)", version):
        found = (int(match[1]), int(match[2]))
        for layout in _LAYOUTS:
            if layout[0] <= found < layout[1]:
                return layout
    raise UnsupportedVersionError(version)


def _optional_module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


def _package() -> ModuleType:
    try:
        return importlib.import_module("minisweagent")
    except ModuleNotFoundError as error:
        if error.name != "minisweagent":
            raise
        raise NotInstalledError from error
