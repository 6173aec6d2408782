"""The backend client: URLs, failures before an answer, stale connections."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import ssl
import struct

import aiohttp
import pytest
from multidict import CIMultiDict
from upstream_wire import RawBackend

from thunderagent.testing.fake_backend import Exchange, json_answer
from thunderagent.upstream.client import BackendClient, FetchedPage, ForwardFailed, PoolSettings, normalise_base_url
from thunderagent.upstream.connection import broken_by

NO_HEADERS: CIMultiDict[str] = CIMultiDict()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a:8000", "http://a:8000"),
        ("http://a:8000/", "http://a:8000"),
        (" http://A:8000/v1 ", "http://a:8000"),
        ("https://a/v1/", "https://a"),
        ("http://a/prefix/v1", "http://a/prefix"),
        ("http://[::1]:8000/", "http://[::1]:8000"),
    ],
)
def test_base_url_is_normalised(url, expected):
    """One backend has one name, however its URL was written."""
    assert normalise_base_url(url) == expected


@pytest.mark.parametrize(
    "url", ["", "a:8000", "ftp://a", "http://", "http://a?x=1", "http://a#x", "http://u:p@a", "http://a:port"]
)
def test_bad_base_url_is_refused(url):
    """What is no plain base URL stops with a text that says so; credentials are not repeated in it."""
    with pytest.raises(ValueError, match="backend URL") as caught:
        normalise_base_url(url)
    assert "u:p" not in str(caught.value)


async def failure(url: str, method: str = "POST", connect_timeout_seconds: float = 0.2) -> ForwardFailed:
    """The failure of one request to a URL."""
    client = BackendClient(url, pool=PoolSettings(connect_timeout_seconds=connect_timeout_seconds))
    try:
        with pytest.raises(ForwardFailed) as caught:
            await client.open(method, "/v1/chat/completions", b"{}", NO_HEADERS)
        return caught.value
    finally:
        await client.close()


async def test_refused_connection_was_not_sent():
    """Nobody listens: the request can go elsewhere."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = await failure(f"http://127.0.0.1:{taken.getsockname()[1]}")
        port = taken.getsockname()[1]
    assert (error.reason, error.sent) == ("connect", False)
    assert str(error) == f"no connection to 127.0.0.1:{port}: Connection refused"


async def test_unknown_host_was_not_sent():
    """A name that does not resolve is its own reason."""
    error = await failure("http://no-such-host.invalid:1", connect_timeout_seconds=10.0)
    assert (error.reason, error.sent) == ("dns", False)
    assert str(error).startswith("no connection to no-such-host.invalid:1: ")


async def test_plain_server_behind_https_was_not_sent():
    """A failed TLS handshake sends nothing."""
    async with RawBackend(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n") as backend:
        error = await failure(backend.url.replace("http", "https"))
    assert error.sent is False
    assert error.reason in ("tls", "connect", "connect_timeout")


async def close_at_once(_: Exchange) -> None:
    """A backend that reads the request and hangs up."""


async def reset_at_once(exchange: Exchange) -> None:
    """A backend that reads the request and resets."""
    exchange.reset()


async def bad_status_line(exchange: Exchange) -> None:
    """A backend that does not speak HTTP."""
    await exchange.send(b"SSH-2.0-x\r\n\r\n")


@pytest.mark.parametrize(
    ("script", "reason", "told"),
    [
        (close_at_once, "disconnected", "closed the connection before its answer's end"),
        (reset_at_once, "disconnected", "closed the connection before its answer's end"),
        (bad_status_line, "bad_response", "answered with something other than HTTP"),
    ],
)
async def test_failure_after_the_request_may_have_been_sent(script, reason, told):
    """On a fresh connection a break before the header is reported, not repeated: the backend may have worked."""
    async with RawBackend(script) as backend:
        error = await failure(backend.url)
        assert (error.reason, error.sent, len(backend.exchanges)) == (reason, True, 1)
        assert str(error) == f"127.0.0.1:{backend.port} {told}"


async def test_system_s_reason_is_told_where_the_backend_did_not_close():
    """The connection breaks by itself under the request: the network is gone, or the host."""
    asked = asyncio.Event()

    async def silent(exchange: Exchange) -> None:
        asked.set()
        await exchange.wait_client_left()

    async with RawBackend(silent) as backend:
        client = BackendClient(backend.url)
        opening = asyncio.create_task(client.open("POST", "/x", b"{}", NO_HEADERS))
        await asyncio.wait_for(asked.wait(), 5)
        (protocol,) = client._session.connector._acquired
        protocol.transport._force_close(OSError(errno.EHOSTUNREACH, "x"))
        with pytest.raises(ForwardFailed) as caught:
            await opening
        await client.close()
    where = f"127.0.0.1:{backend.port}"
    assert str(caught.value) == f"the connection to {where} broke before its answer's end: No route to host"
    assert (caught.value.reason, caught.value.sent) == ("disconnected", True)


@pytest.mark.parametrize(
    "error", [ssl.SSLError(1, "x"), ConnectionResetError(errno.ECONNRESET, "x"), asyncio.TimeoutError(), OSError()]
)
def test_numbers_that_are_not_the_system_s_or_say_nothing_are_left_out(error):
    """OpenSSL numbers its errors by itself: 1 is no missing permission."""
    failed = aiohttp.ClientPayloadError()
    failed.__cause__ = error
    assert (broken_by(error), broken_by(failed)) == (None, None)


async def test_stale_connection_is_replaced_unseen():
    """A kept connection that the backend closes under the request is no failure: it is sent once more, anew."""
    seen: list[bytes] = []

    async def once_then_hang_up(exchange: Exchange) -> None:
        seen.append(exchange.body)
        if exchange.body == b"second" and len(seen) == 2:
            return
        await exchange.send(json_answer(b"{}"))
        if exchange.body == b"first":
            await backend._one(exchange.reader, exchange.writer)

    async with RawBackend(once_then_hang_up) as backend:
        client = BackendClient(backend.url)
        first = await client.open("POST", "/x", b"first", NO_HEADERS)
        await first.read()
        second = await client.open("POST", "/x", b"second", NO_HEADERS)
        assert (second.status, await second.read()) == (200, b"{}")
        await client.close()
    assert seen == [b"first", b"second", b"second"]
    assert backend.connections == 2


async def kept_alive(exchange: Exchange) -> None:
    """A backend that answers each request of a connection, the body after the head, and resets it at the last."""
    await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
    await asyncio.sleep(0.01)
    await exchange.send(b"{}")
    if exchange.body == b"last":
        linger = struct.pack("ii", 1, 0)
        exchange.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        exchange.reset()
        return
    head = await exchange.reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    await kept_alive(Exchange(head, await exchange.reader.readexactly(size), exchange.reader, exchange.writer))


async def test_kept_connection_gathers_no_callbacks_and_its_reset_no_report():
    """What guards one answer is forgotten at its end, however many follow; that an idle connection broke is nobody's
    error, and asyncio does not report it as one that was never retrieved."""
    reports: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    async with RawBackend(kept_alive) as backend:
        client = BackendClient(backend.url)
        counts = []
        for body in [b"{}"] * 10 + [b"last"]:
            answer = await client.open("POST", "/x", body, NO_HEADERS)
            assert answer.connection is not None
            closed = answer.connection.protocol.closed
            assert await answer.read() == b"{}"
            counts.append(len(closed._callbacks or ()))
        await asyncio.wait((closed,), timeout=2)
        assert "reset" in str(closed.exception()).lower()
        await client.close()
    assert backend.connections == 1
    assert counts == [1] * 11
    del answer, closed
    gc.collect()
    assert reports == []


async def test_answer_before_the_whole_upload_is_returned():
    """A backend may refuse a large body from its header alone; its answer counts, not the broken upload."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(json_answer(b"{}", "413 Content Too Large", "Connection: close"))
        await writer.drain()
        try:
            while await reader.read(1 << 20):
                pass
        except ConnectionError:
            pass
        writer.close()
        done.set()

    done = asyncio.Event()
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    client = BackendClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    answer = await asyncio.wait_for(client.open("POST", "/x", b"x" * 5_000_000, NO_HEADERS), 5)
    assert (answer.status, await answer.read()) == (413, b"{}")
    await client.close()
    await asyncio.wait_for(done.wait(), 2)
    server.close()
    await server.wait_closed()


async def test_informational_answer_is_skipped():
    """100 and 103 come before the answer and are not it."""
    async with RawBackend(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + json_answer(b"{}")
    ) as backend:
        client = BackendClient(backend.url)
        answer = await client.open("POST", "/x", b"{}", NO_HEADERS)
        assert (answer.status, await answer.read()) == (200, b"{}")
        await client.close()


async def test_request_arrives_as_given():
    """Prefix, query and headers are sent as they are; nothing is added but Host and Content-Length."""
    async with RawBackend(json_answer(b"{}")) as backend:
        client = BackendClient(backend.url + "/prefix/v1/")
        answer = await client.open(
            "POST", "/v1/x?a=%2F&b=c d".replace(" ", "%20"), b"body", CIMultiDict({"X-A": "1"})
        )
        await answer.read()
        await client.close()
    (exchange,) = backend.exchanges
    assert exchange.body == b"body"
    assert exchange.head.split(b"\r\n") == [
        b"POST /prefix/v1/x?a=%2F&b=c%20d HTTP/1.1",
        f"Host: 127.0.0.1:{backend.port}".encode(),
        b"X-A: 1",
        b"Content-Length: 4",
        b"",
        b"",
    ]


async def test_large_body_arrives_whole():
    """A prompt of several megabytes is sent piece by piece, without a warning."""
    body = b"x" * 3_000_000
    async with RawBackend(json_answer(b"{}")) as backend:
        client = BackendClient(backend.url)
        await (await client.open("POST", "/x", body, NO_HEADERS)).read()
        await client.close()
    (exchange,) = backend.exchanges
    assert exchange.body == body
    assert b"Content-Type" not in exchange.head


@pytest.mark.parametrize("target", ["v1/x", "@evil/", "http://evil/"])
async def test_target_without_slash_is_refused(target):
    """A request target cannot change the host."""
    client = BackendClient("http://127.0.0.1:1")
    with pytest.raises(ValueError, match="request target"):
        await client.open("GET", target, None, NO_HEADERS)
    await client.close()


async def test_closed_client_fails_unsent():
    """A backend that was removed meanwhile is a failure, not a crash."""
    client = BackendClient("http://127.0.0.1:1")
    await client.close()
    with pytest.raises(ForwardFailed) as caught:
        await client.open("GET", "/x", None, NO_HEADERS)
    assert (caught.value.reason, caught.value.sent) == ("closed", False)


async def test_cookies_are_not_carried_over():
    """What a backend sets for one client never goes out with another's request."""
    async with RawBackend(json_answer(b"{}", "200 OK", "Set-Cookie: a=1; Path=/")) as backend:
        client = BackendClient(backend.url)
        for _ in range(2):
            await (await client.open("GET", "/x", None, NO_HEADERS)).read()
        await client.close()
    assert all(b"ookie" not in exchange.head for exchange in backend.exchanges)


async def test_fetch_sends_the_key_and_reads_the_page():
    """The router's own requests carry the backend's key; it does not show in the client's repr."""
    async with RawBackend(json_answer(b"page")) as backend:
        client = BackendClient(backend.url, "secret")
        assert await client.fetch("/metrics", timeout_seconds=1) == FetchedPage(200, b"page")
        with pytest.raises(ForwardFailed, match="over 3 bytes"):
            await client.fetch("/metrics", timeout_seconds=1, max_bytes=3)
        assert "secret" not in repr(client)
        await client.close()
    assert b"Authorization: Bearer secret\r\n" in backend.exchanges[0].head


async def test_fetch_that_hangs_times_out():
    """A page that does not come is a timeout, in time."""

    async def hang(exchange: Exchange) -> None:
        await exchange.wait_client_left()

    async with RawBackend(hang) as backend:
        client = BackendClient(backend.url)
        with pytest.raises(ForwardFailed) as caught:
            await asyncio.wait_for(client.fetch("/health", timeout_seconds=0.05), 2)
        await client.close()
    assert (caught.value.reason, caught.value.sent) == ("timeout", True)
