"""Asks the policy, checks what it says against the rules, and has it carried out.

A policy that raises has made no decision; a decision that is not legal is dropped and told. Neither loses a
turn: without a decision a turn of an admitted program goes to its place, and any other one is held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from thunderagent.core.program import Program, Status
from thunderagent.core.queue import Waiter
from thunderagent.core.turn import Turn, TurnStatus

__all__ = ["DECISIONS_PER_EVENT", "Decider"]

DECISIONS_PER_EVENT = 64
"""So many are carried out for one event; the policy is asked for the rest at once, but after other events."""


@define(eq=False, repr=False)
class Decider:
    """The policy's side of the scheduler."""

    policy: Policy
    cluster: Cluster
    placement: Placement
    reservations: Reservations
    unfinished: Trigger | None = None
    """Why the policy was asked for decisions of which some were left for the next tick, which is due now."""
    observes: bool = field(init=False)
    """Whether the policy wants to be told."""
    _budget: int = 0
    """Turns that may still be let in by the decisions at hand."""

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

    def place(self, turn: Turn) -> bool:
        """Forward a turn that is not in the queue, or hold it, or refuse it for want of room in the queue.

        Returns whether it was forwarded.
        """
        backend = self._find_backend(turn)
        if backend is not None:
            self._send(turn, backend)
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
            return place or roomiest(eligible)
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
        """Forward a turn that is not in the queue, and with a new place its program's other held turns."""
        if self._send_one(turn, backend):
            assert turn.program is not None
            self._forward_held(turn.program)

    def _send_one(self, turn: Turn, backend: Backend) -> bool:
        """Forward a turn that is not in the queue; whether its program has a new place by that."""
        program = turn.program
        if program is None or turn.waits_alone:
            self.placement.forward(turn, backend)
            return False
        is_new_place = program.place is not backend
        self.placement.admit(program, backend)
        self.placement.forward(turn, backend)
        return is_new_place

    def _forward_held(self, program: Program) -> None:
        """The program has a new place: each of its held turns is offered to the policy again.

        The policy may move the program with one of them, and then those held before are offered once more: in a
        loop, since a program may hold thousands of turns. It ends, as each move forwards a turn.
        """
        is_new_place = True
        while is_new_place:
            is_new_place = False
            for turn in [turn for turn in program.held.values() if not turn.waits_alone]:
                self.unhold(turn)
                backend = self._find_backend(turn)
                if backend is not None:
                    is_new_place |= self._send_one(turn, backend)

    def admit_turn(self, turn: Turn, backend: Backend) -> None:
        """Let a held turn and its program in without asking the policy: the hold limit was reached."""
        self.unhold(turn)
        self._send(turn, backend)

    # Rebalancing

    def rebalance(self, trigger: Trigger) -> None:
        """Ask the policy for decisions and carry out the legal ones."""
        decisions: Sequence[object] = ()
        try:
            decisions = tuple(islice(self.policy.rebalance(self.cluster, trigger), DECISIONS_PER_EVENT))
        except Exception as error:  # as above
            self._policy_failed("rebalance", error)
        self.cluster.changed.clear()
        self._budget, before = DECISIONS_PER_EVENT, len(self.placement.commands)
        for decision in decisions:
            if not isinstance(decision, (Admit, AdmitTurn, Move, Pause, Reconsider, Yield)):
                self._rejected(repr(decision), "not a decision")
                continue
            reason = self._apply(decision)
            if reason is not None:
                self._rejected(repr(decision), reason)
        told = islice(self.placement.commands, before, None)
        made_progress = any(not isinstance(command, (DecisionRejected, PolicyFailed)) for command in told)
        if made_progress and (len(decisions) == DECISIONS_PER_EVENT or self._budget == 0):
            self.unfinished = trigger

    def serve_urgent(self, trigger: Trigger) -> None:
        """Make and use room for turns that reached the hold limit, where something changed, on ticks everywhere."""
        cluster, reservations = self.cluster, self.reservations
        program = None if trigger is Trigger.BACKENDS_CHANGED else cluster.changed_program
        if program is not None or trigger is Trigger.BACKENDS_CHANGED:
            for waiter in reservations.cancel_stale(program):
                self.placement.expire(waiter)
        is_full = trigger in (Trigger.TICK, Trigger.BACKENDS_CHANGED)
        while True:
            looked_at = [*cluster.changed, *(reservations.backends() if is_full else ())]
            ready = reservations.ready(looked_at)
            if ready is None:
                return
            waiter, turn, backend = ready
            reservations.cancel(waiter)
            self.admit_turn(turn, backend)

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
        self.placement.admit(program, backend)
        self._forward_held(program)
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
        self.placement.admit(program, backend)
        self._forward_held(program)
        return None

    def _reconsider(self) -> None:
        """Offer each line to ``admit`` again, in its order, up to the first that the policy holds again."""
        for line in self.cluster.queue.open_lines():
            index = 0
            while index < len(line) and self._budget:
                turn = line[index].turn
                choice = self._choose(turn)
                if isinstance(choice, Backend):
                    self._budget -= 1
                    self.unhold(turn)
                    self._send(turn, choice)
                elif choice is HoldReason.POLICY:
                    break
                else:
                    index += 1

    def offer_unasked(self) -> None:
        """Ask the policy about turns that were held for want of a backend, now that one is there."""
        self._budget = DECISIONS_PER_EVENT
        for line in self.cluster.queue.open_lines():
            while line and line[0].turn.hold_reason is HoldReason.NO_BACKEND:
                if not self._budget:
                    self.unfinished = Trigger.BACKENDS_CHANGED
                    return
                self._budget -= 1
                turn = line[0].turn
                self.unhold(turn)
                self.place(turn)

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
