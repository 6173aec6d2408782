"""What an answer says of itself, per API: its token usage, its end and its errors, read from bytes on their way."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import msgspec
from attrs import frozen

from thunderagent.core.usage import Usage
from thunderagent.upstream.sse import MAX_EVENT_BYTES, EventSplitter, event_data, event_size, split_events

__all__ = ["Api", "BodyReading", "StreamObserver", "is_usage_only_event", "read_body"]

# More tokens than any request holds: a number above is damage, not usage.
_MAX_TOKENS = 1_000_000_000
_Count = Annotated[int, msgspec.Meta(ge=0, le=_MAX_TOKENS)]
_ABSENT = msgspec.Raw()


class Api(Enum):
    """The shape of a request and its answer, by path."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    OTHER = "other"
    """Routed but not scheduled (embeddings, tokenize, ...): no usage is read and a stream may end anyhow."""


class _OpenAIUsage(msgspec.Struct):
    prompt_tokens: _Count
    completion_tokens: _Count
    prompt_tokens_details: msgspec.Raw = _ABSENT


class _ResponsesUsage(msgspec.Struct):
    input_tokens: _Count
    output_tokens: _Count
    input_tokens_details: msgspec.Raw = _ABSENT


class _MessagesUsage(msgspec.Struct):
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    cache_read_input_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None


class _CachedDetails(msgspec.Struct):
    cached_tokens: _Count | None = None


class _Body(msgspec.Struct):
    """The two top-level fields of interest, in a body and in the events of chat and completions."""

    usage: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT


class _UsageOnly(msgspec.Struct):
    choices: list[msgspec.Raw]
    usage: dict[str, msgspec.Raw]


class _TypedEvent(msgspec.Struct):
    """An event of responses or messages."""

    type: str = ""
    usage: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT
    response: msgspec.Raw = _ABSENT
    message: msgspec.Raw = _ABSENT


_cached_details = msgspec.json.Decoder(_CachedDetails)
_openai_usage = msgspec.json.Decoder(_OpenAIUsage)
_responses_usage = msgspec.json.Decoder(_ResponsesUsage)
_messages_usage = msgspec.json.Decoder(_MessagesUsage)
_body = msgspec.json.Decoder(_Body)
_usage_only = msgspec.json.Decoder(_UsageOnly)
_typed_event = msgspec.json.Decoder(_TypedEvent)


@frozen
class BodyReading:
    """What a whole JSON body says: its usage (None: absent or malformed) and whether it is an error object."""

    usage: Usage | None
    is_error: bool


def read_body(api: Api, body: bytes) -> BodyReading:
    """Read usage and error of a non-streamed answer, without keeping a parsed copy. Never raises."""
    if api is Api.OTHER:
        return BodyReading(None, False)
    try:
        fields = _body.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return BodyReading(None, False)
    return BodyReading(_read_usage(api, fields.usage), _present(fields.error))


def is_usage_only_event(event: bytes) -> bool:
    """Whether a stream event of chat or completions is the extra last one that ``include_usage`` adds."""
    if b'"usage"' not in event:
        return False
    try:
        fields = _usage_only.decode(event_data(event))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return not fields.choices


class StreamObserver:
    """Reads a stream as it passes: usage, end, error, and how many events brought output.

    The bytes themselves are not kept. A block of events without one of the API's few words of interest costs three
    substring tests and a count; JSON is decoded only behind a hit, so that the same words inside generated text
    mislead nobody. The observations are the same under any chunking.
    """

    __slots__ = (
        "_api",
        "_max_event_bytes",
        "_merged",
        "_output_mark",
        "_splitter",
        "_words",
        "failed",
        "finished",
        "output_chunks",
        "oversized",
        "usage",
    )

    def __init__(self, api: Api, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._api = api
        self._splitter = EventSplitter(max_event_bytes)
        self._max_event_bytes = max_event_bytes
        self._output_mark = b'"text"' if api is Api.COMPLETIONS else b'"delta"'
        self._words = _WORDS[api]
        self._merged = _MessagesUsage()
        self.usage: Usage | None = None
        """The last usage that the stream gave; None as long as there is none."""
        self.finished = False
        """The API's own last event was seen."""
        self.failed = False
        """The backend itself reported an error inside the stream."""
        self.oversized = False
        """An event was too large to be read; the stream's end may have been in it."""
        self.output_chunks = 0
        """Events that brought output, summed over choices: an estimate of the output tokens, low where a backend
        puts several tokens into an event."""

    @property
    def output_tokens(self) -> int:
        """The best count so far: the backend's running usage where it sends one, else :attr:`output_chunks`."""
        usage = self.usage
        return max(usage.completion_tokens, self.output_chunks) if usage is not None else self.output_chunks

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        block = self._splitter.feed(chunk)
        if self._splitter.released:
            self.oversized = True
        if block:
            self._observe(block)

    def finish(self) -> None:
        """Take the end of the stream; an event without its empty line counts."""
        self._observe(self._splitter.finish())

    def _observe(self, block: bytes) -> None:
        usage_word, error_word, end_word = self._words
        if (
            usage_word not in block
            and end_word not in block
            and error_word not in block
            and len(block) <= self._max_event_bytes
        ):
            self.output_chunks += block.count(self._output_mark)
            return
        for event in split_events(block):
            self._observe_event(event)

    def _observe_event(self, event: bytes) -> None:
        if event_size(event) > self._max_event_bytes:
            self.oversized = True
            return
        self.output_chunks += event.count(self._output_mark)
        usage_word, error_word, end_word = self._words
        if usage_word not in event and error_word not in event and end_word not in event:
            return
        data = event_data(event)
        if data.strip() == b"[DONE]":
            self.finished = self.finished or self._api in (Api.CHAT, Api.COMPLETIONS)
            return
        try:
            if self._api in (Api.CHAT, Api.COMPLETIONS):
                self._read_openai(data)
            else:
                self._read_typed(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return

    def _read_openai(self, data: bytes) -> None:
        fields = _body.decode(data)
        self.failed = self.failed or _present(fields.error)
        self.usage = _read_usage(self._api, fields.usage) or self.usage

    def _read_typed(self, data: bytes) -> None:
        event = _typed_event.decode(data)
        if event.type == "error" or (not event.type and _present(event.error)):
            self.failed = True
        elif event.type in _RESPONSES_ENDS:
            self.finished = True
            self.failed = self.failed or event.type == "response.failed"
            self.usage = _read_usage(self._api, _body.decode(event.response).usage) or self.usage
        elif event.type == "message_stop":
            self.finished = True
        elif event.type == "message_start":
            self._merge(_body.decode(event.message).usage)
        elif event.type == "message_delta":
            self._merge(event.usage)

    def _merge(self, raw: msgspec.Raw) -> None:
        """Messages give input tokens at the start and output tokens at the end; where the end repeats the input,
        its three input counts belong together and replace the earlier ones."""
        if not _present(raw):
            return
        new = _messages_usage.decode(raw)
        if new.input_tokens is None:
            new.input_tokens = self._merged.input_tokens
            new.cache_read_input_tokens = self._merged.cache_read_input_tokens
            new.cache_creation_input_tokens = self._merged.cache_creation_input_tokens
        if new.output_tokens is None:
            new.output_tokens = self._merged.output_tokens
        self._merged = new
        self.usage = _from_messages(new) or self.usage


_RESPONSES_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
# Per API: a word in each event that may hold usage, an error, the end. Generated text holds quotes only escaped.
_WORDS = {
    Api.CHAT: (b'"usage"', b'"error"', b"[DONE]"),
    Api.COMPLETIONS: (b'"usage"', b'"error"', b"[DONE]"),
    Api.RESPONSES: (b'"response"', b'"error"', b'"response"'),
    Api.MESSAGES: (b'"message_', b'"error"', b'"message_'),
    Api.OTHER: (b'"usage"', b'"error"', b"[DONE]"),
}


def _present(raw: msgspec.Raw) -> bool:
    text = bytes(raw)
    return bool(text) and text != b"null"


def _read_usage(api: Api, raw: msgspec.Raw) -> Usage | None:
    """Usage from its JSON; None where it is absent or any count is not a plain number of tokens."""
    if not _present(raw):
        return None
    try:
        if api is Api.MESSAGES:
            return _from_messages(_messages_usage.decode(raw))
        if api is Api.RESPONSES:
            inner = _responses_usage.decode(raw)
            prompt, completion, details = inner.input_tokens, inner.output_tokens, inner.input_tokens_details
        else:
            plain = _openai_usage.decode(raw)
            prompt, completion, details = plain.prompt_tokens, plain.completion_tokens, plain.prompt_tokens_details
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return Usage(prompt, completion, _read_cached(details, prompt))


def _read_cached(raw: msgspec.Raw, prompt_tokens: int) -> int | None:
    if not _present(raw):
        return None
    try:
        cached = _cached_details.decode(raw).cached_tokens
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return cached if cached is not None and cached <= prompt_tokens else None


def _from_messages(usage: _MessagesUsage) -> Usage | None:
    """The three input counts exclude one another; vLLM leaves the cache counts out where it does not know them."""
    if usage.input_tokens is None or usage.output_tokens is None:
        return None
    cached = usage.cache_read_input_tokens
    prompt = usage.input_tokens + (cached or 0) + (usage.cache_creation_input_tokens or 0)
    return Usage(prompt, usage.output_tokens, cached)
