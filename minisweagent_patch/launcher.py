"""``python -m minisweagent_patch``: mini-swe-agent's ``mini-extra`` command with the patch in place."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minisweagent_patch.errors import PatchError
from minisweagent_patch.inject import uses_litellm
from minisweagent_patch.litellm_setup import check_litellm, lift_connection_limit
from minisweagent_patch.patching import install
from minisweagent_patch.programs import active_program_ids
from minisweagent_patch.settings import CONNECTIONS_VARIABLE, number_from_environment
from minisweagent_patch.stopping import end_process, release_on_termination
from minisweagent_patch.versions import launcher_module, major_version

# The sub-commands that run instances through process_instance.
_BATCH_COMMANDS = frozenset({"swebench", "programbench"})

_DESCRIPTION = """\
Runs mini-swe-agent's mini-extra with each instance announced to the router as one program and released
at its end. Everything from the sub-command on goes to mini-extra unchanged, for example:

  python -m minisweagent_patch swebench --subset lite --split test --workers 128 -c swebench.yaml \\
      -c model.model_name=hosted_vllm/MODEL -c model.model_kwargs.api_base=http://ROUTER:8300/v1

Run "python -m minisweagent_patch swebench --help" for mini-extra's own options.
"""


@dataclass(frozen=True)
class _Run:
    """What the launcher needs to know of a batch command line."""

    workers: int
    model_class: str


def main(arguments: Sequence[str] | None = None) -> None:
    """The launcher; leaves through ``SystemExit`` (2: it cannot work here, with one line on stderr)."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    release_on_termination()
    try:
        install(
            release_url=options.release_url,
            client_timeout_seconds=options.client_timeout,
        )
        launcher = launcher_module()
        run = _batch_run(options.command)
        if run is not None:
            _prepare_litellm(run, check=not options.no_check)
    except PatchError as error:
        sys.stderr.write(f"minisweagent_patch: {error}\n")
        raise SystemExit(2) from error
    sys.argv = ["mini-extra", *options.command]
    try:
        launcher.main()
    except (KeyboardInterrupt, SystemExit) as end:
        status = 130 if isinstance(end, KeyboardInterrupt) else end.code
        # Given up on (a repeated Ctrl-C): the threads of what still runs would keep the process alive.
        if isinstance(status, int) and status != 0 and active_program_ids():
            end_process(status)
        raise


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m minisweagent_patch",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--release-url", metavar="URL", help="where to post releases (default: from api_base)")
    parser.add_argument(
        "--client-timeout",
        type=_seconds,
        metavar="SECONDS",
        help="model_kwargs.timeout where none is configured (default 7200; 0: litellm's own 600)",
    )
    parser.add_argument("--no-check", action="store_true", help="skip the dry litellm call before the run")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="a mini-extra sub-command and its options")
    return parser.parse_args(list(arguments))


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("must be a number >= 0")
    return value


def _batch_run(command: Sequence[str]) -> _Run | None:
    """The batch run a command line asks for; None: another sub-command, or only its help."""
    if not command or command[0] not in _BATCH_COMMANDS or "--help" in command[1:]:
        return None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-w", "--workers", default="1")
    parser.add_argument("-c", "--config", action="append", default=[])
    parser.add_argument("--model-class", default="")
    parser.exit_on_error = False
    try:
        known, _ = parser.parse_known_args(list(command[1:]))
    except argparse.ArgumentError:  # mini-extra says what is wrong
        return None
    workers = int(known.workers) if known.workers.isdecimal() else 1
    return _Run(workers, known.model_class or _configured_model_class(known.config))


def _configured_model_class(specs: Sequence[str]) -> str:
    """The model class that the run's configuration names last; "" where none does."""
    name = ""
    try:
        from minisweagent.config import get_config_from_spec

        for spec in specs:
            model: Any = get_config_from_spec(spec).get("model") or {}
            name = str(model.get("model_class") or name)
    except Exception:  # 1.x has no such function; a file that cannot be read is mini-extra's to report
        return name
    return name


def _prepare_litellm(run: _Run, check: bool) -> None:
    if not uses_litellm({"model_class": run.model_class}):
        return
    if check:
        check_litellm(tools=major_version() > 1 and "text" not in run.model_class.lower())
    lift_connection_limit(max(run.workers, int(number_from_environment(CONNECTIONS_VARIABLE, 0))))
