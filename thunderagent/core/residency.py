"""How much of a conversation's prefix an engine still has cached, by what it has cached anew since."""

from __future__ import annotations

from itertools import accumulate
from math import log2

from attrs import define, field

__all__ = ["Residency"]

_FIRST_AGE_TOKENS = 64
"""Bucket 0 holds all ages up to half an octave (a factor of 1.41) above this; each further one is as wide."""

_BUCKETS = 48
"""The last one begins at 760 million tokens, beyond any cache."""

_LARGEST_WEIGHT = 5
"""Samples that a bucket's mean stands for: a plain mean up to here, then a new sample weighs a fifth."""

_PRIOR_WEIGHT = 0.5
"""Samples that the prior stands for: the first sample weighs two thirds against it, five weigh 0.91."""


def _bucket(age_tokens: int) -> int:
    return min(_BUCKETS - 1, int(2.0 * log2(max(1.0, age_tokens / _FIRST_AGE_TOKENS))))


def _prior(age_tokens: int, spare_tokens: int | None) -> float:
    """All of it until as much was written as the spare capacity, then falling to nothing at twice that."""
    if spare_tokens is None or age_tokens <= spare_tokens:
        return 1.0
    return max(0.0, 2.0 - age_tokens / spare_tokens) if spare_tokens > 0 else 0.0


def _zeros() -> list[int]:
    return [0] * _BUCKETS


@define(eq=False)
class Residency:
    """What stays in one backend's prefix cache, in tokens written to it rather than in seconds.

    An LRU cache drops a prefix when as much was written after it as the cache has spare; time alone does nothing.
    So a conversation notes ``turnover_tokens`` as its *mark* when a turn of it ends, and its *age* is what was
    written since. Where the cliff lies depends on what the others use again, so it is learned: per half-octave of
    age a moving mean of the share that came back. What is older has gone first, so neighbours whose means grow
    with age are pooled, weighted by their samples (isotonic regression). Each pool then bounds the prior, the
    tighter the more samples it has, and does so for ages that were never seen too: greater ones from above, lesser
    ones from below.
    """

    turnover_tokens: int = field(default=0, init=False)
    """Tokens newly written to the cache so far; it only grows."""
    emptied_at_tokens: int = field(default=0, init=False)
    """Marks below this lie before the cache was last lost."""
    _weights: list[int] = field(factory=_zeros, init=False)
    """Samples per bucket of age, up to ``_LARGEST_WEIGHT``."""
    _means: list[float] = field(factory=lambda: [0.0] * _BUCKETS, init=False)
    _ceilings: list[float] = field(factory=lambda: [1.0] * _BUCKETS, init=False)
    """The most that the samples up to a bucket allow for it."""
    _floors: list[float] = field(factory=lambda: [0.0] * _BUCKETS, init=False)
    """The least that the samples from a bucket on allow for it."""
    _is_bounded: bool = field(default=True, init=False)
    """Whether these two say all that was learned."""

    def wrote(self, tokens: int) -> None:
        """The engine cached so many tokens that it had not. O(1).

        Raises:
            ValueError: ``tokens`` is negative.
        """
        if tokens < 0:
            raise ValueError(f"a cache cannot take {tokens} new tokens")
        self.turnover_tokens += tokens

    def age_tokens(self, mark_tokens: int) -> int:
        """Tokens written since ``turnover_tokens`` read ``mark_tokens``.

        Raises:
            ValueError: it has never read that much.
        """
        if mark_tokens > self.turnover_tokens:
            raise ValueError(f"mark {mark_tokens} lies ahead of the turnover, {self.turnover_tokens}")
        return self.turnover_tokens - mark_tokens

    def learn(self, age_tokens: int, resident_ratio: float) -> None:
        """A conversation of that age came back, and that share of what it had left was cached. O(1).

        An age of 0 says nothing of eviction and is passed over.

        Raises:
            ValueError: ``resident_ratio`` is not between 0 and 1, or the age is negative.
        """
        if not 0.0 <= resident_ratio <= 1.0:
            raise ValueError(f"a share is between 0 and 1, not {resident_ratio}")
        if age_tokens < 0:
            raise ValueError(f"an age is not {age_tokens} tokens")
        if age_tokens == 0:
            return
        index = _bucket(age_tokens)
        self._weights[index] = weight = min(self._weights[index] + 1, _LARGEST_WEIGHT)
        self._means[index] += (resident_ratio - self._means[index]) / weight
        self._is_bounded = False

    def expected_ratio(self, mark_tokens: int, spare_tokens: int | None) -> float:
        """The share, 0 to 1, of what a conversation left at its mark that is probably still cached. O(1), and
        O(buckets) after something was learned.

        For a fixed ``spare_tokens`` it never grows with age. 1.0 while nothing was written since, 0.0 where the
        cache was lost since.

        Args:
            mark_tokens: ``turnover_tokens`` as it read when the conversation's last turn ended.
            spare_tokens: capacity that running turns do not pin; None while unknown, which is taken for unbounded.

        Raises:
            ValueError: the mark lies ahead of the turnover.
        """
        age_tokens = self.age_tokens(mark_tokens)
        if mark_tokens < self.emptied_at_tokens:
            return 0.0
        if age_tokens == 0:
            return 1.0
        if not self._is_bounded:
            self._bound()
        index = _bucket(age_tokens)
        return max(self._floors[index], min(self._ceilings[index], _prior(age_tokens, spare_tokens)))

    def forget(self) -> None:
        """The engine lost its cache: nothing is left at any mark up to now. What was learned of eviction stays.

        The turnover goes on by one, so that a mark taken just after differs from one taken just before.
        """
        self.turnover_tokens += 1
        self.emptied_at_tokens = self.turnover_tokens

    def _bound(self) -> None:
        """Fit a curve that does not grow to the means (pool adjacent violators), and bound the prior by it."""
        pools: list[tuple[float, int, int, int]] = []
        for index, weight in enumerate(self._weights):
            if weight == 0:
                continue
            mean, first = self._means[index], index
            while pools and pools[-1][0] <= mean:
                lower_mean, lower_weight, first, _ = pools.pop()
                weight += lower_weight
                mean += (lower_mean - mean) * lower_weight / weight
            pools.append((mean, weight, first, index))
        ceilings, floors = [1.0] * _BUCKETS, [0.0] * _BUCKETS
        for mean, weight, first, last in pools:
            trust = weight / (weight + _PRIOR_WEIGHT)
            ceilings[first], floors[last] = 1.0 - trust * (1.0 - mean), trust * mean
        self._ceilings = list(accumulate(ceilings, min))
        self._floors = list(accumulate(reversed(floors), max))[::-1]
        self._is_bounded = True
