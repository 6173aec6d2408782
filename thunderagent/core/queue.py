"""The waiting queue: programs that ask for a place, and turns that wait for themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from attrs import define, field
from sortedcontainers import SortedKeyList

from thunderagent.core.ids import ProgramId, TurnId
from thunderagent.core.program import Program
from thunderagent.core.turn import Turn

__all__ = ["Queue", "Waiter"]


@define(eq=False, repr=False)
class Waiter:
    """A program with held turns, or one held turn alone. ``turns`` in order of arrival, never empty."""

    program: Program | None
    since: float
    sequence: int
    turns: dict[TurnId, Turn] = field(factory=dict)
    need_tokens: int = 0
    """What it needs resident to go on, shared prefixes in full."""
    is_urgent: bool = False
    """It reached the hold limit: the scheduler makes room for it, policies leave it alone."""

    @property
    def turn(self) -> Turn:
        """The turn that waits for longest."""
        return next(iter(self.turns.values()))

    def __repr__(self) -> str:
        return f"<Waiter {None if self.program is None else self.program.id!r} turns {list(self.turns)}>"


def _by_age(waiter: Waiter) -> tuple[float, int]:
    return (waiter.since, waiter.sequence)


def _by_need(waiter: Waiter) -> tuple[int, int]:
    return (waiter.need_tokens, waiter.sequence)


@define(eq=False, repr=False)
class Queue:
    """Held turns, ordered by age and by need. A waiter's place in the order is its program's age."""

    waiters: dict[ProgramId | TurnId, Waiter] = field(factory=dict)
    by_age: SortedKeyList = field(factory=lambda: SortedKeyList(key=_by_age))
    by_need: SortedKeyList = field(factory=lambda: SortedKeyList(key=_by_need))
    models: Counter[str | None] = field(factory=Counter)
    """Held turns of each model."""
    turn_count: int = 0
    _sequence: int = 0

    def __len__(self) -> int:
        """Waiters, not turns."""
        return len(self.waiters)

    def oldest_first(self) -> Iterator[Waiter]:
        return iter(self.by_age)

    def smallest_first(self) -> Iterator[Waiter]:
        return iter(self.by_need)

    def of(self, turn: Turn) -> Waiter | None:
        """The waiter that a held turn belongs to."""
        return self.waiters.get(self._key(turn))

    def of_program(self, program: Program) -> Waiter | None:
        """The program's waiter; None where none of its turns asks for its place."""
        return self.waiters.get(program.id)

    def add(self, turn: Turn, since: float) -> Waiter:
        """Hold a turn; ``since`` counts where it is the first of its waiter."""
        key = self._key(turn)
        waiter = self.waiters.get(key)
        if waiter is None:
            self._sequence += 1
            waiter = Waiter(None if turn.waits_alone else turn.program, since, self._sequence)
            self.waiters[key] = waiter
        else:
            self._unlist(waiter)
        waiter.turns[turn.id] = turn
        self.turn_count += 1
        self.models[turn.model] += 1
        self._list(waiter)
        return waiter

    def remove(self, turn: Turn) -> Waiter:
        """Take a turn out; its waiter goes with the last of its turns. Returns the waiter."""
        key = self._key(turn)
        waiter = self.waiters[key]
        self._unlist(waiter)
        del waiter.turns[turn.id]
        self.turn_count -= 1
        self.models[turn.model] -= 1
        if not self.models[turn.model]:
            del self.models[turn.model]
        if waiter.turns:
            self._list(waiter)
        else:
            del self.waiters[key]
        return waiter

    def refresh(self, program: Program) -> None:
        """Bring the program's need up to date after a turn of it ended."""
        waiter = self.waiters.get(program.id)
        if waiter is not None:
            self._unlist(waiter)
            self._list(waiter)

    @staticmethod
    def _key(turn: Turn) -> ProgramId | TurnId:
        return turn.id if turn.waits_alone or turn.program is None else turn.program.id

    def _list(self, waiter: Waiter) -> None:
        if waiter.program is None:
            waiter.need_tokens = waiter.turn.need_tokens
        else:
            waiter.need_tokens = waiter.program.need_tokens
        self.by_age.add(waiter)
        self.by_need.add(waiter)

    def _unlist(self, waiter: Waiter) -> None:
        self.by_age.remove(waiter)
        self.by_need.remove(waiter)
