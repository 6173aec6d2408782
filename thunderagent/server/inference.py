"""A scheduled turn, from the request's first byte to the answer's last: read top-down."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import structlog
from aiohttp import web
from attrs import define, field

from thunderagent.backends import WatchedBackend
from thunderagent.core.ids import BackendId
from thunderagent.core.usage import Outcome, Usage
from thunderagent.errors import RouterError, ShuttingDown
from thunderagent.gateway import Ticket
from thunderagent.identity import IdentityRules, Submission, identify
from thunderagent.server.holding import HeldAnswer
from thunderagent.server.middleware import may_forward_credentials
from thunderagent.server.state import State, state_of
from thunderagent.telemetry.profile import TurnTiming
from thunderagent.upstream.client import ForwardFailed
from thunderagent.upstream.errors import error_event
from thunderagent.upstream.headers import request_headers
from thunderagent.upstream.relay import RelayProgress, RelayResult, cut, relay
from thunderagent.upstream.usage import Api

__all__ = ["APIS", "handle_turn"]

_log = structlog.get_logger("thunderagent.turns")

_WARNED = (Outcome.BACKEND_ERROR, Outcome.BACKEND_DISCONNECTED)
_CUT = "The router is shutting down; the turn was cut before its end."

APIS: dict[str, Api] = {
    "/v1/chat/completions": Api.CHAT,
    "/v1/completions": Api.COMPLETIONS,
    "/v1/responses": Api.RESPONSES,
    "/v1/messages": Api.MESSAGES,
    "/chat/completions": Api.CHAT,
    "/completions": Api.COMPLETIONS,
}
"""Scheduled paths. Those without /v1 are for clients whose base URL lacks it; backends get them with /v1."""


async def handle_turn(request: web.Request) -> web.StreamResponse:
    """Identify the turn, wait for its place, relay the answer, account for it exactly once."""
    state = state_of(request)
    submission = await _read_submission(request, state)
    ticket = state.gateway.arrive(submission)
    run = _Run(state, request, submission, ticket)
    task = asyncio.current_task()
    assert task is not None
    state.turn_tasks.add(task)
    try:
        return await run.answer()
    finally:
        state.turn_tasks.discard(task)
        run.account()


async def _read_submission(request: web.Request, state: State) -> Submission:
    """Read and identify the request. Only what is sent on is kept of its body: a turn may wait for long, and the
    client's bytes would be a second copy of a body that was changed."""
    rules = IdentityRules(state.settings.identify_by)
    inject_usage = state.settings.inject_usage
    submission = identify(request.path, request.headers, await request.read(), rules, inject_usage=inject_usage)
    request._read_bytes = None  # aiohttp caches what read() returned and has no public way to drop it
    return submission


@define(eq=False, repr=False)
class _Run:
    """One turn under way."""

    state: State
    request: web.Request
    submission: Submission
    ticket: Ticket
    arrived_at: float = field(factory=time.monotonic)
    forwarded_at: float | None = None
    backend: BackendId | None = None
    outcome: Outcome = Outcome.CLIENT_GONE
    usage: Usage | None = None
    output_tokens: int = 0
    status: int | None = None
    first_byte_at: float | None = None
    error: str | None = None
    _entry: WatchedBackend | None = None
    """The backend's client, while it is in use."""
    _is_refused: bool = False

    async def answer(self) -> web.StreamResponse:
        """The answer, whoever gives it: a backend, or the router with an error."""
        api = APIS[self.request.path]
        progress = RelayProgress()
        held = HeldAnswer(self.request, api, self.submission.is_stream, self.state.settings.hold_keepalive_seconds)
        try:
            upstream = await self._open(held)
            result = await relay(
                upstream,
                self.request,
                api=api,
                drop_usage_event=self.submission.drops_usage,
                on_progress=self.ticket.progress,
                response=held.started,
                progress=progress,
            )
        except RouterError as error:
            self.status, self.error, self._is_refused = error.status, error.code, True
            return await held.fail(error)
        except (asyncio.CancelledError, ConnectionError):
            self._take_left(progress)
            if self.outcome is Outcome.SHUTDOWN:
                await self._tell_shutdown(held, progress)
            raise
        self._take(result)
        return result.response

    async def _open(self, held: HeldAnswer) -> aiohttp.ClientResponse:
        """A backend's answer begun; backends that give none are passed over as long as the scheduler allows."""
        path = _backend_path(self.request)
        while True:
            self.backend = backend = await held.place(self.ticket)
            self.forwarded_at = time.monotonic()
            self._entry = entry = self.state.pool.use(backend)
            if entry is None:
                self.ticket.forward_failed("the backend was removed", sent=False)
                continue
            headers = request_headers(
                self.request.headers,
                program_id=self.submission.program,
                backend_key=entry.config.api_key,
                forward_credentials=may_forward_credentials(self.request),
            )
            try:
                upstream = await entry.client.open("POST", path, self.submission.body, headers)
            except ForwardFailed as failure:
                _log.warning(
                    "turn.forward_failed",
                    turn=self.ticket.id,
                    backend=backend,
                    reason=failure.reason,
                    sent=failure.sent,
                )
                if not entry.is_removed:
                    self.state.metrics.forward_failures.labels(backend).inc()
                self.state.pool.note_failure(entry, failure)
                self._leave_backend()
                self.ticket.forward_failed(str(failure), sent=failure.sent)
            else:
                self.state.pool.note_answer(entry)
                return upstream

    def _first_token_seconds(self) -> float | None:
        """Of a stream: the first byte of any other answer comes with its last token."""
        if self.first_byte_at is None or self.forwarded_at is None or not self.output_tokens:
            return None
        return self.first_byte_at - self.forwarded_at

    def _take(self, result: RelayResult) -> None:
        self.outcome, self.usage, self.output_tokens = result.outcome, result.usage, result.output_chunks
        self.status, self.first_byte_at, self.error = result.status, result.first_byte_at, result.broken

    def _take_left(self, progress: RelayProgress) -> None:
        """The client left, or the shutdown cut the turn: how far it had come counts."""
        self.status, self.first_byte_at, self.error = progress.status, progress.first_byte_at, progress.broken
        self.output_tokens = progress.output_tokens
        if progress.outcome is not None:
            self.outcome, self.usage = progress.outcome, progress.usage
        elif self.state.is_stopping:
            self.outcome = Outcome.SHUTDOWN

    async def _tell_shutdown(self, held: HeldAnswer, progress: RelayProgress) -> None:
        """The shutdown cut the turn: tell its client, if that is still there, in the form that is still open."""
        transport = self.request.transport
        if transport is None or transport.is_closing():
            return
        error = ShuttingDown(_CUT, retry_after_seconds=5.0)
        self.error = error.code
        if progress.response is None and held.started is None:
            self.status = error.status
        try:
            if progress.response is not None:
                event = error_event(held.api, error.code, error.message, error.type) if progress.takes_event else b""
                await cut(self.request, progress.response, event)
            else:
                response = await held.fail(error)
                await response.prepare(self.request)
                await response.write_eof()
        except ConnectionError:
            pass  # it left meanwhile

    def _leave_backend(self) -> None:
        entry, self._entry = self._entry, None
        if entry is not None:
            self.state.pool.leave(entry)

    def account(self) -> None:
        """Close the ticket, and tell: one line, the metrics, the profile."""
        entry = self._entry
        self._leave_backend()
        self.ticket.close(self.outcome, self.usage, self.output_tokens, self._first_token_seconds())
        if entry is not None:
            self.state.pool.note_outcome(entry, self.outcome)
        if self.submission.is_final and self.submission.program is not None:
            self.state.gateway.release(self.submission.program)
        ended_at = time.monotonic()
        outcome = self.outcome.value
        if self._is_refused:
            outcome = "refused"
            self.state.metrics.turns.labels(outcome).inc()
        elif self.backend is not None and self.forwarded_at is not None:
            self._measure(self.backend, self.forwarded_at, ended_at)
        else:
            self.state.metrics.turns.labels(outcome).inc()
        log = _log.warning if self.outcome in _WARNED else _log.info
        log(
            "turn.finished",
            turn=self.ticket.id,
            program=self.submission.program,
            branch=self.submission.branch,
            model=self.submission.model,
            backend=self.backend,
            status=self.status,
            outcome=outcome,
            error=self.error,
            held_seconds=round(self.ticket.held_seconds, 3),
            first_byte_seconds=None if self.first_byte_at is None else round(self.first_byte_at - self.arrived_at, 3),
            total_seconds=round(ended_at - self.arrived_at, 3),
            body_bytes=len(self.submission.body),
            prompt_tokens=None if self.usage is None else self.usage.prompt_tokens,
            cached_tokens=None if self.usage is None else self.usage.cached_tokens,
            completion_tokens=None if self.usage is None else self.usage.completion_tokens,
        )

    def _measure(self, backend: BackendId, forwarded_at: float, ended_at: float) -> None:
        first_byte_at = self.first_byte_at
        self.state.metrics.count_turn(
            backend,
            self.outcome,
            self.usage,
            held_seconds=self.ticket.held_seconds,
            first_byte_seconds=None if first_byte_at is None else first_byte_at - self.arrived_at,
            total_seconds=ended_at - self.arrived_at,
        )
        if backend not in self.state.pool.watched:
            self.state.metrics.forget_backend(backend)  # removed while the turn ran
        if self.state.profiler is not None and self.submission.program is not None:
            timing = TurnTiming(self.arrived_at, forwarded_at, first_byte_at, ended_at)
            self.state.profiler.record(self.submission.program, timing, self.usage)
        if self.state.recorder is not None and self.outcome is Outcome.COMPLETED:
            self.state.recorder.record(
                self.submission.program,
                self.submission.branch,
                self.submission.model,
                arrived_at=self.arrived_at,
                ended_at=ended_at,
                usage=self.usage,
            )


def _backend_path(request: web.Request) -> str:
    target = request.rel_url.raw_path_qs
    return target if target.startswith("/v1/") else "/v1" + target
