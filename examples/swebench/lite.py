"""Run mini-swe-agent over SWE-bench through the router, in front of real backends: ``make swebench-lite``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from examples.processes import Child, ChildFailed, Children, interrupt_on_termination, shell_line
from examples.swebench import launch, preflight
from examples.swebench.predictions import read_predictions
from examples.swebench.report import Report, engine_counts, read_trajectories, render, router_counts

_EPILOG = """\
what is run, after the checks (the two commands of ThunderAgent's published guide, for this package):

  thunderagent serve --backends http://HOST1:8000,http://HOST2:8000 --port 8300

  python -m minisweagent_patch swebench --subset lite --split test --workers 128 --output results \\
      -c swebench.yaml -c model.model_name=hosted_vllm/MODEL \\
      -c model.model_kwargs.api_base=http://127.0.0.1:8300/v1 -c model.model_kwargs.timeout=7200 \\
      -c model.cost_tracking=ignore_errors

on each GPU node before:

  vllm serve MODEL --port 8000 --enable-auto-tool-choice --tool-call-parser PARSER --enable-prompt-tokens-details

with make:

  make swebench-lite BACKENDS=http://HOST1:8000,http://HOST2:8000 MODEL=Qwen/Qwen3-Coder-30B-A3B-Instruct
  make swebench-lite BACKENDS=... MODEL=... DRY_RUN=1          only checks, and prints the commands
  make swebench-lite BACKENDS=... MODEL=... LITE_ARGS="-- --slice 0:10 -c agent.step_limit=100"

LITE_ARGS are further options of this runner; everything after -- goes to mini-swe-agent (--slice, --filter,
--redo-existing, -c key=value). A run into the same output directory goes on where the last one ended.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The runner; exit status 0, 1 (a run that failed), 2 (usage, or something is missing), 130 (interrupted)."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    wanted = preflight.Wanted(
        backends=options.backends,
        model=options.model,
        host=options.host,
        port=options.port,
        subset=options.subset,
        split=options.split,
        environment_class=options.environment_class,
        output=options.output,
        policy=options.policy,
    )
    interrupt_on_termination()
    os.environ.setdefault("MSWEA_SILENT_STARTUP", "1")
    try:
        print("swebench-lite: checking backends, port, agents, data set, Docker, disk", file=sys.stderr, flush=True)
        found = preflight.problems(wanted)
        if found:
            print(preflight.report(found), file=sys.stderr, flush=True)
        fatal = any(problem.fatal for problem in found)
        if options.dry_run:
            _show(options)
            return 2 if fatal else 0
        return 2 if fatal else run(options)
    except KeyboardInterrupt:
        print("swebench-lite: interrupted; the router and the agents are stopped", file=sys.stderr)
        return 130
    except ChildFailed as error:
        print(f"swebench-lite: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """Router up, agents through it, router down, report; the agents' exit status, or 1 where programs are left."""
    router_url = f"http://127.0.0.1:{options.port}"
    router, agents = _commands(options)
    before = engine_counts(options.backends)
    with Children(options.output / "logs") as children:
        router_child = children.start("router", router, dict(os.environ))
        router_child.wait_ready(f"{router_url}/readyz", launch.READY_SECONDS)
        print(f"router ready on {router_url}, policy {options.policy}; log: {router_child.log}", flush=True)
        started = time.monotonic()
        agents_child = children.start("agents", agents, launch.agents_environment(), inherit=True)
        status = _wait(agents_child, router_child)
        wall_seconds = time.monotonic() - started
        router_figures = router_counts(router_url)
    predictions = read_predictions(options.output)
    report = Report(
        policy=options.policy,
        instances=len(predictions),
        empty_patches=sum(1 for patch in predictions.values() if not patch.strip()),
        resolved=None,
        trajectories=read_trajectories(options.output),
        engines=engine_counts(options.backends).minus(before),
        router=router_figures,
        wall_seconds=wall_seconds,
        backends=len(options.backends),
        kv_tokens=router_figures.kv_tokens,
    )
    print("\n" + render([report]))
    print(f"patches: {options.output / 'preds.json'} (evaluate them with the SWE-bench harness)")
    if predictions and report.empty_patches == len(predictions):
        remedy = "does vLLM run with --enable-auto-tool-choice and the model's --tool-call-parser?"
        print(f"swebench-lite: every patch is empty; {remedy}", file=sys.stderr)
    if status != 0:
        print(f"swebench-lite: mini-swe-agent ended with status {status}", file=sys.stderr)
    if router_figures.programs_left:
        print(f"swebench-lite: {router_figures.programs_left} programs were not released", file=sys.stderr)
        return status or 1
    return status


def _wait(agents: Child, router: Child) -> int:
    """The agents' exit status; a router that ends before them fails the run at once."""
    while (status := agents.wait(1.0)) is None:
        router.check()
    return status


def _commands(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    router = launch.router_command(
        options.port, options.backends, options.policy, host=options.host, options=options.router_options
    )
    agents = launch.agents_command(
        subset=options.subset,
        split=options.split,
        workers=options.workers,
        model=options.model,
        router=f"http://127.0.0.1:{options.port}",
        output=options.output,
        environment_class=options.environment_class,
        options=options.agent_options,
    )
    return router, agents


def _show(options: argparse.Namespace) -> None:
    options.backends = options.backends or ("BACKENDS",)
    options.model = options.model or "MODEL"
    router, agents = _commands(options)
    print("# the router, stopped when the agents are done:")
    print(shell_line(router) + " &")
    print(f"# once http://127.0.0.1:{options.port}/readyz answers 200:")
    print(shell_line(agents, launch.agents_environment({})))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    arguments = list(arguments)
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m examples.swebench.lite",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--backends", type=_urls, default=(), metavar="URL[,URL...]", help="the vLLM servers")
    parser.add_argument("--model", type=str.strip, default="", help="the model's name as the backends serve it")
    parser.add_argument("--host", default="127.0.0.1", help="address the router listens on (default %(default)s)")
    parser.add_argument("--port", type=_port, default=8300, help="the router's port (default %(default)s)")
    parser.add_argument("--policy", default="working-set", help="scheduling policy (default %(default)s)")
    parser.add_argument("--workers", type=_count, default=128, help="agents at a time (default %(default)s)")
    parser.add_argument("--subset", default="lite", help="lite, verified, full or a path (default %(default)s)")
    parser.add_argument("--split", default="test", help="split of the data set (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("outputs/swebench-lite"), help="default %(default)s")
    parser.add_argument("--environment-class", default="docker", help="docker or local (default %(default)s)")
    parser.add_argument(
        "--router-option",
        action="append",
        default=[],
        dest="router_options",
        metavar="FLAG",
        help="further flag of thunderagent serve, as --router-option=--max-hold-seconds=600",
    )
    parser.add_argument("--dry-run", action="store_true", help="only the checks; print the commands")
    options = parser.parse_args(arguments[:split])
    options.agent_options = arguments[split + 1 :]
    options.output = options.output.resolve()
    return options


def _urls(text: str) -> tuple[str, ...]:
    """Addresses without a slash or /v1 at their end, each once; empty for an empty text."""
    parts = (part.strip().rstrip("/").removesuffix("/v1") for part in text.split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def _port(text: str) -> int:
    port = int(text) if text.isdecimal() else 0
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError("must be from 1 to 65535")
    return port


def _count(text: str) -> int:
    count = int(text) if text.isdecimal() else 0
    if count < 1:
        raise argparse.ArgumentTypeError("must be a whole number of at least 1")
    return count


if __name__ == "__main__":
    sys.exit(main())
