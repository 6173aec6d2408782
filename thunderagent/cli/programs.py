"""``thunderagent programs``: ask a running router about its programs, or release one."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import click

__all__ = ["programs"]

_TIMEOUT_SECONDS = 10.0


@click.command()
@click.option(
    "--url", default="http://127.0.0.1:8300", show_default=True, envvar="THUNDERAGENT_URL", help="Where the router is."
)
@click.option("--token", default=None, envvar="THUNDERAGENT_API_TOKEN", help="Token of the router.")
@click.option("--release", "released", metavar="ID", help="Release this program instead of listing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def programs(url: str, token: str | None, released: str | None, as_json: bool) -> None:
    """List the programs that a running router tracks, or release one of them."""
    base = url.rstrip("/")
    if urllib.parse.urlsplit(base).scheme not in ("http", "https"):
        raise click.BadParameter(f"must begin with http:// or https://, got {url!r}", param_hint="--url")
    if released is not None:
        answer = _call(f"{base}/programs/release", token, {"program_id": released})
        click.echo(json.dumps(answer) if as_json else f"{released}: {_word(answer)}")
        return
    answer = _call(f"{base}/programs", token)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    click.echo(f"{'program':<44} {'status':<10} {'activity':<10} {'tokens':>9} {'turns':>6}  backend")
    for name, program in answer.items():
        click.echo(_line(name, program))


def _line(name: str, program: dict[str, Any]) -> str:
    return (
        f"{name:<44} {program['scheduling_status']:<10} {program['status']:<10} "
        f"{program['footprint_tokens']:>9} {program['step_count']:>6}  {program['backend'] or '-'}"
    )


def _word(answer: dict[str, Any]) -> str:
    return "released" if answer.get("released") else "not known to the router"


def _call(url: str, token: str | None, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The router's answer; ends the process with status 1 and a line where there is none."""
    where = urllib.parse.urlsplit(url).netloc
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
        what = f"answered {error.code}: {' '.join(error.read(500).decode('utf-8', 'replace').split())}"
    except http.client.HTTPException as error:
        what = f"does not speak HTTP: {type(error).__name__}"
    except (OSError, ValueError) as error:
        what = f"does not answer as a router: {getattr(error, 'reason', error)}"
    else:
        if isinstance(found, dict):
            return found
        what = "does not answer as a router: no JSON object"
    click.echo(f"thunderagent programs: {where} {what}", err=True)
    raise SystemExit(1)
