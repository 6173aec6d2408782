"""One run of the demo: checkouts, engines, router and agents for one policy, then the judging of the patches."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import attrs

from examples.processes import Child, Children, free_port, get
from examples.swebench import checkouts, dataset, launch
from examples.swebench.predictions import read_predictions
from examples.swebench.report import (
    Report,
    engine_counts,
    read_samples,
    read_trajectories,
    router_counts,
    total,
)
from examples.swebench.sample import Sample
from examples.swebench.script import engine_script

MODEL = "emulated"
_LINE_SECONDS = 5.0
_TTY_SECONDS = 0.5


@attrs.frozen
class DemoSettings:
    """What all policies of one demo share. ``kv_tokens`` and ``speed`` are each engine's."""

    samples: tuple[Sample, ...]
    workers: int
    engines: int
    kv_tokens: int
    speed: float
    preset: str
    limit_seconds: float


@attrs.frozen
class PolicyRun:
    """The outcome: the report and each instance's verdict."""

    report: Report
    verdicts: dict[str, checkouts.Verdict]


def run_policy(policy: str, settings: DemoSettings, directory: Path) -> PolicyRun:
    """Run all instances under ``policy`` with everything it writes below ``directory`` (new).

    Raises:
        ChildFailed: an engine, the router or the agents did not start, died, or took too long.
        CheckoutError: a checkout could not be made.
    """
    work = prepare(settings.samples, directory)
    print(f"{policy}: starting {settings.engines} engines, the router and mini-swe-agent", flush=True)
    with Children(directory / "logs") as children:
        engines = [_start_engine(children, number, settings, directory) for number in range(settings.engines)]
        router = _start_router(children, policy, settings, engines)
        started = time.monotonic()
        agents = _start_agents(children, settings, router, work, directory)
        _follow(policy, settings, agents, children, router, engines, directory)
        wall_seconds = time.monotonic() - started
        engine_figures, router_figures = engine_counts(engines), router_counts(router)
    predictions = read_predictions(directory / "results")
    verdicts = judge(settings.samples, predictions)
    report = Report(
        policy=policy,
        instances=len(settings.samples),
        empty_patches=sum(1 for s in settings.samples if not predictions.get(s.instance_id, "").strip()),
        resolved=sum(1 for verdict in verdicts.values() if verdict.resolved),
        trajectories=read_trajectories(directory / "results"),
        engines=engine_figures,
        router=router_figures,
        wall_seconds=wall_seconds,
        backends=settings.engines,
        kv_tokens=settings.kv_tokens,
    )
    return PolicyRun(report, verdicts)


def prepare(samples: tuple[Sample, ...], directory: Path) -> Path:
    """Write the checkouts, the data set and the engines' script; the checkouts' common parent.

    mini-swe-agent's local environment has one working directory for all instances, so the statement of each
    ends with the name of its checkout there.
    """
    work = directory / "work"
    for sample in samples:
        checkouts.create(sample, work / sample.instance_id)
    rows = dataset.load_rows()
    dataset.write_rows(
        (with_place(rows[sample.instance_id]) for sample in samples), directory / "dataset" / "test.jsonl"
    )
    script = json.dumps(engine_script(samples), ensure_ascii=False, indent=1)
    (directory / "script.json").write_text(script, encoding="utf-8")
    return work


def with_place(row: Mapping[str, str]) -> dict[str, str]:
    """The row with the place of its checkout named at the end of the problem statement."""
    place = f"(The repository is checked out in ./{row['instance_id']} of the working directory.)\n"
    return {**row, "problem_statement": f"{row['problem_statement']}\n{place}"}


def judge(samples: tuple[Sample, ...], predictions: Mapping[str, str]) -> dict[str, checkouts.Verdict]:
    """Try each patch on a fresh checkout; a missing one counts as empty."""
    rows = dataset.load_rows()
    verdicts = dataset.run_parallel(
        lambda sample, directory: checkouts.judge(
            sample, rows[sample.instance_id], predictions.get(sample.instance_id, ""), directory
        ),
        samples,
    )
    return {sample.instance_id: verdict for sample, verdict in zip(samples, verdicts, strict=True)}


def agent_options(work: Path) -> list[str]:
    """Flags for mini-swe-agent's local environment; a missing checkout fails its instance at once."""
    settings = (f"environment.cwd={work}", "run.env_startup_command=test -d {{instance_id}}/.git")
    return [argument for setting in settings for argument in ("-c", setting)]


def local_environment(directory: Path) -> dict[str, str]:
    """Environment of the agents: offline, git without the user's settings, this Python first on the path."""
    base = launch.offline_environment(launch.agents_environment(checkouts.git_environment()), directory / "home")
    interpreter = str(Path(sys.executable).parent)
    # A fixed hash seed: what the commands print, and so the prompts, is the same in each run.
    return {**base, "PATH": f"{interpreter}:{base.get('PATH', '')}", "PYTHONHASHSEED": "0"}


def _start_engine(children: Children, number: int, settings: DemoSettings, directory: Path) -> str:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = launch.engine_command(
        port,
        model=MODEL,
        kv_tokens=settings.kv_tokens,
        speed=settings.speed,
        preset=settings.preset,
        script=directory / "script.json",
    )
    child = children.start(f"engine-{number}", command, launch.agents_environment())
    child.wait_ready(f"{url}/health", launch.READY_SECONDS)
    return url


def _start_router(children: Children, policy: str, settings: DemoSettings, engines: list[str]) -> str:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = ("--clock-speed", f"{settings.speed:g}")
    command = launch.router_command(port, engines, policy, options=options)
    child = children.start("router", command, launch.agents_environment())
    child.wait_ready(f"{url}/readyz", launch.READY_SECONDS)
    return url


def _start_agents(children: Children, settings: DemoSettings, router: str, work: Path, directory: Path) -> Child:
    command = launch.agents_command(
        subset=str(directory / "dataset"),
        split="test",
        workers=settings.workers,
        model=MODEL,
        router=router,
        output=directory / "results",
        environment_class="local",
        options=agent_options(work),
    )
    return children.start("agents", command, local_environment(directory))


def _follow(
    policy: str,
    settings: DemoSettings,
    agents: Child,
    children: Children,
    router: str,
    engines: list[str],
    directory: Path,
) -> None:
    """Show progress until the agents end. Raises ChildFailed as ``run_policy`` says, or for a bad exit status."""
    started = time.monotonic()
    tty = sys.stdout.isatty()
    while True:
        status = agents.wait(_TTY_SECONDS if tty else _LINE_SECONDS)
        seconds = time.monotonic() - started
        line = (
            f"{policy}: {seconds:4.0f} s  {progress(router, engines, directory / 'results', len(settings.samples))}"
        )
        if tty:
            line = "\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1]
        print(line, end="" if tty and status is None else "\n", flush=True)
        if status is not None:
            break
        children.check(but=agents)
        if seconds > settings.limit_seconds:
            raise agents.failed(f"took more than {settings.limit_seconds:g} s")
    if status != 0:
        raise agents.failed(f"ended with status {status}")


def progress(router: str, engines: list[str], results: Path, instances: int) -> str:
    """Instances done, turns, held turns, paused programs and each engine's KV use, as far as they can be read."""
    done = len(read_predictions(results))
    try:
        samples = read_samples(get(f"{router}/metrics"))
        usage = [total(read_samples(get(f"{url}/metrics")), "vllm:kv_cache_usage_perc") or 0.0 for url in engines]
    except (OSError, ValueError):
        return f"{done}/{instances} done"
    turns = total(samples, "thunderagent_turns_total") or 0
    held = total(samples, "thunderagent_turns_held") or 0
    paused = total(samples, "thunderagent_programs", status="paused") or 0
    shown = " ".join(f"{share:4.0%}" for share in usage)
    return f"{done}/{instances} done  {turns:.0f} turns  {held:.0f} held  {paused:.0f} paused  KV in use {shown}"
