"""``thunderagent simulate``: what would my replicas carry, and under which policy?"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import click
from attrs import evolve
from click.core import ParameterSource

from thunderagent.cli.failure import CommandBroken, CommandError
from thunderagent.cli.outputs import check_output
from thunderagent.core.settings import OnHoldLimit
from thunderagent.emulator.preset_file import PresetError, find_preset
from thunderagent.emulator.timing import PRESETS
from thunderagent.errors import ConfigError
from thunderagent.simulator.figures import Figures
from thunderagent.simulator.incidents import Addition, Failure, Incident, parse_addition, parse_failure
from thunderagent.simulator.perturbation import changed_of, parse_perturbation
from thunderagent.simulator.report import Series, check_drawing, write_html, write_plot
from thunderagent.simulator.scenario import MOST_SECONDS, Arm, Scenario, parse_arm
from thunderagent.simulator.shown import ALWAYS, IF_ANY, TURNS, Shown
from thunderagent.simulator.study import Task, WorkerKilled, estimate, paired_ratio, run_all, tasks_of
from thunderagent.simulator.workloads import WORKLOADS
from thunderagent.trace import TraceError, read_trace

__all__ = ["simulate"]

_SWEEPS = {"sessions": int, "replicas": int, "kv-tokens": int, "pressure": float, "release": float}
"""What can be swept, and how its values are read."""

_FIELDS = {"kv-tokens": "kv_tokens", "release": "release_ratio"}
"""Those that a scenario calls otherwise."""

_OVERRIDDEN = {"sessions": ("sessions", "pressure"), "pressure": ("sessions", "pressure"), "release": ("release",)}
"""Per thing that can be swept, the options that then do nothing."""


@click.command("simulate")
@click.option(
    "--workload", type=click.Choice(list(WORKLOADS)), default="swe-agent", show_default=True, help="Agents."
)
@click.option("--trace", type=click.Path(path_type=Path), help="Replay a file that `serve --record` wrote instead.")
@click.option(
    "--preset",
    metavar="NAME|FILE",
    help=f"Engine: {', '.join(PRESETS)}, or a file of `thunderagent calibrate`.  [default: the workload's]",
)
@click.option("--replicas", type=click.IntRange(1), default=1, show_default=True, help="Engines.")
@click.option("--kv-tokens", type=click.IntRange(1), help="KV cache per replica.  [default: the workload's]")
@click.option("--sessions", type=click.IntRange(1), help="Programs at a time, on all replicas.")
@click.option("--pressure", type=float, help="Instead of --sessions: their mean tokens over all KV tokens.")
@click.option(
    "--policy",
    default="working-set",
    show_default=True,
    metavar="NAME[:OPTION=VALUE,...]",
    help="Scheduling policy.",
)
@click.option("--policy-option", "options", multiple=True, metavar="OPTION=VALUE", help="For --policy; repeatable.")
@click.option("--compare", multiple=True, metavar="NAME[:OPTION=VALUE,...]", help="Another policy; repeatable.")
@click.option("--sweep", metavar="WHAT=VALUE,...", help=f"One table per value; WHAT: {', '.join(_SWEEPS)}.")
@click.option(
    "--release", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="Share of released programs."
)
@click.option(
    "--vanish", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Share of clients that vanish."
)
@click.option(
    "--seconds", type=float, help="Simulated, warm-up included.  [default: 3600; of a trace, 4 times its length]"
)
@click.option(
    "--warmup",
    type=float,
    help="Seconds at the beginning not counted.  [default: a sixth; 0 for rl-rollout and a trace, which end]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first run.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Runs per policy.")
@click.option(
    "--target", type=float, default=5.0, show_default=True, help="Seconds within which a first token counts."
)
@click.option("--max-hold-seconds", type=float, default=1800.0, show_default=True, help="As for serve; 0: no limit.")
@click.option("--on-hold-limit", type=click.Choice([each.value for each in OnHoldLimit]), help="As for serve.")
@click.option(
    "--fail",
    multiple=True,
    metavar="REPLICA@SECONDS[-SECONDS]",
    help="A replica, counted from 0, dies then, and is back without its cache at the second time; repeatable.",
)
@click.option("--add", multiple=True, metavar="N@SECONDS", help="N replicas more join then; repeatable.")
@click.option(
    "--perturb",
    multiple=True,
    metavar="NAME=VALUE",
    help="What the policy does not see; NAME: estimate, capacity, metrics-delay, metrics, burst, tools; repeatable.",
)
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: one per core]")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the curves: PATH.png, .svg or .pdf.")
@click.option("--html", type=click.Path(path_type=Path), help="Write curves and tables as one page.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all figures there; - is stdout.")
def simulate(**given: Any) -> None:
    """Simulate agents on engines without a GPU, under the real scheduler and its policies.

    Timings are simulated: compare columns with one another, not with a GPU's.
    """
    try:
        _simulate(given)
    except (ConfigError, PresetError, TraceError) as error:
        raise CommandError("simulate", str(error)) from None
    except WorkerKilled as error:
        raise CommandBroken("simulate", str(error)) from None


def _simulate(given: dict[str, Any]) -> None:
    scenario, arms, seeds = _scenario(given), _arms(given), given["seeds"]
    swept, scenarios = _sweep(given["sweep"], scenario)
    _check_outputs(given["plot"], given["html"], given["json_path"])
    results = _run(tasks_of(scenarios, arms, seeds), given["workers"])
    tables = [(_heading(each, seeds), _table(results, each, arms)) for each in scenarios]
    _warn(results)
    json_path = given["json_path"]
    if json_path is not None and str(json_path) == "-":
        click.echo(_json(results))
    else:
        click.echo(f"Engine: {scenario.machine.title}")
        for heading, table in tables:
            click.echo(f"\n{heading}")
            _show(table)
    if json_path is not None and str(json_path) != "-":
        _write(json_path, _json(results))
    series = _series(results, scenarios, arms, swept)
    title = f"{scenario.workload}; engine {scenario.machine.title}"
    if given["plot"] is not None:
        write_plot(given["plot"], series, swept, title)
    if given["html"] is not None:
        write_html(given["html"], series, swept, title, tables)


def _check_outputs(plot: Path | None, html: Path | None, json_path: Path | None) -> None:
    if plot is not None:
        check_output("--plot", plot, (".png", ".svg", ".pdf"))
    if html is not None:
        check_output("--html", html)
    if json_path is not None and str(json_path) != "-":
        check_output("--json", json_path)
    check_drawing(plot, html)


def _warn(results: dict[Task, Figures]) -> None:
    """What makes figures mean something else."""
    rejected: Counter[str] = Counter()
    for task, figures in results.items():
        rejected[task.scenario.turn_limit] += figures.rejected
    for limit, turns in rejected.items():
        if turns:
            told = "1 turn was" if turns == 1 else f"{turns} turns were"
            click.echo(f"{told} too long for {limit}; their programs were given up", err=True)
    for task, figures in results.items():
        if task.scenario.ends and figures.programs_open:
            left = f"{figures.programs_open} programs were not done after {task.scenario.horizon_seconds:,.0f} s"
            click.echo(f"{task.arm}: {left}; --seconds gives them longer", err=True)


def _refuse_what_would_do_nothing(given: dict[str, Any]) -> None:
    """Options that another one overrides, where the user gave them. Raises ConfigError."""
    if given["trace"] is not None and _is_given("workload"):
        raise ConfigError("--workload: a trace has its own programs; give one of --trace and --workload")
    swept = (given["sweep"] or "").partition("=")[0]
    for name in _OVERRIDDEN.get(swept, ()):
        if _is_given(name):
            raise ConfigError(f"--{name}: --sweep {swept} sets the same thing; give one")


def _is_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is not ParameterSource.DEFAULT


def _scenario(given: dict[str, Any]) -> Scenario:
    _refuse_what_would_do_nothing(given)
    if given["sessions"] is not None and given["pressure"] is not None:
        raise ConfigError("--sessions and --pressure set the same thing: give one")
    trace, seconds, warmup, limit = given["trace"], given["seconds"], given["warmup"], given["on_hold_limit"]
    if trace is not None:
        for name, what in (("sessions", "--sessions"), ("pressure", "--pressure")):
            if given[name] is not None:
                raise ConfigError(f"{what}: a trace has its own programs; set --kv-tokens or --replicas")
        if given["seeds"] > 1:
            raise ConfigError("--seeds: a trace is the same each time")
        if seconds is None:
            seconds = min(MOST_SECONDS, max(60.0, 4.0 * max(turn.end for turn in read_trace(trace))))
    seconds = 3600.0 if seconds is None else seconds
    incidents: tuple[Incident, ...] = (*map(parse_failure, given["fail"]), *map(parse_addition, given["add"]))
    for incident in incidents:
        if incident.at >= seconds:
            option = "--add" if isinstance(incident, Addition) else "--fail"
            raise ConfigError(f"{option} {incident}: the simulation ends at {seconds:g} s")
    ends = trace is not None or WORKLOADS[given["workload"]].ends
    scenario = Scenario(
        workload=given["workload"] if trace is None else trace.name,
        trace=trace,
        preset=None if given["preset"] is None else find_preset(given["preset"]),
        replicas=given["replicas"],
        kv_tokens=given["kv_tokens"],
        sessions=given["sessions"] or 16 * given["replicas"],
        release_ratio=given["release"],
        vanish_ratio=given["vanish"],
        horizon_seconds=seconds,
        warmup_seconds=(0.0 if ends else seconds / 6) if warmup is None else warmup,
        seed=given["seed"],
        target_seconds=given["target"],
        max_hold_seconds=given["max_hold_seconds"],
        on_hold_limit=None if limit is None else OnHoldLimit(limit),
        incidents=incidents,
        perturbation=parse_perturbation(given["perturb"]),
    )
    return scenario if given["pressure"] is None else scenario.at_pressure(given["pressure"])


def _arms(given: dict[str, Any]) -> list[Arm]:
    options = ",".join(given["options"])
    text = given["policy"]
    if options:
        text += ("," if ":" in text else ":") + options
    arms = [parse_arm(each) for each in (text, *given["compare"])]
    if len({str(arm) for arm in arms}) < len(arms):
        raise ConfigError("a policy is given twice with the same options")
    return arms


def _sweep(text: str | None, scenario: Scenario) -> tuple[str, list[Scenario]]:
    """What is swept, and a scenario per value."""
    if text is None:
        return "", [scenario]
    name, _, values = text.partition("=")
    kind = _SWEEPS.get(name)
    if scenario.trace is not None and name in ("sessions", "pressure"):
        raise ConfigError(f"--sweep {name}: a trace has its own programs; sweep kv-tokens or replicas")
    if kind is None or not values:
        raise ConfigError(f"--sweep {text}: give WHAT=VALUE,VALUE..., WHAT one of {', '.join(_SWEEPS)}")
    scenarios: list[Scenario] = []
    numbers: list[float] = []
    for value in values.split(","):
        try:
            number = kind(value)
        except ValueError:
            raise ConfigError(f"--sweep {name}: {value!r} is no number") from None
        if number in numbers:
            raise ConfigError(f"--sweep {name}: {value} is given twice")
        numbers.append(number)
        if name == "release" and not 0 <= number <= 1:
            raise ConfigError(f"--sweep {name}: {value} must be between 0 and 1")
        if name != "release" and not 0 < number < float("inf"):
            raise ConfigError(f"--sweep {name}: {value} must be above 0")
        if name == "pressure":
            scenarios.append(scenario.at_pressure(number))
        elif name == "replicas":
            scenarios.append(
                evolve(scenario, replicas=number, sessions=round(scenario.sessions / scenario.replicas * number))
            )
        else:
            scenarios.append(evolve(scenario, **{_FIELDS.get(name, name): number}))
    return name, scenarios


def _run(tasks: Sequence[Task], workers: int | None) -> dict[Task, Figures]:
    results: dict[Task, Figures] = {}
    with _progress(tasks) as bar:
        alone = tasks[0].scenario.horizon_seconds if len(tasks) == 1 else 0.0
        last_at = 0.0

        def on_time(now: float) -> None:
            nonlocal last_at
            if alone:
                bar.update(round(1000 * now / alone) - round(1000 * last_at / alone))
                last_at = now

        for task, figures in run_all(tasks, workers=1 if alone else workers, on_time=on_time):
            results[task] = figures
            if not alone:
                bar.update(1000)
    return {task: results[task] for task in tasks}


@contextmanager
def _progress(tasks: Sequence[Task]) -> Iterator[Any]:
    """A bar on stderr, where that is a terminal."""
    with click.progressbar(
        length=1000 * len(tasks), label="simulating", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        yield bar


# What is shown


def _table(results: dict[Task, Figures], scenario: Scenario, arms: Sequence[Arm]) -> list[list[str]]:
    """A row per figure, a column per policy."""
    columns = [_column(results, scenario, arm) for arm in arms]
    every = [figures for column in columns for figures in column]
    table = [["", *(str(arm) for arm in arms)]]
    for shown in (*ALWAYS, *(row for row in IF_ANY if any(row.values(every)))):
        table.append([shown.titled(scenario.target_seconds), *(_cell(shown, column) for column in columns)])
        if shown is TURNS and len(arms) > 1:
            rates = [shown.values(column) for column in columns]
            ratios = [paired_ratio(each, rates[0]) for each in rates]
            table.append([f"  to {arms[0]}", *("-" if each is None else str(each) for each in ratios)])
    return table


def _cell(shown: Shown, runs: Sequence[Figures]) -> str:
    """The estimate; - where a run has no such figure. What is counted and the same in each run is a whole number."""
    values = shown.values(runs)
    if len(values) != len(runs):
        return "-"
    if all(isinstance(value, int) for value in values) and len(set(values)) == 1:
        return f"{values[0]:,}" + (" ±0" if len(values) > 1 else "")
    return str(estimate(values))


def _heading(scenario: Scenario, seeds: int) -> str:
    """What was simulated."""
    pressure = "" if scenario.pressure is None else f", pressure {scenario.pressure:.2f}"
    if scenario.release_ratio < 1:
        pressure += f", {100 * scenario.release_ratio:g} % of programs released"
    if scenario.vanish_ratio:
        pressure += f", {100 * scenario.vanish_ratio:g} % of clients vanish"
    perturbed = changed_of(scenario.perturbation)
    if perturbed:
        pressure += f", perturbed: {', '.join(perturbed)}"
    if scenario.incidents:
        pressure += f", {', '.join(map(_told, scenario.incidents))}"
    programs = f"{scenario.sessions} sessions" if scenario.trace is None else "recorded programs"
    return (
        f"{scenario.workload}: {programs} on {scenario.replicas} x {scenario.kv_tokens_per_replica:,} KV tokens"
        f"{pressure}; {scenario.horizon_seconds:,.0f} s, the first {scenario.warmup_seconds:,.0f} s not counted; "
        f"{seeds} seed{'s, mean and 95 % confidence' if seeds > 1 else ''}"
    )


def _told(incident: Incident) -> str:
    match incident:
        case Addition():
            return f"{incident.replicas} more at {incident.at:,.0f} s"
        case Failure(until=None):
            return f"replica {incident.replica} dead from {incident.at:,.0f} s on"
        case Failure(until=until):
            return f"replica {incident.replica} dead from {incident.at:,.0f} to {until:,.0f} s"


def _column(results: dict[Task, Figures], scenario: Scenario, arm: Arm) -> list[Figures]:
    """The figures of an arm on a scenario, a seed each."""
    return [
        figures
        for task, figures in results.items()
        if task.arm == arm and evolve(task.scenario, seed=scenario.seed) == scenario
    ]


def _series(
    results: dict[Task, Figures], scenarios: Sequence[Scenario], arms: Sequence[Arm], swept: str
) -> list[Series]:
    def place(scenario: Scenario) -> float:
        if swept == "pressure":
            return scenario.pressure or 0.0
        return float(getattr(scenario, _FIELDS.get(swept, swept))) if swept else 0.0

    return [
        Series(
            str(arm),
            tuple((place(scenario), tuple(_column(results, scenario, arm))) for scenario in scenarios),
        )
        for arm in arms
    ]


def _show(table: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        first, *others = row
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        click.echo("  ".join(cells).rstrip())


def _json(results: dict[Task, Figures]) -> str:
    told = [
        {
            "policy": task.arm.policy,
            "options": dict(task.arm.options),
            "workload": task.scenario.workload,
            "engine": task.scenario.machine.title,
            "replicas": task.scenario.replicas,
            "kv_tokens_per_replica": task.scenario.kv_tokens_per_replica,
            "sessions": task.scenario.sessions,
            "pressure": task.scenario.pressure,
            "release_ratio": task.scenario.release_ratio,
            "vanish_ratio": task.scenario.vanish_ratio,
            "horizon_seconds": task.scenario.horizon_seconds,
            "warmup_seconds": task.scenario.warmup_seconds,
            "target_seconds": task.scenario.target_seconds,
            "max_hold_seconds": task.scenario.max_hold_seconds,
            "perturbation": attrs.asdict(task.scenario.perturbation),
            "incidents": [attrs.asdict(incident) for incident in task.scenario.incidents],
            "seed": task.scenario.seed,
            **figures.as_dict(),
        }
        for task, figures in results.items()
    ]
    return json.dumps(told, indent=1)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json {path}: {error.strerror}") from None
