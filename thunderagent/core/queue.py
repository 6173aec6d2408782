"""The waiting queue: programs that ask for a place, and turns that wait for themselves."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import define, field
from sortedcontainers import SortedKeyList

from thunderagent.core.commands import HoldReason
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
    line: SortedKeyList | None = None
    """The line that it stands in while it waits for the policy's word; None while it waits for something else."""

    @property
    def turn(self) -> Turn:
        """The turn that has waited longest for the policy's word, or if none does, for anything."""
        turns = self.turns.values()
        asking = (turn for turn in turns if turn.hold_reason is HoldReason.POLICY)
        return next(asking, None) or next(iter(turns))

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
    lines: dict[tuple[str | None, bool], SortedKeyList] = field(factory=dict)
    """Who waits for the policy's word, oldest first, by model and whether a turn waits alone: nobody stands in the
    way of those that want another model, and programs not in the way of one-off turns."""
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
        self._list(waiter)
        return waiter

    def remove(self, turn: Turn) -> Waiter:
        """Take a turn out; its waiter goes with the last of its turns. Returns the waiter."""
        key = self._key(turn)
        waiter = self.waiters[key]
        self._unlist(waiter)
        del waiter.turns[turn.id]
        self.turn_count -= 1
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

    def set_urgent(self, waiter: Waiter, is_urgent: bool) -> None:
        """Take a waiter out of its line while the scheduler itself makes room for it, or put it back."""
        if waiter.is_urgent == is_urgent:
            return
        waiter.is_urgent = is_urgent
        if waiter.turns:
            self._unlist(waiter)
            self._list(waiter)

    def lines_by_age(self) -> list[SortedKeyList]:
        """The lines, the one whose oldest waits for longest first. O(lines)."""
        return sorted(self.lines.values(), key=lambda line: _by_age(line[0]))

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
        turn = waiter.turn
        if turn.hold_reason is HoldReason.POLICY and not waiter.is_urgent:
            kind = (turn.model, turn.waits_alone)
            waiter.line = self.lines.setdefault(kind, SortedKeyList(key=_by_age))
            waiter.line.add(waiter)

    def _unlist(self, waiter: Waiter) -> None:
        self.by_age.remove(waiter)
        self.by_need.remove(waiter)
        if waiter.line is not None:
            waiter.line.remove(waiter)
            if not waiter.line:
                self.lines = {kind: line for kind, line in self.lines.items() if line}
            waiter.line = None
