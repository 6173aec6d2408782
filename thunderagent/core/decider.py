"""Asks the policy, checks what it says against the rules, and has it carried out.

A policy that raises has made no decision; a decision that is not legal is dropped and told. Neither loses a
turn: without a decision a turn of an admitted program goes to its place, and any other one is held.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice

from attrs import define, field

from thunderagent.core.backend import Backend
from thunderagent.core.cluster import Cluster
from thunderagent.core.commands import (
    Command,
    DecisionRejected,
    Forward,
    HoldReason,
    PauseReason,
    PolicyFailed,
    Refuse,
    RefuseCode,
)
from thunderagent.core.decisions import (
    Admit,
    AdmitTurn,
    Decision,
    Move,
    Pause,
    Reconsider,
    Trigger,
    Yield,
)
from thunderagent.core.events import Event
from thunderagent.core.hold_limit import Reservations
from thunderagent.core.ids import BackendId
from thunderagent.core.placement import Placement
from thunderagent.core.policy import Policy, roomiest
from thunderagent.core.program import Branch, Program, Status
from thunderagent.core.queue import Waiter
from thunderagent.core.turn import Turn, TurnStatus
from thunderagent.core.unfinished import STEPS_PER_EVENT, Unfinished

__all__ = ["Decider"]

_LOOK_AT = 64
"""Conversations of a program that are looked at when a turn of it arrives, whether they still count: all that are
remembered by default, as those that do not count any more stand first."""


@define(eq=False, repr=False)
class Decider:
    """The policy's side of the scheduler."""

    policy: Policy
    cluster: Cluster
    placement: Placement
    reservations: Reservations
    unfinished: Unfinished = field(factory=Unfinished)
    """What is left for the next tick, which is due now."""
    observes: bool = field(init=False)
    """Whether the policy wants to be told."""
    wake_at: float | None = field(init=False, default=None)
    """When the policy wants to be asked for decisions, whatever happens; None: not by the time alone."""

    def __attrs_post_init__(self) -> None:
        self.observes = type(self.policy).observe is not Policy.observe
        if type(self.policy).rank is not Policy.rank:
            self.cluster.queue.rank = self._rank

    def _rank(self, waiter: Waiter) -> float:
        """The policy's rank of a waiter; its age where the policy raises or says what is no number."""
        try:
            rank = float(self.policy.rank(waiter))
        except Exception as error:  # a third party's code: its bugs must not cost a request
            self._policy_failed("rank", error)
            return waiter.since
        if not math.isfinite(rank):
            self._rejected(f"rank -> {rank}", "not a finite number")
            return waiter.since
        return rank

    # One turn

    def leave_out_idle(self, program: Program, arriving: Branch) -> None:
        """Stop counting conversations of a program that are idle for longer than the policy keeps them.

        Those that are idle for longest stand first; no more than ``_LOOK_AT`` are looked at.
        """
        place, now = program.place, self.cluster.now
        if place is None:
            return
        keep_seconds = self._keep_seconds(place)
        for branch in islice(program.branches.values(), _LOOK_AT):
            if branch.open_turns or branch is arriving:
                continue
            if now - branch.used_at <= keep_seconds:
                break
            if branch.kept_tokens:
                self.placement.leave_out(program, branch)

    def _keep_seconds(self, place: Backend) -> float:
        try:
            seconds = float(self.policy.keep_seconds(place, self.cluster))
        except Exception as error:  # as above
            self._policy_failed("keep_seconds", error)
            return math.inf
        if math.isnan(seconds):
            self._rejected("keep_seconds -> nan", "not a number")
            return math.inf
        return seconds

    def place(self, turn: Turn) -> bool:
        """Forward a turn that is not in the queue, or hold it, or refuse it for want of room in the queue.

        Returns whether it was forwarded.
        """
        backend = self._find_backend(turn)
        if backend is not None:
            self._send(turn, backend)
            if self.unfinished.has_offers:
                self.offer()
        return backend is not None

    def _find_backend(self, turn: Turn) -> Backend | None:
        """Where the turn goes now; None if it was held or refused instead."""
        self._decide_company(turn)
        choice = self._choose(turn)
        if isinstance(choice, Backend):
            return choice
        max_held_turns = self.placement.settings.max_held_turns
        if self.cluster.queue.turn_count >= max_held_turns:
            self.turn_away(turn, RefuseCode.QUEUE_FULL, f"{max_held_turns} turns wait already", 5.0)
            return None
        self.placement.hold(turn, choice)
        if turn.tried:
            self.placement.retry_later(turn)
        return None

    def turn_away(self, turn: Turn, code: RefuseCode, message: str, retry_after_seconds: float | None = None) -> None:
        """Refuse a turn that is not in the queue; a program that never had another one goes with it."""
        self.placement.refuse(turn, code, message, retry_after_seconds)
        program = turn.program
        if program is None or program.status is not Status.NEW or not program.is_idle:
            return
        if program.waiting_since is None:
            self.placement.forget_program(program)

    def unhold(self, turn: Turn) -> None:
        """Take a turn out of the queue; room reserved for its waiter is given back with the last turn of it."""
        waiter = self.cluster.queue.of(turn)
        assert waiter is not None
        self.placement.unhold(turn)
        if not waiter.turns:
            self.reservations.cancel(waiter)

    def _decide_company(self, turn: Turn) -> None:
        """Settle whether the turn goes with its program, or alone beside a place that cannot serve it."""
        program = turn.program
        turn.waits_alone = program is None
        if program is None or program.place is None or turn.may_run_on(program.place):
            return
        if program.place.id not in turn.tried or self.placement.runs_at_place(program):
            turn.waits_alone = True
        elif turn.eligible_backends:
            self.placement.pause(program, PauseReason.BACKEND_LOST)
        # Else there is nowhere to go: it keeps its place, and the turn is offered to it again after a while.

    def _choose(self, turn: Turn) -> Backend | HoldReason:
        """Where the turn goes now, or why it has to wait."""
        eligible, place = turn.eligible_backends, turn.place
        if not eligible:
            return HoldReason.NO_BACKEND
        if place is not None and turn.program is not None and turn.program.status is Status.YIELDING:
            return HoldReason.YIELDING
        backend = self._ask(turn)
        if backend is not None:
            return backend
        if not any(turn.could_hold(entry) for entry in eligible):
            # No wait makes it fit. The estimate may be off; if not, the engine says so best (context overflow).
            backend = place or roomiest(eligible)
            self._say_placed(turn, backend)
            return backend
        return HoldReason.POLICY

    def _ask(self, turn: Turn) -> Backend | None:
        """The policy's choice; without a usable one the place. None: it is to be held."""
        try:
            chosen = self.policy.admit(turn, self.cluster)
        except Exception as error:  # as above
            self._policy_failed("admit", error)
            return turn.place
        if chosen is None:
            return None
        backend = self.cluster.backend_by_id.get(chosen) if isinstance(chosen, str) else None
        if backend is None or not turn.may_run_on(backend):
            self._rejected(f"admit -> {chosen!r}", "not an eligible backend of the turn")
            return turn.place
        return backend

    def _send(self, turn: Turn, backend: Backend) -> None:
        """Forward a turn that is not in the queue; where its program has a new place by that, its other held turns
        are to be offered."""
        program = turn.program
        if program is not None and not turn.waits_alone and program.place is not backend:
            self._give_place(program, backend, turn)
        self.placement.forward(turn, backend)

    def _give_place(self, program: Program, backend: Backend, turn: Turn | None) -> None:
        """Admit or move the program; each of its held turns is to be offered to the policy again.

        ``turn``: the one that it gets its place for, if one waits. No room need be made for it any more: turns of it
        that reached the hold limit go to the new place.
        """
        if turn is not None:
            program.model = turn.model
        waiter = self.cluster.queue.of_program(program)
        if waiter is not None and waiter.is_urgent:
            self.reservations.cancel(waiter)
            self.placement.expire(waiter)
        self.placement.admit(program, backend)
        self.unfinished.offer(turn for turn in program.held.values() if not turn.waits_alone)

    def offer(self) -> None:
        """Offer held turns to the policy that are to be placed afresh, as many as the event may still see to.

        The policy may move a program with one of its turns, and then those held before are offered once more. That
        ends, as each move forwards a turn.
        """
        unfinished = self.unfinished
        while unfinished.has_offers and unfinished.steps_left > 0:
            turn = self._next_offered()
            if turn is None:
                return
            unfinished.steps_left -= 1
            self.unhold(turn)
            backend = self._find_backend(turn)
            if backend is not None:
                self._send(turn, backend)

    def _next_offered(self) -> Turn | None:
        """The next one that is still held; None, and nothing is left, where there is none."""
        unfinished, queue = self.unfinished, self.cluster.queue
        while unfinished.turns:
            _, turn = unfinished.turns.popitem(last=False)
            waiter = queue.of(turn) if turn.status is TurnStatus.HELD else None
            if waiter is not None and not waiter.is_urgent:
                return turn
        if unfinished.is_any_unasked:
            for line in queue.open_lines():
                first: Turn = line[0].turn
                if first.hold_reason is HoldReason.NO_BACKEND:
                    return first
            unfinished.is_any_unasked = False
        return None

    def backends_changed(self, turns: Iterable[Turn]) -> None:
        """Have these held turns placed afresh, and the policy asked about those held for want of a backend."""
        self.unfinished.offer(turns)
        self.unfinished.is_any_unasked = True
        self.offer()

    def admit_turn(self, turn: Turn, backend: Backend) -> None:
        """Let a held turn and its program in without asking the policy: the hold limit was reached."""
        self._say_placed(turn, backend)
        self.unhold(turn)
        self._send(turn, backend)
        self.offer()

    def _say_placed(self, turn: Turn, backend: Backend) -> None:
        if turn.place is backend:
            return
        try:
            self.policy.placed(turn, backend, self.cluster)
        except Exception as error:  # as above
            self._policy_failed("placed", error)

    # Rebalancing

    def begin(self) -> None:
        """The next event: it may do its share of the work."""
        self.unfinished.steps_left = self.reservations.victims_left = STEPS_PER_EVENT

    def rebalance(self, trigger: Trigger) -> None:
        """Ask the policy for decisions and carry out the legal ones; later, where the event has done enough."""
        unfinished = self.unfinished
        if unfinished.triggers:
            unfinished.triggers.pop(trigger, None)
        if unfinished.steps_left <= 0 or unfinished.has_offers:
            unfinished.triggers[trigger] = None
            return
        decisions: Sequence[object] = ()
        try:
            decisions = tuple(islice(self.policy.rebalance(self.cluster, trigger), STEPS_PER_EVENT))
        except Exception as error:  # as above
            self._policy_failed("rebalance", error)
        self.wake_at = self._wanted_wake()
        is_cut_off = len(decisions) == STEPS_PER_EVENT
        if not is_cut_off:  # else the policy may not have come to all that changed
            self.cluster.changed.clear()
        if not decisions:
            return
        before = len(self.placement.commands)
        for decision in decisions:
            if not isinstance(decision, (Admit, AdmitTurn, Move, Pause, Reconsider, Yield)):
                self._rejected(repr(decision), "not a decision")
                continue
            reason = self._apply(decision)
            if reason is not None:
                self._rejected(repr(decision), reason)
        if is_cut_off or unfinished.steps_left <= 0:
            told = islice(self.placement.commands, before, None)
            if any(not isinstance(command, (DecisionRejected, PolicyFailed)) for command in told):
                unfinished.triggers[trigger] = None

    def _wanted_wake(self) -> float | None:
        try:
            wake_at = math.inf if self.policy.wake_at is None else float(self.policy.wake_at)
            return wake_at if self.cluster.now < wake_at < math.inf else None
        except Exception as error:  # as above
            self._policy_failed("wake_at", error)
            return None

    def take_wake(self) -> bool:
        """Whether the policy wants to be asked now; it says anew when it is."""
        is_due = self.wake_at is not None and self.wake_at <= self.cluster.now
        if is_due:
            self.wake_at = None
        return is_due

    def serve_urgent(self, trigger: Trigger) -> None:
        """Make and use room for turns that reached the hold limit, where something changed, on ticks everywhere."""
        cluster, reservations = self.cluster, self.reservations
        program = None if trigger is Trigger.BACKENDS_CHANGED else cluster.changed_program
        if program is not None or trigger is Trigger.BACKENDS_CHANGED:
            for waiter in reservations.cancel_stale(program):
                self.placement.expire(waiter)
        is_full = self.unfinished.is_room_wanted or trigger in (Trigger.TICK, Trigger.BACKENDS_CHANGED)
        while self.unfinished.steps_left > 0:
            looked_at = [*cluster.changed, *(reservations.backends() if is_full else ())]
            ready = reservations.ready(looked_at)
            if ready is None:
                self.unfinished.is_room_wanted = reservations.victims_left <= 0
                return
            self.unfinished.steps_left -= 1
            waiter, turn, backend = ready
            reservations.cancel(waiter)
            self.admit_turn(turn, backend)
        self.unfinished.is_room_wanted = True

    def _apply(self, decision: Decision) -> str | None:
        """Carry a decision out; returns why it is not legal, or None."""
        if isinstance(decision, Reconsider):
            self._reconsider()
            return None
        if isinstance(decision, AdmitTurn):
            return self._admit_turn(decision)
        program = self.cluster.program_by_id.get(decision.program)
        if program is None:
            return "the program is not known"
        if isinstance(decision, Admit):
            return self._admit(program, decision.backend)
        if program.place is None:
            return "the program has no place"
        if isinstance(decision, Move):
            return self._move(program, decision.backend)
        if isinstance(decision, Yield):
            self.placement.yield_place(program, PauseReason.POLICY)
            return None
        if self.placement.runs_at_place(program):
            return "a turn of the program runs: it can only yield"
        self.placement.pause(program, PauseReason.POLICY)
        return None

    def _admit(self, program: Program, backend_id: BackendId) -> str | None:
        backend = self.cluster.backend_by_id.get(backend_id)
        waiter = self.cluster.queue.of_program(program)
        if backend is None or not backend.is_available:
            return "the backend takes no turns"
        if program.place is not None and program.place is not backend:
            return "the program has another place: move it"
        if waiter is not None and waiter.is_urgent:
            return "the scheduler makes room for the program"
        if waiter is not None and not waiter.turn.may_run_on(backend):
            return "the backend is not eligible for the program's turn"
        self._give_place(program, backend, None if waiter is None else waiter.turn)
        self.offer()
        return None

    def _admit_turn(self, decision: AdmitTurn) -> str | None:
        turn = self.cluster.turn_by_id.get(decision.turn)
        if turn is None or turn.status is not TurnStatus.HELD:
            return "the turn is not held"
        backend = self.cluster.backend_by_id.get(decision.backend)
        if backend is None or not turn.may_run_on(backend):
            return "the backend is not eligible for the turn"
        waiter = self.cluster.queue.of(turn)
        if waiter is not None and waiter.is_urgent:
            return "the scheduler makes room for the turn"
        if not turn.waits_alone and turn.place is not backend:
            return "the turn waits for its program's place: admit the program"
        if not turn.waits_alone and turn.program is not None and turn.program.status is Status.YIELDING:
            return "the program is yielding"
        self.unhold(turn)
        self.placement.forward(turn, backend)
        return None

    def _move(self, program: Program, backend_id: BackendId) -> str | None:
        backend = self.cluster.backend_by_id.get(backend_id)
        if backend is None or not backend.is_available:
            return "the backend takes no turns"
        if program.place is backend:
            return "the program is there already"
        if program.status is Status.YIELDING:
            return "the program is yielding"
        self._give_place(program, backend, None)
        self.offer()
        return None

    def _reconsider(self) -> None:
        """Offer each line to ``admit`` again, in its order, up to the first that the policy holds again."""
        for line in self.cluster.queue.open_lines():
            index = 0
            while index < len(line) and self.unfinished.steps_left > 0:
                turn = line[index].turn
                choice = self._choose(turn)
                if isinstance(choice, Backend):
                    self.unfinished.steps_left -= 1
                    self.unhold(turn)
                    self._send(turn, choice)
                    self.offer()
                elif choice is HoldReason.POLICY:
                    break
                else:
                    index += 1

    # Telling

    def tell(self, event: Event) -> None:
        """Let the policy see an event before it is handled."""
        try:
            self.policy.observe(event, self.cluster)
        except Exception as error:  # as above
            self._policy_failed("observe", error)

    def tell_notices(self, commands: Sequence[Command]) -> None:
        """Let the policy see what came of its decisions."""
        for command in commands:
            if isinstance(command, (Forward, Refuse, PolicyFailed)):
                continue
            try:
                self.policy.observe(command, self.cluster)
            except Exception as error:  # as above
                self._policy_failed("observe", error)

    def _policy_failed(self, where: str, error: Exception) -> None:
        trace, at = error.__traceback__, ""
        while trace is not None:  # the innermost call is the last
            code = trace.tb_frame.f_code
            at = f"{code.co_filename}:{trace.tb_lineno} in {code.co_name}"
            trace = trace.tb_next
        self.placement.commands.append(PolicyFailed(where, f"{type(error).__name__}: {error}", at))

    def _rejected(self, decision: str, reason: str) -> None:
        self.placement.commands.append(DecisionRejected(decision, reason))
