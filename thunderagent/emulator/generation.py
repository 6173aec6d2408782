"""Answers inference requests: parse, plan the reply, let the engine time it, write it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiohttp import web

from thunderagent.emulator.driver import ClientLeft, EngineDriver, TokenStream
from thunderagent.emulator.engine import EngineRequest
from thunderagent.emulator.faults import FaultBoard, FaultKind, RequestFaults
from thunderagent.emulator.reply import Reply, filler_reply, scripted_reply
from thunderagent.emulator.requests import Api, ApiError, ParsedRequest, decode_body, parse_request
from thunderagent.emulator.script import Script
from thunderagent.emulator.shapes import ReplyShape, Usage, shape_for
from thunderagent.emulator.tokens import BYTES_PER_TOKEN, block_hashes, count_tokens, pad

__all__ = ["Generator"]

ENGINE_DEAD = ApiError(
    500, "EngineCore encountered an issue. See stack trace (above) for the root cause.", "InternalServerError"
)
DEATH_EVENTS = (
    b'data: {"error": {"message": "%s", "type": "InternalServerError", "param": null, "code": 500}}\n\n'
    % (ENGINE_DEAD.message.encode())
)

OVERLOADED = ApiError(
    503,
    "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.",
    "Service Unavailable",
)

CLIENT_LEFT = 499
"""Status of an answer that nobody reads."""


class _Broken(Exception):
    """A fault ended the reply."""


class Generator:
    """Handles the inference endpoints of one emulated engine."""

    def __init__(
        self,
        driver: EngineDriver,
        faults: FaultBoard,
        *,
        models: tuple[str, ...],
        max_model_len: int,
        script: Script,
        default_tokens: int,
        usage_details: bool,
    ) -> None:
        self._driver = driver
        self._faults = faults
        self._models = models
        self._max_model_len = max_model_len
        self._script = script
        self._default_tokens = default_tokens
        self._usage_details = usage_details
        self._admitted = 0

    async def handle(self, request: web.Request, api: Api, fallback_id: str) -> web.StreamResponse:
        """Answer one request. ``fallback_id`` names it where the client does not. Raises ApiError."""
        arrived_at = time.monotonic()
        raw = await request.read()
        faults = self._faults.take()
        if faults.get(FaultKind.REFUSE) is not None:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=CLIENT_LEFT)
        if (status := faults.get(FaultKind.STATUS)) is not None:
            raise (
                OVERLOADED
                if status.status == 503
                else ApiError(status.status, f"fault on demand: status {status.status}", "InternalServerError")
            )
        parsed = parse_request(api, decode_body(raw))
        reply = self._plan(parsed)
        request_id = request.headers.get("X-Request-Id") or parsed.request_id or fallback_id
        shape = shape_for(parsed, reply, request_id, int(time.time()))
        stream = self._submit(request, parsed, reply)
        writer = _Writer(request, faults, arrived_at)
        try:
            if parsed.stream:
                return await self._stream(writer, shape, stream)
            return await self._whole(writer, shape, stream)
        except (ClientLeft, ConnectionResetError, _Broken):
            return writer.response or web.Response(status=CLIENT_LEFT)
        finally:
            self._driver.abort(stream)

    def _plan(self, parsed: ParsedRequest) -> Reply:
        """Check a request against the model and decide on its reply. Raises ApiError."""
        if parsed.model and parsed.model not in self._models:
            message = f"The model `{parsed.model}` does not exist. Valid aliases: {', '.join(self._models)}."
            raise ApiError(404, message, "NotFoundError", "model")
        prompt_tokens = count_tokens(parsed.prompt)
        room = self._room(parsed, prompt_tokens)
        turn = self._script.select(parsed.messages)
        if turn is not None:
            return scripted_reply(turn, parsed.max_tokens or room)
        if parsed.max_tokens is not None:
            return filler_reply(parsed.prompt, parsed.max_tokens, stops=False)
        if parsed.ignore_eos or room <= self._default_tokens:
            return filler_reply(parsed.prompt, room, stops=False)
        return filler_reply(parsed.prompt, self._default_tokens, stops=True)

    def _room(self, parsed: ParsedRequest, prompt_tokens: int) -> int:
        """Tokens that a reply can have. Raises ApiError (400) where prompt and asked tokens overflow the model."""
        limit = self._max_model_len
        asked = parsed.max_tokens
        if asked is not None and asked > limit:
            message = f"max_tokens={asked} cannot be greater than max_model_len={limit}. "
            message += "Please request fewer output tokens."
            raise _too_long(message, "max_tokens", asked)
        longest = limit - (asked or 1)
        if prompt_tokens <= longest:
            return limit - prompt_tokens
        if asked is None or prompt_tokens > limit:
            message = (
                f"This model's maximum context length is {limit} tokens. However, your prompt contains at least "
                f"{limit + 1} input tokens, which exceeds this limit even without any output tokens. "
                "Please reduce the length of the input prompt."
            )
            raise _too_long(message, "input_tokens", limit + 1)
        message = (
            f"This model's maximum context length is {limit} tokens. However, you requested {asked} output tokens "
            f"and your prompt contains at least {longest + 1} input tokens, for a total of at least {limit + 1} "
            "tokens. Please reduce the length of the input prompt or the number of requested output tokens."
        )
        raise _too_long(message, "input_tokens", longest + 1)

    def _submit(self, request: web.Request, parsed: ParsedRequest, reply: Reply) -> TokenStream:
        self._admitted += 1
        engine = self._driver.engine
        engine_id = f"{self._admitted}"
        prompt_tokens = count_tokens(parsed.prompt)
        hashes: list[int] = []
        if engine.settings.prefix_caching:
            content = parsed.prompt + reply.body
            # Tokens beyond the text (a script may ask for more) have content that no later turn shares.
            missing = (prompt_tokens + reply.tokens) * BYTES_PER_TOKEN - len(content)
            if missing > 0:
                content += pad(f"<{engine_id}>".encode()) + bytes(missing)
            hashes = block_hashes(
                content[: (prompt_tokens + reply.tokens) * BYTES_PER_TOKEN], engine.cache.block_size
            )
        work = EngineRequest(
            engine_id, prompt_tokens, reply.tokens, hashes, parsed.priority, finish_reason=reply.finish_reason
        )
        return self._driver.submit(work, _connected(request), whole=not parsed.stream)

    async def _stream(self, writer: _Writer, shape: ReplyShape, stream: TokenStream) -> web.StreamResponse:
        await writer.open()
        prompt_tokens = stream.request.prompt_tokens
        sent = await stream.more(0)
        parts = [shape.opening(prompt_tokens), *(shape.token(index, prompt_tokens) for index in range(sent))]
        while not (stream.finished and sent == stream.generated):
            await writer.write(b"".join(parts))
            ready = await stream.more(sent)
            parts = [shape.token(index, prompt_tokens) for index in range(sent, ready)]
            sent = ready
        await writer.write(b"".join((*parts, shape.closing(self._usage(writer.faults, stream)))))
        return await writer.close()

    async def _whole(self, writer: _Writer, shape: ReplyShape, stream: TokenStream) -> web.StreamResponse:
        await stream.more(0)
        if writer.faults.get(FaultKind.ENGINE_DEATH) is not None:
            await writer.delay()
            raise ENGINE_DEAD
        return await writer.send(shape.whole(self._usage(writer.faults, stream)))

    def _usage(self, faults: RequestFaults, stream: TokenStream) -> Usage | None:
        if faults.get(FaultKind.NO_USAGE) is not None:
            return None
        prompt_tokens = stream.request.prompt_tokens
        size = self._driver.engine.cache.block_size
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=stream.generated,
            cached_tokens=stream.cached_tokens,
            created_cache_tokens=max(0, prompt_tokens // size * size - stream.cached_tokens),
            details=self._usage_details,
        )


def _too_long(message: str, param: str, value: int) -> ApiError:
    return ApiError(400, f"{message} (parameter={param}, value={value})", param=param)


def _connected(request: web.Request) -> Callable[[], bool]:
    def connected() -> bool:
        transport = request.transport
        return transport is not None and not transport.is_closing()

    return connected


class _Writer:
    """Writes one reply and the faults that befall it."""

    def __init__(self, request: web.Request, faults: RequestFaults, arrived_at: float) -> None:
        self._request = request
        self.faults = faults
        self._arrived_at = arrived_at
        self._events = 0
        self._event_by_event = faults.count_chunks
        self.response: web.StreamResponse | None = None

    async def open(self) -> None:
        """Send the headers of a stream."""
        await self.delay()
        self.response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await self.response.prepare(self._request)

    async def write(self, events: bytes) -> None:
        """Send events; those that meet a fault one by one. Raises _Broken after the last one that is sent."""
        assert self.response is not None
        if not self._event_by_event:
            if events:
                await self.response.write(events)
            return
        for event in events.split(b"\n\n"):
            if event:
                await self._meet_faults()
                await self.response.write(event + b"\n\n")
                self._events += 1

    async def _meet_faults(self) -> None:
        """What stands between the events sent so far and the next."""
        assert self.response is not None
        for kind in (FaultKind.STALL, FaultKind.ENGINE_DEATH, FaultKind.CUT):
            fault = self.faults.get(kind)
            if fault is None or fault.after_chunks != self._events:
                continue
            if kind is FaultKind.STALL:
                await self._stall(fault.seconds)
            elif kind is FaultKind.ENGINE_DEATH:
                await self.response.write(DEATH_EVENTS + b"data: [DONE]\n\n")
                await self.response.write_eof()
                raise _Broken
            else:
                self._cut()

    async def close(self) -> web.StreamResponse:
        """End the stream."""
        assert self.response is not None
        await self.response.write_eof()
        return self.response

    async def send(self, body: bytes) -> web.StreamResponse:
        """Send a reply that is not streamed."""
        await self.delay()
        stall = self.faults.get(FaultKind.STALL)
        if stall is not None:
            await self._stall(stall.seconds)
        if self.faults.get(FaultKind.CUT) is None:
            return web.Response(body=body, content_type="application/json")
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        self.response = web.StreamResponse(headers=headers)
        await self.response.prepare(self._request)
        await self.response.write(body[: len(body) // 2])
        self._cut()
        return self.response

    async def delay(self) -> None:
        """Let a ``delay`` fault's time since the request's arrival pass."""
        fault = self.faults.get(FaultKind.DELAY)
        if fault is not None:
            due_at = self._arrived_at + (1.0 if fault.seconds is None else fault.seconds)
            await asyncio.sleep(max(0.0, due_at - time.monotonic()))

    async def _stall(self, seconds: float | None) -> None:
        """Send nothing for a while; without end until the client leaves."""
        end_at = None if seconds is None else time.monotonic() + seconds
        connected = _connected(self._request)
        while end_at is None or time.monotonic() < end_at:
            if not connected():
                raise ClientLeft
            await asyncio.sleep(0.02)

    def _cut(self) -> None:
        """Close the connection in the middle of the body. Raises _Broken."""
        if self._request.transport is not None:
            self._request.transport.close()
        raise _Broken
