"""A program, its conversations, and the literal table of its status.

A program is ``new`` until its first turn finds a place. While it is ``admitted`` its turns go straight to the
backend that is its place, and the tokens it keeps there count. A program that shall leave is ``yielding``: what
runs finishes, what arrives is held, and at the turn boundary it becomes ``paused``. A paused program has no
place and costs nothing; its turns wait until it is admitted again. ``released`` is the end: the client said so,
or the program was idle for too long. Losing a backend pauses as well: the next turn is placed afresh.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING

from attrs import define, field

from thunderagent.core.commands import PauseReason
from thunderagent.core.estimate import History
from thunderagent.core.events import CachedPrefix
from thunderagent.core.ids import BackendId, BranchId, PrefixKey, ProgramId, TurnId
from thunderagent.core.sizes import NO_SIZES, with_size, without_size
from thunderagent.core.tool_times import ToolTimes
from thunderagent.core.turn import NO_TURNS, Turn

if TYPE_CHECKING:
    from thunderagent.core.backend import Backend, Charge, Group

__all__ = ["TRANSITIONS", "Branch", "IllegalTransition", "Program", "Standing", "Status"]


class Status(Enum):
    """Where a program stands with the scheduler."""

    NEW = "new"
    ADMITTED = "admitted"
    YIELDING = "yielding"
    PAUSED = "paused"
    RELEASED = "released"


TRANSITIONS: frozenset[tuple[Status, Status]] = frozenset(
    {
        (Status.NEW, Status.ADMITTED),
        (Status.NEW, Status.RELEASED),
        (Status.ADMITTED, Status.YIELDING),
        (Status.ADMITTED, Status.PAUSED),
        (Status.ADMITTED, Status.RELEASED),
        (Status.YIELDING, Status.ADMITTED),
        (Status.YIELDING, Status.PAUSED),
        (Status.YIELDING, Status.RELEASED),
        (Status.PAUSED, Status.ADMITTED),
        (Status.PAUSED, Status.RELEASED),
    }
)


class IllegalTransition(Exception):
    """A status change that is not in the table; nothing was changed."""

    def __init__(self, program: ProgramId, old: Status, new: Status) -> None:
        super().__init__(program, old, new)
        self.program, self.old, self.new = program, old, new

    def __str__(self) -> str:
        return f"program {self.program!r} cannot go from {self.old.value} to {self.new.value}"


class Standing(Enum):
    """How a placed program counts on its backend: by what its turns do and whether it is to leave."""

    REASONING = "reasoning"
    ACTING = "acting"
    YIELDING = "yielding"


@define(eq=False, repr=False)
class Branch:
    """One conversation: what its last finished turn left, and its turns that run or wait."""

    id: BranchId
    program: Program | None
    history: History = field(factory=History)
    kept_tokens: int = 0
    model: str | None = None
    """Of the turn that left them."""
    prefixes: tuple[PrefixKey, ...] = ()
    prefix_tokens: int = 0
    """Tokens of all of ``prefixes``."""
    forwarded: dict[TurnId, Turn] = NO_TURNS
    charges: list[Charge] = field(factory=list)
    """At most one per backend; most conversations have a single one, for which a list takes a third of a dict."""
    used_at: float = 0.0
    ended_at: float | None = None
    """When its last turn ended, until the next one arrives: the time of its tools."""
    counted_seconds: float = 0.0
    """Of the time since then, what the return times have been told of."""
    held: list[int] = NO_SIZES
    """What each of its held turns needs that go with its program."""
    running: list[int] = NO_SIZES
    """The same of its running turns."""
    need_tokens: int = 0
    """Needed resident for its program to go on: its history, or what a turn of it needs where that is more."""
    open_turns: int = 0
    """Its turns that wait or run, whether they go with its program or not."""

    def charge_on(self, backend: Backend) -> Charge | None:
        """What it takes on a backend. That is not looked for by its id: one that was removed and added again holds
        nothing of the former's."""
        for charge in self.charges:
            if charge.backend is backend:
                return charge
        return None

    def hold(self, turn: Turn) -> None:
        """Count a held turn that goes with its program."""
        self.held = with_size(self.held, turn.need_tokens)
        self.settle_need()

    def unhold(self, turn: Turn) -> None:
        """No longer count it."""
        self.held = without_size(self.held, turn.need_tokens)
        self.settle_need()

    def settle_need(self) -> None:
        """Bring its need up to date, and its program's, after one of its sizes changed."""
        need_tokens, held, running = self.kept_tokens, self.held, self.running
        if held and held[-1] > need_tokens:
            need_tokens = held[-1]
        if running and running[-1] > need_tokens:
            need_tokens = running[-1]
        if need_tokens != self.need_tokens:
            if self.program is not None:
                self.program.need_tokens += need_tokens - self.need_tokens
            self.need_tokens = need_tokens

    def __repr__(self) -> str:
        return f"<Branch {self.id!r} of {None if self.program is None else self.program.id!r}>"


@define(eq=False, repr=False)
class Program:
    """One agent run. Times are readings of the scheduler's clock, in seconds."""

    id: ProgramId
    sequence: int
    arrived_at: float = 0.0
    """When its first turn came."""
    status: Status = Status.NEW
    model: str | None = None
    """Of its own conversation: the one that it began with, then the one that its last new place was given for."""
    place: Backend | None = None
    last_place: Backend | None = None
    last_life: int = 0
    """Which life of that one's cache it was."""
    branches: dict[BranchId, Branch] = field(factory=dict)
    """Those without turns in the order in which their last one ended, others among them."""
    forwarded: dict[TurnId, Turn] = NO_TURNS
    held: dict[TurnId, Turn] = NO_TURNS
    own_tokens: int = 0
    """Tokens charged at its place, but for shared prefixes."""
    group: Group | None = None
    """Where its place counts it."""
    size_entry: tuple[int, int, Program] | None = None
    """Its entry in the order of that group, or of the idle paused programs: tokens, sequence, itself."""
    waiting_since: float | None = None
    """Since when it asks for a place; kept when the client gives up and sends the turn again."""
    asked_until: float = 0.0
    """When it last ceased to hold turns; meaningful while it holds none."""
    idle_since: float = 0.0
    acting_since: float = 0.0
    """When its last running turn ended, or when it came; meaningful while none runs."""
    admitted_at: float | None = None
    yield_reason: PauseReason = PauseReason.POLICY
    """Why it yields, while it does."""
    service_seconds: float = 0.0
    """Time that its turns ran since it was last admitted."""
    turns_served: int = 0
    """Turns that ended at its place since it was last admitted."""
    turns_finished: int = 0
    context_bytes: int = 0
    total_tokens: int = 0
    """Prompt and completion tokens of the last finished turn of each of its conversations."""
    need_tokens: int = 0
    """Tokens that it needs resident to go on: each branch's history, or its turns' prompts where longer."""
    tool_times: ToolTimes | None = None
    """How long its tools took; None before it has used one."""
    cached: dict[Backend, CachedPrefix] | None = None
    """What backends' KV events say is cached of it; None where nothing is known so."""

    def become(self, status: Status) -> None:
        """Change the status.

        Raises:
            IllegalTransition: the change is not in the table.
        """
        if (self.status, status) not in TRANSITIONS:
            raise IllegalTransition(self.id, self.status, status)
        self.status = status

    def keeps(self, model: str | None) -> bool:
        """Whether what turns of a model leave is kept at its place, or is to be at its next one: not what a sub-agent
        of another model leaves that the place does not serve."""
        if self.place is not None:
            return self.place.serves(model)
        return model == self.model or model is None or self.model is None

    @property
    def standing(self) -> Standing:
        """How it counts at its place."""
        if self.status is Status.YIELDING:
            return Standing.YIELDING
        return Standing.REASONING if self.forwarded else Standing.ACTING

    @property
    def origin(self) -> BackendId | None:
        """The backend of its last place, where its prefix may still lie; None: never placed, or that one was lost."""
        backend = self.last_place
        return None if backend is None or backend.cache_life != self.last_life else backend.id

    @property
    def is_placed(self) -> bool:
        return self.place is not None

    @property
    def is_idle(self) -> bool:
        """Neither running nor held turns."""
        return not self.forwarded and not self.held

    @property
    def turn_count(self) -> int:
        """Turns of it that run."""
        return len(self.forwarded)

    @property
    def kept_tokens(self) -> int:
        """What its finished turns left, over all branches."""
        return sum(branch.kept_tokens for branch in self.branches.values())

    @property
    def prefixes(self) -> frozenset[PrefixKey]:
        """Shared beginnings of its branches."""
        return frozenset(key for branch in self.branches.values() for key in branch.prefixes)

    def observe_cached(self, backend: Backend, cached: CachedPrefix) -> None:
        """Note what a backend has cached of it; a prefix that is not known is forgotten."""
        if cached.prefix_tokens is not None:
            self.cached = {**(self.cached or {}), backend: cached}
        else:
            self.forget_cached(backend)

    def forget_cached(self, backend: Backend) -> None:
        """It is not known any more what a backend has cached of it."""
        if self.cached is not None and self.cached.pop(backend, None) is not None and not self.cached:
            self.cached = None

    def cached_on(self, backend: Backend) -> CachedPrefix | None:
        """What a backend's KV events say is cached of it there; None: not known."""
        return None if self.cached is None else self.cached.get(backend)

    def cached_ratio(self, backend: Backend) -> float | None:
        """The share of what its conversations left on the backend that is cached there, 0 to 1; None: not known.

        Of several conversations all that is cached counts, of a single one the unbroken beginning. O(branches).
        """
        cached = self.cached_on(backend)
        if cached is None or cached.prefix_tokens is None:
            return None
        left_tokens = [branch.kept_tokens for branch in self.branches.values() if branch.history.backend is backend]
        tokens = cached.prefix_tokens if len(left_tokens) == 1 else cached.held_tokens
        return min(1.0, tokens / max(1, sum(left_tokens)))

    def held_turns(self) -> Iterator[Turn]:
        """Its turns that wait, in the order in which they were held."""
        return iter(self.held.values())

    def __repr__(self) -> str:
        return f"<Program {self.id!r} {self.status.value}>"
