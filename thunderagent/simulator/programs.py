"""What agents do, fixed before anything runs: programs, their conversations, and the turns in these.

Tokens and tool times do not depend on the schedule, so that policies are compared on the same work.
"""

from __future__ import annotations

from attrs import frozen

__all__ = ["Conversation", "Program", "Shared", "TurnPlan"]


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
    """From the answer to the next turn, or to the program's end."""
    kept_tokens: int | None = None
    """The history was compacted to so many tokens before ``new_tokens`` came; None: it is as it was."""
    sub_agents: tuple[Conversation, ...] = ()
    """They begin when ``tool_seconds`` have passed; the next turn waits for all of them."""


@frozen
class Conversation:
    """Turns with a common history. The first turn's prompt is ``shared`` and its ``new_tokens``."""

    turns: tuple[TurnPlan, ...]
    shared: tuple[Shared, ...] = ()

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
    """One agent run. ``group``: programs of one task, which are done when all of them are; None: a task of its own."""

    conversation: Conversation
    group: str | None = None
    is_one_off: bool = False
    """A single request without a program id, as from a chat client."""
