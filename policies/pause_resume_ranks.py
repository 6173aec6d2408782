"""Who of those that wait for ``pause-resume`` is let in first."""

from __future__ import annotations

import math

from policies.pause_resume_settings import Settings
from thunderagent.policy import ProgramView

__all__ = ["BEHIND", "published_rank", "rank"]

BEHIND = 2.0**40
"""Added to a rank, it puts behind all that go without: more than any number of tokens, or seconds of age."""


def rank(settings: Settings, program: ProgramView, since: float, need_tokens: int) -> float:
    """The lowest is first, by ``resume_order``."""
    if settings.resume_order == "oldest":
        return program.arrived_at + settings.wait_weight * (since - program.arrived_at)
    if settings.resume_order == "first-come":
        return float(program.sequence)
    if settings.resume_order == "published":
        return published_rank(program, need_tokens)
    if settings.ageing_seconds > 0:
        # need x 2^(-waited / ageing), in an order that does not change while time passes
        return math.log2(max(1, need_tokens)) + since / settings.ageing_seconds
    return float(need_tokens)


def published_rank(program: ProgramView, need_tokens: int) -> float:
    """Programs after their first turn before new ones, the smallest first (eq. 10)."""
    return need_tokens + (0.0 if program.turns_finished else BEHIND)
