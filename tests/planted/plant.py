"""Plants known bugs, one at a time, in a copy of the sources, and checks that the tests find each of them.

``python tests/planted/plant.py`` runs every ``*.patch`` beside this file; an argument is the name of one of them or
the path of another. ``planted_patch.py`` says what a patch is.

A patch is *caught* where tests that pass without it fail with it, *MISSED* where they pass or do not end, and
*BROKEN* where it proves nothing: it does not apply, is no Python, or its tests fail without it or do not start.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from enum import Enum
from pathlib import Path
from xml.etree import ElementTree

from attrs import define, field, frozen
from planted_patch import HERE, ROOT, WANTED_PATCHES, Patch, all_patches, git_apply, load, touched

LIMIT_SECONDS = 300.0
COPIED = ("thunderagent", "policies", "tests")
PYTEST = (
    *(sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "planted_probe"),
    *("--junitxml=report.xml", "--timeout=0"),  # the limit of a run is the only one: a hang is not a failure
)
_NO_BUG = re.compile(r"^E? *((?:Import|ModuleNotFound|Syntax|Indentation|Name)Error: .*)", re.MULTILINE)
"""What a patch that is no Python raises, as opposed to Python that does the wrong thing; anywhere in a traceback,
because the books do not balance either after a scheduler that stopped half-way."""


class Verdict(Enum):
    """What came of a patch; only ``CAUGHT`` passes."""

    CAUGHT = "caught"
    MISSED = "MISSED"
    BROKEN = "BROKEN"


@frozen
class Run:
    """One run of pytest."""

    status: int | None
    """Exit status; None: it did not end in time."""
    seconds: float
    test: str | None
    """The first test that failed."""
    message: str
    """What that test raised; without such a test, the last line of the output."""

    def __str__(self) -> str:
        if self.status is None:
            return f"no end within {self.seconds:.0f} s"
        return f"{self.test or 'pytest'}: {self.message} (status {self.status})"


def copy_sources(root: Path, path: Path | None) -> None:
    """Put what is tested into ``root``, with a patch where ``path`` names one.

    Raises:
        ValueError: the patch does not apply, or what it makes is no Python.
    """
    for name in COPIED:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", HERE.name))
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copy(HERE / "planted_probe.py", root)
    if path is None:
        return
    git_apply(path, root)
    try:
        for changed in [root / name for name in touched(path) if name.endswith(".py")]:
            compile(changed.read_bytes() if changed.exists() else b"", changed.name, "exec")
    except SyntaxError as error:
        raise ValueError(f"is no Python: {error}") from error


def read_report(report: Path, output: Path) -> tuple[str | None, str]:
    """Name and message of the first failure in a JUnit report; without one, None and the last line of the output."""
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):
            for child in case:
                if child.tag in ("failure", "error"):
                    typo = _NO_BUG.search(child.text or "")
                    message = typo[1] if typo else child.get("message", "").partition("\n")[0]
                    return case.get("name", ""), message
    return None, (output.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"])[-1]


def verdict_on(patch: Patch, run: Run) -> tuple[Verdict, str]:
    """The verdict where the tests pass without the patch, and the failing test or the reason."""
    if run.status is None:
        return Verdict.CAUGHT if patch.may_hang else Verdict.MISSED, str(run)
    if run.status == 0:
        return Verdict.MISSED, "every test passes"
    if run.status != 1 or run.test is None or _NO_BUG.match(run.message):
        return Verdict.BROKEN, str(run)
    return Verdict.CAUGHT, run.test


@define(eq=False)
class Planter:
    """Judges patches, as many at once as there are processors."""

    limit_seconds: float
    _groups: set[int] = field(factory=set)
    """Process groups that run."""

    def judge_all(self, patches: Sequence[Patch]) -> Iterator[tuple[Patch, Verdict, float, str]]:
        """Each patch as it is judged, with the seconds that its tests took and the failing test or the reason."""
        samples = {(patch.is_long, patch.caught_by): patch for patch in patches}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                runs = pool.map(lambda patch: self.run(patch, is_planted=False), samples.values())
                unpatched = dict(zip(samples, runs, strict=True))
                for future in as_completed(
                    [pool.submit(self.judge, patch, unpatched[patch.is_long, patch.caught_by]) for patch in patches]
                ):
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for group in list(self._groups):
                    _kill(group)
                raise

    def judge(self, patch: Patch, unpatched: Run) -> tuple[Patch, Verdict, float, str]:
        """Judge one patch, given how its tests do without it."""
        if unpatched.status != 0:
            return patch, Verdict.BROKEN, 0.0, f"its tests do not pass without it: {unpatched}"
        try:
            run = self.run(patch, is_planted=True)
        except ValueError as error:
            return patch, Verdict.BROKEN, 0.0, str(error)
        verdict, reason = verdict_on(patch, run)
        return patch, verdict, run.seconds, reason

    def run(self, patch: Patch, *, is_planted: bool) -> Run:
        """Run the tests of a patch in a copy of the sources, with or without it.

        Raises:
            ValueError: as ``copy_sources``.
        """
        with tempfile.TemporaryDirectory(prefix="planted-") as folder:
            root = Path(folder).resolve()
            copy_sources(root, patch.path if is_planted else None)
            profile = "long" if patch.is_long else "short"
            environment = {**os.environ, "PYTHONPATH": str(root), "HYPOTHESIS_PROFILE": profile}
            began_at, status = time.monotonic(), None
            with (root / "output.txt").open("wb") as output:
                process = subprocess.Popen(
                    [*PYTEST, *patch.caught_by],
                    cwd=root,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self._groups.add(process.pid)
                try:
                    status = process.wait(self.limit_seconds)
                except subprocess.TimeoutExpired:
                    pass
                finally:
                    _kill(process.pid)  # whatever the tests left, too
                    self._groups.discard(process.pid)
                    process.wait()
            seconds = time.monotonic() - began_at
            return Run(status, seconds, *read_report(root / "report.xml", root / "output.txt"))


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


def check(path: Path, *, applies: bool) -> Patch | None:
    """Read a patch and see whether it applies to the sources as they are; None, and a line about it: not."""
    try:
        patch = load(path)
        if applies:
            git_apply(path, ROOT, "--check")
    except ValueError as error:
        say(path, Verdict.BROKEN.value, str(error))
        return None
    return patch


def say(path: Path, word: str, text: str, seconds: float | None = None) -> None:
    """Print a patch's line; None: nothing ran."""
    shown = "" if seconds is None else f"{seconds:.1f} s"
    print(f"{path.stem:40} {word:7} {shown:>7}  {text}".rstrip(), flush=True)  # noqa: T201


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("patches", nargs="*", help="name of a patch, or path of one elsewhere (default: all)")
    parser.add_argument("--list", action="store_true", help="show the bugs and run nothing")
    parser.add_argument("--check-applies", action="store_true", help="check that the patches apply and run no test")
    parser.add_argument("--limit-seconds", type=float, default=LIMIT_SECONDS, help="of one run (%(default)s)")
    given = parser.parse_args()
    known = {path.stem: path for path in all_patches()}
    paths = [known.get(name) or Path(name).resolve() for name in given.patches] or list(known.values())
    for path in paths:
        if not path.is_file():
            parser.error(f"there is no patch {path.name!r}; --list shows those there are")
    patches = [patch for path in paths if (patch := check(path, applies=not given.list))]
    if given.list:
        for patch in patches:
            say(patch.path, "", f"{patch.bug} [{patch.defect}]")
        return 0 if len(patches) == len(paths) else 1
    passed = 0
    if given.check_applies:
        passed = len(patches)
        for patch in patches:
            say(patch.path, "applies", "")
    else:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        for patch, verdict, seconds, reason in Planter(given.limit_seconds).judge_all(patches):
            passed += verdict is Verdict.CAUGHT
            say(patch.path, verdict.value, reason, seconds)
    print(f"{passed} passed, {len(paths) - passed} failed")  # noqa: T201
    if len(known) < WANTED_PATCHES:
        sys.stderr.write(f"{len(known)} patches in {HERE}, where {WANTED_PATCHES} are wanted\n")
    return 0 if passed == len(paths) and len(known) >= WANTED_PATCHES else 1


if __name__ == "__main__":
    raise SystemExit(main())
