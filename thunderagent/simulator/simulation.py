"""The scheduler, its policy and the engines on one virtual clock: agents come, wait, run and go.

As in the daemon, the scheduler is told of arrivals, progress, ends, releases and of what backends say; what it
commands is carried out at once. Nothing is random here: the same programs give the same story.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

from attrs import define, evolve, field, frozen

from thunderagent.core import commands, events
from thunderagent.core.ids import BackendId, ProgramId, TurnId
from thunderagent.core.policy import Policy
from thunderagent.core.scheduler import Scheduler
from thunderagent.core.settings import SchedulerSettings
from thunderagent.core.usage import Outcome, Usage
from thunderagent.emulator.timing import Preset
from thunderagent.garbage import rare_collections
from thunderagent.simulator.fleet import MODELS, Fleet
from thunderagent.simulator.incidents import Incident
from thunderagent.simulator.perturbation import Perturbation
from thunderagent.simulator.programs import Arrival, TurnPlan
from thunderagent.simulator.records import OpenTurn, ProgramRecord, Records, Totals
from thunderagent.simulator.replica import Replica, new_engine
from thunderagent.simulator.talks import BYTES_PER_TOKEN, Prompt, Run, Talk

__all__ = ["Cluster", "Simulation"]


@frozen
class Cluster:
    """The machines: ``replicas`` engines of a preset, with ``kv_tokens`` each (None: the preset's)."""

    preset: Preset
    replicas: int = 1
    kv_tokens: int | None = None

    @property
    def kv_tokens_per_replica(self) -> int:
        return self.preset.kv_tokens if self.kv_tokens is None else self.kv_tokens


@define(eq=False)
class _Turn:
    """A turn between its arrival and its end."""

    talk: Talk
    prompt: Prompt
    arrived_at: float
    forwarded_at: float | None = None
    first_token_at: float | None = None
    cached_tokens: int = 0
    replica: int = -1


@define(eq=False)
class Simulation:
    """One run. Call ``run`` once."""

    cluster: Cluster
    policy: Policy
    arrivals: Sequence[Arrival]
    settings: SchedulerSettings = field(factory=SchedulerSettings)
    horizon_seconds: float = 3600.0
    warmup_seconds: float = 0.0
    """Totals are noted then, for figures of what came after."""
    progress_seconds: float = 10.0
    """How often the scheduler hears of a running turn. The daemon tells it each second, which takes up to twice the
    time here and changes less than another seed does."""
    observe_seconds: float = 5.0
    """How often it hears from the backends' metrics."""
    incidents: tuple[Incident, ...] = ()
    """Replicas that die, come back and join."""
    perturbation: Perturbation = field(factory=Perturbation)
    """Of estimates, capacity and metrics; what it changes of the programs is in ``arrivals``."""
    on_time: Callable[[float], None] = lambda _: None
    """Called now and then with the clock's reading."""
    records: Records = field(init=False)
    now: float = 0.0
    turns_ended: int = 0
    _scheduler: Scheduler = field(init=False)
    _fleet: Fleet = field(init=False)
    _replicas: list[Replica] = field(init=False)
    _index: dict[BackendId, int] = field(init=False)
    _turns: dict[TurnId, _Turn] = field(factory=dict)
    _heap: list[tuple[float, int, Callable[[Any], None], Any]] = field(factory=list)
    _sequence: int = 0
    _computed: set[str] = field(factory=set)
    """Shared beginnings that some turn has had computed."""
    _totals: Totals = field(factory=Totals)
    _resending: dict[Talk, float] = field(factory=dict)
    """Conversations whose turn was refused and will be sent again, with its first arrival."""
    _children: int = 0
    """Sub-agents that were sent, all programs together."""
    _most_tokens: int = field(init=False)
    """Of a prompt and its answer."""
    _left: int = 0
    """Sessions that have not ended."""
    _tick_at: float | None = None

    def __attrs_post_init__(self) -> None:
        self._scheduler = Scheduler(self.policy, self.settings)
        self.records = Records(self.cluster.replicas)
        preset, kv_tokens = self.cluster.preset, self.cluster.kv_tokens_per_replica
        self._fleet = fleet = Fleet(
            self._scheduler,
            lambda: new_engine(preset, kv_tokens),
            self.progress_seconds,
            lambda: self.now,
            self._at,
            self._handle,
            self._lose_turns,
            self.perturbation,
        )
        self._replicas, self._index = fleet.replicas, fleet.index
        for _ in range(self.cluster.replicas):
            fleet.grow()
        usable = self._replicas[0].engine.cache.usable_tokens
        self._most_tokens = min(usable, preset.max_model_len)

    def run(self) -> Records:
        """Let time pass until the horizon, or until nothing is left to happen."""
        with rare_collections():
            self._run()
        return self.records

    def _run(self) -> None:
        for replica in self._replicas:
            capacity = self._fleet.told_capacity(replica)
            self._handle(events.BackendAdded(replica.id, MODELS, capacity))
        self._fleet.plan(self.incidents)
        for arrival in self.arrivals:
            self._at(arrival.at, self._begin_program, arrival)
        self._left = len(self.arrivals)
        self._at(self.observe_seconds, self._observe, None)
        self._at(self.warmup_seconds, self._end_warmup, None)
        heap, horizon = self._heap, self.horizon_seconds
        while self._left:
            at, _, action, argument = heappop(heap)
            if at > horizon:
                self.now = horizon
                break
            self.now = at
            action(argument)
        self._close()

    # Time

    def _at(self, at: float, action: Callable[[Any], None], argument: Any) -> None:
        self._sequence += 1
        heappush(self._heap, (at, self._sequence, action, argument))

    def _handle(self, event: events.Event) -> None:
        scheduler = self._scheduler
        for command in scheduler.handle(event, self.now):
            if type(command) is commands.Forward:
                self._forward(command.turn, command.backend)
            elif type(command) is commands.Refuse:
                self._refused(command)
            else:
                name, notices = type(command).__name__, self._totals.notices
                notices[name] = notices.get(name, 0) + 1
        deadline_at = scheduler.next_deadline()
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
        """The router looks at the backends; what idle programs hold is noted."""
        self._fleet.look_around()
        idle = capacity = 0
        cluster, accounted_tokens = self._scheduler.cluster, list[int]()
        for replica in self._replicas:
            if replica.is_up:
                backend = cluster.backend_by_id[replica.id]
                accounted_tokens.append(backend.accounted_tokens)
                usable = replica.engine.cache.usable_tokens
                idle += min(backend.acting_tokens, max(0, usable - backend.running_tokens))
                capacity += usable
        if capacity:
            self.records.idle_kv.append((self.now, idle / capacity))
        if cluster.waiting_count and len(accounted_tokens) == len(self._replicas) > 1:
            self.records.balance.sample(self.now, self.observe_seconds, accounted_tokens)
        self.on_time(self.now)
        self._at(self.now + self.observe_seconds, self._observe, None)

    def _end_warmup(self, _: None) -> None:
        self.records.warmup = self._counted()

    def _counted(self) -> Totals:
        """The totals, with what the engines count themselves."""
        engines = [replica.engine for replica in self._replicas]
        return evolve(
            self._totals,
            notices=dict(self._totals.notices),
            preemptions=sum(engine.counters.preemptions for engine in engines),
            evicted_blocks=sum(engine.cache.counters.evictions for engine in engines),
            busy_seconds=sum(replica.busy_seconds_until(self.now) for replica in self._replicas),
        )

    # Agents

    def _begin_program(self, session: Arrival) -> None:
        program = next(session.programs, None)
        if program is None:
            self._left -= 1
            return
        index = len(self.records.programs)
        record = ProgramRecord(session.session, self.now, program.group, program.is_one_off)
        record.is_abandoned = program.is_abandoned
        self.records.programs.append(record)
        run = Run(session, index, program, None if program.is_one_off else ProgramId(f"program-{index}"))
        self._next_turn(Talk(run, program.conversation, "main"))

    def _next_turn(self, talk: Talk) -> None:
        """The conversation's next turn arrives, or it ends."""
        if self._resending:
            self._resending.pop(talk, None)
        if talk.is_over:
            self._end_conversation(talk)
            return
        prompt = talk.prompt(self._computed)
        turn = _Turn(talk, prompt, self.now if talk.asked_at is None else talk.asked_at)
        self._sequence += 1
        turn_id = TurnId(self._sequence)
        self._turns[turn_id] = turn
        run, shared_tokens = talk.run, prompt.shared_tokens
        own_bytes = round((prompt.tokens - shared_tokens) * self._bytes_per_token(run.index))
        body_bytes = shared_tokens * BYTES_PER_TOKEN + own_bytes
        self._handle(events.TurnArrived(turn_id, run.id, prompt.branch, "model", body_bytes, prompt.prefixes))

    def _bytes_per_token(self, index: int) -> float:
        """Of a program's texts: spread evenly over programs, so that estimates are off."""
        off = self.perturbation.estimate
        return BYTES_PER_TOKEN * (1.0 - off + 2.0 * off * (index * 0.6180339887 % 1.0))

    def _end_conversation(self, talk: Talk) -> None:
        run, parent = talk.run, talk.parent
        run.talks -= 1
        if parent is not None and talk.plan.is_awaited:
            parent.waits_for -= 1
            if not parent.waits_for:
                self._at(self.now + parent.after_seconds, self._next_turn, parent)
        if run.talks:
            return
        self.records.programs[run.index].ended_at = self.now
        if run.id is not None and next(run.session.releases) and not run.program.is_abandoned:
            self._handle(events.ProgramReleased(run.id))
        self._begin_program(run.session)

    def _after_tool(self, argument: tuple[Talk, TurnPlan]) -> None:
        talk, plan = argument
        talk.after_seconds = plan.after_seconds
        for number, conversation in enumerate(plan.sub_agents):
            talk.waits_for += conversation.is_awaited
            talk.run.talks += 1
            self._children += 1
            child = Talk(talk.run, conversation, f"{talk.name}/{self._children}.{number}", talk)
            self._at(self.now + conversation.delay_seconds, self._next_turn, child)
        if talk.waits_for:
            return
        if plan.sub_agents or plan.after_seconds:
            self._at(self.now + plan.after_seconds, self._next_turn, talk)
        else:
            self._next_turn(talk)

    # Turns

    def _forward(self, turn_id: TurnId, backend: BackendId) -> None:
        turn, number = self._turns[turn_id], self._index[backend]
        prompt = turn.prompt
        turn.forwarded_at = self.now
        turn.talk.asked_at = None
        replica = self._replicas[number]
        if not replica.is_up:
            self._at(self.now, self._connection_refused, (turn_id, number))
            return
        if prompt.tokens + prompt.plan.output_tokens > self._most_tokens:
            self._at(self.now, self._reject, turn_id)
            return
        record = self.records.programs[turn.talk.run.index]
        if record.last_replica is not None and record.last_replica != number:
            self._totals.moves += 1
        record.last_replica = turn.replica = number
        replica.submit(turn_id, prompt.tokens, prompt.plan.output_tokens, prompt.content, self.now)
        self._await_step(replica)

    def _await_step(self, replica: Replica) -> None:
        ends_at = replica.step_ends_at
        if ends_at is not None and ends_at != replica.awaited_at:
            replica.awaited_at = ends_at
            self._at(ends_at, self._end_step, replica)

    def _end_step(self, replica: Replica) -> None:
        now = self.now
        if replica.step_ends_at is None or replica.step_ends_at > now:
            return  # it was shortened or is over
        replica.awaited_at = None
        turns = self._turns
        for running in replica.end_step(now):
            turn = turns[running.turn]
            if turn.first_token_at is None:
                turn.first_token_at, turn.cached_tokens = now, running.cached_tokens
            if running.is_over:
                self._finish(running.turn, turn)
            elif running.is_due:
                self._handle(events.TurnProgressed(running.turn, running.output_tokens))
        replica.resume(now)
        self._await_step(replica)

    def _finish(self, turn_id: TurnId, turn: _Turn) -> None:
        del self._turns[turn_id]
        talk, prompt, records = turn.talk, turn.prompt, self.records
        plan = prompt.plan
        assert turn.forwarded_at is not None
        assert turn.first_token_at is not None
        for part in prompt.shared:
            self._computed.add(part.name)
        talk.answered(prompt)
        records.program.append(talk.run.index)
        records.arrived_at.append(turn.arrived_at)
        records.forwarded_at.append(turn.forwarded_at)
        records.first_token_at.append(turn.first_token_at)
        records.ended_at.append(self.now)
        records.prompt_tokens.append(prompt.tokens)
        records.cached_tokens.append(turn.cached_tokens)
        records.known_tokens.append(prompt.known_tokens)
        records.shared_tokens.append(prompt.shared_tokens)
        records.output_tokens.append(plan.output_tokens)
        records.tool_seconds.append(plan.tool_seconds + plan.after_seconds)
        records.replica.append(turn.replica)
        self.turns_ended += 1
        usage = Usage(prompt.tokens, plan.output_tokens, turn.cached_tokens)
        first_token_seconds = turn.first_token_at - turn.forwarded_at
        self._handle(events.TurnFinished(turn_id, Outcome.COMPLETED, usage, plan.output_tokens, first_token_seconds))
        self._fleet.turn_completed(turn.replica)
        self._at(self.now + plan.tool_seconds, self._after_tool, (talk, plan))

    def _reject(self, turn_id: TurnId) -> None:
        """The engine answers 400: the context is too long for it. The agent gives the program up."""
        talk = self._turns.pop(turn_id).talk
        self._totals.rejected_turns += 1
        self.records.programs[talk.run.index].is_given_up = True
        self._handle(events.TurnFinished(turn_id, Outcome.BACKEND_REJECTED))
        talk.give_up()
        self._at(self.now + 1.0, self._next_turn, talk)

    def _refused(self, command: commands.Refuse) -> None:
        """The client sees an error and sends the turn again when it is told to, as agents do."""
        turn = self._turns.pop(command.turn)
        self._totals.refused_turns += 1
        self._ask_again(turn, command.retry_after_seconds or 1.0)

    def _ask_again(self, turn: _Turn, after_seconds: float) -> None:
        turn.talk.ask_again(turn.arrived_at)
        self._resending[turn.talk] = turn.arrived_at
        self._at(self.now + after_seconds, self._next_turn, turn.talk)

    def _connection_refused(self, argument: tuple[TurnId, int]) -> None:
        turn_id, number = argument
        self._fleet.refuse_connection(number)
        self._forward_failed(turn_id, "connect", sent=False)

    def _forward_failed(self, turn_id: TurnId, reason: str, *, sent: bool) -> None:
        """No byte of an answer came: the scheduler says what becomes of the turn."""
        self._turns[turn_id].forwarded_at = None
        self._totals.resent_turns += 1
        self._handle(events.ForwardFailed(turn_id, reason, sent))

    def _lose_turns(self, number: int, outputs: dict[TurnId, int]) -> None:
        """A replica died. What had begun to answer is an error to its client, which asks again."""
        for turn_id, output_tokens in outputs.items():
            turn = self._turns[turn_id]
            if turn.first_token_at is None:
                self._fleet.turn_broke_off(number, is_begun=False)
                self._forward_failed(turn_id, "disconnected", sent=True)
                continue
            del self._turns[turn_id]
            self._totals.cut_turns += 1
            self._ask_again(turn, 1.0)
            self._handle(events.TurnFinished(turn_id, Outcome.BACKEND_DISCONNECTED, output_tokens=output_tokens))
            self._fleet.turn_broke_off(number, is_begun=True)

    def _close(self) -> None:
        """Write down what is open."""
        records = self.records
        records.end_seconds, records.totals = self.now, self._counted()
        records.replicas, records.absent = len(self._replicas), self._fleet.absent
        records.open_turns = [
            OpenTurn(turn.talk.run.index, turn.arrived_at, turn.forwarded_at, turn.first_token_at)
            for turn in self._turns.values()
        ]
        records.open_turns += [
            OpenTurn(talk.run.index, asked_at, None, None) for talk, asked_at in self._resending.items()
        ]
