"""Usage of whole bodies, per API and when it is damaged."""

from __future__ import annotations

import pytest
from upstream_wire import recorded

from thunderagent.core.usage import Usage
from thunderagent.upstream.usage import Api, BodyReading, read_body


@pytest.mark.parametrize(
    ("api", "name", "usage"),
    [
        (Api.CHAT, "chat_nonstream", Usage(40, 16, 0)),
        (Api.CHAT, "chat_nonstream_repeat_cached", Usage(246, 16, 32)),
        (Api.CHAT, "chat_no_details_flag", Usage(911, 8, None)),
        (Api.COMPLETIONS, "completions", Usage(3, 8, 0)),
        (Api.RESPONSES, "responses", Usage(13, 8, 0)),
        (Api.MESSAGES, "anthropic_messages", Usage(13, 8, 0)),
        (Api.OTHER, "chat_nonstream", None),
    ],
)
def test_recorded_body_gives_its_usage(api, name, usage):
    """vLLM's own bodies are read, with and without cache details."""
    assert read_body(api, recorded(name)) == BodyReading(usage, False)


@pytest.mark.parametrize(
    "usage",
    [
        b"null",
        b"7",
        b"[]",
        b"{}",
        b'{"prompt_tokens":1}',
        b'{"prompt_tokens":-1,"completion_tokens":1}',
        b'{"prompt_tokens":"1","completion_tokens":1}',
        b'{"prompt_tokens":true,"completion_tokens":1}',
        b'{"prompt_tokens":1.5,"completion_tokens":1}',
        b'{"prompt_tokens":1,"completion_tokens":null}',
        b'{"prompt_tokens":1,"completion_tokens":1e300}',
        b'{"prompt_tokens":99999999999999999999999,"completion_tokens":1}',
    ],
)
def test_malformed_usage_is_none(usage):
    """Damage of any kind is the same as no usage."""
    assert read_body(Api.CHAT, b'{"usage":' + usage + b"}") == BodyReading(None, False)


@pytest.mark.parametrize(
    ("details", "cached"),
    [
        (b'{"cached_tokens":4}', 4),
        (b'{"cached_tokens":11}', None),
        (b'{"cached_tokens":"4"}', None),
        (b"[]", None),
        (b"null", None),
    ],
)
def test_malformed_cache_details_leave_the_counts(details, cached):
    """Details that cannot be right do not cost the counts that can."""
    body = b'{"usage":{"prompt_tokens":10,"completion_tokens":2,"prompt_tokens_details":' + details + b"}}"
    assert read_body(Api.CHAT, body).usage == Usage(10, 2, cached)


@pytest.mark.parametrize("body", [b"", b"not json", b"[1]", b'{"usage":', b"\xff\xfe"])
def test_body_that_is_no_json_object_reads_as_nothing(body):
    """Reading never raises."""
    assert read_body(Api.CHAT, body) == BodyReading(None, False)


def test_error_object_is_recognised():
    """An error object is an error; a null one, as responses always carry, is not."""
    assert read_body(Api.CHAT, recorded("engine_dead_500")).is_error
    assert not read_body(Api.RESPONSES, b'{"error":null}').is_error
