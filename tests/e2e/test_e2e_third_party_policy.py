"""A policy of a third party's: built, installed beside the router, listed, and served by its name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import daemons
import pytest
from daemons import Daemon

pytestmark = pytest.mark.e2e

EXAMPLE = Path(__file__).parents[1] / "policies" / "third_party_example"
NAME = "shortest-queue"
_BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has the distribution on its path, as installed into a folder, offline.

    Built by its own build system and unpacked, which is all that installing a wheel without scripts is.
    """
    folder = tmp_path_factory.mktemp("third_party")
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    result = subprocess.run(
        [sys.executable, "-c", _BUILD, str(folder)], cwd=folder / "source", capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return {"PYTHONPATH": f"{daemons.ROOT}{os.pathsep}{folder / 'site'}"}


def test_example_is_under_forty_lines() -> None:
    """A policy of one's own is no big thing."""
    lines = (EXAMPLE / "shortest_queue.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) < 40


def test_installed_policy_is_listed_with_its_distribution(site: dict[str, str]) -> None:
    """Without it the list has the four built-in ones; with it five."""
    without, beside = daemons.command("policies"), daemons.command("policies", extra=site)
    assert (without.returncode, beside.returncode, beside.stderr) == (0, 0, "")
    (row,) = set(beside.stdout.splitlines()) - set(without.stdout.splitlines())
    assert row.split()[:2] == [NAME, "shortest-queue-policy"]


def test_installed_policy_serves_with_its_options(site: dict[str, str], engine: Daemon) -> None:
    """With a limit of one turn at a time, three programs at once wait for each other, and all are answered."""
    options = ("--policy", NAME, "--policy-option", "limit=1", "--log-level", "debug")
    router = daemons.router([engine.url], *options, extra=site).wait_ready()
    names = [f"third-{number}" for number in range(3)]
    try:
        with ThreadPoolExecutor(3) as threads:
            answers = list(threads.map(lambda name: router.chat("hello", program_id=name, max_tokens=20), names))
        released = [router.post("/programs/release", {"program_id": name})["released"] for name in names]
        assert [answer["usage"]["completion_tokens"] for answer in answers] == [20, 20, 20]
        assert router.get("/health")["policy"] == NAME
        assert (released, router.get("/programs")) == ([True] * 3, {})
        assert router.stop() == 0
        assert "turn.held" in router.log
        assert "policy.failed" not in router.log
        assert "policy.decision_rejected" not in router.log
    finally:
        router.kill()


def test_wrong_option_of_an_installed_policy_stops_the_start_with_its_words(site: dict[str, str]) -> None:
    """The policy's own message, in one line."""
    arguments = ("serve", "--backends", "http://127.0.0.1:9", "--policy", NAME, "--policy-option", "limit=0")
    result = daemons.command(*arguments, extra=site)
    assert result.returncode == 2
    expected = "policy 'shortest-queue': option limit must be a whole number above 0, got '0'"
    assert result.stderr == f"thunderagent serve: {expected}\n"
