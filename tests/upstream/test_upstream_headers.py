"""Header filters, as tables."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from thunderagent.upstream.headers import request_headers, response_headers

CLIENT = CIMultiDict(
    [
        ("Host", "router:8300"),
        ("Content-Length", "12"),
        ("Content-Type", "application/json"),
        ("Connection", "keep-alive, X-Private"),
        ("X-Private", "1"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("Upgrade", "websocket"),
        ("Transfer-Encoding", "chunked"),
        ("Proxy-Authorization", "Basic x"),
        ("Expect", "100-continue"),
        ("Accept-Encoding", "gzip, br"),
        ("Authorization", "Bearer client"),
        ("x-api-key", "client"),
        ("X-Request-Id", "r1"),
        ("X-Session-ID", "client-session"),
        ("X-Tag", "a"),
        ("X-Tag", "b"),
    ]
)


def test_request_without_keys_drops_hop_by_hop_and_keeps_the_rest():
    """Only end-to-end fields cross, repeated ones kept, and plain bytes are asked for."""
    assert list(request_headers(CLIENT).items()) == [
        ("Content-Type", "application/json"),
        ("Authorization", "Bearer client"),
        ("x-api-key", "client"),
        ("X-Request-Id", "r1"),
        ("X-Session-ID", "client-session"),
        ("X-Tag", "a"),
        ("X-Tag", "b"),
        ("Accept-Encoding", "identity"),
    ]


@pytest.mark.parametrize(
    ("key", "forward", "authorization", "api_key"),
    [
        (None, True, "Bearer client", "client"),
        (None, False, None, None),
        ("secret", True, "Bearer secret", None),
        ("secret", False, "Bearer secret", None),
    ],
)
def test_credentials_follow_the_keys_in_use(key, forward, authorization, api_key):
    """The client's credentials reach a backend only where neither side of the router has keys of its own."""
    sent = request_headers(CLIENT, backend_key=key, forward_credentials=forward)
    assert (sent.get("Authorization"), sent.get("X-Api-Key")) == (authorization, api_key)


@pytest.mark.parametrize(
    ("program_id", "sent"),
    [
        ("run-1", ["run-1"]),
        ("a b/c:d=e", ["a b/c:d=e"]),
        ("line\r\nX-Evil: 1", ["line%0D%0AX-Evil: 1"]),
        ("naïve", ["na%C3%AFve"]),
        (None, ["client-session"]),
    ],
)
def test_program_id_becomes_a_safe_session_header(program_id, sent):
    """The program's id replaces the client's session, and no id can add a header line."""
    assert request_headers(CLIENT, program_id=program_id).getall("X-Session-ID") == sent


def test_value_that_cannot_be_written_again_is_dropped():
    """Bytes that are no UTF-8 arrive as surrogates; sending them would fail the request."""
    headers = CIMultiDict([("X-Bad", "\udce9"), ("X-Good", "é")])
    assert list(request_headers(headers).items()) == [("X-Good", "é"), ("Accept-Encoding", "identity")]


def test_response_keeps_end_to_end_fields_and_sets_extra_ones():
    """Date, Server, cookies and retry hints pass; framing and hop-by-hop fields do not."""
    backend = CIMultiDict(
        [
            ("Date", "Sun, 22 Nov 2026 12:46:56 GMT"),
            ("Server", "uvicorn"),
            ("Set-Cookie", "a=1"),
            ("Set-Cookie", "b=2"),
            ("Retry-After", "3"),
            ("Content-Encoding", "gzip"),
            ("Content-Length", "10"),
            ("Transfer-Encoding", "chunked"),
            ("Connection", "close"),
            ("Trailer", "X"),
            ("X-Backend", "old"),
        ]
    )
    assert list(response_headers(backend, {"X-Backend": "new"}).items()) == [
        ("Date", "Sun, 22 Nov 2026 12:46:56 GMT"),
        ("Server", "uvicorn"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("Retry-After", "3"),
        ("Content-Encoding", "gzip"),
        ("X-Backend", "new"),
    ]
