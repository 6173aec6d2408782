"""The waiting queue: programs that ask for a place, and turns that wait for themselves.

Those who wait for the policy's word stand in lines, in the order of the policy's ``rank``: one line per model for
programs without a place, one for turns that wait at their program's place, one for turns that wait alone. So nobody
stands in the way of those that want another model, and programs not in the way of one-off turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import NamedTuple

from attrs import define, field
from sortedcontainers import SortedKeyList

from thunderagent.core.ids import ProgramId, TurnId
from thunderagent.core.program import Program
from thunderagent.core.turn import Turn

__all__ = ["LineKey", "Queue", "Waiter"]


class LineKey(NamedTuple):
    """Who stands in a line."""

    model: str | None
    waits_alone: bool
    has_place: bool


@define(eq=False, repr=False)
class Waiter:
    """A program with held turns, or one held turn alone."""

    program: Program | None
    since: float
    sequence: int
    turn: Turn
    """The turn that has waited longest for the policy's word, of those that a backend is there for if there are such;
    where none asks, the one that has waited longest for anything."""
    turns: dict[TurnId, Turn] = field(factory=dict)
    """In the order in which they were held, never empty."""
    asking: dict[str | None, dict[TurnId, Turn]] = field(factory=dict)
    """By model, those that wait for the policy's word, or will once a backend is there; in the same order."""
    need_tokens: int = 0
    """What it needs resident to go on, shared prefixes in full."""
    is_urgent: bool = False
    """It reached the hold limit: the scheduler makes room for it, policies leave it alone."""
    line: LineKey | None = None
    """The line that it stands in while it waits for the policy's word; None while it waits for something else."""
    order: tuple[float, float, int] = (0.0, 0.0, 0)
    """Its key in that line: the policy's rank, then since when it waits, then its own sequence."""

    def __repr__(self) -> str:
        return f"<Waiter {None if self.program is None else self.program.id!r} turns {list(self.turns)}>"


def _oldest_first(waiter: Waiter) -> float:
    return waiter.since


@define(eq=False, repr=False)
class Queue:
    """Held turns by whom they wait for, and the lines of those who wait for the policy's word."""

    waiters: dict[ProgramId | TurnId, Waiter] = field(factory=dict)
    """In the order in which they came; one that left and came again has its age in ``since``."""
    lines: dict[LineKey, SortedKeyList] = field(factory=dict)
    beside: dict[TurnId, Turn] = field(factory=dict)
    """Turns of programs that wait alone, since their program's place cannot serve them."""
    mixed: dict[ProgramId | TurnId, Waiter] = field(factory=dict)
    """Waiters with turns of several models, now or before: which of them counts depends on the backends there are."""
    rank: Callable[[Waiter], float] = _oldest_first
    turn_count: int = 0
    _open_lines: list[SortedKeyList] | None = None
    """What ``open_lines`` says, until something changes: most events change nothing in the queue, and ask."""
    _sequence: int = 0

    def __len__(self) -> int:
        """Waiters, not turns."""
        return len(self.waiters)

    def of(self, turn: Turn) -> Waiter | None:
        """The waiter that a held turn belongs to."""
        return self.waiters.get(_key(turn))

    def of_program(self, program: Program) -> Waiter | None:
        """The program's waiter; None where none of its turns asks for its place."""
        return self.waiters.get(program.id)

    def line_for(self, turn: Turn) -> LineKey:
        """The line that the turn would stand in if it waited for the policy's word."""
        return LineKey(turn.model, turn.waits_alone, turn.place is not None)

    def add(self, turn: Turn, since: float) -> Waiter:
        """Hold a turn; ``since`` is the age of its waiter. O(log waiters)."""
        key = _key(turn)
        waiter = self.waiters.get(key)
        if waiter is None:
            self._sequence += 1
            waiter = Waiter(None if turn.waits_alone else turn.program, since, self._sequence, turn)
            self.waiters[key] = waiter
        else:
            if waiter.turn.model != turn.model:
                self.mixed[key] = waiter
            if since < waiter.since:
                self._leave_line(waiter)
                waiter.since = since
        self._append(waiter, turn)
        self.turn_count += 1
        if turn.waits_alone and turn.program is not None:
            self.beside[turn.id] = turn
        self._enlist(waiter)
        return waiter

    def remove(self, turn: Turn) -> Waiter:
        """Take a turn out; its waiter goes with the last of its turns. Returns the waiter. O(log waiters)."""
        key = _key(turn)
        waiter = self.waiters[key]
        self._take_out(waiter, turn)
        self.turn_count -= 1
        self.beside.pop(turn.id, None)
        if waiter.turns:
            self._enlist(waiter)
        else:
            self._leave_line(waiter)
            del self.waiters[key]
            self.mixed.pop(key, None)
        return waiter

    def refresh(self, program: Program) -> None:
        """Bring the program's waiter up to date: its need changed, or whether it has a place."""
        waiter = self.waiters.get(program.id)
        if waiter is not None:
            self._enlist(waiter)

    def restart(self, program: Program, since: float) -> None:
        """The program asks for a place from now on. O(log waiters)."""
        waiter = self.waiters[program.id]
        self._leave_line(waiter)
        waiter.since = since
        self._enlist(waiter)

    def renew(self, turn: Turn) -> None:
        """A held turn may wait for something else now: it goes behind the others of its waiter."""
        waiter = self.waiters[_key(turn)]
        self._take_out(waiter, turn)
        self._append(waiter, turn)
        self._enlist(waiter)

    def regroup(self, program: Program) -> None:
        """What the program's held turns wait for has changed. O(those)."""
        waiter = self.waiters.get(program.id)
        if waiter is None:
            return
        waiter.asking.clear()
        for turn in waiter.turns.values():
            _note_asking(waiter, turn)
        self._enlist(waiter)

    def _append(self, waiter: Waiter, turn: Turn) -> None:
        self._sequence += 1
        turn.held_sequence = self._sequence
        waiter.turns[turn.id] = turn
        _note_asking(waiter, turn)

    @staticmethod
    def _take_out(waiter: Waiter, turn: Turn) -> None:
        del waiter.turns[turn.id]
        of_model = waiter.asking.get(turn.model)
        if of_model is not None and of_model.pop(turn.id, None) is not None and not of_model:
            del waiter.asking[turn.model]

    def backends_changed(self) -> None:
        """Bring the lines up to date after models found or lost their last backend."""
        self._open_lines = None
        for waiter in list(self.mixed.values()):
            self._enlist(waiter)

    def set_urgent(self, waiter: Waiter, is_urgent: bool) -> None:
        """Take a waiter out of its line while the scheduler itself makes room for it, or put it back."""
        if waiter.is_urgent == is_urgent:
            return
        waiter.is_urgent = is_urgent
        if waiter.turns:
            self._enlist(waiter)

    def open_lines(self) -> list[SortedKeyList]:
        """The lines of those for whom a backend is there, the one whose first has waited longest first; not to be
        changed. O(1), and O(lines) after the queue changed."""
        if self._open_lines is None:
            lines = [line for line in self.lines.values() if line[0].turn.serving.backends]
            lines.sort(key=lambda line: (line[0].since, line[0].sequence))
            self._open_lines = lines
        return self._open_lines

    def in_order(self) -> Iterator[Waiter]:
        """In the order in which they came."""
        return iter(self.waiters.values())

    def _enlist(self, waiter: Waiter) -> None:
        """Put the waiter where it belongs now."""
        self._open_lines = None
        turn = waiter.turn = _first(waiter)
        need_tokens = turn.need_tokens if waiter.program is None else waiter.program.need_tokens
        key = self.line_for(turn) if turn.asks and not waiter.is_urgent else None
        if key == waiter.line and need_tokens == waiter.need_tokens:
            return
        self._leave_line(waiter)
        waiter.need_tokens = need_tokens
        if key is not None:
            waiter.line, waiter.order = key, (self.rank(waiter), waiter.since, waiter.sequence)
            line = self.lines.get(key)
            if line is None:
                line = self.lines[key] = SortedKeyList(key=attrgetter("order"))
            line.add(waiter)

    def _leave_line(self, waiter: Waiter) -> None:
        self._open_lines = None
        if waiter.line is None:
            return
        line = self.lines[waiter.line]
        line.remove(waiter)
        if not line:
            del self.lines[waiter.line]
        waiter.line = None


def _note_asking(waiter: Waiter, turn: Turn) -> None:
    if turn.asks:
        waiter.asking.setdefault(turn.model, {})[turn.id] = turn


def _first(waiter: Waiter) -> Turn:
    """O(models of its turns)."""
    if len(waiter.turns) == 1 or not waiter.asking:
        return next(iter(waiter.turns.values()))
    firsts = [next(iter(of_model.values())) for of_model in waiter.asking.values()]
    if len(firsts) == 1:
        return firsts[0]
    return min([turn for turn in firsts if turn.serving.backends] or firsts, key=attrgetter("held_sequence"))


def _key(turn: Turn) -> ProgramId | TurnId:
    return turn.id if turn.waits_alone or turn.program is None else turn.program.id
