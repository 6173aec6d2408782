"""A backend's running totals and ordered indexes: what the programs placed on it take, read in O(1)."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import Factory, define, field
from sortedcontainers import SortedKeyList

from thunderagent.core.ids import BackendId, PrefixKey, ProgramId, TurnId
from thunderagent.core.program import Program, Standing
from thunderagent.core.turn import Turn

__all__ = ["Backend", "Charge", "SharedPrefix"]


@define(eq=False)
class Charge:
    """What one branch takes on one backend: tokens of its own, and the shared prefixes that it stands on."""

    own_tokens: int = 0
    prefixes: tuple[PrefixKey, ...] = ()


@define(eq=False)
class SharedPrefix:
    """A beginning held once by the backend for ``references`` charges."""

    tokens: int
    references: int = 0


def _by_tokens(program: Program) -> tuple[int, int]:
    return (program.own_tokens, program.sequence)


def _indexes() -> dict[Standing, SortedKeyList]:
    return {standing: SortedKeyList(key=_by_tokens) for standing in Standing}


@define(eq=False, repr=False)
class Backend:
    """One inference server as the scheduler sees it. ``models`` and ``capacity_tokens`` are None while unknown."""

    id: BackendId
    models: frozenset[str] | None = None
    capacity_tokens: int | None = None
    is_healthy: bool = True
    is_draining: bool = False
    is_removed: bool = False
    kv_usage_ratio: float | None = None
    requests_running: int | None = None
    requests_waiting: int | None = None
    placed: dict[Standing, SortedKeyList] = Factory(_indexes)
    tokens: dict[Standing, int] = Factory(lambda: dict.fromkeys(Standing, 0))
    acting: dict[ProgramId, Program] = field(factory=dict)
    guest_tokens: int = 0
    """Of turns whose program has its place elsewhere or none: one-off turns, turns from before a move."""
    shared: dict[PrefixKey, SharedPrefix] = field(factory=dict)
    shared_tokens: int = 0
    reserved_tokens: int = 0
    """Promised to turns that reached the hold limit."""
    forwarded: dict[TurnId, Turn] = field(factory=dict)

    @property
    def is_available(self) -> bool:
        """Whether it takes new turns."""
        return self.is_healthy and not self.is_draining and not self.is_removed

    @property
    def accounted_tokens(self) -> int:
        """All that its turns and placed programs need resident, shared prefixes counted once."""
        tokens = self.tokens
        placed_tokens = tokens[Standing.REASONING] + tokens[Standing.ACTING] + tokens[Standing.YIELDING]
        return placed_tokens + self.guest_tokens + self.shared_tokens

    @property
    def free_tokens(self) -> int | None:
        """Capacity less accounted and reserved tokens; negative when over; None while capacity is unknown."""
        if self.capacity_tokens is None:
            return None
        return self.capacity_tokens - self.accounted_tokens - self.reserved_tokens

    @property
    def reasoning_tokens(self) -> int:
        return self.tokens[Standing.REASONING]

    @property
    def acting_tokens(self) -> int:
        return self.tokens[Standing.ACTING]

    @property
    def yielding_tokens(self) -> int:
        return self.tokens[Standing.YIELDING]

    @property
    def program_count(self) -> int:
        """Programs that have their place here."""
        return sum(len(index) for index in self.placed.values())

    @property
    def turn_count(self) -> int:
        """Turns that run here."""
        return len(self.forwarded)

    def count(self, standing: Standing) -> int:
        """Placed programs of that standing."""
        return len(self.placed[standing])

    def smallest_first(self, standing: Standing) -> Iterator[Program]:
        """Placed programs of that standing by own tokens, ascending."""
        return iter(self.placed[standing])

    def longest_idle_first(self) -> Iterator[Program]:
        """Placed programs without a running turn, the one that acts for longest first."""
        return iter(self.acting.values())

    def serves(self, model: str | None) -> bool:
        """Whether it can be asked for the model; an unnamed model and unknown models always can."""
        return model is None or self.models is None or model in self.models

    def insert(self, program: Program) -> None:
        """Count a program that is placed here. With ``discard``, the only change to these totals."""
        standing = program.standing
        self.placed[standing].add(program)
        self.tokens[standing] += program.own_tokens
        if standing is Standing.ACTING:
            self.acting[program.id] = program

    def discard(self, program: Program) -> None:
        """Take a program out of the totals, before anything that they depend on changes."""
        standing = program.standing
        self.placed[standing].remove(program)
        self.tokens[standing] -= program.own_tokens
        if standing is Standing.ACTING:
            del self.acting[program.id]

    def take_prefix(self, key: PrefixKey, tokens: int) -> None:
        """Count one more charge on a shared prefix; the first one brings its tokens."""
        prefix = self.shared.get(key)
        if prefix is None:
            prefix = self.shared[key] = SharedPrefix(tokens)
            self.shared_tokens += tokens
        prefix.references += 1

    def drop_prefix(self, key: PrefixKey) -> None:
        """Count one charge less; the last one takes the tokens away."""
        prefix = self.shared[key]
        prefix.references -= 1
        if prefix.references == 0:
            del self.shared[key]
            self.shared_tokens -= prefix.tokens

    def __repr__(self) -> str:
        return f"<Backend {self.id}>"
