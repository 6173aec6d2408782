"""One release over HTTP: bounded in time, tried twice at most, logged, never raised."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import logging
import time
import urllib.error
import urllib.request
from email.message import Message
from typing import IO
from urllib.parse import unquote, urlsplit, urlunsplit

logger = logging.getLogger("minisweagent_patch")

# What a server without the endpoint answers (501: one that knows no POST).
_NOT_A_ROUTER = frozenset({404, 405, 501})
_RETRY_PAUSE_SECONDS = 0.1
_SHORTEST_ATTEMPT_SECONDS = 0.05

_said_not_a_router: set[str] = set()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would turn the POST into a GET; it is reported instead."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


def send_release(url: str, program_id: str, api_key: str | None, within_seconds: float) -> bool:
    """Post one release; returns whether the router took it.

    Runs on the caller's thread and keeps each socket wait within ``within_seconds`` in all; a slow
    name lookup can exceed it, so callers that must not wait run it on a thread of its own. A failed
    connection and a 408, 429 or 5xx are tried once more. A release is idempotent at the router.
    """
    deadline = time.monotonic() + within_seconds
    reason = "no time left"
    for attempt in range(2):
        if attempt:
            time.sleep(min(_RETRY_PAUSE_SECONDS, within_seconds / 10))
        remaining = deadline - time.monotonic()
        if remaining < _SHORTEST_ATTEMPT_SECONDS:
            break
        try:
            status = _post(url, program_id, api_key, min(remaining, within_seconds * 2 / 3))
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            continue
        if 200 <= status < 300:
            return True
        if status in _NOT_A_ROUTER:
            _say_not_a_router(url, status)
            return False
        reason = f"HTTP {status}" + (" (set THUNDERAGENT_API_KEY)" if status in (401, 403) else "")
        if status < 500 and status not in (408, 429):
            break
    logger.warning("program %s was not released at %s: %s", program_id, _without_userinfo(url), reason)
    return False


def _post(url: str, program_id: str, api_key: str | None, timeout_seconds: float) -> int:
    parts = urlsplit(url)
    headers = {"Content-Type": "application/json", "User-Agent": "minisweagent_patch"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    elif parts.username is not None:
        userinfo = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(userinfo.encode()).decode()
    request = urllib.request.Request(
        _without_userinfo(url),
        data=json.dumps({"program_id": program_id}).encode(),
        headers=headers,
        method="POST",
    )
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if _is_loopback(parts.hostname or ""):
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(request, timeout=timeout_seconds) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _without_userinfo(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _say_not_a_router(url: str, status: int) -> None:
    if url in _said_not_a_router:
        return
    _said_not_a_router.add(url)
    logger.warning(
        "%s answered %d: this API base does not look like thunderagent, so programs are not released there; "
        "set THUNDERAGENT_RELEASE_URL if the router is elsewhere",
        _without_userinfo(url),
        status,
    )
