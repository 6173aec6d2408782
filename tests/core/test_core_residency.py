"""How much of a prefix is still cached: the prior, what is learned, and a simulated LRU cache."""

from __future__ import annotations

import random
from collections import OrderedDict
from math import nan

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from thunderagent.core.residency import Residency

AGES = st.integers(0, 2**40)
SPARES = st.none() | st.integers(0, 2**32)


def expected(residency: Residency, age_tokens: int, spare_tokens: int | None) -> float:
    """What is expected of a prefix of that age; as much must have been written."""
    return residency.expected_ratio(residency.turnover_tokens - age_tokens, spare_tokens)


def learn(residency: Residency, age_tokens: int, ratio: float, times: int = 1) -> None:
    """Have a prefix of that age come back."""
    for _ in range(times):
        residency.learn(age_tokens, ratio)


@pytest.fixture
def residency() -> Residency:
    """A cache to which ten million tokens were written; nothing was learned."""
    residency = Residency()
    residency.wrote(10_000_000)
    return residency


def test_age_is_what_was_written_since_the_mark() -> None:
    """Turnover only grows, and ages are differences of its readings."""
    residency = Residency()
    residency.wrote(100)
    mark = residency.turnover_tokens
    residency.wrote(0)
    residency.wrote(30)
    assert (residency.turnover_tokens, residency.age_tokens(mark), residency.age_tokens(0)) == (130, 30, 130)


def test_impossible_figures_are_refused(residency: Residency) -> None:
    """Negative writes, marks that were never read and shares beyond 0 to 1 are bugs, and leave no trace."""
    with pytest.raises(ValueError, match="new tokens"):
        residency.wrote(-1)
    with pytest.raises(ValueError, match="ahead of the turnover"):
        residency.age_tokens(10_000_001)
    with pytest.raises(ValueError, match="an age"):
        residency.learn(-1, 1.0)
    with pytest.raises(ValueError, match="ahead of the turnover"):
        residency.expected_ratio(10_000_001, None)
    for ratio in (-0.1, 1.1, nan):
        with pytest.raises(ValueError, match="share"):
            residency.learn(0, ratio)
    assert (residency.turnover_tokens, expected(residency, 1000, None)) == (10_000_000, 1.0)


def test_prior_falls_from_one_times_to_two_times_the_spare_capacity(residency: Residency) -> None:
    """Nothing goes before the spare capacity was written; twice that leaves nothing."""
    ratios = [expected(residency, age, 1000) for age in (0, 1, 1000, 1250, 1500, 2000, 9_000_000)]
    assert ratios == [1.0, 1.0, 1.0, 0.75, 0.5, 0.0, 0.0]


def test_prior_without_spare_capacity_keeps_only_what_nothing_was_written_after(residency: Residency) -> None:
    """Running turns pin all of it: the first new token takes an idle one's place."""
    assert [expected(residency, age, 0) for age in (0, 1, 1000)] == [1.0, 0.0, 0.0]


def test_unknown_capacity_is_taken_for_unbounded(residency: Residency) -> None:
    """What nobody knows is no reason to give a prefix up."""
    assert expected(residency, 10_000_000, None) == 1.0


def test_samples_outweigh_the_prior_one_by_one(residency: Residency) -> None:
    """The prior stands for half a sample: it keeps a third after one, a fifth after two, 1/11 after five."""
    left = []
    for _ in range(6):
        learn(residency, 1000, 0.0)
        left.append(expected(residency, 1000, None))
    assert left == pytest.approx([1 / 3, 1 / 5, 1 / 7, 1 / 9, 1 / 11, 1 / 11])


def test_mean_moves_by_a_fifth_once_it_stands_for_five_samples(residency: Residency) -> None:
    """Ten misses, then a hit: the mean is 0.2, which with a prior of 0 counts 10/11."""
    learn(residency, 1000, 0.0, times=10)
    learn(residency, 1000, 1.0)
    assert expected(residency, 1000, 0) == pytest.approx(0.2 * 10 / 11)


def test_miss_speaks_for_greater_ages_and_hit_for_lesser_ones(residency: Residency) -> None:
    """What was seen at one age bounds the prior at those never seen, on the side where it says something."""
    learn(residency, 100_000, 0.0, times=5)
    assert [expected(residency, age, None) for age in (10_000, 1_000_000)] == pytest.approx([1.0, 1 / 11])
    learn(residency, 10_000, 1.0, times=5)
    assert [expected(residency, age, 0) for age in (1000, 30_000)] == pytest.approx([10 / 11, 0.0])


def test_stray_miss_at_a_small_age_is_outweighed_by_hits_at_greater_ones(residency: Residency) -> None:
    """One rewritten conversation before 20 that were found counts as one of 21, at all of their ages."""
    learn(residency, 100, 0.0)
    for age in (1000, 4000, 16_000, 64_000):
        learn(residency, age, 1.0, times=5)
    for age in (100, 10_000, 64_000):
        bounds = [expected(residency, age, spare_tokens) for spare_tokens in (0, None)]
        assert bounds == pytest.approx([20 / 21.5, 1 - 1 / 21.5])


def test_moved_cliff_is_followed(residency: Residency) -> None:
    """An age at which prefixes used to be lost is good again after ten that were found, and the other way round."""
    learn(residency, 50_000, 0.0, times=20)
    learn(residency, 50_000, 1.0, times=10)
    assert expected(residency, 50_000, None) > 0.85
    learn(residency, 50_000, 0.0, times=10)
    assert expected(residency, 50_000, None) < 0.2


def test_age_of_nothing_is_always_there_and_teaches_nothing(residency: Residency) -> None:
    """What was missed with nothing written since was not evicted."""
    learn(residency, 0, 0.0, times=5)
    assert [expected(residency, age, None) for age in (0, 1)] == [1.0, 1.0]
    learn(residency, 1, 0.0, times=5)
    assert expected(residency, 0, 0) == 1.0


def test_lost_cache_has_nothing_of_what_lay_before(residency: Residency) -> None:
    """Marks from before a restart give 0, even the last one; new ones start afresh."""
    before = residency.turnover_tokens
    residency.forget()
    after = residency.turnover_tokens
    assert (residency.expected_ratio(before, None), residency.expected_ratio(after, None)) == (0.0, 1.0)
    residency.wrote(500)
    assert (residency.expected_ratio(before, None), residency.expected_ratio(after, None)) == (0.0, 1.0)
    assert after > before


def test_lost_cache_keeps_what_was_learned(residency: Residency) -> None:
    """The engine evicts after a restart as it did before."""
    learn(residency, 1000, 0.0, times=5)
    residency.forget()
    residency.wrote(2000)
    assert expected(residency, 1000, None) == pytest.approx(1 / 11)


@given(st.lists(st.tuples(AGES, st.floats(0.0, 1.0)), max_size=60), st.lists(AGES, min_size=1), SPARES)
def test_any_samples_give_ratios_that_never_grow_with_age(
    samples: list[tuple[int, float]], ages: list[int], spare_tokens: int | None
) -> None:
    """Between 0 and 1, and what is older is not expected to be there more."""
    residency = Residency()
    residency.wrote(2**40)
    for age, ratio in samples:
        learn(residency, age, ratio)
    ratios = [expected(residency, age, spare_tokens) for age in sorted([0, *ages])]
    assert ratios[0] == 1.0
    assert all(0.0 <= ratio <= 1.0 for ratio in ratios)
    assert ratios == sorted(ratios, reverse=True)


@define
class LruCache:
    """A prefix cache: extents of tokens, of which the one used least recently goes first."""

    capacity_tokens: int
    extents: OrderedDict[tuple[str, int], int] = field(factory=OrderedDict)

    def use(self, name: str, tokens: int, extent_tokens: int = 500) -> int:
        """Run a prompt of that many tokens; returns how many of them were cached."""
        keys = [(name, start) for start in range(0, tokens, extent_tokens)]
        cached = 0
        for key in keys:
            cached += self.extents.pop(key, 0)
            self.extents[key] = extent_tokens
        while len(self.extents) * extent_tokens > self.capacity_tokens:
            self.extents.popitem(last=False)
        return cached


@define
class Simulation:
    """An engine whose conversation "p" of 5,000 tokens comes back after others wrote to the cache, told to Residency.

    Six conversations of 10,000 tokens each go on all the while, in turn, so they stay cached and take 60,000 tokens
    of 100,000: what "p" can outlive is far less than the cache holds.
    """

    cache: LruCache = field(factory=lambda: LruCache(100_000))
    residency: Residency = field(factory=Residency)
    strangers: int = 0

    def come_back_after(self, age_tokens: int, spare_tokens: int | None) -> tuple[float, float]:
        """Leave "p" for so many new tokens; returns what was expected and what was there."""
        residency = self.residency
        residency.wrote(5000 - self.cache.use("p", 5000))
        mark = residency.turnover_tokens
        while residency.age_tokens(mark) < age_tokens:
            self.strangers += 1
            residency.wrote(500 - self.cache.use(f"stranger-{self.strangers}", 500))
            residency.wrote(10_000 - self.cache.use(f"busy-{self.strangers % 6}", 10_000))
        expected_ratio = residency.expected_ratio(mark, spare_tokens)
        actual_ratio = self.cache.use("p", 5000) / 5000
        residency.learn(residency.age_tokens(mark), actual_ratio)
        return expected_ratio, actual_ratio


@pytest.mark.parametrize("spare_tokens", [None, 1_000_000, 100_000, 4000, 0])
def test_cliff_of_an_lru_cache_is_learned_whatever_the_prior_says(spare_tokens: int | None) -> None:
    """100 returns at ages from 1,000 to 300,000 tokens teach both sides of it, down to half an octave away."""
    simulation, chance = Simulation(), random.Random(1)
    for _ in range(100):
        simulation.come_back_after(round(1000 * 300.0 ** chance.random()), spare_tokens)
    cliff_tokens = 100_000 - 6 * 10_000 - 5000
    for factor in (0.05, 0.1, 0.2, 0.4, 0.7, 1.5, 2.0, 4.0, 8.0):
        expected_ratio, actual_ratio = simulation.come_back_after(round(factor * cliff_tokens), spare_tokens)
        assert actual_ratio == (1.0 if factor < 1.0 else 0.0)
        assert expected_ratio == pytest.approx(actual_ratio, abs=0.15)
