"""A backend's running totals and ordered indexes: what the programs placed on it take, read in O(1)."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator

from attrs import define, field

from thunderagent.core.decay import DecayedTokens
from thunderagent.core.ids import BackendId, PrefixKey, ProgramId, TurnId
from thunderagent.core.policy import ASSUMED_REFILL_SECONDS
from thunderagent.core.program import Branch, Program, Standing
from thunderagent.core.residency import Residency
from thunderagent.core.sizes import NO_SIZES
from thunderagent.core.turn import Turn

__all__ = ["Backend", "Charge", "Group", "HeldPrefix"]


@define(eq=False, repr=False, weakref_slot=False)
class Charge:
    """What one branch takes on one backend."""

    branch: Branch
    backend: Backend
    bare_tokens: int = 0
    """Without any prefix that others might share."""
    prefixes: tuple[PrefixKey, ...] = ()
    own_tokens: int = 0
    """Bare tokens, and those of the prefixes that no other charge on the backend stands on."""
    prompts: list[int] = NO_SIZES
    """Of the branch's turns that run there."""
    output_tokens: int = 0
    """Of all of them."""


@define(eq=False, repr=False)
class HeldPrefix:
    """A beginning that the backend holds once for all its holders; shared from the second one on."""

    tokens: int
    holders: dict[Charge, None] = field(factory=dict)

    @property
    def is_shared(self) -> bool:
        return len(self.holders) > 1


@define(eq=False, repr=False)
class Group:
    """The programs of one standing on one backend: their tokens, their order by size, and by time in it.

    The order by size is a plain list: to find a place in it takes O(log n) comparisons, to make room there moves
    pointers, under 2 microseconds for 10,000 programs.
    """

    standing: Standing
    tokens: int = 0
    by_size: list[tuple[int, int, Program]] = field(factory=list)
    """(own tokens, sequence, program), each program's ``size_entry``."""
    by_time: OrderedDict[ProgramId, Program] = field(factory=OrderedDict)
    """The one that joined first is first."""
    decays: dict[float, DecayedTokens] = field(factory=dict)
    """The tokens as they count with a half-life, for each that was asked for."""

    def add(self, program: Program) -> None:
        tokens = program.own_tokens
        entry = (tokens, program.sequence, program)
        program.group, program.size_entry = self, entry
        self.tokens += tokens
        insort(self.by_size, entry)
        self.by_time[program.id] = program
        if self.decays:
            for decay in self.decays.values():
                decay.add(tokens, program.acting_since)

    def remove(self, program: Program) -> None:
        entry = program.size_entry
        assert entry is not None
        program.group = program.size_entry = None
        self.tokens -= entry[0]
        del self.by_size[bisect_left(self.by_size, entry)]
        del self.by_time[program.id]
        if self.decays:
            for decay in self.decays.values():
                decay.remove(entry[0], program.acting_since)

    def resize(self, program: Program) -> None:
        """Bring a member's size up to date; it keeps its time."""
        former, tokens = program.size_entry, program.own_tokens
        assert former is not None
        del self.by_size[bisect_left(self.by_size, former)]
        program.size_entry = entry = (tokens, program.sequence, program)
        insort(self.by_size, entry)
        self.tokens += tokens - former[0]
        for decay in self.decays.values():
            decay.remove(former[0], program.acting_since)
            decay.add(tokens, program.acting_since)


@define(eq=False, repr=False)
class Backend:
    """One inference server as the scheduler sees it. ``models`` and ``capacity_tokens`` are None while unknown."""

    id: BackendId
    models: frozenset[str] | None = None
    capacity_tokens: int | None = None
    changed: dict[Backend, None] = field(factory=dict)
    """The backends whose accounts changed, all backends together; this one enters itself."""
    is_healthy: bool = True
    is_draining: bool = False
    is_removed: bool = False
    kv_usage_ratio: float | None = None
    requests_running: int | None = None
    requests_waiting: int | None = None
    observed_running_tokens: int = 0
    """``running_tokens`` at the time of which ``kv_usage_ratio`` tells."""
    program_count: int = 0
    """Programs that have their place here."""
    reasoning: Group = field(factory=lambda: Group(Standing.REASONING))
    acting: Group = field(factory=lambda: Group(Standing.ACTING))
    yielding: Group = field(factory=lambda: Group(Standing.YIELDING))
    accounted_tokens: int = 0
    """All that its turns and placed programs need resident, shared prefixes counted once."""
    prefill_rate: float = 0.0
    """Prompt tokens per second that it was seen to compute, the most of late; 0: no streamed turn has told."""
    counted_prefill_rate: float = 0.0
    """The same by its own counters, for where no turn of it streams; 0: they have not told."""
    guest_tokens: int = 0
    """Of turns whose program has its place elsewhere or none: one-off turns, turns from before a move."""
    prefixes: dict[PrefixKey, HeldPrefix] = field(factory=dict)
    shared_tokens: int = 0
    """Of prefixes with more than one holder, counted once."""
    saved_tokens: int = 0
    """What those prefixes would take more if each holder counted them by itself."""
    reserved_tokens: int = 0
    """Promised to turns that reached the hold limit."""
    forwarded: dict[TurnId, Turn] = field(factory=dict)
    residency: Residency = field(factory=Residency)
    """How long prefixes stay in its cache, by what was seen."""
    cache_life: int = 0
    """How often its cache was lost."""
    paused_count: int = 0
    """Paused programs that had their last place here."""
    paused_tokens: int = 0
    """What they left, all of it."""

    @property
    def is_available(self) -> bool:
        """Whether it takes new turns."""
        return self.is_healthy and not self.is_draining and not self.is_removed

    @property
    def free_tokens(self) -> int | None:
        """Capacity less accounted and reserved tokens; negative when over; None while capacity is unknown."""
        if self.capacity_tokens is None:
            return None
        return self.capacity_tokens - self.accounted_tokens - self.reserved_tokens

    @property
    def spare_tokens(self) -> int | None:
        """Capacity that no running turn needs: where idle programs' prefixes may lie. None while unknown."""
        if self.capacity_tokens is None:
            return None
        return max(0, self.capacity_tokens - self.running_tokens)

    @property
    def running_tokens(self) -> int:
        """Accounted for programs and turns that run, shared prefixes left out."""
        return self.reasoning.tokens + self.yielding.tokens + self.guest_tokens

    @property
    def groups(self) -> tuple[Group, Group, Group]:
        return (self.reasoning, self.acting, self.yielding)

    @property
    def reasoning_tokens(self) -> int:
        return self.reasoning.tokens

    @property
    def acting_tokens(self) -> int:
        return self.acting.tokens

    @property
    def yielding_tokens(self) -> int:
        return self.yielding.tokens

    @property
    def turn_count(self) -> int:
        """Turns that run here."""
        return len(self.forwarded)

    def group(self, standing: Standing) -> Group:
        """Placed programs of that standing."""
        if standing is Standing.REASONING:
            return self.reasoning
        return self.acting if standing is Standing.ACTING else self.yielding

    def count(self, standing: Standing) -> int:
        """How many placed programs have that standing."""
        return len(self.group(standing).by_time)

    def smallest_first(self, standing: Standing) -> Iterator[Program]:
        """Placed programs of that standing by own tokens, ascending."""
        return (program for _, _, program in self.group(standing).by_size)

    def largest_first(self, standing: Standing) -> Iterator[Program]:
        """Placed programs of that standing by own tokens, descending."""
        return (program for _, _, program in reversed(self.group(standing).by_size))

    def longest_first(self, standing: Standing) -> Iterator[Program]:
        """Placed programs of that standing, the one that has had it here for longest first."""
        return iter(self.group(standing).by_time.values())

    def latest_first(self, standing: Standing) -> Iterator[Program]:
        """Placed programs of that standing, the one that came to it last first."""
        return reversed(self.group(standing).by_time.values())

    def longest_idle_first(self) -> Iterator[Program]:
        """Placed programs without a running turn, in the order in which they began to act here."""
        return iter(self.acting.by_time.values())

    def decayed_acting_tokens(self, half_life_seconds: float, now: float) -> float:
        """Acting tokens, each program's halved for every half-life since its last turn ended. O(1) but once."""
        decay = self.acting.decays.get(half_life_seconds)
        if decay is None:
            decay = self.acting.decays[half_life_seconds] = DecayedTokens(half_life_seconds)
            for program in self.acting.by_time.values():
                decay.add(program.own_tokens, program.acting_since)
        return decay.tokens(now)

    @property
    def refill_seconds(self) -> float | None:
        """How long it takes to fill the whole cache with prompts; None while that is unknown."""
        rate = self.prefill_rate or self.counted_prefill_rate
        return None if self.capacity_tokens is None or not rate else self.capacity_tokens / rate

    @property
    def expected_refill_seconds(self) -> float:
        """``refill_seconds``, or what is taken for it while that is unknown."""
        return self.refill_seconds or ASSUMED_REFILL_SECONDS

    def serves(self, model: str | None) -> bool:
        """Whether it can be asked for the model; an unnamed model and unknown models always can."""
        return model is None or self.models is None or model in self.models

    def lose_cache(self) -> None:
        """Nothing that anybody left here is there any more."""
        self.cache_life += 1
        self.residency.forget()
        self.paused_count = self.paused_tokens = 0

    def charge(self, change_tokens: int) -> None:
        """The one change to ``accounted_tokens``."""
        self.accounted_tokens += change_tokens
        self.changed[self] = None

    def reserve(self, change_tokens: int) -> None:
        """The one change to ``reserved_tokens``."""
        self.reserved_tokens += change_tokens
        self.changed[self] = None

    def file(self, program: Program) -> None:
        """Count a program that is placed here as its standing and own tokens say now. With ``unfile``, the only
        change to the groups."""
        former, group = program.group, self.group(program.standing)
        if former is group:
            entry = program.size_entry
            if entry is None or entry[0] != program.own_tokens:
                group.resize(program)
            return
        if former is None:
            self.program_count += 1
        else:
            former.remove(program)
        group.add(program)
        self.changed[self] = None

    def unfile(self, program: Program) -> None:
        """No longer count a program here."""
        assert program.group is not None
        program.group.remove(program)
        self.program_count -= 1
        self.changed[self] = None

    def hold_prefix(self, key: PrefixKey, tokens: int, charge: Charge) -> Charge | None:
        """Count a charge among a prefix's holders. Returns the one that held it alone until now, if any."""
        held = self.prefixes.get(key)
        if held is None:
            held = self.prefixes[key] = HeldPrefix(tokens)
        alone = next(iter(held.holders)) if len(held.holders) == 1 else None
        held.holders[charge] = None
        if len(held.holders) > 1:
            self.saved_tokens += held.tokens
        if alone is not None:
            self.shared_tokens += held.tokens
            self.charge(held.tokens)
        return alone

    def drop_prefix(self, key: PrefixKey, charge: Charge) -> Charge | None:
        """Take a charge from a prefix's holders. Returns the one that holds it alone from now on, if any."""
        held = self.prefixes[key]
        del held.holders[charge]
        if not held.holders:
            del self.prefixes[key]
            return None
        self.saved_tokens -= held.tokens
        if held.is_shared:
            return None
        self.shared_tokens -= held.tokens
        self.charge(-held.tokens)
        return next(iter(held.holders))

    def __repr__(self) -> str:
        return f"<Backend {self.id}>"
