"""Checkouts of the sample instances: a git repository each, which ends in the state with the bug."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from examples.swebench.sample import Sample

_RUNNER = Path(__file__).with_name("run_unittests.py")
_AUTHOR = "Sample Maintainer"
_EMAIL = "maintainer@example.invalid"
_IMPORT_DATE = "2023-01-02T08:00:00+00:00"
_TEST_SECONDS = 60


class CheckoutError(Exception):
    """A git or test command of a checkout failed; ``command`` and ``output`` say which and why."""

    def __init__(self, command: Sequence[str], output: str) -> None:
        super().__init__(command, output)
        self.command = tuple(command)
        self.output = output

    def __str__(self) -> str:
        return f"`{' '.join(self.command)}` failed: {self.output.strip() or 'no output'}"


@attrs.frozen
class Verdict:
    """What the tests say about one patch: ``resolved`` when both tuples are empty and there is no error."""

    failing: tuple[str, ...]
    broken: tuple[str, ...]
    error: str | None = None

    @property
    def resolved(self) -> bool:
        """True when each deciding test passes and no other test broke."""
        return self.error is None and not self.failing and not self.broken

    def __str__(self) -> str:
        if self.error is not None:
            return self.error
        if self.resolved:
            return "resolved"
        return f"{len(self.failing)} deciding tests still fail, {len(self.broken)} others broke"


def git_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment under which git ignores the user's settings and stamps no wall-clock time of its own.

    ``base`` None takes this process's environment. Git's repository variables (``GIT_DIR`` and the like, set
    where this runs inside a git hook) are left out, since they would redirect every checkout.
    """
    source = os.environ if base is None else base
    kept = {name: value for name, value in source.items() if not name.startswith("GIT_")}
    identity = {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": _AUTHOR,
        "GIT_AUTHOR_EMAIL": _EMAIL,
        "GIT_COMMITTER_NAME": _AUTHOR,
        "GIT_COMMITTER_EMAIL": _EMAIL,
        "GIT_TERMINAL_PROMPT": "0",
    }
    return {**kept, **identity, "PYTHONDONTWRITEBYTECODE": "1"}


def create(sample: Sample, directory: Path) -> str:
    """Write the instance's buggy state as a git repository into ``directory``, which must not exist.

    Returns the commit's hash: it depends on nothing but the sample (names, dates and contents are fixed).

    Raises:
        CheckoutError: git failed.
        FileExistsError: the directory is there already.
    """
    directory.mkdir(parents=True)
    files = sample.files(fixed=False)
    _git(directory, "init", "--quiet", "--object-format=sha1", "--initial-branch=main")
    readme = {"README.md": files["README.md"]}
    _commit(directory, readme, f"Start {sample.repo}", _IMPORT_DATE)
    _commit(directory, files, f"{sample.repo} {sample.version}", sample.created_at)
    return _git(directory, "rev-parse", "HEAD").strip()


def apply_patch(directory: Path, patch: str) -> None:
    """Apply a unified diff to the checkout.

    Raises:
        CheckoutError: it does not apply; nothing is changed then.
    """
    _git(directory, "apply", "--whitespace=nowarn", "-", stdin=patch)


def unittest_outcomes(directory: Path, modules: Sequence[str] = ()) -> dict[str, bool]:
    """Run the checkout's unit tests (all of them for no ``modules``): test id -> whether it passed.

    Raises:
        CheckoutError: the runner itself failed or took over a minute.
    """
    command = [sys.executable, str(_RUNNER), *modules]
    output = _run(command, directory)
    outcomes: dict[str, str] = json.loads(output)
    return {name: outcome == "passed" for name, outcome in outcomes.items()}


def judge(sample: Sample, row: Mapping[str, str], patch: str, directory: Path) -> Verdict:
    """Try ``patch`` on a fresh checkout in ``directory`` with the row's deciding tests added."""
    create(sample, directory)
    if not patch.strip():
        return Verdict((), (), error="empty patch")
    try:
        apply_patch(directory, patch)
        apply_patch(directory, row["test_patch"])
        outcomes = unittest_outcomes(directory)
    except CheckoutError as error:
        return Verdict((), (), error=str(error))
    return Verdict(
        failing=tuple(name for name in json.loads(row["FAIL_TO_PASS"]) if not outcomes.get(name, False)),
        broken=tuple(name for name in json.loads(row["PASS_TO_PASS"]) if not outcomes.get(name, False)),
    )


def failing_before(sample: Sample, row: Mapping[str, str], directory: Path) -> Verdict:
    """Check that without a patch each deciding test fails and each other test passes.

    ``failing`` then lists the deciding tests that pass although they should not.
    """
    create(sample, directory)
    try:
        apply_patch(directory, row["test_patch"])
        outcomes = unittest_outcomes(directory)
    except CheckoutError as error:
        return Verdict((), (), error=str(error))
    return Verdict(
        failing=tuple(name for name in json.loads(row["FAIL_TO_PASS"]) if outcomes.get(name, True)),
        broken=tuple(name for name in json.loads(row["PASS_TO_PASS"]) if not outcomes.get(name, False)),
    )


def _commit(directory: Path, files: Mapping[str, str], message: str, date: str) -> None:
    for path, text in files.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", newline="\n")
    _git(directory, "add", "--all")
    dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    _run(["git", "commit", "--quiet", "--no-gpg-sign", "--no-verify", "-m", message], directory, dates)


def _git(directory: Path, *arguments: str, stdin: str | None = None) -> str:
    return _run(["git", *arguments], directory, stdin=stdin)


def _run(
    command: Sequence[str],
    directory: Path,
    environment: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env={**git_environment(), **(environment or {})},
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TEST_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CheckoutError(command, str(error)) from error
    if done.returncode != 0:
        raise CheckoutError(command, done.stderr or done.stdout)
    return done.stdout
