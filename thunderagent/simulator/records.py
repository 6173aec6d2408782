"""What happened in a simulation, turn by turn, in columns: about 100 bytes per turn."""

from __future__ import annotations

from array import array

from attrs import define, field, frozen

__all__ = ["Balance", "OpenTurn", "ProgramRecord", "Records", "Totals"]


_NEARLY_ALL = 11 / 12


def _times() -> array[float]:
    return array("d")


def _counts() -> array[int]:
    return array("l")


@define(eq=False)
class ProgramRecord:
    """What one program got; times in seconds of the virtual clock."""

    session: int
    began_at: float
    group: str | None
    is_one_off: bool
    ended_at: float | None = None
    is_given_up: bool = False
    """The engine refused a turn as too long."""
    is_abandoned: bool = False
    """Its client vanished."""
    last_replica: int | None = None


@frozen
class OpenTurn:
    """A turn that had come and not ended."""

    program: int
    arrived_at: float
    forwarded_at: float | None
    """None: it was held, or about to be sent again."""
    first_token_at: float | None


@define
class Totals:
    """Counts since the start."""

    notices: dict[str, int] = field(factory=dict)
    """How often the scheduler told each kind."""
    moves: int = 0
    """Turns that ran on another replica than the turn before of their program."""
    refused_turns: int = 0
    """By the router; they were sent again."""
    rejected_turns: int = 0
    """By the engine, as too long for it; their programs were given up."""
    cut_turns: int = 0
    """Their answers broke off as a replica died; their agents asked again."""
    resent_turns: int = 0
    """A dead or dying replica began no answer; the router tried another, or refused."""
    preemptions: int = 0
    evicted_blocks: int = 0
    busy_seconds: float = 0.0
    """Of the engines, in steps."""

    def since(self, before: Totals) -> Totals:
        """What was counted after ``before``."""
        notices = {name: count - before.notices.get(name, 0) for name, count in self.notices.items()}
        return Totals(
            notices,
            self.moves - before.moves,
            self.refused_turns - before.refused_turns,
            self.rejected_turns - before.rejected_turns,
            self.cut_turns - before.cut_turns,
            self.resent_turns - before.resent_turns,
            self.preemptions - before.preemptions,
            self.evicted_blocks - before.evicted_blocks,
            self.busy_seconds - before.busy_seconds,
        )


@define(eq=False)
class Balance:
    """Accounted tokens of each replica, as means over spans of time in which somebody waited in the router."""

    span_seconds: float = 600.0
    _sums: dict[int, tuple[float, list[float]]] = field(factory=dict)
    """Per span: the seconds that samples stand for, and of each replica its tokens times those."""

    def sample(self, now: float, seconds: float, accounted_tokens: list[int]) -> None:
        """Of all replicas, at one time of a queue; it stands for so many seconds."""
        span = int(now // self.span_seconds)
        known_seconds, sums = self._sums.get(span, (0.0, [0.0] * len(accounted_tokens)))
        if len(sums) == len(accounted_tokens):
            added = [total + seconds * tokens for total, tokens in zip(sums, accounted_tokens, strict=True)]
            self._sums[span] = (known_seconds + seconds, added)

    def spreads(self, since: float) -> list[float]:
        """Of each span after ``since`` in which somebody waited nearly all the time, the fullest replica's tokens
        less the emptiest's."""
        least_seconds = _NEARLY_ALL * self.span_seconds
        return [
            (max(sums) - min(sums)) / known_seconds
            for span, (known_seconds, sums) in self._sums.items()
            if span * self.span_seconds >= since and known_seconds >= least_seconds
        ]


@define(eq=False)
class Records:
    """Columns of finished turns, in the order of their ends."""

    replicas: int
    """All that were there at some time."""
    programs: list[ProgramRecord] = field(factory=list)
    program: array[int] = field(factory=_counts)
    """Index into ``programs``."""
    arrived_at: array[float] = field(factory=_times)
    """Of a turn that was refused or cut and sent again: for the first time."""
    forwarded_at: array[float] = field(factory=_times)
    first_token_at: array[float] = field(factory=_times)
    ended_at: array[float] = field(factory=_times)
    prompt_tokens: array[int] = field(factory=_counts)
    cached_tokens: array[int] = field(factory=_counts)
    known_tokens: array[int] = field(factory=_counts)
    """Of the prompt, what an earlier turn had computed, of this conversation or of one with the same beginning."""
    shared_tokens: array[int] = field(factory=_counts)
    """Of the prompt, the beginning that other conversations have too."""
    output_tokens: array[int] = field(factory=_counts)
    tool_seconds: array[float] = field(factory=_times)
    """After the turn."""
    replica: array[int] = field(factory=_counts)
    balance: Balance = field(factory=Balance)
    """What the replicas accounted while somebody waited."""
    idle_kv: list[tuple[float, float]] = field(factory=list)
    """(time, share of all KV tokens accounted to programs without a running turn, as far as running ones leave room
    for them), sampled."""
    warmup: Totals = field(factory=Totals)
    """What was counted until the end of the warm-up."""
    totals: Totals = field(factory=Totals)
    absent: list[tuple[float, float]] = field(factory=list)
    """(from, to) of each time in which a replica was not there: dead, or not yet joined."""
    open_turns: list[OpenTurn] = field(factory=list)
    """At the end."""
    end_seconds: float = 0.0
    """When the simulation ended."""
