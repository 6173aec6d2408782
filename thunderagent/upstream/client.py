"""One backend's HTTP client: a pool of connections, and failures before the answer told apart by what they mean."""

from __future__ import annotations

import asyncio
import io
import ssl as ssl_module
import time
from urllib.parse import urlsplit

import aiohttp
from attrs import define, field, frozen
from multidict import MultiMapping
from yarl import URL

from thunderagent.upstream.connection import (
    Attempt,
    broken_by,
    guarded,
    reuse_tracing,
    socket_with_keepalive,
    system_reason,
)

__all__ = ["BackendClient", "FetchedPage", "ForwardFailed", "PoolSettings", "normalise_base_url"]

# A reused connection that breaks later than this after the request was handed over broke under the request, and
# the backend may have worked on it.
_STALE_WITHIN_SECONDS = 1.0
_WHOLE_BODY_BYTES = 1024 * 1024
_SKIP_AUTO_HEADERS = ("User-Agent", "Content-Type", "Accept", "Accept-Encoding")


class ForwardFailed(Exception):
    """A request failed before any header of an answer came.

    Attributes:
        reason: one of ``dns``, ``connect``, ``connect_timeout``, ``tls``, ``disconnected``, ``bad_response``,
            ``closed``; fit for a metric label.
        sent: False where the backend cannot have seen the request (no connection was made); True where it may have.
        detail: a sentence for people, without bodies or credentials.
    """

    def __init__(self, reason: str, *, sent: bool, detail: str = "") -> None:
        super().__init__(reason, sent, detail)
        self.reason = reason
        self.sent = sent
        self.detail = detail

    def __str__(self) -> str:
        return self.detail or self.reason


@frozen
class PoolSettings:
    """Limits of the connections to one backend; all times in seconds of the wall clock."""

    connect_timeout_seconds: float = 5.0
    keepalive_seconds: float = 3.0
    """vLLM's HTTP server closes a connection idle for 5 s; the pool must let go of it earlier."""
    read_buffer_bytes: int = 256 * 1024
    """Reading from the backend pauses at twice this when the client is slower. Most answers fit, which matters:
    aiohttp 3.14 takes a chunked body for broken where the backend closes while reading is paused."""


@frozen
class FetchedPage:
    """A small answer that was read whole."""

    status: int
    body: bytes


def normalise_base_url(url: str) -> str:
    """A backend's URL as scheme, host, port and path prefix, without a trailing slash or ``/v1``.

    Raises:
        ValueError: not an http(s) URL with a host, or one with a query, a fragment or credentials.
    """
    text = url.strip()
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError("backend URL cannot be read: its host is malformed") from None
    if "@" in parts.netloc:
        raise ValueError("backend URL must not hold credentials; give the key as the backend's API key")
    if any(character.isspace() for character in text):
        raise ValueError(f"backend URL must not hold spaces: {url!r}")
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"backend URL must begin with http:// or https://: {url!r}")
    if not parts.hostname:
        raise ValueError(f"backend URL has no host: {url!r}")
    if parts.query or parts.fragment or "?" in text or "#" in text:
        raise ValueError(f"backend URL must have neither query nor fragment: {url!r}")
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"backend URL has a bad port: {url!r}") from error
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = parts.path.rstrip("/")
    if path.endswith("/v1"):
        path = path[: -len("/v1")].rstrip("/")
    return f"{parts.scheme}://{host}{f':{port}' if port is not None else ''}{path}"


@define(eq=False)
class BackendClient:
    """Requests to one backend.

    The number of connections is not limited: admission decides how much is in flight. Each backend has its own
    pool, so that a hanging one takes nothing from the others. Cookies are not kept, redirects not followed,
    compressed bodies not unpacked, and no environment proxy is used. There is no time limit on an answer; a host
    that vanished is found by TCP keep-alive in about a minute.

    Make and close it inside a running event loop.
    """

    base_url: str = field(converter=normalise_base_url)
    api_key: str | None = field(default=None, repr=False)
    ssl: ssl_module.SSLContext | bool = True
    """True checks certificates against the system's authorities; False checks nothing."""
    pool: PoolSettings = PoolSettings()
    _session: aiohttp.ClientSession = field(init=False, repr=False)
    _fresh: aiohttp.ClientSession = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._session = self._make_session(keepalive=True)
        self._fresh = self._make_session(keepalive=False)

    async def open(
        self, method: str, path_qs: str, body: bytes | None, headers: MultiMapping[str]
    ) -> aiohttp.ClientResponse:
        """Send a request and wait for the answer's header; the body is still to be read.

        ``path_qs`` is the raw request target, from ``/`` on; ``headers`` are sent as they are (see
        :func:`thunderagent.upstream.headers.request_headers`). A request that meets a kept connection just as the
        backend closes it is sent once more on a new one. The caller must read the answer to its end, or close it:
        closing makes vLLM drop the request. Cancelling this call closes the connection likewise.

        Raises:
            ForwardFailed: no answer began.
        """
        url = self._url(path_qs)
        attempt = Attempt()
        try:
            answer = await self._session.request(
                method, url, data=_payload(body), headers=headers, allow_redirects=False, trace_request_ctx=attempt
            )
            return guarded(answer)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            failure = self._failure(error)
            if not _is_stale(failure, attempt):
                raise failure from error
        try:
            return guarded(
                await self._fresh.request(method, url, data=_payload(body), headers=headers, allow_redirects=False)
            )
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            # The first try may have been taken, whatever happened to the second: a request that kills its engine
            # must not look as if none had seen it.
            again = self._failure(error)
            raise ForwardFailed(again.reason, sent=True, detail=again.detail) from error

    async def fetch(self, path: str, *, timeout_seconds: float, max_bytes: int = 16 * 1024 * 1024) -> FetchedPage:
        """GET a small page of the backend itself (metrics, models, health), with the backend's own key.

        Raises:
            ForwardFailed: no answer, not within ``timeout_seconds`` (reason ``timeout``), broken off, or longer
                than ``max_bytes`` (reason ``bad_response``).
        """
        headers = {"Accept-Encoding": "identity"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=self.pool.connect_timeout_seconds)
        try:
            async with self._session.get(
                self._url(path), headers=headers, allow_redirects=False, timeout=timeout
            ) as answer:
                return FetchedPage(answer.status, await _read_at_most(guarded(answer), max_bytes))
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
            raise self._failure(error) from error
        except asyncio.TimeoutError as error:
            detail = f"no full answer within {timeout_seconds:g} s"
            raise ForwardFailed("timeout", sent=True, detail=detail) from error
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise self._failure(error) from error

    async def close(self) -> None:
        """Close all connections; answers still being read break off."""
        await self._session.close()
        await self._fresh.close()

    def _url(self, path_qs: str) -> URL:
        if not path_qs.startswith("/"):
            raise ValueError(f"request target must begin with '/': {path_qs!r}")
        return URL(self.base_url + path_qs, encoded=True)

    def _make_session(self, *, keepalive: bool) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=0,
            ssl=self.ssl,
            force_close=not keepalive,
            keepalive_timeout=self.pool.keepalive_seconds if keepalive else None,
            socket_factory=socket_with_keepalive,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_SKIP_AUTO_HEADERS,
            auto_decompress=False,
            trust_env=False,
            read_bufsize=self.pool.read_buffer_bytes,
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=self.pool.connect_timeout_seconds,
                sock_connect=self.pool.connect_timeout_seconds,
            ),
            trace_configs=[reuse_tracing()] if keepalive else [],
        )

    def _failure(self, error: Exception) -> ForwardFailed:
        reason, sent = _classify(error)
        if isinstance(error, RuntimeError):
            if not self._session.closed:
                raise error
            reason, sent = "closed", False
        return ForwardFailed(reason, sent=sent, detail=self._told(reason, error))

    def _told(self, reason: str, error: Exception) -> str:
        """The failure in a sentence: where, and the system's reason. aiohttp's own text has words of ssl for http."""
        url = URL(self.base_url)
        where = f"{f'[{url.host}]' if ':' in (url.host or '') else url.host}:{url.port}"
        if reason == "connect_timeout":
            return f"no connection to {where} within {self.pool.connect_timeout_seconds:g} s"
        if reason == "tls":
            return f"no TLS connection to {where}: {system_reason(error)}"
        if reason in ("connect", "dns"):
            return f"no connection to {where}: {system_reason(error)}"
        if reason == "bad_response" and isinstance(error, aiohttp.ClientResponseError):
            return f"{where} answered with something other than HTTP"
        if reason == "closed":
            return f"the connections to {where} were closed"
        broken = broken_by(error)
        if broken is not None:
            return f"the connection to {where} broke before its answer's end: {broken}"
        return f"{where} closed the connection before its answer's end"


def _payload(body: bytes | None) -> bytes | io.BytesIO | None:
    """A large body is written piece by piece, so that it does not fill the connection's buffer at once."""
    return io.BytesIO(body) if body is not None and len(body) > _WHOLE_BODY_BYTES else body


def _classify(error: Exception) -> tuple[str, bool]:
    """The reason word, and whether the request may have reached the backend."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "dns", False
    if isinstance(error, (aiohttp.ClientConnectorSSLError, aiohttp.ClientConnectorCertificateError)):
        return "tls", False
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "connect_timeout", False
    if isinstance(error, aiohttp.ClientConnectorError):
        return "connect", False
    if isinstance(error, (aiohttp.ClientResponseError, aiohttp.ClientPayloadError)):
        return "bad_response", True
    return "disconnected", True


def _is_stale(failure: ForwardFailed, attempt: Attempt) -> bool:
    """Whether a kept connection was closed by an idle backend as the request was written.

    aiohttp repeats only idempotent methods by itself. A connection that was new, or that broke later, is a failure
    of the backend and is reported as such.
    """
    if failure.reason != "disconnected" or attempt.reused_at is None:
        return False
    return time.monotonic() - attempt.reused_at <= _STALE_WITHIN_SECONDS


async def _read_at_most(answer: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while chunk := await answer.content.readany():
        size += len(chunk)
        if size > max_bytes:
            answer.close()
            raise ForwardFailed("bad_response", sent=True, detail=f"page over {max_bytes} bytes")
        parts.append(chunk)
    return b"".join(parts)
