"""What the backend client asks of single connections beyond aiohttp's defaults."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import aiohttp
from attrs import define

__all__ = ["Attempt", "broken_by", "guarded", "reuse_tracing", "socket_with_keepalive", "system_reason"]


@define(eq=False)
class Attempt:
    """What the tracing hooks learn of one try: whether it began on a connection used before, and when."""

    reused_at: float | None = None


def broken_by(error: BaseException) -> str | None:
    """The system's reason where a connection broke otherwise than that the other side closed or reset it; None where
    it gives none."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ssl.SSLError):  # its number is OpenSSL's
            return None
        if isinstance(found, OSError) and found.errno and found.errno not in (errno.ECONNRESET, errno.EPIPE):
            return os.strerror(found.errno)
        found = found.__cause__
    return None


def system_reason(error: Exception) -> str:
    """Of a failed request: what the operating system, the resolver or the TLS library says, where one does."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        error = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return (error.reason or "handshake failed").replace("_", " ").lower()
    if isinstance(error, socket.gaierror):
        return error.strerror or "the name is not known"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def guarded(answer: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
    """Make reading the body fail where its connection closes too early, with the reason as its cause.

    aiohttp 3.14's C parser forgets the body when its framing is malformed: it closes the connection, and a reader
    would wait for ever. Where a body breaks off inside its framing, its error is about that, without the reason.
    """
    connection, content = answer.connection, answer.content
    if connection is None or connection.protocol is None or (closed := connection.protocol.closed) is None:
        return answer

    def fail(future: asyncio.Future[None]) -> None:
        cause = _read_reason(future)
        found = content.exception()
        if isinstance(found, BaseException):
            found.__cause__ = cause or found.__cause__
        elif found is None and not content.is_eof():
            error = aiohttp.ClientPayloadError("the connection closed inside the body")
            error.__cause__ = cause
            content.set_exception(error)

    closed.add_done_callback(fail)
    content.on_eof(lambda: _forget(closed, fail))
    return answer


def _forget(closed: asyncio.Future[None], callback: Callable[[asyncio.Future[None]], None]) -> None:
    """Only its reason is still read, by one callback per connection: otherwise asyncio reports that nobody did."""
    for each in (callback, _read_reason):
        closed.remove_done_callback(each)
    closed.add_done_callback(_read_reason)


def _read_reason(closed: asyncio.Future[None]) -> BaseException | None:
    return None if closed.cancelled() else closed.exception()


def reuse_tracing() -> aiohttp.TraceConfig:
    tracing = aiohttp.TraceConfig()

    async def reused(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: Any) -> None:
        attempt = context.trace_request_ctx
        if isinstance(attempt, Attempt):
            attempt.reused_at = time.monotonic()

    tracing.on_connection_reuseconn.append(reused)
    return tracing


def socket_with_keepalive(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket that notices a vanished peer: probes after 30 s of silence, gives up three probes later."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options: Mapping[str, int] = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
    for name, value in options.items():
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made
