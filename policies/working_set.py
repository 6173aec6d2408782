"""``working-set``: keep as many programs as the KV cache holds, let them work, and share the waiting out.

One dial says how. At **batch** programs run to their end in the order in which they came; at **interactive** who has
waited longest is next, and a program that has had its place for long yields it to who waits. The parts are those of
``pause-resume``, where each can be switched by itself; docs/scheduling.md says why these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from attrs import define, field, frozen, validators

from policies.options import read_options
from policies.pause_resume import PauseResume
from policies.pause_resume_settings import Settings
from thunderagent.policy import ROTATION_RATIO, OptionError

__all__ = ["DIAL", "Options", "WorkingSet"]

DIAL: Mapping[str, float] = {"batch": 0.0, "balanced": 0.5, "interactive": 1.0}
"""Positions of the dial that have a name."""


@frozen
class Options:
    """Options of the policy."""

    dial: float = DIAL["interactive"]
    """From 0 (batch) to 1 (interactive)."""
    growth_reserve: float = field(default=0.1, validator=validators.lt(1))
    """Share of the capacity kept free when letting in, for the growth of those already in."""
    guest_ratio: float = field(default=0.2, validator=validators.le(1))
    """Of the capacity, what one-off turns may take without waiting for room; 0: they wait as programs do."""
    turns_per_program: int = 32
    """Turns of one program that may run at once, the others wait at its place; 0: no bound."""

    def settings(self) -> Settings:
        """What the dial means for ``pause-resume``."""
        return Settings(
            resume_order="oldest" if self.dial else "first-come",
            wait_weight=self.dial,
            rotation_ratio=ROTATION_RATIO * self.dial,
            growth_reserve=self.growth_reserve,
            guest_ratio=self.guest_ratio,
            pace_prefills=True,
            turns_per_program=self.turns_per_program,
        )


@define(eq=False)
class WorkingSet(PauseResume):
    """Admits what the KV cache holds; who waits, and for how long, is set by one dial from batch to interactive.

    The module's docstring says how; the options are in ``Options``.
    """

    name: ClassVar[str] = "working-set"

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> WorkingSet:
        """See ``Options``; ``dial`` is a number from 0 to 1, or one of batch, balanced and interactive."""
        read = {name: _position(text) if name == "dial" else text for name, text in options.items()}
        return cls(read_options(cls.name, Options(), read).settings())


def _position(text: str) -> str:
    """Of the dial, as a number. Raises OptionError."""
    try:
        position = DIAL[text] if text in DIAL else float(text)
    except ValueError:
        position = -1.0
    if not 0.0 <= position <= 1.0:
        wanted = f"{', '.join(DIAL)}, or a number from 0 to 1"
        raise OptionError(f"policy {WorkingSet.name!r}: option dial must be {wanted}, got {text!r}")
    return str(position)
