"""The scheduler, its policy and the engines on one virtual clock: agents come, wait, run and go.

As in the daemon, the scheduler is told of arrivals, progress, ends, releases and of what backends say; what it commands
is carried out at once. Nothing is random here: the same programs give the same story.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from attrs import define, field, frozen

from thunderagent.core import commands, events
from thunderagent.core.ids import BackendId, BranchId, PrefixKey, ProgramId, TurnId
from thunderagent.core.policy import Policy
from thunderagent.core.scheduler import Scheduler
from thunderagent.core.settings import SchedulerSettings
from thunderagent.core.turn import TurnStatus
from thunderagent.core.usage import Outcome, Usage
from thunderagent.emulator.engine import SchedulingPolicy
from thunderagent.emulator.timing import Preset
from thunderagent.simulator.programs import Conversation, Program, Shared, TurnPlan
from thunderagent.simulator.records import ProgramRecord, Records
from thunderagent.simulator.replica import Replica, new_engine

__all__ = ["Arrival", "Cluster", "Simulation"]

_BYTES_PER_TOKEN = 4


@frozen
class Cluster:
    """The machines: ``replicas`` engines of a preset, with ``kv_tokens`` each (None: the preset's)."""

    preset: Preset
    replicas: int = 1
    kv_tokens: int | None = None
    scheduling_policy: SchedulingPolicy = SchedulingPolicy.FCFS

    @property
    def kv_tokens_per_replica(self) -> int:
        return self.preset.kv_tokens if self.kv_tokens is None else self.kv_tokens


@frozen
class Arrival:
    """A session begins its programs at ``at``: one after the other, each when the one before has ended."""

    at: float
    programs: Iterator[Program]
    releases: Callable[[], bool] = lambda: True
    """Whether the client releases its next program."""


@define(eq=False)
class _Talk:
    """A conversation under way."""

    run: _Run
    plan: Conversation
    name: str
    segment: tuple[str, int]
    """Of its own history: a new one after each compaction."""
    parent: _Talk | None = None
    next_turn: int = 0
    history_tokens: int = 0
    """Prompt and answer of the turn before."""
    shared: tuple[Shared, ...] = ()
    """Beginnings that its history still has in common with others."""
    waits_for: int = 0
    """Sub-agents that are not done."""


@define(eq=False)
class _Run:
    """A program under way."""

    session: Arrival
    record: ProgramRecord
    index: int
    program: Program
    id: ProgramId | None


@define(eq=False)
class _Turn:
    """A turn between its arrival and its end."""

    talk: _Talk
    plan: TurnPlan
    prompt_tokens: int
    known_tokens: int
    arrived_at: float
    held_at: float | None = None
    forwarded_at: float = 0.0
    first_token_at: float = 0.0
    cached_tokens: int = 0
    replica: int = -1
    reported_at: float = 0.0


@define(eq=False)
class Simulation:
    """One run. Call ``run`` once."""

    cluster: Cluster
    policy: Policy
    arrivals: Sequence[Arrival]
    settings: SchedulerSettings = field(factory=SchedulerSettings)
    horizon_seconds: float = 3600.0
    progress_seconds: float = 1.0
    """How often the scheduler hears of a running turn, at most: as in the daemon."""
    observe_seconds: float = 5.0
    """How often it hears from the backends' metrics."""
    on_time: Callable[[float], None] = lambda _: None
    """Called now and then with the clock's reading."""
    records: Records = field(factory=Records)
    now: float = 0.0
    turns_ended: int = 0
    _scheduler: Scheduler = field(init=False)
    _replicas: list[Replica] = field(init=False)
    _index: dict[BackendId, int] = field(init=False)
    _turns: dict[TurnId, _Turn] = field(factory=dict)
    _heap: list[tuple[float, int, Callable[[Any], None], Any]] = field(factory=list)
    _sequence: int = 0
    _tick_at: float | None = None

    def __attrs_post_init__(self) -> None:
        self._scheduler = Scheduler(self.policy, self.settings)
        preset, kv_tokens = self.cluster.preset, self.cluster.kv_tokens_per_replica
        self._replicas = [
            Replica(
                BackendId(f"replica-{number}"), new_engine(preset, kv_tokens, self.cluster.scheduling_policy)
            )
            for number in range(self.cluster.replicas)
        ]
        self._index = {replica.id: number for number, replica in enumerate(self._replicas)}

    def run(self) -> Records:
        """Let time pass until the horizon, or until nothing is left to happen."""
        for replica in self._replicas:
            capacity = replica.engine.cache.usable_tokens
            self._handle(events.BackendAdded(replica.id, ("model",), capacity))
        for arrival in self.arrivals:
            self._at(arrival.at, self._begin_program, arrival)
        self._at(self.observe_seconds, self._observe, None)
        heap, horizon = self._heap, self.horizon_seconds
        while heap and (self._turns or len(heap) > 1 or heap[0][2] != self._observe):
            at, _, action, argument = heapq.heappop(heap)
            if at > horizon:
                break
            self.now = at
            action(argument)
        self.now = min(self.now, horizon) if not heap else horizon if self._turns else self.now
        self._close()
        return self.records

    # Time

    def _at(self, at: float, action: Callable[[Any], None], argument: Any) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (at, self._sequence, action, argument))

    def _handle(self, event: events.Event) -> None:
        for command in self._scheduler.handle(event, self.now):
            if type(command) is commands.Forward:
                self._forward(command.turn, command.backend)
            elif type(command) is commands.TurnHeld:
                self._turns[command.turn].held_at = self.now
            elif type(command) is commands.Refuse:
                self._refused(command)
            else:
                name = type(command).__name__
                self.records.notices[name] = self.records.notices.get(name, 0) + 1
        deadline_at = self._scheduler.next_deadline()
        if deadline_at is not None and (self._tick_at is None or deadline_at < self._tick_at):
            self._tick_at = deadline_at = max(deadline_at, self.now)
            self._at(deadline_at, self._tick, deadline_at)

    def _tick(self, armed_at: float) -> None:
        if armed_at != self._tick_at:
            return  # another one was set since
        self._tick_at = None
        deadline_at = self._scheduler.next_deadline()
        if deadline_at is None:
            return
        if deadline_at <= self.now:
            self._handle(events.Tick())
        else:
            self._tick_at = deadline_at
            self._at(deadline_at, self._tick, deadline_at)

    def _observe(self, _: None) -> None:
        """What the backends' metrics say, as the daemon reads them."""
        idle = capacity = 0
        for replica in self._replicas:
            engine = replica.engine
            usage = engine.cache.usage_ratio
            self._handle(
                events.BackendObserved(
                    replica.id,
                    kv_usage_ratio=usage,
                    requests_running=engine.running,
                    requests_waiting=engine.waiting,
                )
            )
            idle += self._scheduler.cluster.backend_by_id[replica.id].acting_tokens
            capacity += engine.cache.usable_tokens
        self.records.idle_kv_tokens.append((self.now, idle / capacity))
        self.on_time(self.now)
        self._at(self.now + self.observe_seconds, self._observe, None)

    # Agents

    def _begin_program(self, session: Arrival) -> None:
        program = next(session.programs, None)
        if program is None:
            return
        records = self.records
        index = len(records.programs)
        number = self.arrivals.index(session) if len(self.arrivals) < 1 else id(session)
        record = ProgramRecord(number, self.now, program.group, program.is_one_off)
        records.programs.append(record)
        name = None if program.is_one_off else ProgramId(f"program-{index}")
        run = _Run(session, record, index, program, name)
        talk = _Talk(run, program.conversation, "main", (f"{index}/main", 0), shared=program.conversation.shared)
        self._next_turn(talk)

    def _next_turn(self, talk: _Talk) -> None:
        """The conversation's next turn arrives, or it ends."""
        if talk.next_turn == len(talk.plan.turns):
            self._end_conversation(talk)
            return
        plan = talk.plan.turns[talk.next_turn]
        known = talk.history_tokens
        if talk.next_turn == 0:
            known = 0
            base = sum(part.tokens for part in talk.shared)
        elif plan.kept_tokens is not None:
            talk.segment = (talk.segment[0], talk.segment[1] + 1)
            talk.shared = _within(talk.shared, plan.kept_tokens)
            base, known = plan.kept_tokens, sum(part.tokens for part in talk.shared)
        else:
            base = talk.history_tokens
        talk.next_turn += 1
        turn = _Turn(talk, plan, base + plan.new_tokens, known, self.now)
        self._sequence += 1
        turn_id = TurnId(self._sequence)
        self._turns[turn_id] = turn
        prefixes = []
        start = 0
        for part in talk.shared:
            start += part.tokens
            prefixes.append(events.Prefix(PrefixKey(part.name), start * _BYTES_PER_TOKEN))
        self._handle(
            events.TurnArrived(
                turn_id,
                talk.run.id,
                BranchId(talk.name),
                "model",
                turn.prompt_tokens * _BYTES_PER_TOKEN,
                tuple(prefixes),
            )
        )

    def _end_conversation(self, talk: _Talk) -> None:
        run, parent = talk.run, talk.parent
        if parent is not None:
            parent.waits_for -= 1
            if not parent.waits_for:
                self._next_turn(parent)
            return
        run.record.ended_at = self.now
        if run.id is not None and run.session.releases():
            self._handle(events.ProgramReleased(run.id))
        self._begin_program(run.session)

    def _after_tool(self, argument: tuple[_Talk, TurnPlan]) -> None:
        talk, plan = argument
        for number, conversation in enumerate(plan.sub_agents):
            name = f"{talk.name}/{talk.next_turn}.{number}"
            segment = (f"{talk.run.index}/{name}", 0)
            talk.waits_for += 1
            child = _Talk(talk.run, conversation, name, segment, talk, shared=conversation.shared)
            self._next_turn(child)
        if not plan.sub_agents:
            self._next_turn(talk)

    # Turns

    def _forward(self, turn_id: TurnId, backend: BackendId) -> None:
        turn, number = self._turns[turn_id], self._index[backend]
        talk = turn.talk
        turn.forwarded_at = turn.reported_at = self.now
        turn.replica = number
        run = turn.talk.run.record
        run.longest_hold_seconds = max(run.longest_hold_seconds, self.now - turn.arrived_at)
        own = turn.prompt_tokens + turn.plan.output_tokens - sum(part.tokens for part in talk.shared)
        content = (*((part.name, part.tokens) for part in talk.shared), (talk.segment, own))
        replica = self._replicas[number]
        replica.submit(turn_id, turn.prompt_tokens, turn.plan.output_tokens, content, self.now)
        self._await_step(replica)

    def _await_step(self, replica: Replica) -> None:
        if replica.step_ends_at is not None:
            self._at(replica.step_ends_at, self._end_step, replica)

    def _end_step(self, replica: Replica) -> None:
        now = self.now
        if replica.step_ends_at is None or replica.step_ends_at > now:
            return  # it was shortened or is over
        turns, progress_seconds = self._turns, self.progress_seconds
        for output in replica.end_step(now):
            turn_id = TurnId(int(output.request_id))
            turn = turns[turn_id]
            if not turn.first_token_at:
                turn.first_token_at, turn.cached_tokens = now, output.cached_tokens
            if output.finish_reason is not None:
                self._finish(turn_id, turn, replica)
            elif now - turn.reported_at >= progress_seconds:
                turn.reported_at = now
                self._handle(events.TurnProgressed(turn_id, replica.output_tokens[turn_id]))
        replica.resume(now)
        self._await_step(replica)

    def _finish(self, turn_id: TurnId, turn: _Turn, replica: Replica) -> None:
        del self._turns[turn_id]
        talk, plan, records = turn.talk, turn.plan, self.records
        output = replica.finish(turn_id)
        talk.history_tokens = turn.prompt_tokens + output
        usage = Usage(turn.prompt_tokens, output, turn.cached_tokens)
        record = talk.run.record
        record.turns += 1
        records.program.append(talk.run.index)
        records.arrived_at.append(turn.arrived_at)
        records.forwarded_at.append(turn.forwarded_at)
        records.first_token_at.append(turn.first_token_at)
        records.ended_at.append(self.now)
        records.prompt_tokens.append(turn.prompt_tokens)
        records.cached_tokens.append(turn.cached_tokens)
        records.known_tokens.append(turn.known_tokens)
        records.output_tokens.append(output)
        records.replica.append(turn.replica)
        self.turns_ended += 1
        self._handle(events.TurnFinished(turn_id, Outcome.COMPLETED, usage, output))
        self._at(self.now + plan.tool_seconds, self._after_tool, (talk, plan))

    def _refused(self, command: commands.Refuse) -> None:
        """The client sees an error and takes the turn again when it is told to, as agents do."""
        turn = self._turns.pop(command.turn)
        self.records.refused_turns += 1
        turn.talk.next_turn -= 1
        self._at(self.now + (command.retry_after_seconds or 1.0), self._next_turn, turn.talk)

    def _close(self) -> None:
        """Holds that are open count as long as they lasted until now."""
        held = self._scheduler.cluster.turn_by_id
        for turn_id, turn in self._turns.items():
            if held[turn_id].status is TurnStatus.HELD:
                record = turn.talk.run.record
                record.longest_hold_seconds = max(record.longest_hold_seconds, self.now - turn.arrived_at)
                self.records.open_holds.append((turn.talk.run.index, turn.arrived_at))


def _within(shared: tuple[Shared, ...], tokens: int) -> tuple[Shared, ...]:
    """The beginnings that fit in so many tokens."""
    kept: list[Shared] = []
    for part in shared:
        tokens -= part.tokens
        if tokens < 0:
            break
        kept.append(part)
    return tuple(kept)
