"""How long tools take: what the histogram answers, and how little it keeps."""

from __future__ import annotations

import random
import sys
import tracemalloc
from itertools import pairwise
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thunderagent.core.tool_times import ToolTimes

SECONDS = st.floats(0.0, 100_000.0)
HALF_OCTAVE = 2.0**0.5


def learned(*samples: float) -> ToolTimes:
    """The distribution of these samples."""
    times = ToolTimes()
    for seconds in samples:
        times.learn(seconds)
    return times


def test_empty_distribution_answers_none() -> None:
    """Nothing is said of tools before one has been seen."""
    times = ToolTimes()
    answers = (times.quantile_seconds(0.5), times.chance_of_return(1.0, 1.0), times.remaining_seconds(1.0))
    assert (times.count, answers) == (0, (None, None, None))


@pytest.mark.parametrize("seconds", [-0.001, nan, inf, -inf])
def test_time_that_no_tool_can_take_is_refused(seconds: float) -> None:
    """A negative or non-finite sample is a bug of the caller, and leaves nothing behind."""
    times = ToolTimes()
    with pytest.raises(ValueError, match="a tool cannot"):
        times.learn(seconds)
    assert times.count == 0


def test_question_that_makes_no_sense_is_refused() -> None:
    """Shares beyond 0 to 1 and times before now are bugs of the caller, with samples or without."""
    for times in (ToolTimes(), learned(1.0)):
        for share in (-0.1, 1.1, nan):
            with pytest.raises(ValueError, match="share"):
                times.quantile_seconds(share)
        for idle_seconds, within_seconds in ((-1.0, 2.0), (1.0, -0.5), (nan, 1.0), (1.0, nan)):
            with pytest.raises(ValueError, match=r"cannot|can end"):
                times.chance_of_return(idle_seconds, within_seconds)
        with pytest.raises(ValueError, match="a tool cannot"):
            times.remaining_seconds(-1.0)


@pytest.mark.parametrize("seconds", [0.1, 1.0, 59.0, 7200.0])
def test_single_sample_is_known_to_half_an_octave(seconds: float) -> None:
    """All quantiles lie in the one bucket, which is a factor of 1.41 wide."""
    times = learned(seconds)
    low, middle, high = (times.quantile_seconds(share) for share in (0.0, 0.5, 1.0))
    assert low is not None
    assert low <= seconds * 1.000001
    assert seconds <= low * HALF_OCTAVE
    assert [middle, high] == pytest.approx([low * HALF_OCTAVE**0.5, low * HALF_OCTAVE])


def test_time_below_a_tenth_of_a_second_is_spread_evenly_down_to_nothing() -> None:
    """The first bucket has no logarithm: half of it ends in the first half."""
    times = learned(0.0, 0.05, 0.09)
    assert [times.quantile_seconds(share) for share in (0.0, 0.5, 1.0)] == pytest.approx([0.0, 0.05, 0.1])
    assert times.chance_of_return(0.0, 0.025) == pytest.approx(0.25)


def test_time_above_five_hours_counts_as_five_hours() -> None:
    """The last bucket takes all that is longer; beyond its end nothing was ever seen."""
    times = learned(100_000.0)
    assert times.quantile_seconds(0.0) == pytest.approx(0.1 * 2.0**17)
    assert times.quantile_seconds(1.0) == pytest.approx(0.1 * 2.0**17.5)
    assert times.chance_of_return(20_000.0, 100_000.0) == 0.0


def test_quantiles_of_many_samples_are_near_the_true_ones() -> None:
    """Samples at every hundredth of an octave from 1 s to 16 s give the quantiles to 2 %."""
    times = ToolTimes()
    for step in range(400):
        times.learn(2.0 ** (step / 100))
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert times.quantile_seconds(share) == pytest.approx(2.0 ** (4.0 * share), rel=0.02)


def test_tool_that_outlived_the_short_ones_is_taken_for_a_long_one() -> None:
    """Nine tools of 1 s and one of 100 s: after 10 s only the long one can still run."""
    times = learned(*[1.0] * 9, 100.0)
    assert times.chance_of_return(0.0, 10.0) == pytest.approx(0.9)
    assert times.chance_of_return(10.0, 50.0) == 0.0
    assert times.chance_of_return(10.0, 150.0) == 1.0
    assert times.remaining_seconds(0.0) == pytest.approx(1.0, rel=0.1)
    assert times.remaining_seconds(10.0) == pytest.approx(97.6 - 10.0, rel=0.2)


def test_tool_within_a_bucket_counts_as_spread_over_it() -> None:
    """Half-way through the only bucket, by the logarithm, half are left; half of these end in the next quarter."""
    times = learned(*[1.0] * 8)
    low = times.quantile_seconds(0.0)
    assert low is not None
    idle_seconds, quarter_seconds = low * HALF_OCTAVE**0.5, low * HALF_OCTAVE**0.75
    assert times.chance_of_return(0.0, idle_seconds) == pytest.approx(0.5)
    assert times.chance_of_return(idle_seconds, quarter_seconds - idle_seconds) == pytest.approx(0.5)
    assert times.remaining_seconds(idle_seconds) == pytest.approx(quarter_seconds - idle_seconds)


def test_tool_longer_than_all_seen_will_not_return_and_runs_as_long_again() -> None:
    """Beyond the samples the chance is 0, and what is left is taken for what has passed."""
    times = learned(1.0, 2.0, 3.0)
    assert times.chance_of_return(60.0, 3600.0) == 0.0
    assert times.remaining_seconds(60.0) == 60.0


def test_count_that_would_overflow_halves_all() -> None:
    """255 samples of one bucket and 100 of another become 127 and 50, then the new one counts."""
    times = learned(*[1.0] * 255, *[100.0] * 100)
    assert times.count == 355
    times.learn(1.0)
    assert times.count == 128 + 50
    assert times.chance_of_return(0.0, 10.0) == pytest.approx(128 / 178)


def test_thin_tail_survives_halving() -> None:
    """Eight single samples an octave apart stay four, not none."""
    times = learned(*[0.5] * 255, *(10.0 * 2.0**octave for octave in range(8)))
    times.learn(0.5)
    chance = times.chance_of_return(5.0, 10_000.0)
    assert (times.count, chance) == (128 + 4, 1.0)


def test_change_of_behaviour_is_followed() -> None:
    """After 2,000 tools of 1 s, 1,000 of 60 s make up most of what is remembered."""
    times = learned(*[1.0] * 2000, *[60.0] * 1000)
    median = times.quantile_seconds(0.5)
    assert median == pytest.approx(60.0, rel=0.2)
    assert times.count <= 2 * 255


def test_program_with_dozens_of_samples_takes_under_200_bytes() -> None:
    """By the sizes of its parts and by what the allocator gave; the 51st sample adds nothing."""
    chance = random.Random(0)
    samples = [chance.lognormvariate(1.0, 2.0) for _ in range(50)]
    crowd = 200
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        programs = [learned(*samples) for _ in range(crowd)]
        bytes_each = (tracemalloc.get_traced_memory()[0] - before - sys.getsizeof(programs)) / crowd
    finally:
        tracemalloc.stop()
    parts = sys.getsizeof(programs[0]) + sys.getsizeof(programs[0]._counts)
    programs[0].learn(1.0)
    assert parts == sys.getsizeof(programs[0]) + sys.getsizeof(programs[0]._counts)
    assert not hasattr(programs[0], "__dict__")
    assert max(parts, bytes_each) < 200


def test_program_without_tools_takes_no_histogram() -> None:
    """Before the first sample there are no counts."""
    assert sys.getsizeof(ToolTimes()) < 80
    assert ToolTimes()._counts is None


@given(
    st.lists(SECONDS, min_size=1, max_size=400), st.lists(st.floats(0.0, 1.0), min_size=2), SECONDS, SECONDS, SECONDS
)
def test_any_samples_give_ordered_quantiles_and_proper_chances(
    samples: list[float], shares: list[float], idle_seconds: float, some_seconds: float, more_seconds: float
) -> None:
    """Quantiles grow with the share and chances with the time given; beyond all samples stands the Lindy rule."""
    times = learned(*samples)
    quantiles = [times.quantile_seconds(share) for share in sorted(shares)]
    assert all(low is not None and high is not None and low <= high for low, high in pairwise(quantiles))
    sooner = times.chance_of_return(idle_seconds, some_seconds)
    later = times.chance_of_return(idle_seconds, some_seconds + more_seconds)
    assert sooner is not None
    assert later is not None
    assert 0.0 <= sooner <= later <= 1.0
    assert times.chance_of_return(idle_seconds, 0.0) == 0.0
    remaining_seconds = times.remaining_seconds(idle_seconds)
    assert remaining_seconds is not None
    assert remaining_seconds >= 0.0
    if times.chance_of_return(idle_seconds, inf) == 0.0:
        assert remaining_seconds == idle_seconds
    assert 0 < times.count <= len(samples)
