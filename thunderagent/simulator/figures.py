"""The answers of a simulation, as values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import asdict, field, frozen

__all__ = ["Figures", "Quantiles", "jain_index", "quantile"]


@frozen
class Quantiles:
    """Of a sample in seconds, by nearest rank; all 0 where it is empty."""

    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    most: float = 0.0
    mean: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantiles:
        """O(n log n)."""
        if not values:
            return cls()
        found = sorted(values)
        mean = math.fsum(found) / len(found)
        return cls(quantile(found, 0.5), quantile(found, 0.9), quantile(found, 0.99), found[-1], mean)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that ``share`` of an ascending sample do not pass; 0 where that is empty."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def jain_index(values: Sequence[float]) -> float:
    """(sum x)^2 / (n sum x^2): 1 where all are equal, 1/n where one has all; 1 for an empty sample or all 0."""
    squares = math.fsum(value * value for value in values)
    return math.fsum(values) ** 2 / (len(values) * squares) if squares else 1.0


@frozen
class Figures:
    """Of the window from the end of the warm-up to the end; a turn belongs to it if it ended there.

    Turns that were open at the end count where that is said.
    """

    window_seconds: float
    turns: int
    turns_per_minute: float
    output_tokens_per_second: float
    hit_rate: float
    """Prompt tokens found cached over all prompt tokens."""
    recomputed_tokens: int
    """Prompt tokens in full blocks that an earlier turn had computed and that were computed again."""
    idle_kv_share: float
    """Of all KV tokens, those accounted to programs without a running turn as far as there is room for them; mean."""
    engine_busy_share: float
    """Of the engines' time, that spent in steps."""
    bound_share: float
    """Of the engines' time, what these turns need at least (``bound``), or ``progress`` where no engine preempted
    anything: whichever is more. No schedule of the same turns comes over 1."""
    first_token_seconds: Quantiles
    """From a turn's arrival at the router; open turns without one count up to the end."""
    one_off_first_token_seconds: Quantiles
    """The same of turns without a program, as of a chat beside agents."""
    turn_seconds: Quantiles
    """From its arrival to its end."""
    hold_seconds: Quantiles
    """Of the turns that were held in the router, open ones included; of those still held, up to the end."""
    holds: int
    open_holds: int
    """Turns that were held at the end."""
    longest_hold_p95_seconds: float
    """The 95th percentile over programs of their longest hold, counted as in ``hold_seconds``; one-off turns left
    out."""
    small_hold_seconds: float
    """Mean of ``hold_seconds`` of the quarter of programs with the smallest contexts; 0 where none was held."""
    large_hold_seconds: float
    """The same of the quarter with the largest contexts."""
    turns_within_target: float
    """Share of turns whose first token came within the target. Open ones without a token that are older are not."""
    programs_within_target: float
    """Share of programs of whose turns, so counted, 95 % were; one-off turns left out."""
    progress: float
    """Mean over sessions: the time that their turns and tools would have taken with an engine to themselves, over
    what they took, open turns included."""
    jain_of_progress: float
    mean_program_seconds: float | None
    """From first arrival to end, of the programs that ended and whose client did not vanish; None where there are
    none."""
    programs_ended: int
    """Those without the vanished."""
    programs_vanished: int
    """Programs whose client vanished."""
    programs_open: int
    """Programs that had begun and not ended."""
    makespan_seconds: float | None
    """From the first arrival to the end of the last program; None where some are not done."""
    group_seconds: Quantiles
    """From the first arrival of a group to the end of its last program; of those that are not done, to the end."""
    pauses: int
    kv_spread_tokens: float
    """Fullest less emptiest replica in accounted tokens, by means over 10 minutes in which somebody always waited:
    the most of them; 0 where there are none, and on one replica."""
    moves: int
    """Turns that ran on another replica than the turn before of their program."""
    forced: int
    expired: int
    refused: int
    """Turns that the router answered with an error."""
    rejected: int
    """Turns that were too long for the engine; their programs were given up."""
    cut: int
    """Turns whose answers broke off as a replica died; their agents asked again."""
    resent: int
    """How often a dead or dying replica began no answer to a turn, and the router tried another."""
    rejected_decisions: int
    preemptions: int
    evicted_blocks: int
    per_replica_turns: tuple[int, ...] = field(factory=tuple)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Figures:
        """The inverse of ``as_dict``, also after JSON. Raises TypeError for other fields than it has."""
        read: dict[str, Any] = {
            name: Quantiles(**value) if isinstance(value, Mapping) else value for name, value in values.items()
        }
        read["per_replica_turns"] = tuple(values["per_replica_turns"])
        return cls(**read)
