"""The relay between a raw fake backend and a raw client: bytes, ends, breaks and disconnects."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import tracemalloc
from itertools import pairwise

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from upstream_wire import STREAM_HEAD, Front, RawBackend, parse_answer, recorded

from thunderagent.core.usage import Outcome, Usage
from thunderagent.testing.fake_backend import LAST_CHUNK, Exchange, chunked, json_answer
from thunderagent.upstream.relay import RelayProgress
from thunderagent.upstream.usage import Api

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"host"},"finish_reason":null}]}\n\n'
DONE = b"data: [DONE]\n\n"


def script(*parts: bytes, reset: bool = False):
    """A backend that writes these parts and closes."""

    async def answer(exchange: Exchange) -> None:
        await exchange.send(*parts)
        if reset:
            exchange.reset()

    return answer


async def run(backend_script, api=Api.CHAT, **options):
    """One request through the front; the whole answer and the result."""
    async with RawBackend(backend_script) as backend, Front(backend.url, api, **options) as front:
        raw = await front.post()
        return parse_answer(raw), front.result


STREAMS = [
    (Api.CHAT, "chat_stream", None, Outcome.COMPLETED),
    (Api.CHAT, "chat_stream_usage", Usage(40, 16, 32), Outcome.COMPLETED),
    (Api.COMPLETIONS, "completions_stream", Usage(3, 8, 0), Outcome.COMPLETED),
    (Api.RESPONSES, "responses_stream", Usage(13, 8, 0), Outcome.COMPLETED),
    (Api.MESSAGES, "anthropic_messages_stream", Usage(13, 8, 0), Outcome.COMPLETED),
    (Api.CHAT, "engine_dead_innocent_stream", None, Outcome.BACKEND_ERROR),
]


@pytest.mark.parametrize(("api", "name", "usage", "outcome"), STREAMS)
async def test_recorded_stream_passes_unchanged(api, name, usage, outcome):
    """Each API's stream arrives byte for byte, ends cleanly, and gives its usage; vLLM's own error too."""
    stream = recorded(name)
    parts = [stream[i : i + 97] for i in range(0, len(stream), 97)]
    (_, body, whole), result = await run(script(STREAM_HEAD, *(chunked(part) for part in parts), LAST_CHUNK), api)
    assert (body, whole) == (stream, True)
    assert (result.outcome, result.usage, result.status) == (outcome, usage, 200)
    assert (result.body_bytes, result.broken) == (len(stream), None)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, 4000), max_size=25), segments=st.lists(st.integers(1, 9000), max_size=25))
def test_any_chunking_arrives_byte_for_byte(cuts, segments):
    """Neither the backend's chunks nor the network's segments show in what the client gets."""
    stream = recorded("chat_stream_usage")
    places = sorted({cut % len(stream) for cut in cuts} | {0, len(stream)})
    wire = STREAM_HEAD + chunked(*(stream[a:b] for a, b in pairwise(places))) + LAST_CHUNK
    ends = sorted({segment % len(wire) for segment in segments} | {0, len(wire)})
    parts = [wire[a:b] for a, b in pairwise(ends)]
    (_, body, whole), result = asyncio.run(run(script(*parts)))
    assert (body, whole, result.usage) == (stream, True, Usage(40, 16, 32))


OPENAI_ERROR = {
    "error": {
        "message": "The backend's answer broke off before its end.",
        "type": "backend_error",
        "param": None,
        "code": "backend_disconnected",
    }
}
PARTIAL = b'data: {"choices":[{"delta":{"cont'


@pytest.mark.parametrize(
    ("parts", "reset"),
    [
        ([chunked(EVENT, PARTIAL)], False),
        ([chunked(EVENT), b"%x\r\n" % 500 + PARTIAL], False),
        ([chunked(EVENT, PARTIAL), LAST_CHUNK], False),
        ([chunked(EVENT, PARTIAL), b"zz\r\n"], False),
    ],
    ids=["eof without last chunk", "eof inside a chunk", "clean end without [DONE]", "malformed chunk"],
)
async def test_broken_stream_ends_with_an_error_and_a_cut(parts, reset):
    """A stream without its end is closed off with the API's error event and never with a terminating chunk."""
    (_, body, whole), result = await run(script(STREAM_HEAD, *parts, reset=reset))
    assert body.startswith(EVENT)
    assert json.loads(body.rsplit(b"\n\ndata: ", 1)[1]) == OPENAI_ERROR
    assert body.endswith(b"\n\n")
    assert not whole
    assert (result.outcome, result.usage) == (Outcome.BACKEND_DISCONNECTED, None)
    assert result.broken is not None
    assert result.broken.startswith("the backend ")


async def test_reset_stream_ends_with_an_error_and_a_cut():
    """A TCP reset mid-body is told like any other break."""

    async def answer(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD + chunked(EVENT))
        await asyncio.sleep(0.05)
        exchange.reset()

    (_, body, whole), result = await run(answer)
    assert (body[: len(EVENT)], whole, result.outcome) == (EVENT, False, Outcome.BACKEND_DISCONNECTED)
    assert json.loads(body[len(EVENT) :].strip()[len(b"data: ") :]) == OPENAI_ERROR


@pytest.mark.parametrize(
    ("api", "begin", "error"),
    [
        (
            Api.MESSAGES,
            b'event: message_start\ndata: {"type":"message_start"}\n\n',
            {
                "type": "error",
                "error": {
                    "type": "api_error",
                    "message": "The backend's answer broke off before its end.",
                    "code": "backend_disconnected",
                },
            },
        ),
        (
            Api.RESPONSES,
            b'event: response.created\ndata: {"type":"response.created"}\n\n',
            {
                "type": "error",
                "code": "backend_disconnected",
                "message": "The backend's answer broke off before its end.",
                "param": None,
                "sequence_number": 0,
            },
        ),
    ],
)
async def test_broken_stream_uses_the_error_event_of_its_api(api, begin, error):
    """Messages and responses have error events of their own."""
    (_, body, whole), result = await run(script(STREAM_HEAD, chunked(begin)), api)
    name, data = body[len(begin) :].strip().split(b"\n")
    assert (name, json.loads(data[len(b"data: ") :]), whole) == (b"event: error", error, False)
    assert result.outcome is Outcome.BACKEND_DISCONNECTED


async def test_break_after_the_last_event_is_no_error():
    """With [DONE] there, a missing last chunk loses nothing."""
    (_, body, whole), result = await run(script(STREAM_HEAD, chunked(EVENT, DONE)))
    assert (body, whole, result.outcome, result.broken) == (EVENT + DONE, True, Outcome.COMPLETED, None)


async def test_backend_that_hangs_after_the_last_event_is_let_go(monkeypatch):
    """A backend that keeps the connection open behind [DONE] holds the turn only for the linger time."""
    monkeypatch.setattr("thunderagent.upstream.relay._LINGER_SECONDS", 0.05)
    closed = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD + chunked(EVENT, DONE))
        await exchange.wait_client_left()
        closed.set()

    (_, body, whole), result = await run(answer)
    await asyncio.wait_for(closed.wait(), 2)
    assert (body, whole, result.outcome) == (EVENT + DONE, True, Outcome.COMPLETED)


async def test_giant_event_passes_uninspected():
    """An event over the bound arrives whole; its usage is unknown and its end is not taken for a break."""
    giant = b'data: {"usage":"' + b"x" * (9 * 1024 * 1024) + b'"}\n\n'
    parts = [chunked(giant[i : i + 65536]) for i in range(0, len(giant), 65536)]
    (_, body, whole), result = await run(script(STREAM_HEAD, *parts, LAST_CHUNK))
    assert (body == giant, whole, result.outcome, result.usage) == (True, True, Outcome.COMPLETED, None)


async def test_compressed_stream_passes_untouched():
    """A backend that compresses though asked not to is relayed with its encoding; usage stays unknown."""
    packed = gzip.compress(recorded("chat_stream_usage"))
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    (head, body, whole), result = await run(script(head, chunked(packed[:100], packed[100:]), LAST_CHUNK))
    assert b"Content-Encoding: gzip" in head
    assert (body, whole, result.outcome, result.usage) == (packed, True, Outcome.COMPLETED, None)


async def test_injected_usage_event_is_removed_and_nothing_else():
    """The usage-only event is read and left out; every other byte stays, in whatever pieces it came."""
    stream = recorded("chat_stream_usage")
    start = stream.index(b'data: {"id"', stream.rindex(b'"finish_reason":"length"'))
    expected = stream[:start] + DONE
    for size in (11, 300, 100000):
        parts = [chunked(stream[i : i + size]) for i in range(0, len(stream), size)]
        (_, body, whole), result = await run(script(STREAM_HEAD, *parts, LAST_CHUNK), drop_usage_event=True)
        assert (body, whole, result.usage) == (expected, True, Usage(40, 16, 32))


async def test_continuous_usage_survives_the_removal():
    """Only the event without choices goes; usage on events with output is the client's own."""
    stream = recorded("chat_stream_usage_continuous")
    (_, body, _), result = await run(script(STREAM_HEAD, chunked(stream), LAST_CHUNK), drop_usage_event=True)
    assert (body.count(b'"usage"'), stream.count(b'"usage"'), result.usage) == (17, 18, Usage(40, 16, 32))


async def test_progress_is_reported_at_most_once_a_second():
    """With a clock that moves 0.4 s per look, about every third chunk is reported."""
    now = [0.0]

    def clock() -> float:
        now[0] += 0.4
        return now[0]

    async def answer(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD)
        for _ in range(9):
            await exchange.send(chunked(EVENT))
            await asyncio.sleep(0.01)
        await exchange.send(chunked(DONE), LAST_CHUNK)

    reports: list[int] = []
    _, result = await run(answer, on_progress=reports.append, clock=clock)
    assert result.output_chunks == 9
    assert reports == sorted(reports)
    assert 2 <= len(reports) <= 4


WHOLE = [
    ("200 OK", "chat_nonstream", Outcome.COMPLETED, Usage(40, 16, 0)),
    ("400 Bad Request", "err_context_overflow", Outcome.BACKEND_REJECTED, None),
    ("404 Not Found", "err_wrong_model", Outcome.BACKEND_REJECTED, None),
    ("500 Internal Server Error", "engine_dead_500", Outcome.BACKEND_ERROR, None),
    ("200 OK", "engine_dead_500", Outcome.BACKEND_ERROR, None),
]


@pytest.mark.parametrize(("status", "name", "outcome", "usage"), WHOLE)
async def test_whole_body_passes_with_its_status(status, name, outcome, usage):
    """Answers and errors arrive as they are, with Content-Length, and are told apart."""
    sent = recorded(name)
    (head, body, whole), result = await run(json_answer(sent, status, "X-Request-Id: r1", "Retry-After: 2"))
    assert head.startswith(b"HTTP/1.1 " + status.encode())
    assert b"x-request-id: r1" in head.lower()
    assert b"Retry-After: 2" in head
    assert (body, whole) == (sent, True)
    assert (result.outcome, result.usage, result.status) == (outcome, usage, int(status[:3]))


async def test_whole_body_cut_short_becomes_502():
    """Nothing was sent yet, so the client gets a clean error."""
    answer = json_answer(b"x" * 100)[:-50]
    (head, body, whole), result = await run(script(answer))
    assert head.startswith(b"HTTP/1.1 502")
    assert (json.loads(body), whole, result.outcome, result.status) == (
        OPENAI_ERROR,
        True,
        Outcome.BACKEND_DISCONNECTED,
        502,
    )


async def test_whole_body_cut_short_behind_an_answer_already_begun_has_the_backend_s_status():
    """The client was given 200 before; the error is in the body."""
    async with RawBackend(script(json_answer(b"x" * 100)[:-50])) as backend, Front(backend.url) as front:
        front.begin_with = ("application/json", b" ")
        head, body, whole = parse_answer(await front.post())
        result = front.result
    assert head.startswith(b"HTTP/1.1 200")
    assert (json.loads(body), whole) == (OPENAI_ERROR, True)
    assert (result.outcome, result.status) == (Outcome.BACKEND_DISCONNECTED, 200)


async def test_long_whole_body_is_passed_on_in_pieces(monkeypatch):
    """A body over the bound is not held; where it breaks the connection is cut."""
    monkeypatch.setattr("thunderagent.upstream.relay._MAX_HELD_BODY_BYTES", 1000)
    sent = b"y" * 300_000
    (_, body, whole), result = await run(json_answer(sent))
    assert (body == sent, whole, result.outcome, result.usage) == (True, True, Outcome.COMPLETED, None)
    (_, body, whole), result = await run(script(json_answer(sent)[:-10]))
    assert (len(body) <= 299_990, whole, result.outcome) == (True, False, Outcome.BACKEND_DISCONNECTED)


async def test_redirect_is_not_followed():
    """A backend cannot send the router elsewhere."""
    location = "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    (head, body, _), result = await run(location.encode())
    assert head.startswith(b"HTTP/1.1 307")
    assert (body, result.outcome) == (b"", Outcome.BACKEND_REJECTED)


@pytest.mark.parametrize(
    ("content_type", "begin", "answer", "expected"),
    [
        ("application/json", b"  ", json_answer(b'{"a":1}'), b'  {"a":1}'),
        (
            "text/event-stream",
            b": wait\n\n",
            json_answer(b'{\n "error": {"code": 400}\n}', "400 Bad Request"),
            b': wait\n\ndata: {"error":{"code":400}}\n\ndata: [DONE]\n\n',
        ),
        (
            "text/event-stream",
            b": wait\n\n",
            STREAM_HEAD + chunked(EVENT, DONE) + LAST_CHUNK,
            b": wait\n\n" + EVENT + DONE,
        ),
    ],
    ids=["body", "error as event", "stream"],
)
async def test_answer_already_begun_is_continued(content_type, begin, answer, expected):
    """Behind keep-alive bytes a body follows as it is, an error in a stream as an event."""
    async with RawBackend(answer) as backend, Front(backend.url) as front:
        front.begin_with = (content_type, begin)
        _, body, whole = parse_answer(await front.post())
    assert (body, whole) == (expected, True)


@pytest.mark.parametrize("begun", [True, False])
async def test_client_that_leaves_closes_the_backend_connection(begun):
    """vLLM drops a request whose connection closes, so a disconnect must reach it, streaming or not."""
    closed, asked = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        if begun:
            await exchange.send(STREAM_HEAD + chunked(EVENT))
        asked.set()
        await exchange.wait_client_left()
        closed.set()

    async with RawBackend(answer) as backend, Front(backend.url) as front:
        reader, writer = await front.connect()
        await asyncio.wait_for(asked.wait(), 2)
        if begun:
            await reader.readuntil(b"\n\n")
        writer.close()
        await asyncio.wait_for(closed.wait(), 2)
        for _ in range(20):
            if front.results:
                break
            await asyncio.sleep(0.01)
        (error,) = front.results
    assert isinstance(error, (asyncio.CancelledError, ConnectionError))


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}}\n\n'
ERROR = b'data: {"error":{"message":"boom"}}\n\n'


@pytest.mark.parametrize("drops", [True, False])
@pytest.mark.parametrize(
    ("events", "outcome", "usage", "output_tokens"),
    [
        (EVENT, None, None, 1),
        (EVENT + USAGE, None, Usage(9, 2, None), 2),
        (EVENT + USAGE + DONE, Outcome.COMPLETED, Usage(9, 2, None), 2),
        (EVENT + ERROR, Outcome.BACKEND_ERROR, None, 1),
        (EVENT + ERROR + DONE, Outcome.BACKEND_ERROR, None, 1),
    ],
)
async def test_findings_of_a_stream_survive_the_client_that_leaves(events, outcome, usage, output_tokens, drops):
    """The client closes at the last event that it wants; what had passed by then is there for the accounting."""

    async def answer(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD + chunked(events))
        await exchange.wait_client_left()

    progress = RelayProgress()
    options = {"progress": progress, "drop_usage_event": drops}
    async with RawBackend(answer) as backend, Front(backend.url, **options) as front:
        reader, writer = await front.connect()
        await reader.readuntil(EVENT)
        writer.close()
        for _ in range(50):
            if front.results:
                break
            await asyncio.sleep(0.01)
        (error,) = front.results
    assert isinstance(error, (asyncio.CancelledError, ConnectionError))
    seen = (progress.status, progress.outcome, progress.usage, progress.output_tokens, progress.broken)
    assert seen == (200, outcome, usage, output_tokens, None)
    assert progress.first_byte_at is not None


@pytest.mark.parametrize("drops", [True, False])
async def test_findings_of_a_stream_survive_a_write_that_fails(monkeypatch, drops):
    """The client leaves, or the turn is cut, while the last event is being written: it was there."""

    async def write(*_):
        raise ConnectionResetError

    monkeypatch.setattr("aiohttp.web.StreamResponse.write", write)
    progress = RelayProgress()
    options = {"progress": progress, "drop_usage_event": drops}
    backend_script = script(STREAM_HEAD, chunked(EVENT + USAGE + DONE), LAST_CHUNK)
    async with RawBackend(backend_script) as backend, Front(backend.url, **options) as front:
        await front.post()
        (error,) = front.results
    assert isinstance(error, ConnectionResetError)
    seen = (progress.outcome, progress.usage, progress.output_tokens)
    assert seen == (Outcome.COMPLETED, Usage(9, 2, None), 2)
    assert progress.first_byte_at is not None


async def test_stream_that_is_ended_takes_no_error_event(monkeypatch):
    """Whoever cuts it while its end is being written must not write behind [DONE]."""
    progress, seen = RelayProgress(), []
    write_eof = web.StreamResponse.write_eof

    async def write(response, data=b""):
        if response is progress.response:
            seen.append(progress.takes_event)
        await write_eof(response, data)

    monkeypatch.setattr("aiohttp.web.StreamResponse.write_eof", write)
    _, result = await run(script(STREAM_HEAD, chunked(EVENT, DONE), LAST_CHUNK), progress=progress)
    assert result.outcome is Outcome.COMPLETED
    assert seen[0] is False


@pytest.mark.parametrize(
    ("number", "broken"),
    [
        (errno.EHOSTUNREACH, "the connection to the backend broke before the answer's end: No route to host"),
        (errno.ECONNRESET, "the backend closed the connection before the answer's end"),
    ],
)
@pytest.mark.parametrize(
    "begin",
    [
        STREAM_HEAD + chunked(EVENT),
        STREAM_HEAD.replace(b"Transfer-Encoding: chunked", b"Content-Length: 999") + EVENT,
    ],
    ids=["chunked", "of a length"],
)
async def test_system_s_reason_is_told_where_the_backend_did_not_close(begin, number, broken):
    """A network that is gone is no backend that closed the connection."""

    async def answer(exchange: Exchange) -> None:
        await exchange.send(begin)
        await exchange.wait_client_left()

    async with RawBackend(answer) as backend, Front(backend.url) as front:
        reader, writer = await front.connect()
        await reader.readuntil(EVENT)
        (protocol,) = front.client._session.connector._acquired
        protocol.transport._force_close(OSError(number, "x"))
        await reader.read(-1)
        writer.close()
        result = front.result
    assert (result.outcome, result.broken) == (Outcome.BACKEND_DISCONNECTED, broken)


async def test_slow_client_holds_the_backend_back_and_memory_stays_bounded():
    """A client that does not read stops the backend's writes; the stream is never collected."""
    event = EVENT * 200
    sent = [0]

    async def answer(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD)
        wire = chunked(event)
        for _ in range(3000):
            exchange.writer.write(wire)
            await exchange.writer.drain()
            sent[0] += len(event)
        await exchange.send(chunked(DONE), LAST_CHUNK)

    async with RawBackend(answer) as backend, Front(backend.url) as front:
        tracemalloc.start()
        try:
            reader, writer = await front.connect()
            await asyncio.sleep(0.25)
            stalled_at = sent[0]
            size = 0
            while chunk := await reader.read(1 << 20):
                size += len(chunk)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        writer.close()
        result = front.result
    total = 3000 * len(event)
    assert stalled_at < total / 2
    assert (result.body_bytes, result.output_chunks) == (total + len(DONE), 600_000)
    assert size > total
    assert peak < 12 * 1024 * 1024
