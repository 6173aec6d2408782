"""The sample data set: SWE-bench rows made from the samples, shipped as ``dataset/test.jsonl``.

``python -m examples.swebench.dataset`` writes the file anew after a sample changed; it runs every sample's
tests with and without the bug and refuses a sample whose tests do not tell the two apart.
"""

from __future__ import annotations

import difflib
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from examples.swebench import checkouts
from examples.swebench.sample import Sample, load_samples

__all__ = ["DATASET", "SAMPLES", "by_id", "gold_patch", "load_rows", "make_row", "run_parallel", "write_rows"]

SAMPLES = load_samples()
DATASET = Path(__file__).parent / "dataset"
Row = dict[str, str]
_Result = TypeVar("_Result")


def by_id() -> dict[str, Sample]:
    """The samples by instance id."""
    return {sample.instance_id: sample for sample in SAMPLES}


def gold_patch(sample: Sample) -> str:
    """The unified diff that takes the bug out."""
    broken, fixed = sample.files(fixed=False), sample.files(fixed=True)
    return "".join(_file_diff(path, broken[path], fixed[path]) for path in sorted(sample.edited_paths))


def test_patch(sample: Sample) -> str:
    """The unified diff that adds the deciding test module."""
    return _file_diff(sample.test_path, None, sample.tests.lstrip("\n"))


def make_row(sample: Sample, directory: Path) -> Row:
    """The sample's row of the data set, worked out in ``directory`` by running its tests in both states.

    Raises:
        ValueError: a deciding test passes with the bug or fails without it, or another test fails.
        CheckoutError: git or a test run failed.
    """
    base = directory / "base"
    commit = checkouts.create(sample, base)
    checkouts.apply_patch(base, test_patch(sample))
    before = checkouts.unittest_outcomes(base)
    checkouts.apply_patch(base, gold_patch(sample))
    after = checkouts.unittest_outcomes(base)
    deciding_module = sample.test_path.removesuffix(".py").replace("/", ".") + "."
    deciding = [name for name in after if name.startswith(deciding_module)]
    others = [name for name in after if not name.startswith(deciding_module)]
    wrong = [name for name in after if not after[name]]
    wrong += [name for name in deciding if before.get(name, True)]
    wrong += [name for name in others if not before.get(name, False)]
    if wrong or not deciding or not others:
        raise ValueError(f"{sample.instance_id}: tests do not tell the bug apart: {wrong or 'none found'}")
    return {
        "repo": f"{sample.repo}/{sample.repo}",
        "instance_id": sample.instance_id,
        "base_commit": commit,
        "patch": gold_patch(sample),
        "test_patch": test_patch(sample),
        "problem_statement": sample.problem_statement(),
        "hints_text": "",
        "created_at": sample.created_at,
        "version": sample.version,
        "FAIL_TO_PASS": json.dumps(deciding),
        "PASS_TO_PASS": json.dumps(others),
        "environment_setup_commit": commit,
    }


def load_rows(path: Path = DATASET / "test.jsonl") -> dict[str, Row]:
    """The shipped rows by instance id, in the file's order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {row["instance_id"]: row for row in (json.loads(line) for line in lines)}


def write_rows(rows: Iterable[Mapping[str, str]], path: Path) -> None:
    """Write rows as JSON lines; the parent directory is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def run_parallel(task: Callable[[Sample, Path], _Result], samples: Sequence[Sample]) -> list[_Result]:
    """Run ``task(sample, empty directory)`` for each sample, four at a time; results in the samples' order.

    The directories are temporary and are gone at the return. The work is in child processes (git, the
    tests), so threads are enough.
    """
    with tempfile.TemporaryDirectory(prefix="swebench-samples-") as root:
        directories = [Path(root) / sample.instance_id for sample in samples]
        with ThreadPoolExecutor(max_workers=4) as pool:
            return list(pool.map(task, samples, directories))


def _file_diff(path: str, before: str | None, after: str) -> str:
    old_name = "/dev/null" if before is None else f"a/{path}"
    lines = difflib.unified_diff(
        (before or "").splitlines(keepends=True), after.splitlines(keepends=True), old_name, f"b/{path}"
    )
    mode = "new file mode 100644\n" if before is None else ""
    return f"diff --git a/{path} b/{path}\n{mode}{''.join(lines)}"


def main() -> None:
    """Write the shipped file; exit status 1 and one line where a sample is wrong."""
    try:
        rows = run_parallel(make_row, SAMPLES)
    except (ValueError, checkouts.CheckoutError) as error:
        sys.exit(f"dataset: {error}")
    write_rows(rows, DATASET / "test.jsonl")
    print(f"{len(rows)} instances of {len({row['repo'] for row in rows})} repositories in {DATASET}")


if __name__ == "__main__":
    main()
