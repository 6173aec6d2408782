"""What litellm needs before a batch run: a pool as wide as the run, and imports that work."""

from __future__ import annotations

import importlib.metadata
import logging
import threading
from typing import Any

from minisweagent_patch.errors import LitellmUnusableError

logger = logging.getLogger("minisweagent_patch")

# httpx's default: further requests of a process wait in its pool, where the router does not see them.
_HTTPX_CONNECTIONS = 100
_SPARE_CONNECTIONS = 8

_DRY_TOOL = {
    "type": "function",
    "function": {
        "name": "bash",
        "description": "run a command",
        "parameters": {"type": "object", "properties": {"command": {"type": "string"}}},
    },
}

_lock = threading.Lock()
_checked: dict[bool, LitellmUnusableError | None] = {}


def lift_connection_limit(workers: int) -> bool:
    """Let ``workers`` threads of this process each have a request in flight.

    Imports litellm (seconds) where ``workers`` exceeds httpx's limit of 100 connections, else does
    nothing. Call it before the first model call: litellm keeps the clients it has made. A session
    or transport that the caller has set stays. Requests through the new transport use no
    environment proxies.

    Returns:
        Whether a limit was raised.
    """
    if workers <= _HTTPX_CONNECTIONS:
        return False
    import httpx
    import litellm

    size = workers + _SPARE_CONNECTIONS
    limits = httpx.Limits(max_connections=size, max_keepalive_connections=size)

    class SharedTransport(httpx.HTTPTransport):
        """Outlives the clients litellm makes over it: it drops one after an hour, and closing the
        transport then would cut the requests of the others."""

        def close(self) -> None:
            return None

    with _lock:
        raised = False
        if getattr(litellm, "client_session", None) is None:  # read for openai/
            litellm.client_session = httpx.Client(limits=limits, follow_redirects=True, verify=_verify())
            raised = True
        if getattr(litellm, "sync_transport", None) is None:  # read for hosted_vllm/ and the responses API
            litellm.sync_transport = SharedTransport(limits=limits, verify=_verify())
            raised = True
    return raised


def check_litellm(tools: bool = True) -> None:
    """Make a dry call, which sends nothing, to see that litellm's lazy imports work.

    Some versions import ``mcp`` or ``fastapi``, optional extras, on any call with tools; the agent
    would retry each call for minutes. Imports litellm (seconds); the result is kept.

    Args:
        tools: whether the agent passes tools (2.x's default class does; 1.x and the text-based do not).

    Raises:
        LitellmUnusableError: an import fails; the message has the remedy.
    """
    with _lock:
        if tools not in _checked:
            _checked[tools] = _dry_call(tools)
        error = _checked[tools]
    if error is not None:
        raise error


def _dry_call(tools: bool) -> LitellmUnusableError | None:
    arguments: dict[str, Any] = {"tools": [_DRY_TOOL]} if tools else {}
    try:
        import litellm

        litellm.completion(
            model="hosted_vllm/dry-run",
            api_base="http://127.0.0.1:9/v1",
            messages=[{"role": "user", "content": "dry run"}],
            mock_response="ok",
            **arguments,
        )
    except Exception as error:  # the connection boundary to a library that wraps what it raises
        cause = _import_error(error)
        if cause is None:
            logger.warning("litellm's dry call failed, continuing: %s: %s", type(error).__name__, error)
            return None
        missing = cause.name.split(".")[0] if isinstance(cause, ModuleNotFoundError) and cause.name else None
        return LitellmUnusableError(_version(), str(cause), missing)
    return None


def _import_error(error: BaseException | None) -> ImportError | None:
    """The import error among an error and its causes, or None."""
    for _ in range(16):
        if error is None or isinstance(error, ImportError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _verify() -> Any:
    """litellm's own TLS settings, where this version tells them; else httpx's default."""
    try:
        from litellm.llms.custom_httpx.http_handler import get_ssl_configuration
    except ImportError:
        return True
    return get_ssl_configuration()


def _version() -> str:
    try:
        return importlib.metadata.version("litellm")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
