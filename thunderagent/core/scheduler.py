"""The one door: events in, commands out.

``Scheduler.handle`` takes one event and the reading of the clock, changes the cluster, asks the policy, and
returns what the driver is to do. It has no clock of its own: the driver sends ``Tick`` at ``next_deadline()``.
An event that makes no sense raises ``IllegalEvent`` before anything has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from attrs import define, field

from thunderagent.core import events
from thunderagent.core.backend import Backend
from thunderagent.core.cluster import Cluster
from thunderagent.core.commands import (
    Command,
    PauseReason,
    ProgramExpired,
    ProgramForced,
    RefuseCode,
)
from thunderagent.core.decider import Decider
from thunderagent.core.decisions import Trigger
from thunderagent.core.estimate import is_credible
from thunderagent.core.events import Event
from thunderagent.core.hold_limit import Reservations, roomiest_for
from thunderagent.core.journal import Journal
from thunderagent.core.learning import learn_cache, learn_counted_prefills, learn_prefill, learn_tool_time
from thunderagent.core.legality import illegality
from thunderagent.core.placement import Placement
from thunderagent.core.policy import Policy
from thunderagent.core.program import Program, Status
from thunderagent.core.settings import OnHoldLimit, SchedulerSettings
from thunderagent.core.turn import Turn, TurnStatus
from thunderagent.core.usage import Outcome, Usage

__all__ = ["DUE_PER_TICK", "IllegalEvent", "Scheduler"]

DUE_PER_TICK = 64
"""So many turns at their hold limit, and so many idle programs, are seen to in one tick."""

_CUT_OFF = (Outcome.CLIENT_GONE, Outcome.SHUTDOWN)
"""Outcomes of turns that the engine has worked on if there is any output: it may not have begun."""


class IllegalEvent(Exception):
    """An event that cannot have happened (unknown turn, time running backwards): a bug in the driver."""

    def __init__(self, event: Event, reason: str, story: list[str]) -> None:
        super().__init__(event, reason, story)
        self.event, self.reason, self.story = event, reason, story

    def __str__(self) -> str:
        tail = "\n  ".join(self.story[-20:])
        return f"{self.reason}: {self.event}; what came before:\n  {tail}"


@define(eq=False, repr=False)
class Scheduler:
    """Owns the cluster; see the module's docstring. Not thread-safe."""

    policy: Policy
    settings: SchedulerSettings = field(factory=SchedulerSettings)
    cluster: Cluster = field(factory=Cluster)
    journal: Journal = field(factory=Journal)
    _placement: Placement = field(init=False)
    _reservations: Reservations = field(init=False)
    _decider: Decider = field(init=False)
    _next_tick_at: float | None = field(init=False, default=None)
    _program_sequence: int = field(init=False, default=0)
    _handlers: dict[type[Any], Callable[[Any], Trigger | None]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        on_hold_limit = self.settings.on_hold_limit or self.policy.on_hold_limit
        self._placement = Placement(self.cluster, self.settings, on_hold_limit)
        self._reservations = Reservations(self.cluster, self._placement)
        self._decider = Decider(self.policy, self.cluster, self._placement, self._reservations)
        self._handlers = {
            events.TurnArrived: self._turn_arrived,
            events.TurnProgressed: self._turn_progressed,
            events.TurnFinished: self._turn_finished,
            events.ForwardFailed: self._forward_failed,
            events.TurnAbandoned: self._turn_abandoned,
            events.ProgramReleased: self._program_released,
            events.BackendAdded: self._backend_added,
            events.BackendObserved: self._backend_observed,
            events.BackendFailed: self._backend_failed,
            events.BackendRecovered: self._backend_recovered,
            events.BackendDraining: self._backend_draining,
            events.BackendRemoved: self._backend_removed,
            events.PrefixesObserved: self._prefixes_observed,
            events.Tick: self._tick,
        }

    @property
    def on_hold_limit(self) -> OnHoldLimit:
        """What happens at the hold limit: the operator's choice, or the policy's where there is none."""
        return self._placement.on_hold_limit

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event at clock reading ``now`` (seconds, never going back); return commands and notices.

        Raises:
            IllegalEvent: the event cannot have happened; nothing was changed.
        """
        cluster, decider = self.cluster, self._decider
        if now < cluster.now:
            raise IllegalEvent(event, f"the clock went from {cluster.now} to {now}", self.journal.lines())
        reason = illegality(event, cluster)
        if reason is not None:
            raise IllegalEvent(event, reason, self.journal.lines())
        cluster.now, cluster.changed_program = now, None
        decider.begin()
        if self._next_tick_at is None and self.policy.tick_seconds is not None:
            self._next_tick_at = now + self.policy.tick_seconds
        if decider.observes:
            decider.tell(event)
        trigger = self._handlers[type(event)](event)
        if trigger is not None:
            urgent = self._reservations.by_waiter
            if urgent:
                decider.serve_urgent(trigger)
            decider.rebalance(trigger)
            if urgent:
                decider.serve_urgent(trigger)
        commands = self._placement.take_commands()
        if decider.observes:
            decider.tell_notices(commands)
            commands += self._placement.take_commands()
        self.journal.record(now, event, commands)
        return commands

    def next_deadline(self) -> float | None:
        """The clock reading at which ``Tick`` is to be sent; None: nothing is due, ever. O(1)."""
        if self._decider.unfinished:
            return self.cluster.now
        earliest_at, tick_at = self._placement.due_at, self._next_tick_at
        if tick_at is not None and (earliest_at is None or tick_at < earliest_at):
            earliest_at = tick_at
        wake_at = self._decider.wake_at
        if wake_at is not None and (earliest_at is None or wake_at < earliest_at):
            earliest_at = wake_at
        if self.cluster.idle:
            expiry_at = self._next_expiry()
            if expiry_at is not None and (earliest_at is None or expiry_at < earliest_at):
                earliest_at = expiry_at
        return earliest_at

    # Turns

    def _turn_arrived(self, event: events.TurnArrived) -> Trigger | None:
        cluster = self.cluster
        program = None if event.program is None else cluster.program_by_id.get(event.program)
        is_new = event.program is not None and program is None
        if is_new:
            program = self._new_program(event)
        if program is not None:
            self._placement.leave_idle(program)
            if not program.held and cluster.now - program.asked_until > self.settings.resend_seconds:
                program.waiting_since = None  # a new wait, not the same turn sent again
        cluster.changed_program = program
        branch = self._placement.branch_of(program, event.branch, event.prefixes)
        learn_tool_time(branch, cluster)
        if program is not None and len(program.branches) > 1:
            self._decider.leave_out_idle(program, branch)
        turn = Turn(
            id=event.turn,
            program=program,
            branch=branch,
            model=event.model,
            body_bytes=event.body_bytes,
            prompt_tokens=branch.history.prompt_tokens_of(event.body_bytes, cluster.ledger.ratio),
            arrived_at=cluster.now,
            serving=cluster.serving(event.model),
            asking_since=None if program is None else program.waiting_since,
        )
        cluster.turn_by_id[turn.id] = turn
        branch.open_turns += 1
        if program is not None:
            program.context_bytes = event.body_bytes
        if is_new and len(cluster.program_by_id) > self.settings.max_programs:
            message = f"the router already tracks {self.settings.max_programs} programs"
            self._decider.turn_away(turn, RefuseCode.TOO_MANY_PROGRAMS, message, 5.0)
            return None
        if not turn.serving.backends and not cluster.could_serve(event.model):
            self._decider.turn_away(turn, RefuseCode.MODEL_NOT_FOUND, cluster.unknown_model_text(event.model))
            return None
        if not self._decider.place(turn):
            return Trigger.TURN_HELD
        return Trigger.TOKENS_CHANGED

    def _new_program(self, event: events.TurnArrived) -> Program:
        assert event.program is not None
        self._program_sequence += 1
        now = self.cluster.now
        program = Program(event.program, self._program_sequence, now, model=event.model, acting_since=now)
        self.cluster.program_by_id[program.id] = program
        return program

    def _turn_progressed(self, event: events.TurnProgressed) -> Trigger | None:
        turn = self.cluster.turn_by_id[event.turn]
        turn.waiting_since = turn.asking_since = None
        if event.output_tokens <= turn.output_tokens:
            return None
        program, backend = turn.program, turn.backend
        assert backend is not None
        turn.answer(self.cluster.now)
        self.cluster.ledger.grow(turn, event.output_tokens)
        self.cluster.ledger.settle(turn.branch, backend)
        if program is not None:
            if program.place is backend:
                backend.file(program)
            self.cluster.queue.refresh(program)
        self.cluster.changed_program = program
        return Trigger.TOKENS_CHANGED

    def _turn_finished(self, event: events.TurnFinished) -> Trigger:
        turn = self.cluster.turn_by_id[event.turn]
        turn.output_tokens = max(turn.output_tokens, event.output_tokens)
        self._settle_finished(turn, event.outcome, event.usage, event.first_token_seconds)
        return Trigger.TURN_FINISHED

    def _settle_finished(
        self, turn: Turn, outcome: Outcome, usage: Usage | None, first_token_seconds: float | None = None
    ) -> None:
        """Write down what a turn that ran leaves behind, and give back the rest."""
        program, branch, backend, ledger = turn.program, turn.branch, turn.backend, self.cluster.ledger
        assert backend is not None
        self.cluster.changed_program = program
        if usage is not None and not is_credible(usage, backend.capacity_tokens):
            usage = None
        is_begun = outcome is Outcome.COMPLETED or (outcome in _CUT_OFF and turn.output_tokens > 0)
        did_run = usage is not None or is_begun
        if did_run:
            turn.answer(self.cluster.now)
        lost = learn_cache(turn, backend, usage) if did_run else None
        if lost is not None:
            self._placement.commands.append(lost)
        if usage is not None:
            if first_token_seconds is not None and usage.cached_tokens is not None:
                learn_prefill(backend, usage.prompt_tokens - usage.cached_tokens, first_token_seconds)
            ledger.ratio.learn(turn.body_bytes, usage.prompt_tokens)
            branch.history.learn(turn.body_bytes, usage)
        if program is not None and program.status is not Status.RELEASED:
            if program.keeps(turn.model):
                branch.model = turn.model
                self._placement.keep(branch, _left_tokens(turn, outcome, usage))
            program.turns_finished += 1
            branch.used_at = branch.ended_at = self.cluster.now
            branch.counted_seconds = 0.0
        if program is not None and program.place is not None and program.place is not backend:
            ledger.settle(branch, program.place)  # filed with the turn's end
        ledger.stop(turn, TurnStatus.FINISHED, self.cluster.now)
        if did_run:
            branch.history.leave(backend)
        self._placement.end(turn)
        self._at_boundary(program)

    def _at_boundary(self, program: Program | None) -> None:
        """A yielding program whose last turn ended gives its place up."""
        if program is None or program.status is Status.RELEASED:
            return
        if program.status is Status.YIELDING and not self._placement.runs_at_place(program):
            self._placement.pause(program, program.yield_reason)
        self.cluster.queue.refresh(program)

    def _forward_failed(self, event: events.ForwardFailed) -> Trigger:
        turn = self.cluster.turn_by_id[event.turn]
        self.cluster.changed_program = turn.program
        backend = self.cluster.ledger.stop(turn, TurnStatus.HELD, self.cluster.now)
        turn.tried |= {backend.id}
        turn.failed_sends += event.sent
        self._placement.resume_wait(turn)
        self._at_boundary(turn.program)
        if turn.program is not None and turn.program.status is Status.RELEASED:
            message = f"program {turn.program.id!r} was released"
            self._placement.refuse(turn, RefuseCode.PROGRAM_RELEASED, message)
        elif turn.failed_sends > self.settings.max_failed_sends:
            message = f"the backend gave no answer: {event.reason}"
            self._placement.refuse(turn, RefuseCode.BACKEND_GONE, message, 1.0)
        else:
            self._decider.place(turn)
        return Trigger.TURN_FINISHED

    def _turn_abandoned(self, event: events.TurnAbandoned) -> Trigger | None:
        turn = self.cluster.turn_by_id[event.turn]
        if turn.status is TurnStatus.FORWARDED:
            self._settle_finished(turn, Outcome.CLIENT_GONE, None)
            return Trigger.TURN_FINISHED
        self.cluster.changed_program = turn.program
        self._decider.unhold(turn)
        self._placement.end(turn)
        return Trigger.TOKENS_CHANGED

    # Programs

    def _program_released(self, event: events.ProgramReleased) -> Trigger | None:
        program = self.cluster.program_by_id.get(event.program)
        if program is None:
            return None
        for turn in list(program.held.values()):
            self._decider.unhold(turn)
            self._placement.refuse(turn, RefuseCode.PROGRAM_RELEASED, f"program {program.id!r} was released")
        self._placement.forget_program(program)
        self.cluster.changed_program = program
        return Trigger.PROGRAM_RELEASED

    # Backends

    def _backend_added(self, event: events.BackendAdded) -> Trigger:
        models = None if event.models is None else frozenset(event.models)
        backend = Backend(event.backend, models, event.capacity_tokens, self.cluster.changed)
        self.cluster.backend_by_id[event.backend] = backend
        return self._backend_changed(backend)

    def _backend_observed(self, event: events.BackendObserved) -> Trigger | None:
        backend = self.cluster.backend_by_id[event.backend]
        before = (backend.models, backend.capacity_tokens)
        if event.models is not None:
            backend.models = frozenset(event.models)
        if event.capacity_tokens is not None:
            backend.capacity_tokens = event.capacity_tokens
        for name in ("kv_usage_ratio", "requests_running", "requests_waiting"):
            if getattr(event, name) is not None:
                setattr(backend, name, getattr(event, name))
        if event.kv_usage_ratio is not None:
            backend.observed_running_tokens = backend.running_tokens
        if event.prefills is not None:
            learn_counted_prefills(backend, event.prefills)
        if before == (backend.models, backend.capacity_tokens):
            return None
        if before[0] != backend.models:
            self._unbind_unserved(backend)
        return self._backend_changed(backend)

    def _unbind_unserved(self, backend: Backend) -> None:
        """Unbind the programs whose own conversation the backend serves no more. Those stay of which only a sub-agent
        used such a model, without what it left."""
        for group in backend.groups:
            for program in list(group.by_time.values()):
                if not backend.serves(program.model):
                    self._placement.pause(program, PauseReason.BACKEND_LOST)
                    continue
                self._placement.keep_served(program, backend)
                for branch in program.branches.values():
                    self.cluster.ledger.settle(branch, backend)
                backend.file(program)

    def _backend_failed(self, event: events.BackendFailed) -> Trigger | None:
        backend = self.cluster.backend_by_id[event.backend]
        if not backend.is_healthy:
            return None
        backend.is_healthy = False
        return self._backend_lost(backend)

    def _backend_recovered(self, event: events.BackendRecovered) -> Trigger | None:
        backend = self.cluster.backend_by_id[event.backend]
        if backend.is_healthy:
            return None
        backend.is_healthy = True
        return self._backend_changed(backend)

    def _backend_draining(self, event: events.BackendDraining) -> Trigger | None:
        backend = self.cluster.backend_by_id[event.backend]
        if backend.is_draining:
            return None
        backend.is_draining = True
        return self._backend_lost(backend)

    def _backend_removed(self, event: events.BackendRemoved) -> Trigger:
        backend = self.cluster.backend_by_id.pop(event.backend)
        backend.is_removed = True
        for program in self.cluster.program_by_id.values():
            program.forget_cached(backend)
        return self._backend_lost(backend)

    def _prefixes_observed(self, event: events.PrefixesObserved) -> Trigger | None:
        backend = self.cluster.backend_by_id[event.backend]
        for cached in event.prefixes:
            program = self.cluster.program_by_id.get(cached.program)
            if program is not None:
                program.observe_cached(backend, cached)
        return None

    def _backend_lost(self, backend: Backend) -> Trigger:
        """Unbind its programs at once; their next turns are placed afresh."""
        for group in backend.groups:
            for program in list(group.by_time.values()):
                self._placement.pause(program, PauseReason.BACKEND_LOST)
        backend.lose_cache()
        return self._backend_changed(backend)

    def _backend_changed(self, backend: Backend) -> Trigger:
        """Place afresh the held turns whose company may be another now: those that wait beside a place, and those
        that wait at a place on this backend, which may no longer serve them."""
        self.cluster.refresh_serving()
        self.cluster.queue.backends_changed()
        turns = list(self.cluster.queue.beside.values())
        for group in backend.groups:
            turns += [turn for program in group.by_time.values() for turn in program.held.values()]
        self._decider.backends_changed(turns)
        return Trigger.BACKENDS_CHANGED

    # Time

    def _tick(self, event: events.Tick) -> Trigger | None:
        """What is due, a bounded part of it: the rest is due at once, but after other events."""
        unfinished, trigger = self._decider.unfinished, None
        is_overdue = bool(unfinished)
        self._decider.offer()
        if unfinished.has_offers:
            return None
        for _ in range(DUE_PER_TICK):
            turn = self._placement.next_due()
            if turn is None:
                break
            trigger = trigger or Trigger.TOKENS_CHANGED
            if self._placement.settle_due(turn):
                self._retry(turn)
            else:
                self._hold_limit_reached(turn)
        for _ in range(DUE_PER_TICK):
            expiry = self._next_expiry()
            if expiry is None or expiry > self.cluster.now:
                break
            program = next(iter(self.cluster.idle.values()))
            self._placement.forget_program(program)
            idle_seconds = self.cluster.now - program.idle_since
            self._placement.commands.append(ProgramExpired(program.id, idle_seconds))
            trigger = trigger or Trigger.PROGRAM_RELEASED
        if self._next_tick_at is not None and self._next_tick_at <= self.cluster.now:
            self._next_tick_at = self.cluster.now + cast(float, self.policy.tick_seconds)
            trigger = Trigger.TICK
        if self._decider.take_wake():
            trigger = trigger or Trigger.TOKENS_CHANGED
        if trigger is None and is_overdue:
            trigger = unfinished.take_trigger() or Trigger.TOKENS_CHANGED
        return trigger

    def _retry(self, turn: Turn) -> None:
        """Offer a held turn again to the backends that gave it no answer."""
        turn.tried = frozenset()
        waiter = self.cluster.queue.of(turn)
        assert waiter is not None
        if waiter.is_urgent:
            self.cluster.queue.renew(turn)
        else:
            self._decider.unhold(turn)
            self._decider.place(turn)

    def _next_expiry(self) -> float | None:
        ttl_seconds = self.settings.program_ttl_seconds
        if ttl_seconds <= 0:
            return None
        for program in self.cluster.idle.values():
            return program.idle_since + ttl_seconds
        return None

    def _hold_limit_reached(self, turn: Turn) -> None:
        """A held turn waited for too long."""
        waiter = self.cluster.queue.of(turn)
        assert waiter is not None
        if waiter.is_urgent:
            return
        eligible, on_limit = turn.eligible_backends, self._placement.on_hold_limit
        place = turn.place
        if not eligible or on_limit is OnHoldLimit.REFUSE:
            waited = f"no place within {self.settings.max_hold_seconds:g} s"
            code, message = RefuseCode.HOLD_LIMIT, waited
            if not eligible:
                code, message = (
                    RefuseCode.BACKEND_UNAVAILABLE,
                    f"{waited}: no backend takes turns of this model",
                )
            self._decider.unhold(turn)
            self._placement.refuse(turn, code, message, 5.0)
        elif place is not None and turn.may_run_on(place):
            # Its program has its place all along: it waits for that to be given up, or for want of a decision.
            self._decider.unhold(turn)
            self._placement.forward(turn, place)
        elif on_limit is OnHoldLimit.FORCE:
            origin = None if turn.program is None else turn.program.origin
            backend = next((entry for entry in eligible if entry.id == origin), None) or roomiest_for(turn)
            self._placement.commands.append(ProgramForced(turn.program_id, backend.id))
            self._decider.admit_turn(turn, backend)
        else:
            self._reservations.reserve(waiter, turn)


def _left_tokens(turn: Turn, outcome: Outcome, usage: Usage | None) -> int:
    """What a finished turn leaves of its conversation in the cache; an error leaves what was there before."""
    if usage is not None:
        return usage.prompt_tokens + usage.completion_tokens
    if outcome is Outcome.COMPLETED:
        return turn.need_tokens
    if outcome is Outcome.CLIENT_GONE:
        return max(turn.branch.kept_tokens, turn.need_tokens)
    return turn.branch.kept_tokens
