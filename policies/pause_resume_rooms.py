"""How much room each backend has by the count of ``pause-resume``, and the order of backends by it."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence

from attrs import define, field

from policies.pause_resume_settings import Settings
from thunderagent.policy import BackendId, BackendView, ClusterView, DemandView, ProgramView, Standing

__all__ = ["Rooms"]


_UNKNOWN_CAPACITY = 2.0**50
"""Tokens: more than any cache holds, and small enough for a float to count single ones beside it."""


@define(eq=False)
class Rooms:
    """Room per backend, kept from call to call: only backends whose accounts changed are counted again.

    What a batch of decisions takes and frees is added at once, and replaced by the true count at the next
    ``refresh``.
    """

    settings: Settings
    _room: dict[BackendId, float] = field(factory=dict)
    _order: list[tuple[float, int, BackendId]] = field(factory=list)
    """(-room, position among the backends, backend): the roomiest first."""
    _moved: dict[BackendId, float | None] = field(factory=dict)
    """Backends whose room is another than in that order, with the one there: few events ask for the order."""
    _position: dict[BackendId, int] = field(factory=dict)
    _guessed: dict[BackendId, int] = field(factory=dict)
    """Backends with decisions of the last batch on them; programs that those take off it, less those put on it."""
    _taken: dict[BackendId, float] = field(factory=dict)
    """Tokens that decisions of the last batch put there."""
    _guests: dict[BackendId, float] = field(factory=dict)
    """Those of guests among them."""
    largest_tokens: float = math.inf
    """The largest capacity of all backends when they were last counted; infinite where one is unknown, and before."""
    _empty: dict[BackendId, None] = field(factory=dict)
    """Backends without programs and turns: they take anybody, with no regard to headroom and reserve."""
    _counts_all: bool = field(init=False)
    """Whether idle programs count in full and shared prefixes once, as in the backend's own account."""

    def __attrs_post_init__(self) -> None:
        settings = self.settings
        self._counts_all = settings.acting_weight == 1.0 and settings.shared_correction == "prefixes"

    # The count

    def used(self, backend: BackendView, now: float, *, decayed: bool) -> float:
        """Reasoning + weight x acting + guests + shared + headroom per program, yielding ones included."""
        settings = self.settings
        used_tokens: float = backend.accounted_tokens + settings.buffer_tokens * backend.program_count
        if self._counts_all and not decayed:
            return used_tokens
        if decayed:
            decayed_tokens = backend.decayed_acting_tokens(settings.half_life_seconds, now)
            used_tokens += settings.acting_weight * decayed_tokens - backend.acting_tokens
        elif settings.acting_weight != 1.0:
            used_tokens += (settings.acting_weight - 1.0) * backend.acting_tokens
        if settings.shared_correction != "prefixes":
            used_tokens += self._shared_correction(backend)
        return used_tokens

    def _shared_correction(self, backend: BackendView) -> float:
        """``usage``: less what running turns are accounted for beyond what the engine's gauge says of them, compared
        with the account of the time of its reading. The gauge counts requests that the engine runs: while some wait
        there, what it lacks is theirs and not shared."""
        if self.settings.shared_correction == "none":
            return backend.saved_tokens
        if backend.kv_usage_ratio is None or backend.capacity_tokens is None or backend.requests_waiting:
            return 0.0
        in_use_tokens = backend.kv_usage_ratio * backend.capacity_tokens
        return -max(0.0, min(backend.observed_running_tokens, backend.running_tokens) - in_use_tokens)

    def weight(self, program: ProgramView, standing: Standing, now: float, *, decayed: bool) -> float:
        """What the backend's count falls by when the program leaves, its headroom left out."""
        settings, own_tokens = self.settings, program.own_tokens
        tokens = float(own_tokens)
        if standing is Standing.ACTING:
            tokens *= settings.acting_weight
            if decayed:
                tokens *= 2.0 ** -((now - program.acting_since) / settings.half_life_seconds)
        if settings.shared_correction == "none":
            tokens += max(0, program.need_tokens - own_tokens)
        return tokens

    def added_tokens(self, demand: DemandView, backend: BackendView) -> int:
        """What the backend's count grows by when this comes, its headroom left out."""
        if self.settings.shared_correction == "none" and not demand.charged:
            return demand.tokens
        return demand.added_tokens(backend)

    def excess(self, backend: BackendView, now: float) -> float:
        """Tokens over the high watermark once those that yield have left. Guests, which are soon gone, do not count
        as far as their part reaches and idle programs leave room for them. Below the watermark all count: the sign
        says enough."""
        return self._excess(backend, self.used(backend, now, decayed=self.settings.pause_decay))

    def _excess(self, backend: BackendView, used_tokens: float) -> float:
        settings, capacity_tokens = self.settings, backend.capacity_tokens
        if capacity_tokens is None:
            return 0.0
        limit_tokens = settings.high_watermark * capacity_tokens
        if used_tokens <= limit_tokens:
            return used_tokens - limit_tokens
        leaving_tokens = backend.yielding_tokens
        if leaving_tokens:
            leaving_tokens += settings.buffer_tokens * backend.count(Standing.YIELDING)
        if settings.guest_ratio:
            most_tokens = int(settings.guest_ratio * capacity_tokens)
            leaving_tokens += min(backend.guest_tokens, most_tokens, backend.acting_tokens)
        return used_tokens - leaving_tokens - limit_tokens

    def _room_of(self, backend: BackendView, used_tokens: float) -> float:
        settings, capacity_tokens = self.settings, backend.capacity_tokens
        used_tokens += backend.reserved_tokens
        if capacity_tokens is None:
            return _UNKNOWN_CAPACITY - used_tokens
        limit_tokens = (settings.high_watermark - settings.growth_reserve) * capacity_tokens
        room_tokens = limit_tokens - used_tokens - settings.buffer_tokens
        open_tokens = settings.low_watermark * capacity_tokens - used_tokens
        return room_tokens if open_tokens >= 0 else min(open_tokens, room_tokens)

    def _count(self, backend: BackendView, now: float) -> tuple[float, float]:
        """Its room, and its excess."""
        settings = self.settings
        used_tokens = self.used(backend, now, decayed=settings.resume_decay)
        room_tokens = self._room_of(backend, used_tokens)
        if settings.pause_decay is not settings.resume_decay:
            used_tokens = self.used(backend, now, decayed=settings.pause_decay)
        return room_tokens, self._excess(backend, used_tokens)

    # The order

    def refresh(self, cluster: ClusterView, changed: Sequence[BackendView]) -> list[BackendView]:
        """Count the backends again whose accounts changed; returns those of them that have outgrown their cache."""
        counted: Iterable[BackendView] = changed
        if self._guessed:
            guessed, self._guessed = self._guessed, {}
            self._forget_batch()
            counted = {backend.id: backend for backend in (*self.backends(cluster, guessed), *changed)}.values()
        now = cluster.now
        outgrown: list[BackendView] = []  # list[BackendView]() would take as long as all else here
        for backend in counted:
            room_tokens, excess_tokens = self._count(backend, now)
            self._set(backend, room_tokens)
            if excess_tokens > 0:
                outgrown.append(backend)
        return outgrown

    def rebuild(self, cluster: ClusterView) -> list[BackendView]:
        """Count all backends again; returns those that have outgrown their cache. O(backends)."""
        now, backends, self._guessed = cluster.now, cluster.backends, {}
        self._forget_batch()
        capacities = [backend.capacity_tokens or math.inf for backend in backends]
        self.largest_tokens = max(capacities, default=math.inf)
        counts = [self._count(backend, now) for backend in backends]
        self._empty = {backend.id: None for backend in backends if self._is_empty(backend)}
        self._room = {backend.id: room for backend, (room, _) in zip(backends, counts, strict=True)}
        self._moved.clear()
        self._position = {backend: position for position, backend in enumerate(self._room)}
        self._order = sorted((-room, self._position[backend], backend) for backend, room in self._room.items())
        return [backend for backend, (_, excess) in zip(backends, counts, strict=True) if excess > 0]

    def of(self, backend: BackendView) -> float:
        """Tokens that a newcomer may bring there, its headroom and the reserve left out. Negative above a watermark;
        more than any cache has while the capacity is unknown, and the most where the least is accounted."""
        return self._room.get(backend.id, 0.0)

    def roomiest_first(self, cluster: ClusterView, at_least_tokens: float = -math.inf) -> Iterator[BackendView]:
        """Backends with that much room or more, then the empty ones; do not change the rooms while iterating."""
        self._put_in_order()
        for negative_room, _, backend_id in self._order:
            if -negative_room < at_least_tokens:
                break
            backend = cluster.backend(backend_id)
            if backend is not None:
                yield backend
        yield from self.empty(cluster)

    def any_has(self, backends: Iterable[BackendView], tokens: float) -> bool:
        """Whether one of them has that much room, or is empty."""
        room, empty = self._room, self._empty
        for backend in backends:  # a loop: most events ask, for one backend
            name = backend.id
            if room.get(name, 0.0) >= tokens or name in empty:
                return True
        return False

    def empty(self, cluster: ClusterView) -> Iterator[BackendView]:
        """Backends without programs and turns."""
        return self.backends(cluster, self._empty)

    def total(self, backends: Iterable[BackendView]) -> float:
        """Of these, with the headroom of one newcomer each; those that are over the limit left out. O(those)."""
        return sum(max(0.0, self.of(backend) + self.settings.buffer_tokens) for backend in backends)

    def fits(self, backend: BackendView, tokens: int) -> bool:
        """Whether a newcomer fits; an empty backend takes anybody."""
        return tokens <= self._room.get(backend.id, 0.0) or backend.id in self._empty

    def fits_guest(self, backend: BackendView, tokens: int) -> bool:
        """Whether a turn without a place fits beside what runs, at the expense of what idle programs left in the
        cache, and within the guests' part; not where room is being made for somebody at the hold limit."""
        capacity_tokens, spare_tokens, name = backend.capacity_tokens, backend.spare_tokens, backend.id
        if capacity_tokens is None or spare_tokens is None:
            return True
        if backend.reserved_tokens:
            return False
        guest_tokens = backend.guest_tokens + self._guests.get(name, 0.0) + tokens
        running_tokens = backend.shared_tokens + self._taken.get(name, 0.0) + tokens
        return guest_tokens <= self.settings.guest_ratio * capacity_tokens and running_tokens <= spare_tokens

    def take(self, backend: BackendView, tokens: float, *, is_guest: bool = False) -> None:
        """Count an admission of this batch."""
        self._guess(backend, -tokens - self.settings.buffer_tokens, -1)
        self._taken[backend.id] = self._taken.get(backend.id, 0.0) + tokens
        if is_guest:
            self._guests[backend.id] = self._guests.get(backend.id, 0.0) + tokens

    def leave(self, backend: BackendView, program: ProgramView, now: float) -> None:
        """Count a pause of this batch, of an acting program."""
        tokens = self.weight(program, Standing.ACTING, now, decayed=self.settings.resume_decay)
        self._guess(backend, tokens + self.settings.buffer_tokens, 1)

    def left(self, backend: BackendView) -> int:
        """Programs placed there once this batch is carried out."""
        return backend.program_count - self._guessed.get(backend.id, 0)

    def _forget_batch(self) -> None:
        self._taken.clear()
        self._guests.clear()

    def _guess(self, backend: BackendView, change_tokens: float, leaving: int) -> None:
        self._guessed[backend.id] = self._guessed.get(backend.id, 0) + leaving
        self._set(backend, self.of(backend) + change_tokens)

    def _set(self, backend: BackendView, room: float) -> None:
        name = backend.id
        if self._is_empty(backend):
            self._empty[name] = None
        elif self._empty:
            self._empty.pop(name, None)
        former = self._room.get(name)
        if former == room:
            return
        self._room[name] = room
        self._moved.setdefault(name, former)

    def _put_in_order(self) -> None:
        for name, former in self._moved.items():
            position = self._position.setdefault(name, len(self._position))
            if former is not None:
                del self._order[bisect_left(self._order, (-former, position, name))]
            insort(self._order, (-self._room[name], position, name))
        self._moved.clear()

    def _is_empty(self, backend: BackendView) -> bool:
        return backend.turn_count == 0 and self.left(backend) == 0 and backend.reserved_tokens == 0

    @staticmethod
    def backends(cluster: ClusterView, ids: Iterable[BackendId]) -> Iterator[BackendView]:
        """Those of them that take turns."""
        return (found for backend in ids if (found := cluster.backend(backend)) is not None)
