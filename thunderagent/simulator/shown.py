"""Figures as people are shown them: what tables and pictures call each, with its unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import frozen

from thunderagent.simulator.figures import Figures

__all__ = ["ALWAYS", "BOUND", "HIT_RATE", "IF_ANY", "JAIN", "LONGEST_HOLD", "TURNS", "Shown"]


@frozen
class Shown:
    """A figure: its title, and its value in a run; None where a run has none. ``title`` may hold ``{target}``."""

    title: str
    of: Callable[[Figures], float | None]

    def titled(self, target_seconds: float) -> str:
        """The title where a first token should come within ``target_seconds``."""
        return self.title.format(target=f"{target_seconds:g} s")

    def values(self, runs: Iterable[Figures]) -> list[float]:
        """In the runs that have one."""
        return [value for figures in runs if (value := self.of(figures)) is not None]


TURNS = Shown("turns/min", lambda figures: figures.turns_per_minute)
BOUND = Shown("share of the bound", lambda figures: figures.bound_share)
HIT_RATE = Shown("hit rate", lambda figures: figures.hit_rate)
LONGEST_HOLD = Shown("longest hold, p95 of programs, s", lambda figures: figures.longest_hold_p95_seconds)
JAIN = Shown("Jain index of progress", lambda figures: figures.jain_of_progress)

ALWAYS: tuple[Shown, ...] = (
    TURNS,
    Shown("output tokens/s", lambda figures: figures.output_tokens_per_second),
    BOUND,
    HIT_RATE,
    Shown("recomputed tokens", lambda figures: figures.recomputed_tokens),
    Shown("KV held by idle programs", lambda figures: figures.idle_kv_share),
    Shown("first token p50 s", lambda figures: figures.first_token_seconds.p50),
    Shown("first token p90 s", lambda figures: figures.first_token_seconds.p90),
    Shown("first token p99 s", lambda figures: figures.first_token_seconds.p99),
    Shown("turn p50 s", lambda figures: figures.turn_seconds.p50 if figures.turns else None),
    Shown("turn p90 s", lambda figures: figures.turn_seconds.p90 if figures.turns else None),
    Shown("turn p99 s", lambda figures: figures.turn_seconds.p99 if figures.turns else None),
    Shown("turn max s", lambda figures: figures.turn_seconds.most if figures.turns else None),
    Shown("holds", lambda figures: figures.holds),
    Shown("held at the end", lambda figures: figures.open_holds),
    Shown("hold mean s", lambda figures: figures.hold_seconds.mean),
    Shown("hold max s", lambda figures: figures.hold_seconds.most),
    LONGEST_HOLD,
    Shown("turns within the target, {target}", lambda figures: figures.turns_within_target),
    Shown("programs within the target, {target}", lambda figures: figures.programs_within_target),
    Shown("progress", lambda figures: figures.progress),
    JAIN,
    Shown("program mean s", lambda figures: figures.mean_program_seconds),
    Shown("pauses", lambda figures: figures.pauses),
    Shown("moves", lambda figures: figures.moves),
)
"""A table's rows."""

IF_ANY: tuple[Shown, ...] = (
    Shown("forced in", lambda figures: figures.forced),
    Shown("expired", lambda figures: figures.expired),
    Shown("refused turns", lambda figures: figures.refused),
    Shown("clients vanished", lambda figures: figures.programs_vanished),
    Shown("turns cut off, asked again", lambda figures: figures.cut),
    Shown("turns sent elsewhere", lambda figures: figures.resent),
    Shown("decisions rejected", lambda figures: figures.rejected_decisions),
    Shown("engine preemptions", lambda figures: figures.preemptions),
    Shown("makespan s", lambda figures: figures.makespan_seconds),
    Shown("slowest group s", lambda figures: figures.group_seconds.most),
)
"""Further rows, where a run has something there."""
