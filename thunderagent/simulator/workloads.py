"""What agents do, by name: programs drawn from distributions that were fitted to named figures.

Everything is drawn from the seed, the session's number and the workload's name, never from what happens: each policy
gets the same programs. A session runs one program after another; its first one begins somewhere in the middle, so
that contexts are as mixed as they are after hours.
"""

from __future__ import annotations

import itertools
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import ClassVar

from attrs import evolve, field, frozen

from thunderagent.emulator.timing import Preset
from thunderagent.simulator.programs import Arrival, Conversation, Program, Shared, TurnPlan

__all__ = ["WORKLOADS", "MeanProgram", "Spread", "Workload", "mean_program"]

_Z90 = 1.2815515655446004
"""The normal distribution's 90th percentile."""


@frozen
class Spread:
    """A lognormal distribution by its median and 90th percentile, cut off at ``most``."""

    median: float
    p90: float
    most: float = math.inf
    _sigma: float = field(init=False, repr=False)
    """Of the logarithm."""

    @_sigma.default
    def _fit(self) -> float:
        return math.log(self.p90 / self.median) / _Z90

    def draw(self, chance: random.Random) -> float:
        """One value."""
        value = self.median * math.exp(chance.gauss(0.0, self._sigma))
        return value if value < self.most else self.most

    def tokens(self, chance: random.Random) -> int:
        """One whole value, at least 1."""
        tokens = round(self.draw(chance))
        return tokens if tokens > 1 else 1


class Workload(ABC):
    """Programs, and how they come."""

    name: ClassVar[str]
    title: ClassVar[str]
    """One line; the docstring says which figures it was fitted to."""
    preset: ClassVar[str]
    """The engine that its figures belong to."""
    kv_tokens: ClassVar[int | None] = None
    """Per replica, where the figures had another size than the preset."""
    ends: ClassVar[bool] = False
    """Whether each session has one program only."""
    stagger_seconds: ClassVar[float] = 60.0
    """All sessions begin within this."""

    @property
    @abstractmethod
    def median_tool_seconds(self) -> float:
        """From an answer to the next turn."""

    @abstractmethod
    def program(self, chance: random.Random) -> Program:
        """One program from its beginning."""

    def arrivals(self, sessions: int, seed: int, *, release_ratio: float = 1.0) -> Sequence[Arrival]:
        """``sessions`` clients that run programs for ever. ``release_ratio`` of the programs are released."""
        return [self._session(number, f"{self.name} {seed} {number}", release_ratio) for number in range(sessions)]

    def _session(self, number: int, key: str, release_ratio: float) -> Arrival:
        chance = random.Random(key)
        at = chance.uniform(0.0, self.stagger_seconds)
        return Arrival(at, number, self._programs(chance), _releases(key, release_ratio))

    def _programs(self, chance: random.Random) -> Iterator[Program]:
        first = self.program(chance)
        # Longer programs are met more often: one is kept with a chance that grows with its turns.
        for _ in range(64):
            if chance.random() * self.most_turns < len(first.conversation.turns):
                break
            first = self.program(chance)
        yield _from_the_middle(first, chance)
        while True:
            yield self.program(chance)

    most_turns: ClassVar[int] = 60
    """No program has more."""


def _releases(key: str, ratio: float) -> Iterator[bool]:
    chance = random.Random(f"{key} release")
    while True:
        yield chance.random() < ratio


def _from_the_middle(program: Program, chance: random.Random) -> Program:
    """The program from one of its turns on; what it had before is new to the engine."""
    conversation = program.conversation
    start = chance.randrange(len(conversation.turns))
    shared_tokens = sum(part.tokens for part in conversation.shared)
    tokens = shared_tokens
    for turn in conversation.turns[: start + 1]:
        tokens = (tokens if turn.kept_tokens is None else turn.kept_tokens) + turn.new_tokens
        prompt_tokens = tokens
        tokens += turn.output_tokens
    first = evolve(conversation.turns[start], new_tokens=prompt_tokens - shared_tokens, kept_tokens=None)
    return evolve(program, conversation=evolve(conversation, turns=(first, *conversation.turns[start + 1 :])))


class SweAgent(Workload):
    """mini-swe-agent on SWE-bench: 37 to 56 turns, contexts mostly under 30,000 tokens.

    Fitted to: prompts of 16,000 tokens at the median and 28,000 at the 90th percentile over turns, about 70 prompt
    tokens per output token; most tools take a second or two. With 200,000 KV tokens per replica.
    """

    name = "swe-agent"
    title = "mini-swe-agent on SWE-bench: prompts of 16k tokens (median), 28k (p90), 37 to 56 turns"
    preset = "8xh100-glm-355b"
    kv_tokens = 200_000

    system = Shared("mini-swe-agent", 1_400)
    task = Spread(900, 2_500, 8_000)
    output = Spread(190, 420, 2_000)
    observation = Spread(240, 900, 4_000)
    tool = Spread(1.0, 6.0, 120.0)

    @property
    def median_tool_seconds(self) -> float:
        return self.tool.median

    def program(self, chance: random.Random) -> Program:
        return Program(self._conversation(chance, chance.randint(37, 56)))

    def _conversation(self, chance: random.Random, turns: int) -> Conversation:
        return Conversation(
            tuple(
                TurnPlan(
                    (self.observation if number else self.task).tokens(chance),
                    self.output.tokens(chance),
                    self.tool.draw(chance),
                )
                for number in range(turns)
            ),
            (self.system,),
        )


class CodingLong(Workload):
    """Coding assistants with long contexts, as recorded Claude Code sessions.

    Fitted to: prompts of 80,000 to 90,000 tokens at the median and 140,000 at the 90th percentile over turns, about
    120 prompt tokens per output token; 27,000 tokens in the first turns; appended tokens 750 at the median and 3,000
    to 6,000 at the 90th percentile; gaps of 0.3 s at the median and 10 s at the 90th percentile, cut off there as in
    the replay. Histories are compacted to 40,000 tokens when they pass 180,000.
    """

    name = "coding-long"
    title = "coding assistants: prompts of 85k tokens (median), 140k (p90), compacted at 180k"
    preset = "h100-qwen3-coder-30b"
    most_turns = 120

    system = Shared("coding-assistant", 8_000)
    task = Spread(16_000, 22_000, 40_000)
    early = Spread(6_000, 14_000, 30_000)
    output = Spread(560, 1_350, 6_000)
    observation = Spread(750, 4_200, 30_000)
    gap = Spread(0.3, 10.0, 10.0)
    turns = Spread(31, 66, 110)
    compact_at_tokens, kept_tokens = 180_000, 40_000

    @property
    def median_tool_seconds(self) -> float:
        return self.gap.median

    def program(self, chance: random.Random) -> Program:
        turns = []
        tokens = self.system.tokens
        for number in range(max(3, self.turns.tokens(chance))):
            spread = self.task if number == 0 else self.early if number < 4 else self.observation
            new, output, kept = spread.tokens(chance), self.output.tokens(chance), None
            if tokens + new + output > self.compact_at_tokens:
                kept = tokens = self.kept_tokens
            tokens += new + output
            turns.append(TurnPlan(new, output, self.gap.draw(chance), kept))
        return Program(Conversation(tuple(turns), (self.system,)))


class StochasticTools(SweAgent):
    """``swe-agent`` with heavy-tailed tools: remote calls and test suites.

    Fitted to: tools of 2 s at the median, tens to hundreds of seconds at the 95th percentile, cut off at 900 s.
    """

    name = "stochastic-tools"
    title = "swe-agent with tools of 2 s (median), 60 s (p90), up to 15 min"
    tool = Spread(2.0, 60.0, 900.0)


class SubAgents(SweAgent):
    """``swe-agent`` that sends sub-agents: parallel conversations of one program, which it waits for.

    Fitted to: 6 to 8 % of requests overlap others of their program in recorded coding sessions. Every eighth turn,
    about, sends two to four sub-agents of 4 to 10 turns.
    """

    name = "sub-agents"
    title = "swe-agent that sends 2 to 4 parallel sub-agents about every eighth turn"

    def program(self, chance: random.Random) -> Program:
        main = self._conversation(chance, chance.randint(20, 40))
        turns = [
            evolve(turn, sub_agents=self._sub_agents(chance)) if chance.random() < 1 / 8 else turn
            for turn in main.turns[:-1]
        ]
        return Program(evolve(main, turns=(*turns, main.turns[-1])))

    def _sub_agents(self, chance: random.Random) -> tuple[Conversation, ...]:
        return tuple(self._conversation(chance, chance.randint(4, 10)) for _ in range(chance.randint(2, 4)))


class RlRollout(SweAgent):
    """Reinforcement learning: groups of 8 programs of one task, all begun together, run once to their ends.

    Fitted to: groups of 8 to 16 that share the whole first prompt; turns as in ``swe-agent``. What counts is the time
    until the last one is done.
    """

    name = "rl-rollout"
    title = "rollouts: groups of 8 that share their first prompt, all begun at once, run once"
    ends = True
    stagger_seconds = 0.0
    group_size = 8

    def arrivals(self, sessions: int, seed: int, *, release_ratio: float = 1.0) -> Sequence[Arrival]:
        found = []
        for number in range(sessions):
            group = number // self.group_size
            task = self.task.tokens(random.Random(f"{self.name} {seed} task {group}"))
            key = f"{self.name} {seed} {number}"
            chance = random.Random(key)
            program = self.program(chance)
            first, *rest = program.conversation.turns
            # The task is shared by the group; a turn has a token of its own at least.
            conversation = Conversation(
                (evolve(first, new_tokens=1), *rest), (self.system, Shared(f"task {seed} {group}", task))
            )
            once = evolve(program, conversation=conversation, group=f"group {group}")
            found.append(Arrival(0.0, number, iter((once,)), _releases(key, release_ratio)))
        return found


class ChatMix(SweAgent):
    """``swe-agent`` beside people who chat: single requests without a program id, at a steady rate.

    Fitted to: nothing published. Chats of 800 tokens at the median and 3,000 at the 90th percentile, answers of 200
    and 600; for each three agents one chat client, which asks 20 s after the answer before, on average.
    """

    name = "chat-mix"
    title = "swe-agent beside one-off chat requests"

    prompt = Spread(800, 3_000, 16_000)
    answer = Spread(200, 600, 2_000)

    def arrivals(self, sessions: int, seed: int, *, release_ratio: float = 1.0) -> Sequence[Arrival]:
        agents = super().arrivals(sessions, seed, release_ratio=release_ratio)
        chats = []
        for number in range(math.ceil(sessions / 3)):
            key = f"{self.name} {seed} chat {number}"
            chance = random.Random(key)
            chats.append(Arrival(chance.uniform(0, 20), sessions + number, self._chats(chance), _releases(key, 1.0)))
        return [*agents, *chats]

    def _chats(self, chance: random.Random) -> Iterator[Program]:
        while True:
            turn = TurnPlan(self.prompt.tokens(chance), self.answer.tokens(chance), chance.expovariate(1 / 20))
            yield Program(Conversation((turn,)), is_one_off=True)


WORKLOADS: dict[str, Workload] = {
    each.name: each for each in (SweAgent(), CodingLong(), StochasticTools(), SubAgents(), RlRollout(), ChatMix())
}
"""By name."""


@frozen
class MeanProgram:
    """Of a workload's programs where nobody waits."""

    own_tokens: float
    """That one holds for itself, mean over time: what pressure is measured in. What all share does not count."""
    seconds: float
    """From its first turn to its last answer."""


@lru_cache
def mean_program(workload: Workload, preset: Preset, *, programs: int = 200) -> MeanProgram:
    """Drawn from so many. Times are those of an engine with a few others on it; sub-agents count while they run."""
    chance = random.Random(f"{workload.name} footprint")
    token_seconds = seconds = 0.0
    for program in itertools.islice(_endless(workload, chance), programs):
        held, lasted = _footprint(program.conversation, preset)
        token_seconds += held
        seconds += lasted
    return MeanProgram(token_seconds / seconds, seconds / programs)


def _endless(workload: Workload, chance: random.Random) -> Iterator[Program]:
    while True:
        yield workload.program(chance)


_DECODING = 8
"""Sequences that are taken to decode at the same time."""


def _footprint(conversation: Conversation, preset: Preset) -> tuple[float, float]:
    """Token-seconds held, and seconds until its end."""
    shared_tokens = tokens = sum(part.tokens for part in conversation.shared)
    held = total = 0.0
    for turn in conversation.turns:
        tokens = (tokens if turn.kept_tokens is None else turn.kept_tokens) + turn.new_tokens
        decoding = turn.output_tokens * preset.timing.decode_seconds(_DECODING, tokens)
        seconds = preset.timing.prompt_seconds(tokens, preset.max_num_batched_tokens, tokens - turn.new_tokens)
        tokens += turn.output_tokens
        seconds += decoding + turn.tool_seconds
        children = [_footprint(child, preset) for child in turn.sub_agents]
        waited = max((lasted for _, lasted in children), default=0.0)
        held += (tokens - shared_tokens) * (seconds + waited) + sum(tokens_held for tokens_held, _ in children)
        total += seconds + waited
    return held, total
