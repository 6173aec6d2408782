"""What happened in a simulation, turn by turn, in columns: about 100 bytes per turn."""

from __future__ import annotations

from array import array

from attrs import define, field

__all__ = ["ProgramRecord", "Records"]


@define(eq=False)
class ProgramRecord:
    """What one program got."""

    session: int
    began_at: float
    group: str | None
    is_one_off: bool
    ended_at: float | None = None
    longest_hold_seconds: float = 0.0
    turns: int = 0
    unpressured_seconds: float = 0.0
    """What its finished turns and its tools would have taken with an engine to itself."""


@define(eq=False)
class Records:
    """Columns of finished turns, in the order of their ends; times in seconds of the virtual clock."""

    programs: list[ProgramRecord] = field(factory=list)
    program: array[int] = field(factory=lambda: array("l"))
    """Index into ``programs``."""
    arrived_at: array[float] = field(factory=lambda: array("d"))
    forwarded_at: array[float] = field(factory=lambda: array("d"))
    first_token_at: array[float] = field(factory=lambda: array("d"))
    ended_at: array[float] = field(factory=lambda: array("d"))
    prompt_tokens: array[int] = field(factory=lambda: array("l"))
    cached_tokens: array[int] = field(factory=lambda: array("l"))
    known_tokens: array[int] = field(factory=lambda: array("l"))
    """Of the prompt, what some earlier turn had computed: all that could have been cached."""
    output_tokens: array[int] = field(factory=lambda: array("l"))
    replica: array[int] = field(factory=lambda: array("l"))
    idle_kv_tokens: list[tuple[float, float]] = field(factory=list)
    """(time, share of all KV tokens that is accounted to programs without a running turn), sampled."""
    notices: dict[str, int] = field(factory=dict)
    """How often the scheduler told each: pauses, moves, forced admissions, rejected decisions."""
    refused_turns: int = 0
    open_holds: list[tuple[int, float]] = field(factory=list)
    """(program, since) of the turns that were held at the end."""
