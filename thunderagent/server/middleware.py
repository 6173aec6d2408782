"""Around every handler: errors become OpenAI-shaped JSON, and tokens are checked."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

import msgspec
import structlog
from aiohttp import web

from thunderagent.errors import (
    BadRequest,
    BodyTooLarge,
    Forbidden,
    InternalError,
    MethodNotAllowed,
    NotFound,
    RouterError,
    Unauthorized,
)
from thunderagent.server.state import state_of

__all__ = ["check_admin", "error_response", "may_forward_credentials", "middlewares"]

_log = structlog.get_logger("thunderagent.server")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_OPEN_PATHS = ("/health", "/livez", "/readyz", "/metrics", "/")
"""Answered without a client token: orchestrators and Prometheus have none. They show no program id."""

_CLIENT_GONE = 499
"""Of an answer that nobody reads."""

_MESSAGES_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
}


def error_response(error: RouterError, path: str) -> web.Response:
    """The answer for an error, in the shape of the API that was called."""
    if path.startswith("/v1/messages"):
        kind = _MESSAGES_TYPES.get(error.status, "api_error")
        inner = {"type": kind, "message": error.message, "code": error.code}
        body: dict[str, object] = {"type": "error", "error": inner}
    else:
        plain = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
        body = {"error": plain}
    headers = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    return web.Response(
        status=error.status, body=msgspec.json.encode(body), content_type="application/json", headers=headers
    )


@web.middleware
async def _errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RouterError as error:
        return error_response(error, request.path)
    except web.HTTPException as error:
        response = error_response(_translated(error, request), request.path)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except ConnectionError:
        if request.transport is not None and not request.transport.is_closing():
            raise
        # The client has left. aiohttp drops an answer to it, but logs what is raised as a fault, with its traceback.
        return web.Response(status=_CLIENT_GONE)
    except web.RequestPayloadError as error:
        cause = error.__cause__ or error
        return error_response(BadRequest(f"the body cannot be read: {_first_line(cause)}"), request.path)
    except Exception:
        _log.exception("request.failed", method=request.method, path=request.path)
        return error_response(InternalError("internal error of the router; its log says more"), request.path)


def _first_line(error: BaseException) -> str:
    return " ".join(str(getattr(error, "message", error)).split("\n", 1)[0].split())


def _translated(error: web.HTTPException, request: web.Request) -> RouterError:
    if isinstance(error, web.HTTPNotFound):
        return NotFound(f"no such path: {request.path}")
    if isinstance(error, web.HTTPMethodNotAllowed):
        return MethodNotAllowed(f"{request.path} takes {', '.join(sorted(error.allowed_methods))}")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        limit = state_of(request).settings.max_body_bytes
        return BodyTooLarge(f"the body is over {limit} bytes; --max-body-bytes sets the limit")
    if error.status < 500:
        return BadRequest(error.text or error.reason)
    return InternalError(error.reason)


@web.middleware
async def _tokens(request: web.Request, handler: _Handler) -> web.StreamResponse:
    token = state_of(request).settings.api_token
    if token is not None and request.path not in _OPEN_PATHS and not _has_any_token(request):
        raise Unauthorized("missing or wrong token: send Authorization: Bearer TOKEN")
    return await handler(request)


def _has_any_token(request: web.Request) -> bool:
    settings = state_of(request).settings
    return any(token is not None and _sent(request, token) for token in (settings.api_token, settings.admin_token))


def _sent(request: web.Request, token: str) -> bool:
    """Whether the request carries the token; compared in constant time."""
    given = request.headers.get("Authorization", "")
    scheme, _, value = given.partition(" ")
    if scheme.lower() != "bearer":
        value = request.headers.get("x-api-key", "")
    return hmac.compare_digest(value.strip().encode("utf-8", "replace"), token.encode())


def may_forward_credentials(request: web.Request) -> bool:
    """Whether the client's credentials are meant for the backend: never where they are a token of the router."""
    settings = state_of(request).settings
    if settings.api_token is not None:
        return False
    return settings.admin_token is None or not _sent(request, settings.admin_token)


def check_admin(request: web.Request) -> None:
    """Let an admin call pass.

    Raises:
        Unauthorized: an admin token is configured and the request does not carry it.
        Forbidden: none is configured and the request comes from another host, or from another site's page in an
            operator's browser, or asks for a name that is not this machine's.
    """
    settings = state_of(request).settings
    token = settings.admin_token
    if token is not None:
        if not _sent(request, token):
            raise Unauthorized("missing or wrong admin token: send Authorization: Bearer TOKEN")
    elif not _is_loopback(request.remote):
        raise Forbidden("admin calls are answered from loopback only unless --admin-token is set")
    elif not _is_own_host(request.headers.get("Host", ""), settings.host):
        raise Forbidden("admin calls by a name other than localhost or the listen address need --admin-token")
    elif not _is_same_origin(request):
        raise Forbidden("admin calls from another site's page need --admin-token")


def _is_same_origin(request: web.Request) -> bool:
    """Browsers name the page's origin with every request that changes something; other clients do not."""
    origin = request.headers.get("Origin")
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc == request.host
    except ValueError:
        return False


def _is_own_host(header: str, listen_host: str) -> bool:
    """Whether a Host header names this machine. A page whose own name was made to resolve to loopback (DNS
    rebinding) is of the same origin as the router for the browser; only the name in this header gives it away."""
    try:
        host = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return False
    is_named = host != "" and host in ("localhost", listen_host.lower().strip("[]"))
    return is_named or _is_loopback(host)


def _is_loopback(remote: str | None) -> bool:
    try:
        address = ip_address((remote or "").partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


middlewares = (_errors, _tokens)
