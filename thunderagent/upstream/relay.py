"""The byte relay: a backend's answer goes to the client as it arrives, and what it says of itself is noted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import aiohttp
from aiohttp import web
from attrs import define, frozen
from multidict import CIMultiDict

from thunderagent.core.usage import Outcome, Usage
from thunderagent.upstream.connection import broken_by
from thunderagent.upstream.errors import BACKEND_DISCONNECTED, body_as_event, error_body, error_event
from thunderagent.upstream.headers import response_headers
from thunderagent.upstream.sse import EventSplitter, split_events
from thunderagent.upstream.usage import Api, StreamObserver, is_usage_only_event, read_body

__all__ = ["RelayProgress", "RelayResult", "cut", "relay"]

_PROGRESS_SECONDS = 1.0
# After the API's last event nothing of worth follows; a backend that then keeps the connection open is let go.
_LINGER_SECONDS = 5.0
# A whole body is held back up to this size, so that one cut short becomes a clean 502; a longer one is passed on.
_MAX_HELD_BODY_BYTES = 16 * 1024 * 1024
# How long a cut connection may take to deliver the error event to a slow client.
_CUT_SECONDS = 10.0
_BROKEN = "The backend's answer broke off before its end."
# For the log: why an answer broke off.
_CLOSED = "the backend closed the connection before the answer's end"
_BROKE = "the connection to the backend broke before the answer's end"
_UNENDED = "the backend ended the stream without its last event"
_STREAM_TYPE = "text/event-stream"
# How a body that breaks off shows: truncated or malformed framing, a reset, silence after the end.
_READ_ERRORS = (aiohttp.ClientError, OSError, asyncio.TimeoutError)


@frozen
class RelayResult:
    """How an answer went.

    Attributes:
        outcome: COMPLETED, BACKEND_REJECTED (3xx, 4xx), BACKEND_ERROR (5xx, an error inside the answer) or
            BACKEND_DISCONNECTED (an answer that broke off).
        usage: None where the backend gave none that can be read.
        output_chunks: stream events that brought output, an estimate of the output tokens; 0 for whole bodies.
        status: the backend's status; 502 where the client got that in its place, not behind an answer already begun.
        first_byte_at: the clock when the first byte of the body was there; None for an empty body.
        body_bytes: what the backend sent of the body.
        broken: why the answer broke off, for the log; None where it was whole.
        response: for the handler to return; all of it was written, or the connection cut.
    """

    outcome: Outcome
    usage: Usage | None
    output_chunks: int
    status: int
    first_byte_at: float | None
    body_bytes: int
    broken: str | None
    response: web.StreamResponse


@define(eq=False)
class RelayProgress:
    """What is known of a stream while it runs: for a caller whose client leaves before ``relay`` returns.

    Clients close as soon as they have the last event; the backend's end of the body, which comes after it, then
    finds nobody, and what the stream said of itself must not be lost with the handler. Of whole bodies nothing is
    known before their end.
    """

    status: int | None = None
    first_byte_at: float | None = None
    broken: str | None = None
    """Why reading the answer failed; None as long as it did not."""
    observer: StreamObserver | None = None
    response: web.StreamResponse | None = None
    """The answer, once bytes of the backend's may have been written to it."""
    takes_event: bool = False
    """``response`` is a stream that an error event can end: neither compressed nor a whole body."""

    @property
    def outcome(self) -> Outcome | None:
        """How the answer ended for the client: COMPLETED once the API's last event is passed on,
        BACKEND_DISCONNECTED or BACKEND_ERROR where the backend broke off or reported an error before; None while it
        is under way."""
        observer = self.observer
        if observer is not None and observer.finished and not observer.failed:
            return Outcome.COMPLETED
        if observer is not None and observer.failed:
            return Outcome.BACKEND_ERROR
        return None if self.broken is None else Outcome.BACKEND_DISCONNECTED

    @property
    def usage(self) -> Usage | None:
        """The last usage that the stream gave; final once ``outcome`` is there."""
        return None if self.observer is None else self.observer.usage

    @property
    def output_tokens(self) -> int:
        """The best count of output tokens so far; 0 for whole bodies."""
        return 0 if self.observer is None else self.observer.output_tokens


async def relay(
    upstream: aiohttp.ClientResponse,
    request: web.Request,
    *,
    api: Api,
    drop_usage_event: bool = False,
    on_progress: Callable[[int], None] | None = None,
    response: web.StreamResponse | None = None,
    extra_headers: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.monotonic,
    progress: RelayProgress | None = None,
) -> RelayResult:
    """Pass a backend's answer on to the client, whole or as a stream, and say how it went.

    A stream that breaks is closed off with an error event and the connection is cut, so that no client takes it for
    complete. A whole body that breaks becomes a 502, code ``backend_disconnected``.

    Args:
        upstream: an answer whose header is there; it is read to its end, or closed.
        drop_usage_event: remove the last usage-only event of chat and completions (the router asked for it, the
            client did not). Events are then passed one by one.
        on_progress: called with the output tokens so far, at most once a second, while a stream runs.
        response: an answer already begun with status 200 (bytes were sent to keep a waiting client alive); an error
            is then told in the body.
        extra_headers: set on the answer, replacing the backend's.
        progress: filled while a stream runs, to be read after one of the errors below.

    Raises:
        ConnectionError: the client left. The backend's connection was closed, which makes vLLM drop the request.
        CancelledError: likewise.
    """
    progress = RelayProgress() if progress is None else progress
    progress.status = upstream.status
    run = _Relay(upstream, request, api, response, extra_headers, on_progress, clock, progress)
    try:
        if upstream.status < 400 and upstream.content_type == _STREAM_TYPE:
            return await run.stream(drop_usage_event=drop_usage_event)
        return await run.whole()
    except BaseException:
        upstream.close()
        raise


async def cut(request: web.Request, response: web.StreamResponse, event: bytes) -> None:
    """End a begun answer for good: say why with ``event`` (empty: say nothing), then close the connection without the
    terminating chunk."""
    transport = request.transport
    try:
        if event:
            await response.write(b"\n\n" + event)
    finally:
        if transport is not None:
            transport.close()
            asyncio.get_running_loop().call_later(_CUT_SECONDS, transport.abort)


@define(eq=False)
class _Relay:
    """The state of one answer under way."""

    upstream: aiohttp.ClientResponse
    request: web.Request
    api: Api
    started: web.StreamResponse | None
    extra_headers: Mapping[str, str] | None
    on_progress: Callable[[int], None] | None
    clock: Callable[[], float]
    progress: RelayProgress
    body_bytes: int = 0

    async def stream(self, *, drop_usage_event: bool) -> RelayResult:
        plain = "Content-Encoding" not in self.upstream.headers
        observer = StreamObserver(self.api) if plain and self.api is not Api.OTHER else None
        self.progress.observer = observer
        response = self.started
        if response is None:
            response = web.StreamResponse(
                status=self.upstream.status, reason=self.upstream.reason, headers=self._headers()
            )
            await response.prepare(self.request)
        elif not plain:
            return await self._refuse_started(response)
        self.progress.response, self.progress.takes_event = response, plain
        if drop_usage_event and observer is not None and self.api in (Api.CHAT, Api.COMPLETIONS):
            await self._pump_events(response, observer)
        else:
            await self._pump(response, observer)
        return await self._end_stream(response, observer, plain)

    async def _pump(self, response: web.StreamResponse, observer: StreamObserver | None) -> None:
        """Bytes out as they come in: this loop is what a stream costs."""
        read, write, clock = self.upstream.content.readany, response.write, self.clock
        reporting = self.on_progress is not None and observer is not None
        progress_due_at = clock() + _PROGRESS_SECONDS
        while True:
            try:
                chunk = await read()
            except _READ_ERRORS as error:
                self._note_broken(error)
                return
            if not chunk:
                return
            # Noted before it is written: there a client that leaves, or a shutdown, may end the turn.
            self._count(chunk)
            if observer is None:
                await write(chunk)
                continue
            observer.feed(chunk)
            await write(chunk)
            if reporting and (now := clock()) >= progress_due_at:
                progress_due_at = now + _PROGRESS_SECONDS
                self._report(observer)
            if observer.finished:
                read = self._read_lingering

    async def _pump_events(self, response: web.StreamResponse, observer: StreamObserver) -> None:
        """As :meth:`_pump`, holding back at most one unfinished event, to leave out the usage-only one."""
        splitter = EventSplitter()
        progress_due_at = self.clock() + _PROGRESS_SECONDS
        while True:
            try:
                chunk = await (self._read_lingering() if observer.finished else self.upstream.content.readany())
            except _READ_ERRORS as error:
                self._note_broken(error)
                break
            if not chunk:
                break
            self._count(chunk)
            observer.feed(chunk)
            block = splitter.feed(chunk)
            passed = splitter.released + _without_usage_event(block)
            if passed:
                await response.write(passed)
            if self.on_progress is not None and (now := self.clock()) >= progress_due_at:
                progress_due_at = now + _PROGRESS_SECONDS
                self._report(observer)
        tail = splitter.finish()
        if tail and not is_usage_only_event(tail):
            await response.write(tail)

    async def _read_lingering(self) -> bytes:
        return await asyncio.wait_for(self.upstream.content.readany(), _LINGER_SECONDS)

    def _count(self, chunk: bytes) -> None:
        if self.progress.first_byte_at is None:
            self.progress.first_byte_at = self.clock()
        self.body_bytes += len(chunk)

    def _note_broken(self, error: BaseException) -> None:
        reason = broken_by(error)
        self.progress.broken = _CLOSED if reason is None else f"{_BROKE}: {reason}"
        self.upstream.close()

    def _report(self, observer: StreamObserver) -> None:
        if self.on_progress is not None:
            self.on_progress(observer.output_tokens)

    async def _end_stream(
        self, response: web.StreamResponse, observer: StreamObserver | None, plain: bool
    ) -> RelayResult:
        if observer is not None:
            observer.finish()
            if observer.finished:
                self.progress.broken = None
            elif self.progress.broken is None and not observer.failed and not observer.oversized:
                self.progress.broken = _UNENDED
        if self.progress.broken is None:
            self.progress.takes_event = False
            await response.write_eof()
        else:
            event = error_event(self.api, BACKEND_DISCONNECTED, _BROKEN) if plain else b""
            await cut(self.request, response, event)
        failed = self.progress.outcome
        if failed is None or failed is Outcome.COMPLETED:
            return self._result(_outcome(self.upstream.status), response, observer)
        return self._result(failed, response, observer)

    async def whole(self) -> RelayResult:
        held: list[bytes] = []
        try:
            while chunk := await self.upstream.content.readany():
                self._count(chunk)
                held.append(chunk)
                if self.body_bytes > _MAX_HELD_BODY_BYTES:
                    break
        except _READ_ERRORS as error:
            self._note_broken(error)
        plain = "Content-Encoding" not in self.upstream.headers
        if self.started is not None and not plain:
            return await self._refuse_started(self.started)
        if self.progress.broken is not None:
            return await self._answer_broken()
        if not self.upstream.content.at_eof():
            return await self._pass_long_body(held)
        body = b"".join(held)
        outcome, usage = _outcome(self.upstream.status), None
        if outcome is Outcome.COMPLETED and plain:
            reading = read_body(self.api, body)
            usage = reading.usage
            if reading.is_error:
                outcome = Outcome.BACKEND_ERROR
        response = await self._answer(self.upstream.status, body, self._headers())
        return self._result(outcome, response, usage=usage)

    async def _pass_long_body(self, held: list[bytes]) -> RelayResult:
        """A body too long to hold: passed on as it comes, and cut off where it breaks; its usage stays unknown."""
        response = self.started
        if response is None:
            headers = self._headers()
            if (length := self.upstream.headers.get("Content-Length")) is not None:
                headers["Content-Length"] = length
            response = web.StreamResponse(status=self.upstream.status, reason=self.upstream.reason, headers=headers)
            await response.prepare(self.request)
        self.progress.response = response
        for part in held:
            await response.write(part)
        held.clear()
        await self._pump(response, None)
        return await self._end_stream(response, None, plain=False)

    async def _answer_broken(self) -> RelayResult:
        body = error_body(self.api, BACKEND_DISCONNECTED, _BROKEN)
        headers = {**(self.extra_headers or {}), "Content-Type": "application/json"}
        status = 502 if self.started is None else None
        return self._result(Outcome.BACKEND_DISCONNECTED, await self._answer(502, body, headers), status=status)

    async def _refuse_started(self, response: web.StreamResponse) -> RelayResult:
        """A compressed answer cannot follow plain bytes that were already sent."""
        self.upstream.close()
        self.progress.broken = "the backend compressed its answer though asked not to"
        await self._answer(502, error_body(self.api, "backend_error", _BROKEN), {})
        return self._result(Outcome.BACKEND_ERROR, response)

    async def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> web.StreamResponse:
        """Write a whole body as the answer, or as the rest of one already begun."""
        started = self.started
        if started is not None:
            self.progress.response = started
            as_event = started.content_type == _STREAM_TYPE
            await started.write_eof(body_as_event(self.api, body) if as_event else body)
            return started
        reason = self.upstream.reason if status == self.upstream.status else None
        self.progress.response = response = web.Response(status=status, reason=reason, headers=headers, body=body)
        await response.prepare(self.request)
        await response.write_eof()
        return response

    def _headers(self) -> CIMultiDict[str]:
        return response_headers(self.upstream.headers, self.extra_headers)

    def _result(
        self,
        outcome: Outcome,
        response: web.StreamResponse,
        observer: StreamObserver | None = None,
        usage: Usage | None = None,
        status: int | None = None,
    ) -> RelayResult:
        return RelayResult(
            outcome=outcome,
            usage=observer.usage if observer is not None else usage,
            output_chunks=observer.output_chunks if observer is not None else 0,
            status=status or self.upstream.status,
            first_byte_at=self.progress.first_byte_at,
            body_bytes=self.body_bytes,
            broken=self.progress.broken,
            response=response,
        )


def _outcome(status: int) -> Outcome:
    if status < 300:
        return Outcome.COMPLETED
    return Outcome.BACKEND_REJECTED if status < 500 else Outcome.BACKEND_ERROR


def _without_usage_event(block: bytes) -> bytes:
    if b'"usage"' not in block:
        return block
    return b"".join(event for event in split_events(block) if not is_usage_only_event(event))
