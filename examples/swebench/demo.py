"""``make demo``: the main job without a GPU: two emulated engines, the router, the real mini-swe-agent.

The engines are emulated: they keep a real block-based KV cache and count real tokens, but no model runs; their
replies come from a script of shell commands, and their seconds are simulated. Everything else is real: the router,
mini-swe-agent with litellm and the patch, the commands, the checkouts, the patches and the tests that judge them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from examples.processes import ChildFailed, interrupt_on_termination
from examples.swebench import dataset
from examples.swebench.checkouts import CheckoutError, failing_before
from examples.swebench.demo_run import DemoSettings, PolicyRun, run_policy
from examples.swebench.report import compare, render
from examples.swebench.sample import Sample

COMPARED = ("round-robin", "affinity", "working-set")
_MARKER = ".thunderagent-demo"
_LARGEST_SHARE = 4
"""The largest program needs at most one part in this many of one engine's KV."""


class DemoError(Exception):
    """The demo can't start: one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The demo; exit status 0, 1 (something did not come out right), 2 (usage), 130 (interrupted)."""
    options = _parse(arguments)
    interrupt_on_termination()
    try:
        return _run(options)
    except KeyboardInterrupt:
        print("\ndemo: interrupted; every process it started has ended", file=sys.stderr)
        return 130
    except (DemoError, ChildFailed, CheckoutError, OSError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 2 if isinstance(error, DemoError) else 1


def _run(options: argparse.Namespace) -> int:
    samples = dataset.SAMPLES[: options.instances]
    policies = COMPARED if options.compare else (options.policy,)
    output = _prepare_output(options.output.resolve())
    settings = DemoSettings(
        samples=samples,
        workers=options.workers or len(samples),
        engines=options.engines,
        kv_tokens=options.kv_tokens,
        speed=options.speed,
        preset=options.preset,
        limit_seconds=options.limit_seconds,
    )
    _announce(settings, policies, output)
    _check_samples(samples)
    runs = [run_policy(policy, settings, output / policy) for policy in policies]
    return _conclude(runs, settings)


def _announce(settings: DemoSettings, policies: Sequence[str], output: Path) -> None:
    repositories = len({sample.repo for sample in settings.samples})
    print(
        f"{len(settings.samples)} SWE-bench-format instances of {repositories} sample repositories, "
        f"{settings.workers} agents at a time, {settings.engines} EMULATED engines of "
        f"{settings.kv_tokens:,} KV tokens (preset {settings.preset}, {settings.speed:g} times as fast).\n"
        "Emulated means: prompts, caching, batching and counts are real; no model runs, no second is a GPU's.\n"
        f"Policy: {', '.join(policies)}. Files: {output}",
        flush=True,
    )


def _check_samples(samples: Sequence[Sample]) -> None:
    """Every instance's deciding tests fail before a patch, the others pass. Raises DemoError."""
    rows = dataset.load_rows()
    verdicts = dataset.run_parallel(
        lambda sample, directory: failing_before(sample, rows[sample.instance_id], directory), samples
    )
    wrong = [
        f"{sample.instance_id} ({verdict})"
        for sample, verdict in zip(samples, verdicts, strict=True)
        if not verdict.resolved
    ]
    if wrong:
        raise DemoError(f"samples whose tests do not show their bug: {', '.join(wrong)}")
    tests = sum(len(json.loads(rows[sample.instance_id]["FAIL_TO_PASS"])) for sample in samples)
    print(f"before: {tests} deciding tests fail in {len(samples)} fresh checkouts, all other tests pass", flush=True)


def _conclude(runs: Sequence[PolicyRun], settings: DemoSettings) -> int:
    reports = [run.report for run in runs]
    print("\n" + render(reports))
    if len(reports) > 1:
        print("\n" + "\n".join(compare(reports)))
    faults = [f"{run.report.policy}: {fault}" for run in runs for fault in _faults(run, settings)]
    print(
        "\nThe engines are emulated: tokens, hits, holds and patches above are real counts, "
        "the seconds are not a GPU's."
    )
    for fault in faults:
        print(f"demo: {fault}", file=sys.stderr)
    if not faults:
        print("ok: every patch came out of git diff, makes its tests pass and breaks no other; no program is left")
    return 1 if faults else 0


def _faults(run: PolicyRun, settings: DemoSettings) -> list[str]:
    """What did not come out as it should, one line each."""
    report = run.report
    faults = [f"{instance}: {verdict}" for instance, verdict in run.verdicts.items() if not verdict.resolved]
    if report.router.programs_left:
        faults.append(f"{report.router.programs_left} programs left at the router")
    if report.policy == "working-set" and not (report.router.holds and report.router.pauses):
        faults.append(f"no pressure: {report.router.holds} holds, {report.router.pauses} pauses")
    if report.trajectories.largest_tokens * _LARGEST_SHARE > settings.kv_tokens:
        faults.append(
            f"the largest program has {report.trajectories.largest_tokens:,} tokens, more than a quarter of an "
            f"engine's {settings.kv_tokens:,}: the pressure would come from a tiny cache"
        )
    return faults


def _prepare_output(output: Path) -> Path:
    """Make the directory; what an earlier demo left there is removed, anything else is refused."""
    if output.exists() and any(output.iterdir()):
        if not (output / _MARKER).is_file():
            raise DemoError(f"{output} is not empty and not from an earlier demo; give another --output")
        _remove(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / _MARKER).write_text("Written by examples.swebench.demo; removed by its next run.\n", encoding="utf-8")
    return output


def _remove(directory: Path) -> None:
    """Remove a tree by way of a renamed one, so that an interrupted removal is never taken for a run."""
    grave = tempfile.TemporaryDirectory(prefix=f"{directory.name}-old-", dir=directory.parent)
    directory.rename(Path(grave.name) / directory.name)
    grave.cleanup()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.swebench.demo",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--policy", default="working-set", help="scheduling policy (default %(default)s)")
    parser.add_argument("--compare", action="store_true", help=f"run {', '.join(COMPARED)} one after the other")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), help="default %(default)s")
    parser.add_argument("--workers", type=_positive, help="agents at a time (default: all instances)")
    parser.add_argument("--instances", type=_positive, default=len(dataset.SAMPLES), help="only the first so many")
    parser.add_argument("--engines", type=_positive, default=2, help="emulated engines (default %(default)s)")
    parser.add_argument("--kv-tokens", type=_positive, default=36_864, help="of each engine (default %(default)s)")
    parser.add_argument(
        "--speed", type=_factor, default=2.0, help="simulated seconds per second (default %(default)s)"
    )
    parser.add_argument("--preset", default="small-gpu", help="the engines' timing preset (default %(default)s)")
    parser.add_argument("--limit-seconds", type=_factor, default=600.0, help="per policy (default %(default)s)")
    options = parser.parse_args(arguments)
    if options.compare and options.policy != "working-set":
        parser.error("--compare runs its own policies; leave --policy out")
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _factor(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("must be a positive number")
    return number


if __name__ == "__main__":
    sys.exit(main())
