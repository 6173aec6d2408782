"""What does a decision cost, and how does that grow with the number of programs?

Command: ``python -m benchmarks.scheduler [--programs 1000,10000,100000] [--policy NAME] [--events 200000] [--smoke]``

A closed loop of agents in virtual time: each takes turns and uses tools in between, ends after some turns, is
released, and another one begins. The caches of the backends hold ``1 / --pressure`` of what all of them need, so
programs are held, paused and resumed all the time. The capacity is set by what they are found to need once that is
steady, and need / capacity is measured again at the end.

Only ``Scheduler.handle`` and ``next_deadline`` are timed. Pauses of Python's garbage collector, which hit any event,
are taken out of its time and shown beside: they grow with all that the process holds. ``bytes/program`` is what the
scheduler keeps of each.

``--smoke`` does not time: it counts the Python lines that the scheduler runs per event, at 500 and at 8,000
programs, and fails where that number grows faster than the logarithm of the programs.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import math
import platform
import random
import sys
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

from attrs import define, field

from thunderagent.core import events
from thunderagent.core.commands import Forward
from thunderagent.core.events import Event, Prefix
from thunderagent.core.ids import BackendId, BranchId, PrefixKey, ProgramId, TurnId
from thunderagent.core.policy import Policy
from thunderagent.core.scheduler import Scheduler
from thunderagent.core.settings import SchedulerSettings
from thunderagent.core.usage import Outcome, Usage
from thunderagent.registry import make_policy

BACKENDS, LEAST_CAPACITY_TOKENS = 256, 40_000
"""So many, or as many as have that capacity."""
PROMPT_TOKENS, GROWTH_TOKENS, TURNS_PER_PROGRAM = 8_000, 700, 12
BYTES_PER_TOKEN = 4
SHARED_TOKENS = 2_000
SYSTEM_PROMPT = Prefix(PrefixKey("system"), SHARED_TOKENS * BYTES_PER_TOKEN)
MakePolicy = Callable[[], Policy]
SMOKE_PROGRAMS = (500, 8_000)
SMOKE_EVENTS, SMOKE_BACKENDS = 6_000, 64
STEADY_RATIO, MOST_ROUNDS = 0.02, 30
"""What all programs need is steady where a round of warming up changes it by no more than that, or by chance."""


@define(eq=False)
class _Agent:
    name: ProgramId
    turns_left: int
    tokens: int


@define(eq=False)
class Load:
    """Agents in virtual time: an iterator of (time, event) that is told what the scheduler commands."""

    programs: int
    pressure: float
    random: random.Random
    pending: list[tuple[float, int, str, Any]] = field(factory=list)
    agent_of: dict[TurnId, _Agent] = field(factory=dict)
    now: float = 0.0
    _numbers: int = 0

    def __attrs_post_init__(self) -> None:
        for _ in range(self.programs):
            self._plan(self.random.uniform(0.0, 60.0), "arrive", self._agent_under_way())

    def _new_agent(self) -> _Agent:
        self._numbers += 1
        turns = self.random.randint(1, 2 * TURNS_PER_PROGRAM - 1)
        return _Agent(
            ProgramId(f"run-{self._numbers:08d}"), turns, round(PROMPT_TOKENS * self.random.uniform(0.3, 1.7))
        )

    def _agent_under_way(self) -> _Agent:
        """As one is met in the steady state: a long run is met more often than a short one, and anywhere in it."""
        agent = self._new_agent()
        turns = range(1, 2 * TURNS_PER_PROGRAM)
        agent.turns_left = self.random.choices(turns, turns)[0]
        turns_taken = self.random.randrange(agent.turns_left)
        agent.turns_left -= turns_taken
        agent.tokens += GROWTH_TOKENS * turns_taken
        return agent

    def _plan(self, at: float, what: str, who: Any) -> None:
        self._numbers += 1
        heapq.heappush(self.pending, (at, self._numbers, what, who))

    def next(self, deadline_at: float | None) -> Event:
        """The next event; sets ``now``. A tick where the scheduler's deadline comes first."""
        at = self.pending[0][0] if self.pending else math.inf
        if deadline_at is not None and deadline_at <= at:
            self.now = max(self.now, deadline_at)
            return events.Tick()
        at, _, what, who = heapq.heappop(self.pending)
        self.now = max(self.now, at)
        if what == "arrive":
            return self._arrival(who)
        if what == "release":
            self._plan(self.now + self.random.expovariate(0.5), "arrive", self._new_agent())
            return events.ProgramReleased(who)
        turn, agent = who, self.agent_of[who]
        if what == "progress":
            return events.TurnProgressed(turn, 100)
        del self.agent_of[turn]
        prompt_tokens, agent.tokens = agent.tokens, agent.tokens + GROWTH_TOKENS
        agent.turns_left -= 1
        tool_seconds = self.random.lognormvariate(0.5, 1.3)
        if agent.turns_left:
            self._plan(self.now + tool_seconds, "arrive", agent)
        else:
            self._plan(self.now, "release", agent.name)
        usage = Usage(prompt_tokens, 200, round(0.9 * prompt_tokens))
        return events.TurnFinished(turn, Outcome.COMPLETED, usage, 200)

    def _arrival(self, agent: _Agent) -> Event:
        self._numbers += 1
        turn = TurnId(self._numbers)
        self.agent_of[turn] = agent
        size_bytes = agent.tokens * BYTES_PER_TOKEN
        return events.TurnArrived(turn, agent.name, BranchId("main"), "model", size_bytes, (SYSTEM_PROMPT,))

    def forwarded(self, turn: TurnId) -> None:
        """The turn runs from now on."""
        seconds = self.random.uniform(2.0, 8.0)
        if seconds > 4.0:
            self._plan(self.now + seconds / 2, "progress", turn)
        self._plan(self.now + seconds, "finish", turn)


def start(policy: Policy, programs: int, pressure: float, backends: int | None = None) -> tuple[Scheduler, Load]:
    """A scheduler with all backends, and its load; ``warm_up`` finds the capacity for the pressure."""
    load = Load(programs, pressure, random.Random(1))
    scheduler = Scheduler(policy, SchedulerSettings(max_held_turns=10**6))
    needed_tokens = programs * (PROMPT_TOKENS + GROWTH_TOKENS * TURNS_PER_PROGRAM / 2 - SHARED_TOKENS)
    if backends is None:
        backends = max(1, min(BACKENDS, int(needed_tokens / pressure / LEAST_CAPACITY_TOKENS)))
    capacity_tokens = SHARED_TOKENS + round(needed_tokens / pressure / backends)
    for index in range(backends):
        added = events.BackendAdded(BackendId(f"http://gpu{index:03d}:8000"), ("model",), capacity_tokens)
        scheduler.handle(added, 0.0)
    return scheduler, load


def needed_tokens_of(scheduler: Scheduler) -> int:
    """What all programs need at once, the system prompt counted once per backend."""
    cluster = scheduler.cluster
    own_tokens = sum(program.need_tokens - SHARED_TOKENS for program in cluster.program_by_id.values())
    return own_tokens + SHARED_TOKENS * len(cluster.backends)


def capacity_tokens_of(scheduler: Scheduler) -> int:
    """Of all backends."""
    return sum(backend.capacity_tokens or 0 for backend in scheduler.cluster.backends)


@define(eq=False)
class GarbagePauses:
    """How long the garbage collector stopped everything."""

    seconds: float = 0.0
    longest_seconds: float = 0.0
    _began: float = 0.0

    def note(self, phase: str, details: dict[str, int]) -> None:
        """For ``gc.callbacks``."""
        if phase == "start":
            self._began = time.perf_counter()
        else:
            seconds = time.perf_counter() - self._began
            self.seconds += seconds
            self.longest_seconds = max(self.longest_seconds, seconds)


PAUSES = GarbagePauses()


def step(scheduler: Scheduler, load: Load) -> tuple[str, float]:
    """One event through the scheduler: its kind and the seconds it took."""
    event = load.next(scheduler.next_deadline())
    paused, began = PAUSES.seconds, time.perf_counter()
    commands = scheduler.handle(event, load.now)
    scheduler.next_deadline()
    seconds = time.perf_counter() - began - (PAUSES.seconds - paused)
    for command in commands:
        if isinstance(command, Forward):
            load.forwarded(command.turn)
    return type(event).__name__, seconds


def warm_up(scheduler: Scheduler, load: Load) -> None:
    """Until every program has arrived, and on until what they need is steady, with the capacity for the pressure."""
    while load.now < 60.0:
        step(scheduler, load)
    former_tokens, steady_ratio = 0, max(STEADY_RATIO, load.programs**-0.5)
    for _ in range(MOST_ROUNDS):
        needed_tokens = needed_tokens_of(scheduler)
        is_steady = abs(needed_tokens - former_tokens) <= steady_ratio * needed_tokens
        former_tokens = needed_tokens
        capacity_tokens = round(needed_tokens / load.pressure / len(scheduler.cluster.backends))
        for backend in scheduler.cluster.backends:
            scheduler.handle(events.BackendObserved(backend.id, None, capacity_tokens), load.now)
        if is_steady:
            return
        for _ in range(4 * load.programs):
            step(scheduler, load)
    raise RuntimeError(f"what {load.programs} programs need is not steady after {MOST_ROUNDS} rounds")


@define
class Row:
    """Measured at one number of programs; times in seconds."""

    programs: int
    tracked: int
    backends: int
    pressure: float
    """Tokens that all programs need, over the capacity of all backends, when all was measured."""
    waiting: int
    events_per_second: float
    seconds: list[float]
    by_kind: dict[str, list[float]]
    bytes_per_program: float
    longest_pause_seconds: float

    def percentile(self, share: float) -> float:
        """In microseconds."""
        return 1e6 * self.seconds[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


def measure(make: MakePolicy, programs: int, count: int, pressure: float) -> Row:
    """Time ``count`` events in the steady state."""
    scheduler, load = start(make(), programs, pressure)
    warm_up(scheduler, load)
    gc.collect()
    PAUSES.longest_seconds = 0.0
    by_kind: dict[str, list[float]] = defaultdict(list)
    for _ in range(count):
        kind, seconds = step(scheduler, load)
        by_kind[kind].append(seconds)
    cluster, longest_pause_seconds = scheduler.cluster, PAUSES.longest_seconds
    everything = sorted(second for seconds in by_kind.values() for second in seconds)
    return Row(
        programs=programs,
        tracked=cluster.program_count,
        backends=len(cluster.backends),
        pressure=needed_tokens_of(scheduler) / capacity_tokens_of(scheduler),
        waiting=cluster.waiting_count,
        events_per_second=count / sum(everything),
        seconds=everything,
        by_kind=by_kind,
        bytes_per_program=bytes_per_program(make, pressure),
        longest_pause_seconds=longest_pause_seconds,
    )


def bytes_per_program(make: MakePolicy, pressure: float, programs: int = 4_000) -> float:
    """Memory that the scheduler allocates for a program that has finished two turns."""
    scheduler, load = start(make(), programs, pressure)
    load.pending.clear()
    scheduler.journal.record(0.0, events.Tick(), ())
    agents = [load._new_agent() for _ in range(programs)]
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for agent in agents:
        for _ in range(2):
            event = load._arrival(agent)
            assert isinstance(event, events.TurnArrived)
            commands = scheduler.handle(event, 1.0)
            del load.agent_of[event.turn]
            if any(isinstance(command, Forward) and command.turn == event.turn for command in commands):
                usage = Usage(agent.tokens, 200, 0)
                scheduler.handle(events.TurnFinished(event.turn, Outcome.COMPLETED, usage, 200), 1.0)
    del commands, event
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / programs


def lines_per_event(make: MakePolicy, programs: int, count: int, pressure: float, backends: int) -> float:
    """Lines of Python that the scheduler, the policy and the indexes run for an event, under the same pressure."""
    scheduler, load = start(make(), programs, pressure, backends)
    warm_up(scheduler, load)
    lines = 0

    def note(frame: FrameType, what: str, argument: object) -> Any:
        nonlocal lines
        lines += what == "line"
        return note

    for _ in range(count):
        event = load.next(scheduler.next_deadline())
        sys.settrace(note)
        try:
            commands = scheduler.handle(event, load.now)
            scheduler.next_deadline()
        finally:
            sys.settrace(None)
        for command in commands:
            if isinstance(command, Forward):
                load.forwarded(command.turn)
    return lines / count


def smoke(
    make: MakePolicy, pressure: float, programs: tuple[int, int], count: int, backends: int = SMOKE_BACKENDS
) -> bool:
    """Whether the lines per event grow no faster than the logarithm of the programs; prints them."""
    few, many = programs
    allowed = math.log2(many) / math.log2(few)
    before, after = (lines_per_event(make, number, count, pressure, backends) for number in programs)
    is_fine = after / before <= allowed
    print(
        f"{before:.0f} lines per event at {few:,} programs, {after:.0f} at {many:,}: x{after / before:.2f}, "
        f"the logarithm allows x{allowed:.2f}: {'ok' if is_fine else 'TOO MUCH'}"
    )
    return is_fine


def table(rows: list[Row]) -> Iterator[str]:
    """For docs/benchmarks.md."""
    yield (
        "| programs | backends | need/capacity | waiting | events/s | p50 us | p99 us | max us | longest GC pause ms "
        "| bytes/program |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in rows:
        yield (
            f"| {row.programs:,} | {row.backends} | {row.pressure:.2f} | {row.waiting:,} "
            f"| {row.events_per_second:,.0f} | {row.percentile(0.5):.0f} | {row.percentile(0.99):.0f} "
            f"| {row.percentile(1.0):,.0f} | {1e3 * row.longest_pause_seconds:,.0f} | {row.bytes_per_program:,.0f} |"
        )


def kinds(row: Row) -> Iterator[str]:
    """Per kind of event, at the largest number of programs."""
    yield f"| event at {row.programs:,} programs | share | mean us | max us |"
    yield "| --- | --- | --- | --- |"
    for kind, seconds in sorted(row.by_kind.items()):
        share, mean = len(seconds) / len(row.seconds), sum(seconds) / len(seconds)
        yield f"| {kind} | {share:.1%} | {1e6 * mean:.0f} | {1e6 * max(seconds):,.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="What scheduling costs per event.")
    parser.add_argument("--programs", default="1000,10000,100000")
    parser.add_argument("--policy", default="pause-resume")
    parser.add_argument("--policy-option", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument(
        "--pressure", type=float, default=1.6, help="what all programs need over what the caches hold"
    )
    parser.add_argument("--smoke", action="store_true", help="count lines instead of time, and fail on growth")
    arguments = parser.parse_args()
    options = dict(option.split("=", 1) for option in arguments.policy_option)
    make = partial(make_policy, arguments.policy, options)
    if arguments.smoke:
        raise SystemExit(0 if smoke(make, arguments.pressure, SMOKE_PROGRAMS, SMOKE_EVENTS) else 1)
    print(
        f"{arguments.policy} {options or ''}, pressure {arguments.pressure:g}, "
        f"{arguments.events:,} events; Python {platform.python_version()} on {platform.machine()}"
    )
    gc.callbacks.append(PAUSES.note)
    rows = []
    for programs in (int(number) for number in arguments.programs.split(",")):
        rows.append(measure(make, programs, arguments.events, arguments.pressure))
        print(f"  {programs:,} programs: {rows[-1].events_per_second:,.0f} events/s", file=sys.stderr)
    print("\n".join([*table(rows), "", *kinds(rows[-1])]))


if __name__ == "__main__":
    main()
