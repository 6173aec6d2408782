"""Where there is room by the count of ``least-kv``, and which idle programs make some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from attrs import field, frozen, validators

from policies.origins import origin_of
from thunderagent.policy import BackendView, ClusterView, DemandView, Pause, ProgramView, TurnView, roomiest

__all__ = ["Options", "Room"]


@frozen
class Options:
    """The options of ``least-kv``; policies/least-kv.md explains when to change which."""

    overflow: bool = False
    """Never hold: what fits nowhere goes where it overcommits least."""
    growth_reserve: float = field(default=0.05, validator=validators.lt(1))
    """Share of the capacity kept free when a program or a one-off turn gets a new place."""
    idle_lease_seconds: float = 30.0
    """Programs idle for longer are paused for a waiter that fits nowhere, longest idle first; 0: never."""


@frozen
class Room:
    """Reads the views of one call; keeps nothing."""

    options: Options

    def fits(self, turn: TurnView, demand: DemandView, backend: BackendView) -> bool:
        """Whether the turn may have its new place there: with the reserve, unless the backend is empty."""
        free_tokens, capacity_tokens = backend.free_tokens, backend.capacity_tokens
        if free_tokens is None or capacity_tokens is None:
            return True
        if free_tokens == capacity_tokens:
            return turn.prompt_tokens <= capacity_tokens
        room_tokens = free_tokens - self._reserve_tokens(backend)
        return (demand.bare_tokens <= room_tokens or bool(demand.charged)) and (
            demand.added_tokens(backend) <= room_tokens
        )

    def roomiest(self, turn: TurnView, cluster: ClusterView, backends: Sequence[BackendView]) -> BackendView | None:
        """Of these eligible backends the roomiest that takes the turn as a newcomer; None where none does.

        Turns beside their program's place go where their conversation last ran, if that takes them.
        """
        demand, place = cluster.demand(turn), turn.place
        origin = origin_of(turn, cluster) if turn.waits_alone else None
        if origin is not None and origin in backends and self.fits(turn, demand, origin):
            return origin
        fitting = [backend for backend in backends if backend is not place and self.fits(turn, demand, backend)]
        return roomiest(fitting) if fitting else None

    def least_overcommitted(self, turn: TurnView, cluster: ClusterView) -> BackendView:
        """Where the fewest tokens are lacking, for a turn that fits nowhere."""
        return max(
            turn.eligible_backends,
            key=lambda backend: (backend.free_tokens or 0) - cluster.added_tokens(turn, backend),
        )

    def make(
        self, turn: TurnView, backends: Iterable[BackendView], cluster: ClusterView
    ) -> tuple[BackendView, list[Pause]] | None:
        """The pauses that let a turn which fits nowhere in on one of the backends; None where none would.

        First of programs whose lease is over; else, where no turn runs at all, of any: nothing but the clock would
        ever free their tokens.
        """
        backends = tuple(backends)
        demand = cluster.demand(turn)
        for is_quiet in (False, True):
            for backend in backends:
                if is_quiet and backend.turn_count:
                    continue
                is_home = turn.place is backend
                needed_tokens = cluster.added_tokens(turn, backend) if is_home else demand.added_tokens(backend)
                if not is_home:
                    needed_tokens += self._reserve_tokens(backend)
                victims = _all_acting(backend) if is_quiet else self._forgotten(backend, cluster.now)
                pauses = _pauses(turn, backend, needed_tokens, victims)
                if pauses is not None:
                    return backend, pauses
        return None

    def _forgotten(self, backend: BackendView, now: float) -> Iterator[ProgramView]:
        """Programs idle for longer than the lease, longest idle first."""
        lease_seconds = self.options.idle_lease_seconds
        for program in backend.longest_idle_first() if lease_seconds > 0 else ():
            if now - program.acting_since < lease_seconds:
                return
            if program.is_idle and now - program.idle_since >= lease_seconds:
                yield program

    def _reserve_tokens(self, backend: BackendView) -> int:
        return int(self.options.growth_reserve * (backend.capacity_tokens or 0))


def _all_acting(backend: BackendView) -> list[ProgramView]:
    """Programs without running turns: the idle ones, longest idle first, then those that wait, latest first."""
    acting = list(backend.longest_idle_first())
    waiting = [program for program in acting if not program.is_idle]
    waiting.sort(key=lambda program: -(program.waiting_since or 0.0))
    return [program for program in acting if program.is_idle] + waiting


def _pauses(
    turn: TurnView, backend: BackendView, needed_tokens: int, victims: Iterable[ProgramView]
) -> list[Pause] | None:
    """As many of the victims, in their order, as let the turn in; None where all of them do not.

    An empty backend takes any turn that is not larger than its cache, and so does one with its own program only.
    """
    free_tokens, capacity_tokens = backend.free_tokens, backend.capacity_tokens
    assert free_tokens is not None  # unknown capacity fits all
    assert capacity_tokens is not None
    left = backend.program_count - (turn.place is backend)
    empties = backend.turn_count == 0 and backend.reserved_tokens == 0 and turn.prompt_tokens <= capacity_tokens
    if not empties and free_tokens + backend.acting_tokens < needed_tokens:
        return None
    pauses: list[Pause] = []
    for program in victims:
        if program is turn.program:
            continue
        pauses.append(Pause(program.id))
        free_tokens += program.own_tokens
        left -= 1
        if free_tokens >= needed_tokens:
            return pauses
    return pauses if empties and left == 0 else None
