"""Which header fields cross the router, in both directions (RFC 9110 section 7.6.1)."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from multidict import CIMultiDict, MultiMapping

__all__ = ["SESSION_HEADER", "request_headers", "response_headers"]

SESSION_HEADER = "X-Session-ID"
"""vLLM takes it as the request's session and copies it into its KV events."""

# Fields that concern one connection only (RFC 9110 7.6.1, RFC 7230 A.1.2 for the older ones).
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-authentication-info",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    }
)
# Set anew on the way to a backend. Expect was answered by the router when it read the body, which was unpacked then.
_REPLACED_IN_REQUEST = _HOP_BY_HOP | {"host", "content-length", "content-encoding", "accept-encoding", "expect"}
_CREDENTIALS = frozenset({"authorization", "x-api-key", "api-key"})
_REPLACED_IN_RESPONSE = _HOP_BY_HOP | {"content-length"}
_SESSION = SESSION_HEADER.lower()


def request_headers(
    headers: MultiMapping[str],
    *,
    program_id: str | None = None,
    backend_key: str | None = None,
    forward_credentials: bool = True,
) -> CIMultiDict[str]:
    """The fields to send to a backend for a client's request.

    ``program_id`` is sent as X-Session-ID; None leaves the client's own. ``backend_key`` replaces whatever
    credentials the client sent. Without it they are forwarded only where ``forward_credentials`` is true, which
    the caller must make false when the router checks a token of its own: that token is meant for the router alone.
    ``Accept-Encoding: identity`` is always set, since usage is read from plain bytes. Content-Length and Host come
    from the HTTP client.
    """
    dropped = _REPLACED_IN_REQUEST
    if backend_key is not None or not forward_credentials:
        dropped = dropped | _CREDENTIALS
    if program_id is not None:
        dropped = dropped | {_SESSION}
    sent = _filtered(headers, dropped)
    sent["Accept-Encoding"] = "identity"
    if program_id is not None:
        sent[SESSION_HEADER] = _header_value(program_id)
    if backend_key is not None:
        sent["Authorization"] = f"Bearer {backend_key}"
    return sent


def response_headers(headers: MultiMapping[str], extra: Mapping[str, str] | None = None) -> CIMultiDict[str]:
    """The fields to send to a client for a backend's answer; ``extra`` replaces fields of the same name.

    Date and Server stay the backend's, as RFC 9110 asks of an intermediary; Set-Cookie, Retry-After and request
    ids pass. Content-Length is left to the writer of the answer.
    """
    kept = _filtered(headers, _REPLACED_IN_RESPONSE)
    if extra:
        kept.update(extra)
    return kept


def _filtered(headers: MultiMapping[str], dropped: frozenset[str]) -> CIMultiDict[str]:
    connection = headers.getall("Connection", None)
    if connection is not None:
        named = {name.strip().lower() for value in connection for name in value.split(",")}
        dropped = dropped | named
    kept = [
        (name, value)
        for name, value in headers.items()
        if name.lower() not in dropped and (value.isascii() or _is_utf8(value))
    ]
    return CIMultiDict(kept)


def _is_utf8(value: str) -> bool:
    """Whether a value can be written again: raw bytes that are no UTF-8 arrive as lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _header_value(text: str) -> str:
    """Make any text a safe field value: all but printable ASCII is percent-encoded, so that no id adds a line."""
    if text.isascii() and text.isprintable():
        return text
    return quote(text, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}", errors="replace")
