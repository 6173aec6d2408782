"""``thunderagent programs``: ask a running router about its programs, or release some."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

import click

__all__ = ["programs"]

_TIMEOUT_SECONDS = 10.0
_MOST_BYTES = 2_000
"""Of an error's answer that are read."""


@click.command()
@click.option(
    "--url",
    default="http://127.0.0.1:8300",
    show_default=True,
    envvar="THUNDERAGENT_URL",
    help="Where the router is.",
)
@click.option("--token", default=None, envvar="THUNDERAGENT_API_TOKEN", help="Token of the router.")
@click.option("--release", "released", multiple=True, metavar="ID", help="Release it instead; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def programs(url: str, token: str | None, released: tuple[str, ...], as_json: bool) -> None:
    """List the programs that a running router tracks, or release some of them.

    Status: new (never had a place), admitted, yielding (leaves at its turn's end), paused (lost its place). Activity:
    reasoning (a turn runs), waiting (a turn is held, for WAITS), acting (no turn here, for IDLE: tools run, or
    its client has left).

    One to be released that the router does not know gives status 1, after the others were released.
    """
    base = url.rstrip("/")
    if urllib.parse.urlsplit(base).scheme not in ("http", "https"):
        raise click.BadParameter(f"must begin with http:// or https://, got {url!r}", param_hint="--url")
    if "" in released:
        raise click.BadParameter("an id is empty", param_hint="--release")
    if released:
        _release(base, token, released, as_json)
        return
    answer = _call(f"{base}/programs", token)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    try:
        lines = [_line(name, program) for name, program in answer.items()]
    except (KeyError, TypeError):
        raise _failure(url, "does not answer as a router: its programs lack fields") from None
    counts = f"{'tokens':>9} {'turns':>6} {'waits':>7} {'idle':>7}"
    click.echo(f"{'program':<44} {'status':<10} {'activity':<10} {counts}  backend")
    for line in lines:
        click.echo(line)


def _release(base: str, token: str | None, names: Sequence[str], as_json: bool) -> None:
    """Release them one by one; ends the process with status 1 where one was not known."""
    unknown = []
    for name in names:
        answer = _call(f"{base}/programs/release", token, {"program_id": name})
        is_known = bool(answer.get("released"))
        if not is_known:
            unknown.append(name)
        if as_json:
            click.echo(json.dumps(answer))
        elif is_known:
            click.echo(f"{name}: released")
    if unknown:
        raise _failure(base, f"knows no program {', '.join(unknown)}: nothing to release")


def _line(name: str, program: dict[str, Any]) -> str:
    return (
        f"{name:<44} {program['scheduling_status']:<10} {_activity(program):<10} "
        f"{program['footprint_tokens']:>9} {program['step_count']:>6} {_seconds(program['waiting_seconds']):>7} "
        f"{_seconds(program['idle_seconds']):>7}  {program['backend'] or '-'}"
    )


def _activity(program: dict[str, Any]) -> str:
    return "waiting" if program["turns_held"] and not program["turns_running"] else str(program["status"])


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.0f} s"


def _call(url: str, token: str | None, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The router's answer; ends the process where there is none."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        request = urllib.request.Request(url, data=data, headers=headers)
        with opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        what = f"answered {error.code}: {_message(error.read(_MOST_BYTES).decode('utf-8', 'replace'))}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ConnectionRefusedError):
            raise _failure(url, "nobody listens: start the router, or give its --url") from None
        what = f"does not answer as a router: {type(reason).__name__}: {' '.join(str(reason).split())}"
    else:
        if isinstance(found, dict):
            return found
        what = "does not answer as a router: no JSON object"
    raise _failure(url, what)


def _message(answer: str) -> str:
    """What an error's answer says, in one line."""
    try:
        found = json.loads(answer)["error"]["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        found = None  # somebody else's error
    return " ".join((found if isinstance(found, str) else answer).split())


def _failure(url: str, what: str) -> SystemExit:
    click.echo(f"thunderagent programs: {urllib.parse.urlsplit(url).netloc} {what}", err=True)
    return SystemExit(1)
