"""All schedules of a few programs: which waiting turn is forwarded when."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from attrs import define, field

from thunderagent.policy import Admit, BackendId, ClusterView, Decision, Pause, Policy, Standing, Trigger, TurnView

__all__ = ["Schedule", "every_schedule"]


@define(eq=False)
class Schedule(Policy):
    """Asks ``choose`` for every turn, also for those of programs that had a place: no program keeps it."""

    name: ClassVar[str] = "schedule"
    choose: Callable[[int], int]
    """Of so many choices, which one. The last one is to wait, where that is possible."""
    programs: int
    """How many there will be, which begin together and all run to their ends."""
    has_tools: bool = False
    """Time passes between a turn's end and the next one: choices are made in it, too."""
    _over: int = 0
    _is_begun: bool = False

    def admit(self, turn: TurnView, cluster: ClusterView) -> BackendId | None:
        return None if turn.place is None else turn.place.id

    def rebalance(self, cluster: ClusterView, trigger: Trigger) -> Sequence[Decision]:
        (backend,) = cluster.backends
        if trigger is Trigger.PROGRAM_RELEASED:
            self._over += 1
        paused = [Pause(program.id) for program in backend.longest_first(Standing.ACTING)]
        if trigger not in self._choosing:
            return paused
        waiting = [waiter.program.id for line in cluster.waiting_lines() for waiter in line if waiter.program]
        admitted = []
        others = self.programs - self._over - len(waiting)
        self._is_begun |= not others
        if not self._is_begun:
            return ()
        while waiting:
            can_wait = others + len(admitted) > 0
            choices = len(waiting) + can_wait
            chosen = self.choose(choices) if choices > 1 else 0
            if chosen == len(waiting):
                break
            admitted.append(Admit(waiting.pop(chosen), backend.id))
        return [*paused, *admitted]

    @property
    def _choosing(self) -> tuple[Trigger, ...]:
        arrivals = (Trigger.TURN_HELD, Trigger.PROGRAM_RELEASED)
        return (*arrivals, Trigger.TURN_FINISHED) if self.has_tools else arrivals


@define(eq=False)
class _Choices:
    """Follows a path through a tree of choices, and the first branch of each where that ends."""

    path: list[int]
    counts: list[int] = field(factory=list)

    def __call__(self, count: int) -> int:
        if len(self.counts) == len(self.path):
            self.path.append(0)
        self.counts.append(count)
        return self.path[len(self.counts) - 1]


def every_schedule(programs: int, *, has_tools: bool = False) -> Iterator[Schedule]:
    """One after another; each must have been run when the next one is asked for."""
    path: list[int] | None = []
    while path is not None:
        choices = _Choices(path)
        yield Schedule(choices, programs, has_tools)
        while path and path[-1] + 1 == choices.counts[len(path) - 1]:
            path.pop()
        if path:
            path[-1] += 1
        else:
            path = None
