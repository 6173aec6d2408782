"""Errors written into an answer on its way: as a JSON body, or as the last event of a stream."""

from __future__ import annotations

import msgspec

from thunderagent.upstream.usage import Api

__all__ = ["BACKEND_DISCONNECTED", "body_as_event", "error_body", "error_event"]

BACKEND_DISCONNECTED = "backend_disconnected"
"""Code of an answer that the backend began and did not end."""

_ERROR_TYPE = "backend_error"
_DONE = b"data: [DONE]\n\n"


def error_body(api: Api, code: str, message: str, error_type: str = _ERROR_TYPE) -> bytes:
    """An error object as the API's clients expect it; ``code`` is stable, ``message`` is for people."""
    if api is Api.MESSAGES:
        return msgspec.json.encode(
            {"type": "error", "error": {"type": "api_error", "message": message, "code": code}}
        )
    return msgspec.json.encode({"error": {"message": message, "type": error_type, "param": None, "code": code}})


def error_event(api: Api, code: str, message: str, error_type: str = _ERROR_TYPE) -> bytes:
    """One event that tells a stream's client that the answer failed, with its ending empty line."""
    if api is Api.RESPONSES:
        data = msgspec.json.encode(
            {"type": "error", "code": code, "message": message, "param": None, "sequence_number": 0}
        )
        return b"event: error\ndata: " + data + b"\n\n"
    data = error_body(api, code, message, error_type)
    if api is Api.MESSAGES:
        return b"event: error\ndata: " + data + b"\n\n"
    return b"data: " + data + b"\n\n"


def body_as_event(api: Api, body: bytes) -> bytes:
    """A whole JSON body as the only event of a stream, for an answer that had to begin as a stream.

    A body that is not JSON becomes an error event that does not quote it.
    """
    try:
        data = msgspec.json.format(body, indent=-1)
    except (msgspec.DecodeError, UnicodeDecodeError):
        event = error_event(api, "backend_error", "The backend answered with something other than JSON.")
    else:
        kind = b"event: error\n" if api in (Api.MESSAGES, Api.RESPONSES) else b""
        event = kind + b"data: " + data + b"\n\n"
    return event + _DONE if api in (Api.CHAT, Api.COMPLETIONS) else event
