"""Drives a scheduler without a network: sends events, keeps its own books of every turn, and checks both.

For tests of policies and of the core. Time is a number that the test moves; nothing sleeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from attrs import define, evolve, field, frozen

from thunderagent.core import events, invariants
from thunderagent.core.backend import Backend
from thunderagent.core.cluster import Cluster
from thunderagent.core.commands import Command, DecisionRejected, Forward, PolicyFailed, Refuse, RefuseCode
from thunderagent.core.estimate import is_credible
from thunderagent.core.events import Event, Prefix
from thunderagent.core.ids import BackendId, BranchId, ProgramId, TurnId
from thunderagent.core.policy import Policy
from thunderagent.core.program import Program
from thunderagent.core.scheduler import DUE_PER_TICK, Scheduler
from thunderagent.core.settings import SchedulerSettings
from thunderagent.core.turn import Turn, TurnStatus
from thunderagent.core.usage import Outcome, Usage

__all__ = ["BYTES_PER_TOKEN", "SchedulerDriver"]

BYTES_PER_TOKEN = 4
"""What the scheduler takes a token for before the first usage (``core.estimate``)."""

_C = TypeVar("_C", bound=Command)


@frozen
class _KnownBackend:
    models: frozenset[str] | None
    is_healthy: bool = True
    is_draining: bool = False

    def takes(self, model: str | None) -> bool:
        serves = model is None or self.models is None or model in self.models
        return self.is_healthy and not self.is_draining and serves


@define(eq=False)
class SchedulerDriver:
    """A scheduler under test. After every event its invariants are recounted and the driver's books compared.

    Sizes are given in tokens and turned into bytes. A failed check raises AssertionError.
    """

    policy: Policy
    settings: SchedulerSettings = field(factory=SchedulerSettings)
    now: float = 0.0
    scheduler: Scheduler = field(init=False)
    held: dict[TurnId, events.TurnArrived] = field(factory=dict)
    running: dict[TurnId, events.TurnArrived] = field(factory=dict)
    where: dict[TurnId, BackendId] = field(factory=dict)
    """Backend of each running turn."""
    commands: list[Command] = field(factory=list)
    """Every command and notice so far."""
    _backends: dict[BackendId, _KnownBackend] = field(factory=dict)
    _arrived_at: dict[TurnId, float] = field(factory=dict)
    _overdue: set[TurnId] = field(factory=set)
    """Turns that were past their limit when the last tick was over."""
    _turns: int = 0

    def __attrs_post_init__(self) -> None:
        self.scheduler = Scheduler(self.policy, self.settings)

    # What the scheduler knows

    @property
    def cluster(self) -> Cluster:
        return self.scheduler.cluster

    def backend(self, name: str) -> Backend:
        """A backend by its id.

        Raises:
            KeyError: it is not there.
        """
        return self.cluster.backend_by_id[BackendId(name)]

    def program(self, name: str) -> Program:
        """A program by its id.

        Raises:
            KeyError: it is not known.
        """
        return self.cluster.program_by_id[ProgramId(name)]

    def accounted(self) -> dict[str, int]:
        """Accounted tokens of each backend."""
        return {backend.id: backend.accounted_tokens for backend in self.cluster.backend_by_id.values()}

    def told(self, kind: type[_C]) -> list[_C]:
        """All commands and notices of a class so far."""
        return [command for command in self.commands if isinstance(command, kind)]

    # What happens

    def send(self, event: Event, after: float = 0.0) -> list[Command]:
        """Hand one event over ``after`` seconds from now; returns the commands, which were carried out and checked.

        Raises:
            IllegalEvent: as ``Scheduler.handle``; the driver's books have not changed then either.
            AssertionError: a check failed.
        """
        finished = self._finished(event)
        commands = self.scheduler.handle(event, self.now + after)
        self.now += after
        self._note(event)
        for command in commands:
            self._carry_out(command)
        self.commands += commands
        self.verify()
        if finished is not None:
            self._check_left(*finished)
        if isinstance(event, events.Tick) and len(self.held) <= DUE_PER_TICK:
            self._check_none_overdue()
        return commands

    def add(
        self, name: str, capacity_tokens: int | None = None, models: Sequence[str] | None = None
    ) -> list[Command]:
        """A backend joins."""
        served = None if models is None else tuple(models)
        return self.send(events.BackendAdded(BackendId(name), served, capacity_tokens))

    def arrive(
        self,
        program: str | None,
        tokens: int = 100,
        *,
        branch: str = "main",
        model: str | None = None,
        prefixes: Sequence[Prefix] = (),
        after: float = 0.0,
    ) -> TurnId:
        """A turn whose body holds ``tokens`` at the initial ratio arrives; returns its id."""
        self._turns += 1
        turn, name = TurnId(self._turns), None if program is None else ProgramId(program)
        body_bytes = tokens * BYTES_PER_TOKEN
        arrived = events.TurnArrived(turn, name, BranchId(branch), model, body_bytes, tuple(prefixes))
        self.send(arrived, after)
        return turn

    def arrive_again(self, arrived: events.TurnArrived, after: float = 0.0) -> TurnId:
        """A client sends a turn again that it gave up on; returns the new id."""
        self._turns += 1
        turn = TurnId(self._turns)
        self.send(evolve(arrived, turn=turn), after)
        return turn

    def finish(
        self,
        turn: TurnId,
        prompt: int | None = None,
        completion: int = 0,
        *,
        cached: int | None = None,
        outcome: Outcome = Outcome.COMPLETED,
        output_tokens: int = 0,
        first_token_seconds: float | None = None,
        after: float = 0.0,
    ) -> list[Command]:
        """A running turn ends; without ``prompt`` tokens it reports no usage."""
        usage = None if prompt is None else Usage(prompt, completion, cached)
        return self.send(events.TurnFinished(turn, outcome, usage, output_tokens, first_token_seconds), after)

    def fail(self, turn: TurnId, *, sent: bool = False, after: float = 0.0) -> list[Command]:
        """A running turn got no answer."""
        return self.send(events.ForwardFailed(turn, "connection lost", sent), after)

    def abandon(self, turn: TurnId, after: float = 0.0) -> list[Command]:
        """The client of a held or running turn leaves."""
        return self.send(events.TurnAbandoned(turn), after)

    def release(self, program: str, after: float = 0.0) -> list[Command]:
        """The client says that a program is over."""
        return self.send(events.ProgramReleased(ProgramId(program)), after)

    def advance(self, seconds: float) -> list[Command]:
        """Let time pass, with a tick at every deadline on the way; returns what came of them."""
        until, commands = self.now + seconds, list[Command]()
        for _ in range(100_000):
            due_at = self.scheduler.next_deadline()
            if due_at is None or due_at > until:
                self.now = max(self.now, until)
                return commands
            commands += self.send(events.Tick(), max(0.0, due_at - self.now))
        raise AssertionError(f"deadlines do not move on: {due_at} at {self.now}")

    def close(self) -> None:
        """End every turn and release every program, then check that nothing at all is left behind."""
        for _ in range(1000):
            if not self.running:
                break
            for turn in list(self.running):
                self.finish(turn, after=0.01)
        for name in list(self.cluster.program_by_id):
            self.send(events.ProgramReleased(name), 0.01)
        for turn in list(self.held):
            self.abandon(turn)
        for turn in list(self.running):
            self.finish(turn)
        self.verify()
        assert not self.held, f"turns that nothing ends: {sorted(self.held)}"
        assert not self.running, f"turns forwarded for ever: {sorted(self.running)}"
        self.check_empty()

    def check_empty(self) -> None:
        """Check that all totals are zero and all registries empty.

        Raises:
            AssertionError: with what is left.
        """
        cluster = self.cluster
        registries = (
            cluster.program_by_id,
            cluster.turn_by_id,
            cluster.idle,
            cluster.paused_by_id,
            cluster.paused_idle,
            cluster.queue.waiters,
            cluster.queue.lines,
            cluster.ledger.prefixes,
        )
        assert not any(registries), f"left behind: {[registry for registry in registries if registry]}"
        for backend in cluster.backend_by_id.values():
            groups = [group.tokens for group in backend.groups]
            totals = (*groups, backend.guest_tokens, backend.shared_tokens, backend.reserved_tokens)
            assert not any(totals), f"{backend.id} still counts {totals}"
            assert not backend.prefixes, f"{backend.id} still holds prefixes"
            assert not backend.forwarded, f"{backend.id} still runs turns"
            assert not backend.program_count, f"{backend.id} still has programs"

    # Books and checks

    def _note(self, event: Event) -> None:
        match event:
            case events.TurnArrived():
                self.held[event.turn] = event
                self._arrived_at[event.turn] = self.now
            case events.ForwardFailed():
                self.held[event.turn] = self.running.pop(event.turn)
                del self.where[event.turn]
            case events.TurnFinished() | events.TurnAbandoned():
                self.held.pop(event.turn, None)
                self.running.pop(event.turn, None)
                self.where.pop(event.turn, None)
            case events.BackendAdded():
                models = None if event.models is None else frozenset(event.models)
                self._backends[event.backend] = _KnownBackend(models)
            case events.BackendRemoved():
                del self._backends[event.backend]
            case events.BackendFailed() | events.BackendRecovered() | events.BackendDraining():
                self._note_health(event)
            case events.BackendObserved():
                known = self._backends[event.backend]
                models = known.models if event.models is None else frozenset(event.models)
                self._backends[event.backend] = _KnownBackend(models, known.is_healthy, known.is_draining)
            case _:
                pass

    def _note_health(self, event: events.BackendFailed | events.BackendRecovered | events.BackendDraining) -> None:
        known = self._backends[event.backend]
        is_healthy, is_draining = known.is_healthy, known.is_draining
        if isinstance(event, events.BackendDraining):
            is_draining = True
        else:
            is_healthy = isinstance(event, events.BackendRecovered)
        self._backends[event.backend] = _KnownBackend(known.models, is_healthy, is_draining)

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, Forward):
            assert command.turn in self.held, f"{command}: the turn is not held"
            arrived = self.running[command.turn] = self.held.pop(command.turn)
            self.where[command.turn] = command.backend
            known = self._backends.get(command.backend)
            assert known is not None, f"{command}: the backend is not there"
            assert known.takes(arrived.model), f"{command}: {known} takes no turn of model {arrived.model}"
        elif isinstance(command, Refuse):
            assert command.turn in self.held, f"{command}: the turn is not held"
            del self.held[command.turn]
            if command.code is RefuseCode.HOLD_LIMIT:
                waited_seconds = self.now - self._arrived_at[command.turn]
                assert waited_seconds >= self.settings.max_hold_seconds, f"{command}: it waited {waited_seconds} s"

    def _finished(self, event: Event) -> tuple[Turn, Usage] | None:
        """The turn whose usage, reported by this event, is to be what its conversation leaves."""
        if not isinstance(event, events.TurnFinished) or event.usage is None:
            return None
        turn = self.cluster.turn_by_id.get(event.turn)
        if turn is None or turn.backend is None or turn.program is None:
            return None
        is_kept = turn.program.keeps(turn.model)
        return (turn, event.usage) if is_kept and is_credible(event.usage, turn.backend.capacity_tokens) else None

    def _check_left(self, turn: Turn, usage: Usage) -> None:
        """What a turn reported is what counts of its conversation from then on, where its program is still known.

        Raises:
            AssertionError: something else counts.
        """
        program, branch = turn.program, turn.branch
        if program is None or self.cluster.program(program.id) is not program or branch.id not in program.branches:
            return
        if program.place is not None and not program.place.serves(turn.model):
            return  # a decision on this event has brought the program to where nothing of it lies
        left_tokens = usage.prompt_tokens + usage.completion_tokens
        assert branch.kept_tokens == left_tokens, f"{turn} left {left_tokens}, {branch.kept_tokens} are counted"

    def _check_none_overdue(self) -> None:
        """Turns at their limit were seen to. A late tick may itself hold one afresh, where its program's new place
        does not take it: that is due at once, and gone by the next tick.

        Raises:
            AssertionError: a turn is overdue for the second tick in a row, or nothing is due for it.
        """
        overdue = set()
        for turn_id in self.held:
            deadline_at = self.cluster.turn_by_id[turn_id].deadline_at
            if deadline_at is not None and deadline_at < self.now:
                overdue.add(turn_id)
        due_at = self.scheduler.next_deadline()
        again = overdue & self._overdue
        assert not again, f"turns {again} were due at the tick before and wait at {self.now}"
        assert not overdue or (due_at is not None and due_at <= self.now), (
            f"turns {overdue} wait for a tick at {due_at}"
        )
        self._overdue = overdue

    def verify(self) -> None:
        """Recount the scheduler's books and compare them with the driver's.

        Raises:
            AssertionError: they differ.
        """
        cluster = self.cluster
        invariants.check(cluster)
        known = {turn.id for turn in cluster.turn_by_id.values()}
        assert known == self.held.keys() | self.running.keys(), "a turn was lost, or is known twice"
        next_at = self.scheduler.next_deadline()
        for turn in cluster.turn_by_id.values():
            if turn.status is TurnStatus.FORWARDED:
                assert turn.backend is not None
                assert self.where.get(turn.id) == turn.backend.id, f"turn {turn.id} is not where it was sent"
                continue
            assert turn.id in self.held, f"turn {turn.id} is {turn.status}, but was forwarded"
            waiter = cluster.queue.of(turn)
            assert waiter is not None
            is_limited = self.settings.max_hold_seconds > 0 and not waiter.is_urgent
            assert not is_limited or turn.deadline_at is not None, f"turn {turn.id} is held for ever"
            if turn.deadline_at is not None:
                due_at = turn.deadline_at
                is_seen_to = next_at is not None and next_at <= due_at
                assert is_seen_to, f"turn {turn.id} is due at {due_at}, the next tick at {next_at}"

    def check_policy(self) -> None:
        """Check that no decision of the policy was rejected and that it never raised.

        Raises:
            AssertionError: with the notices.
        """
        wrong = [command for command in self.commands if isinstance(command, (DecisionRejected, PolicyFailed))]
        assert not wrong, f"the policy misbehaved: {wrong}"
