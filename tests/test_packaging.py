"""What a user installs: the wheel's contents, and requirements that fit each other and this environment."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from minisweagent_patch.versions import _LAYOUTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGES = ("thunderagent", "policies", "minisweagent_patch")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

_BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built by the build system that pyproject.toml names, from a copy of the sources, offline."""
    copy, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    for name in (*PACKAGES, "tests/cli", "examples", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "repos"))
    result = subprocess.run(
        [sys.executable, "-c", _BUILD, str(target)], cwd=copy, capture_output=True, text=True, timeout=100
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = target.glob("*.whl")
    return zipfile.ZipFile(built)


def _text(wheel: zipfile.ZipFile, name: str) -> str:
    folder = f"{PROJECT['name']}-{PROJECT['version']}.dist-info"
    return wheel.read(f"{folder}/{name}").decode()


def test_wheel_holds_every_module_of_the_three_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """Tests, examples and benchmarks stay out; a new sub-package comes along by itself."""
    modules = {
        str(path.relative_to(ROOT))
        for name in PACKAGES
        for path in (ROOT / name).rglob("*.py")
        if "__pycache__" not in path.parts
    }
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name for name in names if name.endswith(".py")} == modules
    assert {name.split("/")[0] for name in names} == set(PACKAGES)


def test_wheel_holds_types_dashboard_and_policy_readmes(wheel: zipfile.ZipFile) -> None:
    """What is no module but is read at run time, or by type checkers and people."""
    names = {name for name in wheel.namelist() if ".dist-info/" not in name and not name.endswith(".py")}
    readmes = {f"policies/{path.name}" for path in (ROOT / "policies").glob("*.md")}
    types = {f"{name}/py.typed" for name in PACKAGES}
    assert names == {"thunderagent/server/dashboard.html", *types, *readmes}


def test_wheel_names_script_policies_licence_and_python(wheel: zipfile.ZipFile) -> None:
    """The metadata that installers and the registry of policies read."""
    entries = configparser.ConfigParser()
    entries.optionxform = str  # type: ignore[assignment, method-assign]
    entries.read_string(_text(wheel, "entry_points.txt"))
    assert dict(entries["console_scripts"]) == {"thunderagent": "thunderagent.cli:main"}
    assert dict(entries["thunderagent.policies"]) == PROJECT["entry-points"]["thunderagent.policies"]
    metadata = _text(wheel, "METADATA").splitlines()
    assert {"License-Expression: MIT", "License-File: LICENSE", "Requires-Python: >=3.10"} <= set(metadata)
    assert _text(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_every_policy_s_entry_point_names_a_class_that_is_there(wheel: zipfile.ZipFile) -> None:
    """Read from the sources in the wheel, without importing them."""
    for value in PROJECT["entry-points"]["thunderagent.policies"].values():
        module, _, name = value.partition(":")
        tree = ast.parse(wheel.read(f"{module.replace('.', '/')}.py"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


# Requirements


def _third_party_imports(folder: str) -> set[str]:
    found: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - set(PACKAGES)


def _names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def test_daemon_imports_only_what_it_requires() -> None:
    """A plain ``pip install`` has all that ``serve`` and ``engine`` import; test tools are for testing only."""
    brought_along = {"multidict", "yarl"}  # aiohttp's own types, in its signatures
    optional = {"jinja2", "matplotlib", "uvloop", "zmq"}
    required = {name.replace("-", "_") for name in _names(PROJECT["dependencies"])} | brought_along | optional
    imported = _third_party_imports("thunderagent") | _third_party_imports("policies")
    assert imported - {"tomllib"} - required <= {"pytest", "hypothesis"} & _third_party_imports(
        "thunderagent/testing"
    )


def _installed(requirement: Requirement) -> str | None:
    try:
        return distribution(requirement.name).version
    except PackageNotFoundError:
        return None


def _unmet(requirements: list[str], extra: str = "") -> list[str]:
    unmet = []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        version = _installed(requirement)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            unmet.append(f"{requirement} but {version}")
    return unmet


def test_this_environment_meets_the_requirements() -> None:
    """What the tests run with is what pyproject.toml asks for."""
    assert _unmet(PROJECT["dependencies"]) == []


@pytest.mark.parametrize("extra", [name for name in EXTRAS if name != "vllm"])
def test_installed_extra_meets_its_requirements(extra: str) -> None:
    """An extra is installed in full or not at all, and within its ranges."""
    if not any(_installed(Requirement(text)) for text in EXTRAS[extra]):
        pytest.skip(f"the extra {extra} is not installed")
    assert _unmet(EXTRAS[extra], extra) == []


def test_all_that_is_installed_for_us_fits_together() -> None:
    """From our requirements down, every installed distribution has what it asks for: no range contradicts another."""
    ahead = [(Requirement(text), "") for texts in (PROJECT["dependencies"], *EXTRAS.values()) for text in texts]
    seen: set[tuple[str, str]] = set()
    unmet: list[str] = []
    while ahead:
        requirement, by = ahead.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _installed(requirement)
        if version is None:
            unmet += [f"{by} wants {requirement}, which is missing"] if by else []
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            unmet.append(f"{by or 'this project'} wants {requirement}, installed is {version}")
        name = canonicalize_name(requirement.name)
        wanted = distribution(name).requires or []
        for extra in ("", *sorted(requirement.extras)):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            ahead.extend(
                (Requirement(str(each).partition(";")[0]), name)
                for each in map(Requirement, wanted)
                if each.marker is None or each.marker.evaluate({"extra": extra})
            )
    assert unmet == []
    assert len(seen) > 20


def test_ranges_that_a_known_defect_fixed_are_still_there() -> None:
    """aiohttp before 3.14.3 loses a reset connection; litellm from 1.105 on needs extras for a plain tools call."""
    ranges = {Requirement(text).name: Requirement(text).specifier for text in PROJECT["dependencies"]}
    assert not ranges["aiohttp"].contains("3.14.2")
    assert ranges["aiohttp"].contains("3.14.3")
    swebench = {Requirement(text).name: Requirement(text).specifier for text in EXTRAS["swebench"]}
    assert not swebench["litellm"].contains("1.105.0")
    assert not swebench["mini-swe-agent"].contains("2.5.0")


def test_extra_installs_an_agent_that_the_patch_supports() -> None:
    """The patch refuses versions outside its layouts: the extra's range ends where the last layout ends."""
    (extra,) = [Requirement(text) for text in EXTRAS["swebench"] if text.startswith("mini-swe-agent")]
    first_unsupported = "{}.{}".format(*_LAYOUTS[-1][1])
    assert extra.specifier == SpecifierSet(f">=2.4,<{first_unsupported}")


def test_installed_distribution_is_of_this_project_s_metadata() -> None:
    """An installation from before a change of pyproject.toml would test other requirements and entry points."""
    found = distribution(PROJECT["name"])
    entries = {entry.name: entry.value for entry in found.entry_points if entry.group == "thunderagent.policies"}
    required = {str(Requirement(text)) for text in found.requires or [] if "extra ==" not in text}
    assert (found.version, entries) == (PROJECT["version"], PROJECT["entry-points"]["thunderagent.policies"])
    assert required == {str(Requirement(text)) for text in PROJECT["dependencies"]}


@pytest.mark.network
@pytest.mark.timeout(600)
@pytest.mark.parametrize("extras", [("dev", "swebench", "uvloop"), ("dev", "swebench", "uvloop", "vllm")])
def test_extras_resolve_together(extras: tuple[str, ...]) -> None:
    """From nothing, with a package index: one set of versions satisfies them all."""
    uv = shutil.which("uv")
    if uv is not None:
        given = [part for extra in extras for part in ("--extra", extra)]
        command = [uv, "pip", "compile", "--quiet", "--python", sys.executable, *given, "pyproject.toml"]
    elif importlib.util.find_spec("pip") is not None:
        pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command = [*pip, f".[{','.join(extras)}]"]
    else:
        pytest.skip("neither uv nor pip is here")
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=590)
    assert result.returncode == 0, result.stderr
