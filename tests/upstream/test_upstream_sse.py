"""Event boundaries and stream observations under any chunking."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upstream_wire import recorded

from thunderagent.core.usage import Usage
from thunderagent.upstream.sse import EventSplitter, event_data, split_events
from thunderagent.upstream.usage import Api, StreamObserver, is_usage_only_event


def chop(stream: bytes, cuts: list[int]) -> list[bytes]:
    """The stream cut at the given places."""
    places = sorted({cut % (len(stream) + 1) for cut in cuts} | {0, len(stream)})
    return [stream[start:end] for start, end in pairwise(places)]


def observations(api: Api, chunks: list[bytes], max_event_bytes: int = 4096) -> tuple[object, ...]:
    """Everything that an observer tells of a stream."""
    observer = StreamObserver(api, max_event_bytes)
    for chunk in chunks:
        observer.feed(chunk)
    observer.finish()
    return (observer.usage, observer.output_chunks, observer.finished, observer.failed, observer.oversized)


PAYLOADS = st.one_of(
    st.sampled_from(
        [
            b"[DONE]",
            b'{"choices":[{"delta":{"content":"[DONE] data: \\"usage\\""}}]}',
            b'{"choices":[{"delta":{"content":"usage"}}],"error":null}',
            b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}',
            b'{"choices":[],"usage":{"prompt_tokens":-1,"completion_tokens":2}}',
            b'{"error":{"message":"x"}}',
            b'{"usage":',
            b'["usage"]',
            b'{"type":"message_start","message":{"usage":{"input_tokens":9,"output_tokens":0}}}',
            b'{"type":"message_delta","delta":{},"usage":{"output_tokens":5}}',
            b'{"type":"message_stop"}',
            b'{"type":"response.completed","response":{"usage":{"input_tokens":3,"output_tokens":4}}}',
            b"x" * 60 + b'"delta" "usage"',
        ]
    ),
    st.builds(lambda text: msgspec.json.encode({"choices": [{"delta": {"content": text}}]}), st.text(max_size=20)),
)
LINE_END = st.sampled_from([b"\n", b"\r\n", b"\r"])
EVENTS = st.builds(
    lambda prefix, payload, end: prefix + payload + end + end,
    st.sampled_from([b"data: ", b"data:", b": ping\ndata: ", b"event: x\ndata: ", b": "]),
    PAYLOADS,
    LINE_END,
)


@settings(max_examples=250, deadline=None)
@given(
    events=st.lists(EVENTS, max_size=8),
    cuts=st.lists(st.integers(0, 5000), max_size=30),
    api=st.sampled_from([Api.CHAT, Api.COMPLETIONS, Api.RESPONSES, Api.MESSAGES]),
    bound=st.sampled_from([20, 64, 4096]),
)
def test_any_chunking_gives_the_same_observations(events, cuts, api, bound):
    """What is read from a stream depends on its bytes alone, not on how they were cut."""
    stream = b"".join(events)
    whole = observations(api, [stream], bound)
    assert observations(api, chop(stream, cuts), bound) == whole
    assert observations(api, [stream[i : i + 1] for i in range(len(stream))], bound) == whole


@settings(max_examples=150, deadline=None)
@given(
    events=st.lists(EVENTS, max_size=6), cuts=st.lists(st.integers(0, 5000), max_size=20), bound=st.integers(1, 80)
)
def test_splitter_loses_no_byte(events, cuts, bound):
    """Released bytes, blocks and the tail make up the stream, and held bytes stay within the bound and a chunk."""
    stream = b"".join(events)
    splitter, passed = EventSplitter(bound), b""
    for chunk in chop(stream, cuts):
        block = splitter.feed(chunk)
        passed += splitter.released + block
    assert passed + splitter.finish() == stream


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n"])
def test_every_line_ending_ends_an_event(end):
    """Any two line ends in a row are a boundary, also byte by byte."""
    stream = b"data: a" + end + b"data: b" + end
    splitter = EventSplitter()
    block = b"".join(splitter.feed(stream[i : i + 1]) for i in range(len(stream))) + splitter.finish()
    assert [data for event in split_events(block) if (data := event_data(event))] == [b"a", b"b"]


def test_event_with_several_data_lines_is_joined():
    """Data lines of one event are joined with LF; other fields and comments are no data."""
    assert event_data(b": c\nevent: e\ndata: a\ndata:b\nid: 1\n\n") == b"a\nb"


CHAT_RECORDS = [
    ("chat_stream", Usage(0, 0, 0), 17),
    ("chat_stream_usage", Usage(40, 16, 32), 17),
    ("chat_stream_usage_continuous", Usage(40, 16, 32), 17),
    ("chat_stream_no_details_flag", Usage(911, 8, None), 9),
    ("chat_tools_auto_regex_forced_stream", Usage(181, 53, 160), 19),
]
RECORDS = [
    *[(Api.CHAT, name, None if name == "chat_stream" else usage, count) for name, usage, count in CHAT_RECORDS],
    (Api.COMPLETIONS, "completions_stream", Usage(3, 8, 0), 8),
    (Api.RESPONSES, "responses_stream", Usage(13, 8, 0), 8),
    (Api.MESSAGES, "anthropic_messages_stream", Usage(13, 8, 0), 7),
]


@pytest.mark.parametrize(("api", "name", "usage", "output_chunks"), RECORDS)
@pytest.mark.parametrize("size", [1, 7, 100000])
def test_recorded_stream_is_read(api, name, usage, output_chunks, size):
    """vLLM's own streams give their usage and their end, in small and large chunks."""
    stream = recorded(name)
    chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert observations(api, chunks, 8 << 20) == (usage, output_chunks, True, False, False)


def test_engine_that_died_is_read_as_failed():
    """vLLM's error event under a 200 counts as the backend's failure, though [DONE] follows."""
    found = observations(Api.CHAT, [recorded("engine_dead_innocent_stream")], 8 << 20)
    assert found == (None, 105, True, True, False)


def test_messages_with_cache_counts_replace_the_first_estimate():
    """The end's three input counts belong together; the start's, which knew of no cache, is not added to them."""
    stream = (
        b'event: message_start\ndata: {"type":"message_start","message":{"usage":'
        b'{"input_tokens":100,"output_tokens":0}}}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","delta":{},"usage":{"input_tokens":4,'
        b'"output_tokens":9,"cache_read_input_tokens":96,"cache_creation_input_tokens":0}}\n\n'
    )
    assert observations(Api.MESSAGES, [stream])[0] == Usage(100, 9, 96)


def test_words_inside_content_do_not_end_or_fail_a_stream():
    """Generated text may hold anything that the reader looks for."""
    text = 'data: [DONE]\n\n {"usage": {"prompt_tokens": 1, "completion_tokens": 1}} "error" message_stop'
    event = b"data: " + msgspec.json.encode({"choices": [{"delta": {"content": text}}]}) + b"\n\n"
    assert observations(Api.CHAT, [event]) == (None, 1, False, False, False)
    assert observations(Api.MESSAGES, [event]) == (None, 1, False, False, False)


def test_long_event_is_not_held():
    """An event over the bound passes without being collected."""
    splitter = EventSplitter(1000)
    held = 0
    splitter.feed(b"data: ")
    for _ in range(1000):
        splitter.feed(b"x" * 100)
        held = max(held, sum(len(part) for part in splitter._parts))
    assert held <= 1200


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n', True),
        (b'data: {"choices":[{}],"usage":{"prompt_tokens":1}}\n\n', False),
        (b'data: {"choices":[],"usage":null}\n\n', False),
        (b'data: {"usage":{"prompt_tokens":1}}\n\n', False),
        (b"data: [DONE]\n\n", False),
        (b'data: {"usage"\n\n', False),
    ],
)
def test_usage_only_event_is_told_apart(event, expected):
    """Only an event with no choices and a usage object is the extra one."""
    assert is_usage_only_event(event) is expected
