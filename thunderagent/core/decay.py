"""Tokens of idle programs that count less the longer their tools take, summed in O(1).

Each program's tokens count ``2^(-t / half-life)``, t being the seconds since its last turn ended (the paper's
eq. 7 with x = 2; other exponents are other half-lives). All of them fade by the same factor, so the sum is kept as
it was at a time of reference, and scaled when it is read.
"""

from __future__ import annotations

from attrs import define

__all__ = ["DecayedTokens"]

_REBASE_HALF_LIVES = 64.0
"""The time of reference moves on after so many: terms grow as ``2^(age of the reference)``."""


@define(eq=False)
class DecayedTokens:
    """The sum. ``remove`` takes the numbers that ``add`` was given."""

    half_life_seconds: float
    _sum: float = 0.0
    _reference_at: float = 0.0
    _terms: int = 0

    def add(self, tokens: int, since: float) -> None:
        """Count tokens that fade since then."""
        growth = self._growth(since)
        self._sum += tokens * growth
        self._terms += 1

    def remove(self, tokens: int, since: float) -> None:
        """No longer count them."""
        growth = self._growth(since)
        self._terms -= 1
        self._sum = self._sum - tokens * growth if self._terms else 0.0

    def tokens(self, now: float) -> float:
        """What they count together at ``now``."""
        growth = self._growth(now)
        return self._sum / growth

    def _growth(self, at: float) -> float:
        """How much more a token that fades since ``at`` counts than one that fades since the time of reference."""
        half_lives = (at - self._reference_at) / self.half_life_seconds
        if half_lives > _REBASE_HALF_LIVES:
            self._sum *= 2.0**-half_lives
            self._reference_at, half_lives = at, 0.0
        return float(2.0**half_lives)
