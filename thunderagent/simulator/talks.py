"""A conversation under way: what its next prompt is made of, and what of it can be cached."""

from __future__ import annotations

from collections.abc import Container, Hashable

from attrs import define, field, frozen

from thunderagent.core.events import Prefix
from thunderagent.core.ids import BranchId, PrefixKey, ProgramId
from thunderagent.simulator.programs import Arrival, Conversation, Program, Shared, TurnPlan

__all__ = ["BYTES_PER_TOKEN", "Content", "Prompt", "Run", "Talk"]

BYTES_PER_TOKEN = 4
"""Of what conversations share; of a program's own texts it differs."""

Content = tuple[tuple[Hashable, int], ...]
"""Stretches of tokens by name, one behind the other: the same name stands for the same beginning of tokens."""


@frozen
class Prompt:
    """What a turn sends."""

    plan: TurnPlan
    branch: BranchId
    tokens: int
    known_tokens: int
    """Of these, what an earlier turn had computed, of this conversation or of one with the same beginning."""
    shared: tuple[Shared, ...]
    shared_tokens: int
    """Of all of them."""
    prefixes: tuple[Prefix, ...]
    """The same as the router is told of them."""
    content: Content
    """Of the prompt and its answer."""


@define(eq=False)
class Run:
    """A program under way."""

    session: Arrival
    index: int
    program: Program
    id: ProgramId | None
    """None: one-off."""
    talks: int = 1
    """Conversations that have not ended."""


@define(eq=False)
class Talk:
    """A conversation of a program."""

    run: Run
    plan: Conversation
    name: str
    parent: Talk | None = None
    waits_for: int = 0
    """Sub-agents that are awaited and not done."""
    after_seconds: float = 0.0
    """What passes then until the next turn."""
    asked_at: float | None = None
    """When its next turn came for the first time, where that was refused and will be sent again."""
    _next_turn: int = 0
    _history_tokens: int = 0
    """Prompt and answer of the turn before."""
    _shared: tuple[Shared, ...] = field(init=False)
    _shared_tokens: int = field(init=False)
    _prefixes: tuple[Prefix, ...] = field(init=False)
    _stretches: Content = field(init=False)
    """What the history begins with, before its own last stretch."""
    _stretched_tokens: int = field(init=False)
    """Of all of them."""
    _lives: int = 0
    """How often the history was cut."""
    _rewritings: int = 0
    _segment: tuple[str, int] = field(init=False)
    """The name of its own last stretch."""
    _branch: BranchId = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._share(self.plan.shared)
        self._begin_with(tuple((part.name, part.tokens) for part in self._shared))

    @property
    def is_over(self) -> bool:
        """Whether no turn is left."""
        return self._next_turn == len(self.plan.turns)

    def prompt(self, computed: Container[str]) -> Prompt:
        """Of the next turn. ``computed``: the shared beginnings that some turn has had computed."""
        plan = self.plan.turns[self._next_turn]
        base = known = self._history_tokens
        if self._next_turn == 0:
            base = self._shared_tokens
            known = sum(part.tokens for part in self._shared if part.name in computed)
        elif plan.kept_tokens is not None:
            known = self._cut(plan.kept_tokens, plan.same_tokens)
            base = plan.kept_tokens
        tokens = base + plan.new_tokens
        own = tokens + plan.output_tokens - self._stretched_tokens
        self._next_turn += 1
        content = (*self._stretches, (self._segment, own))
        return Prompt(plan, self._branch, tokens, known, self._shared, self._shared_tokens, self._prefixes, content)

    def answered(self, prompt: Prompt) -> None:
        """The turn is over; prompt and answer are the history now."""
        self._history_tokens = prompt.tokens + prompt.plan.output_tokens

    def ask_again(self, asked_at: float) -> None:
        """The turn was refused; it first came at ``asked_at``."""
        self._next_turn -= 1
        self.asked_at = asked_at

    def give_up(self) -> None:
        """No further turn."""
        self._next_turn = len(self.plan.turns)

    def _share(self, shared: tuple[Shared, ...]) -> None:
        """It begins with these."""
        self._shared = shared
        self._shared_tokens = sum(part.tokens for part in shared)
        self._prefixes = tuple(Prefix(PrefixKey(part.name), part.tokens * BYTES_PER_TOKEN) for part in shared)

    def _begin_with(self, stretches: Content) -> None:
        """What comes behind these is a stretch of its own."""
        self._stretches = stretches
        self._stretched_tokens = sum(size for _, size in stretches)
        self._segment = (f"{self.run.index}/{self.name}", self._lives)
        self._branch = BranchId(self.name if not self._rewritings else f"{self.name}~{self._rewritings}")

    def _cut(self, kept_tokens: int, same_tokens: int | None) -> int:
        """Shorten the history; the tokens at its beginning that are still those of before."""
        if same_tokens is None:
            # Rewritten behind the shared beginning: to a router that goes by how a conversation begins, another one.
            self._rewritings += 1
            self._share(_within(self._shared, kept_tokens))
            same_tokens = self._shared_tokens
        else:
            self._share(_within(self._shared, same_tokens))
        own = self._history_tokens - self._stretched_tokens
        stretches, left = [], same_tokens
        for name, size in (*self._stretches, (self._segment, own)):
            if left > 0:
                stretches.append((name, min(size, left)))
            left -= size
        self._lives += 1
        self._begin_with(tuple(stretches))
        return same_tokens


def _within(shared: tuple[Shared, ...], tokens: int) -> tuple[Shared, ...]:
    """The beginnings that fit in so many tokens."""
    kept: list[Shared] = []
    for part in shared:
        tokens -= part.tokens
        if tokens < 0:
            break
        kept.append(part)
    return tuple(kept)
