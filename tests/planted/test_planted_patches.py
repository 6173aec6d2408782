"""The planted bugs themselves; ``plant.py`` runs them, which takes minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted_patch import ROOT, WANTED_PATCHES, all_patches, git_apply, load, touched

every_patch = pytest.mark.parametrize("path", all_patches(), ids=lambda path: path.stem)


def test_planted_bugs_are_enough() -> None:
    """There are as many as ``plant.py`` wants."""
    assert len(all_patches()) >= WANTED_PATCHES


@every_patch
def test_header_of_a_planted_bug_names_tests_that_exist(path: Path) -> None:
    """It says what is wrong, which defect that is and what finds it."""
    lost = [name for name in load(path).test_paths if not (ROOT / name).exists()]
    assert lost == []


@every_patch
def test_planted_bug_applies_to_the_sources(path: Path) -> None:
    """A change of the sources takes its planted bugs along."""
    git_apply(path, ROOT, "--check")


@every_patch
def test_planted_bug_lies_in_the_daemon_or_a_policy(path: Path) -> None:
    """Tests and tools stay as they are."""
    names = touched(path)
    assert names
    assert [name for name in names if not name.startswith(("thunderagent/", "policies/"))] == []
