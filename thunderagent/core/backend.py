"""A backend's running totals and ordered indexes: what the programs placed on it take, read in O(1)."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import Factory, define, field
from sortedcontainers import SortedKeyList

from thunderagent.core.ids import BackendId, PrefixKey, ProgramId, TurnId
from thunderagent.core.program import Branch, Program, Standing
from thunderagent.core.turn import Turn

__all__ = ["Backend", "Charge", "HeldPrefix"]


@define(eq=False, repr=False)
class Charge:
    """What one branch takes on one backend."""

    branch: Branch
    bare_tokens: int = 0
    """Without any prefix that others might share."""
    prefixes: tuple[PrefixKey, ...] = ()
    own_tokens: int = 0
    """Bare tokens, and those of the prefixes that no other charge on the backend stands on."""


@define(eq=False, repr=False)
class HeldPrefix:
    """A beginning that the backend holds once for all its holders; shared from the second one on."""

    tokens: int
    holders: dict[Charge, None] = field(factory=dict)

    @property
    def is_shared(self) -> bool:
        return len(self.holders) > 1


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
    prefixes: dict[PrefixKey, HeldPrefix] = field(factory=dict)
    shared_tokens: int = 0
    """Of prefixes with more than one holder, counted once."""
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
        """Placed programs without a running turn, in the order in which they began to act here."""
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

    def resize(self, program: Program, change_tokens: int) -> None:
        """Change the own tokens of a program that is placed here."""
        index = self.placed[program.standing]
        index.remove(program)
        program.own_tokens += change_tokens
        index.add(program)
        self.tokens[program.standing] += change_tokens

    def hold_prefix(self, key: PrefixKey, tokens: int, charge: Charge) -> Charge | None:
        """Count a charge among a prefix's holders. Returns the one that held it alone until now, if any."""
        held = self.prefixes.setdefault(key, HeldPrefix(tokens))
        alone = next(iter(held.holders)) if len(held.holders) == 1 else None
        held.holders[charge] = None
        if alone is not None:
            self.shared_tokens += held.tokens
        return alone

    def drop_prefix(self, key: PrefixKey, charge: Charge) -> Charge | None:
        """Take a charge from a prefix's holders. Returns the one that holds it alone from now on, if any."""
        held = self.prefixes[key]
        del held.holders[charge]
        if not held.holders:
            del self.prefixes[key]
            return None
        if held.is_shared:
            return None
        self.shared_tokens -= held.tokens
        return next(iter(held.holders))

    def __repr__(self) -> str:
        return f"<Backend {self.id}>"
