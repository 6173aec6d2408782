"""What agents do, fixed before anything runs: programs, their conversations, and the turns in these.

Tokens and tool times do not depend on the schedule, so that policies are compared on the same work.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from attrs import evolve, frozen

__all__ = ["Arrival", "Conversation", "Program", "Shared", "TurnPlan", "with_programs"]


@frozen
class Shared:
    """A beginning that conversations share: all of the same name begin with the same ``tokens``."""

    name: str
    tokens: int


@frozen
class TurnPlan:
    """One turn: what is added to the history, what is answered, and what the agent does then."""

    new_tokens: int
    """Appended to the history before the turn: the task at first, a tool's output later. At least 1."""
    output_tokens: int
    tool_seconds: float = 0.0
    """From the answer to the next turn, or to the end of the conversation."""
    kept_tokens: int | None = None
    """The history was compacted to so many tokens before ``new_tokens`` came; None: it is as it was."""
    same_tokens: int | None = None
    """Of the compacted history, the beginning that is as it was. None: what the conversation shares with others."""
    sub_agents: tuple[Conversation, ...] = ()
    """They begin when ``tool_seconds`` have passed; the next turn waits for those that are awaited."""
    after_seconds: float = 0.0
    """From the end of the last of these to the next turn; after ``tool_seconds`` where none is awaited."""


@frozen
class Conversation:
    """Turns with a common history. The first turn's prompt is ``shared`` and its ``new_tokens``."""

    turns: tuple[TurnPlan, ...]
    shared: tuple[Shared, ...] = ()
    delay_seconds: float = 0.0
    """A sub-agent's: from the time at which it is sent to its first turn."""
    is_awaited: bool = True
    """A sub-agent's: whether the one that sent it waits for it."""

    @property
    def peak_tokens(self) -> int:
        """The longest history, with the answer."""
        tokens = peak = sum(part.tokens for part in self.shared)
        for turn in self.turns:
            tokens = tokens if turn.kept_tokens is None else turn.kept_tokens
            tokens += turn.new_tokens + turn.output_tokens
            peak = max(peak, tokens)
        return peak


@frozen
class Program:
    """One agent run. ``group``: programs of one task, done when all of them are; None: a task of its own."""

    conversation: Conversation
    group: str | None = None
    is_one_off: bool = False
    """A single request without a program id, as from a chat client."""
    is_abandoned: bool = False
    """Its client vanishes with its last answer: it is never released."""


@frozen
class Arrival:
    """A session begins at ``at`` and runs its programs one after the other, each when the one before has ended."""

    at: float
    session: int
    programs: Iterator[Program]
    releases: Iterator[bool]
    """Whether the client releases its next program."""


def with_programs(
    arrivals: Sequence[Arrival], key: str, change: Callable[[Program, random.Random], Program]
) -> Sequence[Arrival]:
    """The same sessions, of programs as ``change`` has them: it is called with each in its turn, and with the
    session's own source of chance, which depends on ``key`` and the session alone."""

    def changed(arrival: Arrival) -> Arrival:
        chance = random.Random(f"{key} {arrival.session}")
        return evolve(arrival, programs=(change(program, chance) for program in arrival.programs))

    return [changed(arrival) for arrival in arrivals]
