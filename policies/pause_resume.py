"""``pause-resume``: ThunderAgent's scheduling (arXiv 2602.13692, section 4), reacting to events.

As many programs are admitted as the KV cache holds, the rest wait. When the admitted ones outgrow the cache, some
are paused at a turn boundary; when there is room again, waiting ones are resumed. ``preset=paper`` is the published
algorithm: everything on a 5 s tick, smallest programs first, a resumed program on any backend.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

from attrs import define, field, frozen

from policies.options import read_options
from thunderagent.policy import (
    Admit,
    AdmitTurn,
    BackendId,
    BackendView,
    ClusterView,
    Decision,
    OptionError,
    Pause,
    Policy,
    ProgramId,
    ProgramView,
    Standing,
    Status,
    Trigger,
    TurnView,
    WaiterView,
    Yield,
)

__all__ = ["PauseResume", "Settings"]


@frozen
class Settings:
    """Options of the policy; tokens and seconds."""

    tick_seconds: float = 5.0
    """How often to look without an event: a safety net, or with ``react=false`` the only time."""
    react: bool = True
    """Pause and resume on events; false: on ticks only (published)."""
    order: str = "oldest"
    """``oldest``: who has asked for longest is resumed first. ``smallest``: the published scores (eq. 10)."""
    resume_on: str = "origin"
    """``origin``: the last backend where it fits, else the roomiest. ``roomiest``: any (published)."""
    high_watermark: float = 1.0
    """lambda_max: pause above this share of the capacity."""
    growth_reserve: float = 0.05
    """Share of the capacity kept free when admitting, for the growth of those already in."""
    buffer_tokens: int = 100
    """Decode headroom per admitted program."""
    acting_weight: float = 1.0
    """How much the tokens of an acting program count."""
    half_life_seconds: float = 0.0
    """Acting tokens count 2^(-t / half-life) after t seconds in a tool when resuming; 0: no decay."""
    idle_lease_seconds: float = 30.0
    """Programs idle for longer may be paused for a waiter that fits nowhere, longest idle first; 0: never."""
    pause_decay: bool = False
    """Decay when pausing as well (eq. 7)."""


PRESETS: Mapping[str, Settings] = {
    "default": Settings(),
    "paper": Settings(
        react=False, order="smallest", resume_on="roomiest", growth_reserve=0.0, idle_lease_seconds=0.0
    ),
}


@define(eq=False)
class PauseResume(Policy):
    """Admits as many programs as the KV cache holds, pauses and resumes at turn boundaries.

    The module's docstring says how; the options are in ``Settings``.
    """

    name: ClassVar[str] = "pause-resume"
    settings: Settings = field(factory=Settings)
    tick_seconds: float | None = field(init=False)
    buffer_tokens: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.tick_seconds = self.settings.tick_seconds
        self.buffer_tokens = self.settings.buffer_tokens

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> PauseResume:
        """``preset`` (default, paper) first, then single options on top of it."""
        rest = dict(options)
        preset = rest.pop("preset", "default")
        if preset not in PRESETS:
            names = ", ".join(PRESETS)
            raise OptionError(f"policy {cls.name!r}: option preset must be one of {names}, got {preset!r}")
        settings = read_options(cls.name, PRESETS[preset], rest, also=("preset",))
        for option, value, choices in (
            ("order", settings.order, ("oldest", "smallest")),
            ("resume_on", settings.resume_on, ("origin", "roomiest")),
        ):
            if value not in choices:
                wanted = " or ".join(choices)
                raise OptionError(f"policy {cls.name!r}: option {option} must be {wanted}, got {value!r}")
        if settings.tick_seconds <= 0:
            raise OptionError(f"policy {cls.name!r}: option tick_seconds must be above 0")
        return cls(settings)

    def admit(self, turn: TurnView, cluster: ClusterView) -> BackendId | None:
        """A program's place; a newcomer's only if nobody waits and it fits. O(backends).

        A paused program's turn goes back to where its prefix lies, or waits for the tick (published).
        """
        program, settings = turn.program, self.settings
        if turn.place is not None:
            return turn.place.id
        is_paused = program is not None and program.status is Status.PAUSED
        is_late = bool(cluster.line_of(turn)) and not turn.waits_alone
        if is_late or (is_paused and not settings.react):
            return None
        rooms = _Rooms(self.settings, cluster)
        fitting = rooms.fitting(turn)
        if not fitting:
            return None
        if program is not None and settings.resume_on == "origin":
            origin = next((entry for entry in fitting if entry.id == program.origin), None)
            if origin is not None:
                return origin.id
        return min(fitting, key=lambda backend: (backend.accounted_tokens, backend.turn_count)).id

    def rebalance(self, cluster: ClusterView, trigger: Trigger) -> Sequence[Decision]:
        """Pause where the cache is outgrown, resume where there is room."""
        if not self.settings.react and trigger is not Trigger.TICK:
            return ()
        rooms = _Rooms(self.settings, cluster)
        if self.settings.order == "smallest":
            return (*self._resume_smallest(cluster, rooms), *self._pause(cluster, rooms))
        return (*self._pause(cluster, rooms), *self._resume_oldest(cluster, rooms))

    def _pause(self, cluster: ClusterView, rooms: _Rooms) -> list[Decision]:
        """Acting programs at once, then reasoning ones at their boundary; smallest first (eq. 11)."""
        decisions: list[Decision] = []
        for backend in cluster.backends:
            excess_tokens = rooms.excess(backend)
            if excess_tokens <= 0:
                continue
            left = backend.program_count - backend.count(Standing.YIELDING)
            for standing, decide in ((Standing.ACTING, Pause), (Standing.REASONING, Yield)):
                for program in backend.smallest_first(standing):
                    if excess_tokens <= 0 or left <= 1:
                        break
                    decisions.append(decide(program.id))
                    rooms.leave(backend, program, at_once=standing is Standing.ACTING)
                    weight_tokens = rooms.weight(program, standing, decayed=self.settings.pause_decay)
                    excess_tokens -= weight_tokens + self.settings.buffer_tokens
                    left -= 1
        return decisions

    def _resume_oldest(self, cluster: ClusterView, rooms: _Rooms) -> list[Decision]:
        """Each line in the order they asked, up to the first who fits nowhere."""
        decisions: list[Decision] = []
        for line in cluster.waiting_lines():
            for waiter in line:
                if not _asks_for_a_place(waiter):
                    continue
                decision = self._place(waiter, rooms)
                if decision is None:
                    decisions += self._reclaim(waiter, rooms)
                    decision = self._place(waiter, rooms)
                if decision is None:
                    break
                decisions.append(decision)
        return decisions

    def _reclaim(self, waiter: WaiterView, rooms: _Rooms) -> list[Decision]:
        """Pause programs whose idle lease is over, on the first backend where that makes room for the waiter.

        Clients that never release would otherwise hold everybody until their programs expire.
        """
        if self.settings.idle_lease_seconds <= 0:
            return []
        for backend in sorted(waiter.turn.eligible_backends, key=rooms.room, reverse=True):
            victims = rooms.reclaimable(backend, rooms.added(waiter.turn, backend))
            if victims:
                for program in victims:
                    rooms.leave(backend, program, at_once=True)
                return [Pause(program.id) for program in victims]
        return []

    def _place(self, waiter: WaiterView, rooms: _Rooms) -> Decision | None:
        turn, program = waiter.turn, waiter.program
        fitting = rooms.fitting(turn)
        if not fitting:
            return None
        chosen = max(fitting, key=rooms.room)
        if program is not None and self.settings.resume_on == "origin":
            chosen = next((entry for entry in fitting if entry.id == program.origin), chosen)
        rooms.take(chosen, rooms.added(turn, chosen))
        return AdmitTurn(turn.id, chosen.id) if program is None else Admit(program.id, chosen.id)

    def _resume_smallest(self, cluster: ClusterView, rooms: _Rooms) -> list[Decision]:
        """The published resume: pick by score what fits all rooms together, place the largest first."""
        candidates = _candidates(cluster)
        total_tokens = sum(max(0.0, rooms.room(backend)) for backend in cluster.backends)
        picked: list[_Candidate] = []
        for candidate in candidates:
            cost_tokens = candidate.need_tokens + self.settings.buffer_tokens
            if cost_tokens <= total_tokens or (not picked and any(map(rooms.is_empty, cluster.backends))):
                total_tokens -= cost_tokens
                picked.append(candidate)
        decisions: list[Decision] = []
        for candidate in sorted(picked, key=lambda entry: -entry.need_tokens):
            backends = candidate.backends or cluster.backends
            chosen = max(backends, key=rooms.room, default=None)
            if chosen is not None and rooms.fits(chosen, candidate.need_tokens):
                rooms.take(chosen, candidate.need_tokens)
                decisions.append(candidate.decide(chosen.id))
        return decisions


@frozen
class _Candidate:
    """Somebody to resume: a waiter, or a paused program whose agent is in a tool."""

    need_tokens: int
    waiter: WaiterView | None
    program: ProgramView | None

    @property
    def backends(self) -> Sequence[BackendView]:
        return () if self.waiter is None else self.waiter.turn.eligible_backends

    def decide(self, backend: BackendId) -> Decision:
        if self.program is not None:
            return Admit(self.program.id, backend)
        assert self.waiter is not None
        return AdmitTurn(self.waiter.turn.id, backend)


def _asks_for_a_place(waiter: WaiterView) -> bool:
    """Not so while the scheduler makes room for it, no backend is there for it, or its program is yielding."""
    has_place = waiter.program is not None and waiter.program.place is not None
    return not waiter.is_urgent and not has_place and bool(waiter.turn.eligible_backends)


def _candidates(cluster: ClusterView) -> list[_Candidate]:
    """In the published order: waiting with more than one step, new ones, acting ones; each by tokens ascending."""
    waiting = [entry for entry in cluster.waiting_smallest_first() if _asks_for_a_place(entry)]

    def is_known(waiter: WaiterView) -> bool:
        return waiter.program is not None and waiter.program.turns_finished > 0

    ordered = [*filter(is_known, waiting), *(waiter for waiter in waiting if not is_known(waiter))]
    acting = sorted((program for program in cluster.paused if program.is_idle), key=lambda entry: entry.need_tokens)
    return [
        *(_Candidate(waiter.need_tokens, waiter, waiter.program) for waiter in ordered),
        *(_Candidate(program.need_tokens, None, program) for program in acting),
    ]


@define(eq=False)
class _Rooms:
    """Room per backend by the policy's own count, and what this batch of decisions changes about it."""

    settings: Settings
    cluster: ClusterView
    _changes: dict[BackendId, float] = field(factory=dict)
    _leaving: set[ProgramId] = field(factory=set)
    _left: Counter[BackendId] = field(factory=Counter)
    _taken: set[BackendId] = field(factory=set)
    _acting_tokens: dict[BackendId, float] = field(factory=dict)

    def added(self, turn: TurnView, backend: BackendView) -> int:
        return self.cluster.added_tokens(turn, backend)

    def used(self, backend: BackendView, *, decayed: bool) -> float:
        """Reasoning + weight x acting + guests + shared + headroom per program, yielding ones included."""
        settings = self.settings
        acting_tokens = settings.acting_weight * backend.acting_tokens
        if decayed and settings.half_life_seconds > 0:
            acting_tokens = self._decayed_tokens(backend)
        fixed_tokens = backend.accounted_tokens - backend.acting_tokens
        return fixed_tokens + acting_tokens + settings.buffer_tokens * backend.program_count

    def _decayed_tokens(self, backend: BackendView) -> float:
        """Once per batch and backend: decisions are carried out after the batch. O(acting programs)."""
        if backend.id not in self._acting_tokens:
            acting = backend.longest_idle_first()
            self._acting_tokens[backend.id] = sum(self.weight(p, Standing.ACTING, decayed=True) for p in acting)
        return self._acting_tokens[backend.id]

    def weight(self, program: ProgramView, standing: Standing, *, decayed: bool) -> float:
        """What the program's own tokens count on its backend."""
        settings = self.settings
        if standing is not Standing.ACTING:
            return program.own_tokens
        tokens = program.own_tokens * settings.acting_weight
        if decayed and settings.half_life_seconds > 0:
            tokens *= 2.0 ** -((self.cluster.now - program.idle_since) / settings.half_life_seconds)
        return tokens

    def room(self, backend: BackendView) -> float:
        """Tokens that may still be admitted; infinite while the capacity is unknown."""
        if backend.capacity_tokens is None:
            return float("inf")
        limit_tokens = self.settings.high_watermark * backend.capacity_tokens
        used_tokens = self.used(backend, decayed=True) + self._changes.get(backend.id, 0.0)
        return limit_tokens - used_tokens - self._reserved_tokens(backend)

    @staticmethod
    def _reserved_tokens(backend: BackendView) -> int:
        """Promised to turns that reached the hold limit."""
        if backend.capacity_tokens is None or backend.free_tokens is None:
            return 0
        return backend.capacity_tokens - backend.accounted_tokens - backend.free_tokens

    def fitting(self, turn: TurnView) -> list[BackendView]:
        """Where the turn could run and its program fits."""
        return [
            backend
            for backend in turn.eligible_backends
            if backend.capacity_tokens is None or turn.prompt_tokens <= backend.capacity_tokens
            if self.fits(backend, self.added(turn, backend))
        ]

    def fits(self, backend: BackendView, tokens: int) -> bool:
        """Whether a newcomer fits, with headroom and reserve; an empty backend takes anybody."""
        return backend.capacity_tokens is None or self.is_empty(backend) or self._shortfall(backend, tokens) <= 0

    def is_empty(self, backend: BackendView) -> bool:
        """Whether nothing runs or has its place there once this batch is carried out."""
        is_unused = backend.turn_count == 0 and backend.program_count == self._left[backend.id]
        return is_unused and backend.id not in self._taken and self._reserved_tokens(backend) == 0

    def _shortfall(self, backend: BackendView, tokens: int) -> float:
        reserve_tokens = self.settings.growth_reserve * (backend.capacity_tokens or 0)
        return tokens + self.settings.buffer_tokens + reserve_tokens - self.room(backend)

    def reclaimable(self, backend: BackendView, tokens: int) -> list[ProgramView]:
        """Idle programs past their lease that together make room for so many tokens, or leave the backend empty for
        one that would not fit beside others; empty if they do neither."""
        missing_tokens, victims = self._shortfall(backend, tokens), list[ProgramView]()
        for program in backend.longest_idle_first():
            if self.cluster.now - program.idle_since < self.settings.idle_lease_seconds or missing_tokens <= 0:
                break
            if program.is_idle and program.id not in self._leaving:
                victims.append(program)
                missing_tokens -= self.weight(program, Standing.ACTING, decayed=True) + self.settings.buffer_tokens
        leaves_it_empty = backend.turn_count == 0 and backend.program_count == self._left[backend.id] + len(victims)
        return victims if missing_tokens <= 0 or leaves_it_empty else []

    def excess(self, backend: BackendView) -> float:
        """Tokens over the high watermark once those that yield have left."""
        if backend.capacity_tokens is None:
            return 0.0
        yielding = backend.yielding_tokens + self.settings.buffer_tokens * backend.count(Standing.YIELDING)
        used_tokens = self.used(backend, decayed=self.settings.pause_decay) + self._changes.get(backend.id, 0.0)
        return used_tokens - yielding - self.settings.high_watermark * backend.capacity_tokens

    def take(self, backend: BackendView, tokens: int) -> None:
        """Count an admission of this batch."""
        self._taken.add(backend.id)
        change = self._changes.get(backend.id, 0.0)
        self._changes[backend.id] = change + tokens + self.settings.buffer_tokens

    def leave(self, backend: BackendView, program: ProgramView, *, at_once: bool) -> None:
        """Count a pause of this batch; a yielding program frees its tokens only when its turn ends."""
        self._leaving.add(program.id)
        if at_once:
            self._left[backend.id] += 1
            change = self._changes.get(backend.id, 0.0)
            weight_tokens = self.weight(program, Standing.ACTING, decayed=True)
            freed_tokens = weight_tokens + self.settings.buffer_tokens
            self._changes[backend.id] = change - freed_tokens
