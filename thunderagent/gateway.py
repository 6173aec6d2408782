"""The asyncio driver of the scheduler: futures for turns that wait, one timer, and the effects of commands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import count
from urllib.parse import unquote

import attrs
import structlog
from attrs import define, field

from thunderagent.clock import Clock
from thunderagent.core import commands, events
from thunderagent.core.commands import Command, Notice
from thunderagent.core.events import Event
from thunderagent.core.ids import BackendId, ProgramId, TurnId
from thunderagent.core.outlook import Outlook, outlook
from thunderagent.core.scheduler import Scheduler
from thunderagent.core.turn import TurnStatus
from thunderagent.core.usage import Outcome, Usage
from thunderagent.errors import RouterError, ShuttingDown, refusal
from thunderagent.identity import Submission
from thunderagent.telemetry.metrics import Metrics

__all__ = ["Gateway", "Ticket"]

_log = structlog.get_logger("thunderagent.scheduler")

_NOTICE_EVENTS: dict[type[object], str] = {
    commands.TurnHeld: "turn.held",
    commands.ProgramAdmitted: "program.admitted",
    commands.ProgramYielding: "program.yielding",
    commands.ProgramPaused: "program.paused",
    commands.ProgramMoved: "program.moved",
    commands.ProgramForced: "program.forced",
    commands.ProgramExpired: "program.expired",
    commands.PrefixLost: "program.prefix_lost",
    commands.DecisionRejected: "policy.decision_rejected",
    commands.PolicyFailed: "policy.failed",
}
_WARNINGS = (commands.DecisionRejected, commands.PolicyFailed, commands.ProgramForced)


@define(eq=False, repr=False)
class Ticket:
    """One turn's side of the scheduler: wait for a backend, tell how it goes, close it exactly once."""

    id: TurnId
    gateway: Gateway
    submission: Submission
    arrived_at: float
    held_seconds: float = 0.0
    _placed: asyncio.Future[BackendId] = field(init=False)
    _is_closed: bool = False

    async def place(self) -> BackendId:
        """Wait for the backend to send the turn to.

        Raises:
            RouterError: the turn was refused; it is closed.
        """
        since = self.gateway.clock.now()
        try:
            return await self._placed
        finally:
            self.held_seconds += self.gateway.clock.now() - since

    def progress(self, output_tokens: int) -> None:
        """The turn streams."""
        if not self._is_closed:
            self.gateway.handle(events.TurnProgressed(self.id, output_tokens))

    def forward_failed(self, reason: str, *, sent: bool) -> None:
        """The backend gave no answer; ``place`` can be awaited again."""
        self._placed = asyncio.get_running_loop().create_future()
        self.gateway.forward_failed(self, reason, sent=sent)

    def close(
        self,
        outcome: Outcome,
        usage: Usage | None = None,
        output_tokens: int = 0,
        first_token_seconds: float | None = None,
    ) -> None:
        """The turn is over, however it ended; calls after the first do nothing.

        ``first_token_seconds``: from the forward to the first token; None where that is not known.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self.gateway.close(self, outcome, usage, output_tokens, first_token_seconds)

    def resolve(self, backend: BackendId) -> None:
        """For the gateway: the turn has a backend."""
        if not self._placed.done():
            self._placed.set_result(backend)

    def reject(self, error: RouterError) -> None:
        """For the gateway: the turn is refused."""
        if not self._placed.done():
            self._placed.set_exception(error)

    def __attrs_post_init__(self) -> None:
        self._placed = asyncio.get_running_loop().create_future()


@define(eq=False, repr=False)
class Gateway:
    """The only owner of the scheduler. All methods run in the event loop's thread and none of them waits."""

    scheduler: Scheduler
    clock: Clock
    metrics: Metrics
    tickets: dict[TurnId, Ticket] = field(factory=dict)
    is_draining: bool = False
    _turn_ids: count[int] = field(factory=lambda: count(1))
    _timer: asyncio.TimerHandle | None = None
    _timer_at: float = 0.0
    """Reading of the clock at which the timer is due."""

    def arrive(self, submission: Submission) -> Ticket:
        """A turn came in.

        Raises:
            ShuttingDown: the daemon drains.
        """
        if self.is_draining:
            raise _shutting_down()
        ticket = Ticket(TurnId(next(self._turn_ids)), self, submission, self.clock.now())
        self.tickets[ticket.id] = ticket
        arrival = events.TurnArrived(
            turn=ticket.id,
            program=submission.program,
            branch=submission.branch,
            model=submission.model,
            body_bytes=len(submission.body),
            prefixes=submission.prefixes,
        )
        try:
            self.handle(arrival)
        except BaseException:
            del self.tickets[ticket.id]
            self._abandon_broken(ticket.id)
            raise
        return ticket

    def forward_failed(self, ticket: Ticket, reason: str, *, sent: bool) -> None:
        """For ``Ticket.forward_failed``. While the daemon drains, a turn may go on elsewhere at once but not wait."""
        self.handle(events.ForwardFailed(ticket.id, reason, sent))
        if self.is_draining:
            self._refuse_if_held(ticket)

    def release(self, program: ProgramId) -> bool:
        """The program is over; returns whether it was known."""
        is_known = program in self.scheduler.cluster.program_by_id
        self.handle(events.ProgramReleased(program))
        if is_known:
            self.metrics.releases.inc()
        return is_known

    def program_of_session(self, session: str) -> ProgramId | None:
        """The known program that a session's name, as a backend got it in a header, stands for. O(1)."""
        known = self.scheduler.cluster.program_by_id
        if session in known:
            return ProgramId(session)
        name = ProgramId(unquote(session))
        return name if name in known else None

    def observe_prefixes(self, backend: BackendId, prefixes: Sequence[events.CachedPrefix]) -> None:
        """A backend's KV events say what is cached of programs; of a backend that was removed, nothing is told."""
        if prefixes and backend in self.scheduler.cluster.backend_by_id:
            self.handle(events.PrefixesObserved(backend, tuple(prefixes)))

    def can_spare(self, backend: BackendId) -> bool:
        """Whether each model that an available backend is known to serve has another available backend. O(backends
        x models)."""
        cluster = self.scheduler.cluster
        spared = cluster.backend_by_id[backend]
        others = [entry for entry in cluster.backends if entry is not spared]
        if not spared.is_available or not others:
            return False
        return all(any(other.serves(model) for other in others) for model in spared.models or ())

    def outlook(self) -> Outlook:
        """What waits are to be expected, and what keeping the hold limit takes. O(backends + who waits)."""
        return outlook(self.scheduler.cluster, self.scheduler.settings)

    def drain(self) -> None:
        """Take no more turns, and refuse those that are held."""
        self.is_draining = True
        for ticket in self.tickets.values():
            self._refuse_if_held(ticket)

    def close(
        self,
        ticket: Ticket,
        outcome: Outcome,
        usage: Usage | None,
        output_tokens: int,
        first_token_seconds: float | None,
    ) -> None:
        """For ``Ticket.close``."""
        del self.tickets[ticket.id]
        turn = self.scheduler.cluster.turn_by_id.get(ticket.id)
        if turn is None:
            return  # refused: the scheduler has forgotten it
        if turn.status is TurnStatus.HELD:
            self.handle(events.TurnAbandoned(ticket.id))
        else:
            self.handle(events.TurnFinished(ticket.id, outcome, usage, output_tokens, first_token_seconds))

    def handle(self, event: Event) -> None:
        """Give the scheduler an event and carry out what comes of it."""
        now, began = self.clock.now(), time.perf_counter()
        try:
            produced = self.scheduler.handle(event, now)
        except Exception:
            _log.exception("scheduler.failed", event_given=str(event), journal=self.scheduler.journal.lines()[-20:])
            raise
        self.metrics.scheduling_seconds.observe(time.perf_counter() - began)
        self._carry_out(produced)
        self._arm_timer()

    def stop(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse_if_held(self, ticket: Ticket) -> None:
        turn = self.scheduler.cluster.turn_by_id.get(ticket.id)
        if turn is not None and turn.status is TurnStatus.HELD:
            ticket.reject(_shutting_down())

    def _abandon_broken(self, turn: TurnId) -> None:
        """Have the scheduler forget a turn on whose arrival it broke, so that nothing is charged or sent for it."""
        cluster = self.scheduler.cluster
        if turn not in cluster.turn_by_id:
            return
        try:
            self.handle(events.TurnAbandoned(turn))
        except Exception:  # told already; the first error is the one to be raised
            cluster.turn_by_id.pop(turn, None)

    def _carry_out(self, produced: Sequence[Command]) -> None:
        for command in produced:
            if isinstance(command, commands.Forward):
                ticket = self.tickets.get(command.turn)
                if ticket is not None:
                    ticket.resolve(command.backend)
            elif isinstance(command, commands.Refuse):
                self.metrics.count_refusal(command)
                ticket = self.tickets.get(command.turn)
                if ticket is not None:
                    ticket.reject(refusal(command))
            else:
                self.metrics.count_notice(command)
                _log_notice(command, self.clock)

    def _arm_timer(self) -> None:
        """One timer, due no later than the scheduler's next deadline.

        One that is due by then is left alone: a loop so busy that an event comes in each of its rounds would put a
        timer that is set anew each time off for ever.
        """
        deadline_at = self.scheduler.next_deadline()
        if deadline_at is None:
            return
        if self._timer is not None:
            if self._timer_at <= deadline_at:
                return
            self._timer.cancel()
        delay_seconds = self.clock.wall_seconds(max(0.0, deadline_at - self.clock.now()))
        self._timer_at = deadline_at
        self._timer = asyncio.get_running_loop().call_later(delay_seconds, self._tick)

    def _tick(self) -> None:
        self._timer = None
        deadline_at = self.scheduler.next_deadline()
        if deadline_at is not None and deadline_at <= self.clock.now():
            self.handle(events.Tick())
        else:
            self._arm_timer()


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("the router is shutting down", retry_after_seconds=5.0)


def _log_notice(notice: Notice, clock: Clock) -> None:
    """One log line. Readings of the clock mean nothing to readers: they become seconds from now, on the wall."""
    waits_for_backend = isinstance(notice, commands.TurnHeld) and notice.reason is commands.HoldReason.NO_BACKEND
    log = _log.warning if waits_for_backend or isinstance(notice, _WARNINGS) else _log.debug
    values = attrs.asdict(notice, recurse=False)
    if isinstance(notice, commands.TurnHeld):
        deadline_at = values.pop("deadline_at")
        left_seconds = None if deadline_at is None else clock.wall_seconds(max(0.0, deadline_at - clock.now()))
        values["deadline_in_seconds"] = None if left_seconds is None else round(left_seconds, 3)
    log(_NOTICE_EVENTS[type(notice)], **{name: getattr(value, "value", value) for name, value in values.items()})
