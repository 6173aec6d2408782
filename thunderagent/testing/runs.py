"""Two ways to exercise a policy: a random run of every event in any order, and a closed loop of agents."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence

from attrs import define, field, frozen

from thunderagent.core import events
from thunderagent.core.commands import ProgramAdmitted, TurnHeld
from thunderagent.core.events import Prefix
from thunderagent.core.ids import BackendId, BranchId, PrefixKey, ProgramId, TurnId
from thunderagent.core.usage import Outcome, Usage
from thunderagent.testing.scheduler_driver import BYTES_PER_TOKEN, SchedulerDriver

__all__ = ["Agent", "ClosedLoop", "random_run"]

_SYSTEM_PROMPT = Prefix(PrefixKey("system"), 300 * BYTES_PER_TOKEN)
_TASK = Prefix(PrefixKey("task"), 150 * BYTES_PER_TOKEN)
_NAMES = [BackendId(name) for name in "ABC"]


def random_run(driver: SchedulerDriver, seed: int, steps: int) -> None:
    """Put a driver through ``steps`` random events, then end and release everything.

    Programs with several branches and overlapping turns, one-off turns, clients that leave, absurd usage, backends
    of unknown and changing capacity that fail, come back, drain and are replaced; ticks are late at times.
    """
    run = _RandomRun(driver, random.Random(seed))
    for name in _NAMES:
        driver.add(name, run.random.choice([None, 5_000, 20_000]), run.random.choice([None, ("m",), ("m", "n")]))
    for _ in range(steps):
        run.step()
    for name in _NAMES:
        run.bring_back(name)
    driver.close()


@define(eq=False)
class _RandomRun:
    driver: SchedulerDriver
    random: random.Random

    def step(self) -> None:
        """One random event, after a random time in which ticks may or may not have been sent."""
        draw, driver = self.random, self.driver
        driver.now += draw.random() * draw.choice([0.1, 1.0, 30.0])
        due_at = driver.scheduler.next_deadline()
        if due_at is not None and due_at <= driver.now and draw.random() < 0.8:
            driver.send(events.Tick())
        actions = [self.arrive, self.end, self.progress, self.fail, self.leave, self.release, self.change_backend]
        draw.choices(actions, [40, 30, 5, 4, 5, 5, 8])[0]()

    def arrive(self) -> None:
        draw = self.random
        program = draw.choice([None, *(f"p{index}" for index in range(12))])
        tokens = draw.choice([draw.randint(20, 500), draw.randint(500, 4_000), draw.randint(3_000, 25_000)])
        prefixes = draw.choice([(), (_SYSTEM_PROMPT,), (_SYSTEM_PROMPT, _TASK)])
        model = draw.choices([None, "m", "n", "unheard-of"], [4, 10, 4, 1])[0]
        self.driver.arrive(program, tokens, branch=draw.choice(["main", "sub"]), model=model, prefixes=prefixes)

    def end(self) -> None:
        draw, driver = self.random, self.driver
        if driver.running:
            absurd = Usage(draw.choice([0, -5, 10**9]), draw.choice([0, -1, 10**9]), None)
            plain = Usage(draw.randint(10, 6_000), draw.randint(0, 900), draw.choice([None, 10]))
            usage = draw.choices([None, absurd, plain], [3, 1, 6])[0]
            outcome = draw.choice([Outcome.COMPLETED, *Outcome])
            driver.send(events.TurnFinished(self.pick(driver.running), outcome, usage, draw.randint(0, 50)))

    def progress(self) -> None:
        if self.driver.running:
            self.driver.send(events.TurnProgressed(self.pick(self.driver.running), self.random.randint(0, 900)))

    def fail(self) -> None:
        if self.driver.running:
            self.driver.fail(self.pick(self.driver.running), sent=self.random.random() < 0.5)

    def leave(self) -> None:
        turns = {**self.driver.running, **self.driver.held}
        if turns:
            self.driver.abandon(self.pick(turns))

    def release(self) -> None:
        self.driver.release(f"p{self.random.randint(0, 13)}")

    def change_backend(self) -> None:
        draw, driver, name = self.random, self.driver, self.random.choice(_NAMES)
        if name not in driver.cluster.backend_by_id:
            driver.add(name, draw.choice([None, 8_000]), draw.choice([None, ("m", "n")]))
            return
        capacity_tokens, models = draw.choice([None, 3_000, 15_000]), draw.choice([None, ("m",), ("m", "n")])
        changes: list[events.Event] = [
            events.BackendFailed(name, "no answer"),
            events.BackendRecovered(name),
            events.BackendRecovered(name),
            events.BackendObserved(name, models, capacity_tokens, draw.random(), 1, 0),
            events.BackendObserved(name, models, capacity_tokens),
            events.BackendDraining(name),
            events.BackendRemoved(name),
        ]
        driver.send(draw.choices(changes, [4, 4, 4, 4, 4, 1, 1])[0])

    def bring_back(self, name: BackendId) -> None:
        """Make a backend available, whatever happened to it."""
        backend = self.driver.cluster.backend_by_id.get(name)
        if backend is not None and backend.is_draining:
            self.driver.send(events.BackendRemoved(name))
            backend = None
        if backend is None:
            self.driver.add(name, 20_000, ("m", "n"))
        else:
            self.driver.send(events.BackendRecovered(name))

    def pick(self, turns: dict[TurnId, events.TurnArrived]) -> TurnId:
        return self.random.choice(sorted(turns))


@frozen
class Agent:
    """One agent run of a closed loop: ``turns`` requests, the context growing by ``growth_tokens`` at each."""

    name: str
    start_tokens: int = 1_000
    growth_tokens: int = 200
    turns: int = 5
    think_seconds: float = 2.0
    """How long each of its turns runs."""
    tool_seconds: float = 1.0
    starts_at: float = 0.0


@define(eq=False)
class ClosedLoop:
    """Agents that send their next turn when the last one was answered, on a virtual clock; deterministic."""

    driver: SchedulerDriver
    agents: Sequence[Agent]
    finished: dict[str, int] = field(factory=dict)
    """Turns that each agent had answered."""
    longest_hold_seconds: float = 0.0
    overcommitted: list[str] = field(factory=list)
    """Admissions that left more accounted on a backend than it holds, though another program was there."""
    _due: list[tuple[float, int, str, TurnId | None]] = field(factory=list)
    _agent_of: dict[TurnId, Agent] = field(factory=dict)
    _held_since: dict[TurnId, float] = field(factory=dict)
    _sequence: int = 0

    def run(self, limit_seconds: float = 100_000.0) -> None:
        """Run until every agent is through.

        Raises:
            AssertionError: some are not by ``limit_seconds``, or a check of the driver failed.
        """
        by_name = {agent.name: agent for agent in self.agents}
        for agent in self.agents:
            self.finished[agent.name] = 0
            self._plan(agent.starts_at, agent.name, None)
        while self._due:
            due_at, _, name, turn = self._due[0]
            deadline_at = self.driver.scheduler.next_deadline()
            if deadline_at is not None and deadline_at < due_at:
                self._take(events.Tick(), deadline_at)
                continue
            heapq.heappop(self._due)
            if turn is None:
                self._ask(by_name[name], due_at)
            else:
                self._answer(by_name[name], turn, due_at)
            self._wait_for_progress(limit_seconds)
        unfinished = {agent.name for agent in self.agents if self.finished[agent.name] < agent.turns}
        assert not unfinished, f"agents that never came to an end: {sorted(unfinished)}"

    def _wait_for_progress(self, limit_seconds: float) -> None:
        """Nothing runs and nobody is in a tool: only time can help."""
        while not self._due and self.driver.held:
            deadline_at = self.driver.scheduler.next_deadline()
            assert deadline_at is not None, f"held for ever: {sorted(self.driver.held)}"
            assert deadline_at < limit_seconds, f"still held at {self.driver.now}: {sorted(self.driver.held)}"
            self._take(events.Tick(), deadline_at)

    def _context(self, agent: Agent) -> int:
        return agent.start_tokens + agent.growth_tokens * self.finished[agent.name]

    def _ask(self, agent: Agent, now: float) -> None:
        self._sequence += 1
        turn = TurnId(1_000_000 + self._sequence)
        self._agent_of[turn], self._held_since[turn] = agent, now
        body_bytes = self._context(agent) * BYTES_PER_TOKEN
        self._take(events.TurnArrived(turn, ProgramId(agent.name), BranchId("main"), None, body_bytes), now)

    def _answer(self, agent: Agent, turn: TurnId, now: float) -> None:
        prompt_tokens, output_tokens = self._context(agent), agent.growth_tokens // 2
        usage = Usage(prompt_tokens, output_tokens, None)
        self._take(events.TurnFinished(turn, Outcome.COMPLETED, usage), now)
        self.finished[agent.name] += 1
        if self.finished[agent.name] < agent.turns:
            self._plan(now + agent.tool_seconds, agent.name, None)
        else:
            self._take(events.ProgramReleased(ProgramId(agent.name)), now)

    def _take(self, event: events.Event, now: float) -> None:
        driver = self.driver
        commands = driver.send(event, max(0.0, now - driver.now))
        for command in commands:
            if isinstance(command, ProgramAdmitted):
                backend = driver.backend(command.backend)
                is_over = backend.free_tokens is not None and backend.free_tokens < 0 and backend.program_count > 1
                if is_over:
                    self.overcommitted.append(f"{command} at {driver.now}: {backend.free_tokens} free")
            assert not isinstance(command, TurnHeld) or command.turn in self._agent_of
        for turn in driver.where:
            since = self._held_since.pop(turn, None)
            if since is not None:
                self.longest_hold_seconds = max(self.longest_hold_seconds, driver.now - since)
                agent = self._agent_of[turn]
                self._plan(driver.now + agent.think_seconds, agent.name, turn)

    def _plan(self, due_at: float, name: str, turn: TurnId | None) -> None:
        self._sequence += 1
        heapq.heappush(self._due, (due_at, self._sequence, name, turn))
