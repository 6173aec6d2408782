"""The answers, on a handful of turns that can be counted by hand."""

from __future__ import annotations

import pytest
from simulations import PLAIN, arrival, simulate, talk

from thunderagent.simulator.counting import figures_of
from thunderagent.simulator.figures import Figures, Quantiles, jain_index, quantile
from thunderagent.simulator.programs import Arrival, Conversation, Program, Shared, TurnPlan
from thunderagent.simulator.records import Balance
from thunderagent.simulator.study import estimate, paired_ratio


def figures(*arrivals: Arrival, warmup_seconds: float = 0.0, **options: object) -> Figures:
    _, records = simulate(arrivals, warmup_seconds=warmup_seconds, **options)
    return figures_of(
        records,
        PLAIN,
        kv_tokens=int(str(options.get("kv_tokens", 16_000))),
        warmup_seconds=warmup_seconds,
        target_seconds=0.5,
    )


def test_turns_of_one_program() -> None:
    """Two turns: 1,000 + 10 tokens in 1.1 s, a tool of 2 s, then 90 more with 1,008 found and 5 answered."""
    found = figures(arrival(talk((1000, 10, 2.0), (90, 5, 0.0))))
    seconds = 1.1 + 2.0 + 0.142
    assert found.turns == 2
    assert found.window_seconds == pytest.approx(seconds)
    assert found.turns_per_minute == pytest.approx(120 / seconds)
    assert found.output_tokens_per_second == pytest.approx(15 / seconds)
    assert found.hit_rate == pytest.approx(1008 / 2100)
    assert found.recomputed_tokens == 0
    assert found.first_token_seconds.most == pytest.approx(1.01)
    assert found.turn_seconds.p50 == pytest.approx(0.142)
    assert (found.holds, found.open_holds, found.pauses, found.moves) == (0, 0, 0, 0)
    assert (found.turns_within_target, found.programs_within_target) == (0.5, 0.0)
    assert found.engine_busy_share == pytest.approx((1.1 + 0.142) / seconds)
    assert found.makespan_seconds == found.mean_program_seconds == pytest.approx(seconds)
    assert found.progress == pytest.approx(1.0, abs=0.01), "alone on the engine it has its own pace"


def test_engine_that_never_rests_comes_near_the_bound() -> None:
    """As many answers at a time as the cache holds; nothing over it, whatever is shared."""
    for kv_tokens, shared in ((16_000, 0), (4_000, 0), (20_000, 3_000)):
        parts = (Shared("system", shared),) if shared else ()
        many = [arrival(*[talk((16, 900, 0.0), shared=parts)] * 5, session=number) for number in range(16)]
        found = figures(*many, kv_tokens=kv_tokens)
        assert found.turns == 80
        assert found.engine_busy_share > 0.99
        assert 0.3 < found.bound_share <= 1.0


def test_bound_holds_with_sub_agents_and_open_tools() -> None:
    """Parallel conversations and a tool that lasts beyond the end give nobody more than its own pace."""
    child = talk((16, 500, 0.0))
    plan = Conversation((TurnPlan(16, 1, 0.0, sub_agents=(child, child, child)), TurnPlan(16, 10, 1000.0)))
    found = figures(arrival(plan, talk((5, 5, 0.0))), horizon_seconds=100.0)
    assert found.turns == 5
    assert 0.5 < found.progress <= 1.0
    assert found.bound_share <= 1.0


def test_open_turns_count() -> None:
    """One runs, of which the hold is known; one is held; neither has ended."""
    first = arrival(talk((9000, 10, 0.0)))
    second = arrival(talk((9000, 5000, 0.0)), at=1.0, session=1)
    third = arrival(talk((9000, 10, 0.0)), at=2.0, session=2)
    found = figures(first, second, third, policy="pause-resume", horizon_seconds=40.0)
    assert found.turns == 1
    assert (found.holds, found.open_holds) == (2, 1)
    assert found.hold_seconds.most == found.longest_hold_p95_seconds == pytest.approx(38.0)
    assert found.turns_within_target == 0.0
    assert (found.programs_open, found.makespan_seconds) == (2, None)


def test_what_happened_in_the_warm_up_is_not_counted() -> None:
    """Pauses, busy time and the like as little as turns."""
    turns = ((5000, 10, 1.0), (4000, 10, 1.0), (4000, 10, 1.0))
    arrivals = [arrival(talk(*turns), session=number) for number in range(3)]
    whole = figures(*arrivals, policy="pause-resume")
    arrivals = [arrival(talk(*turns), session=number) for number in range(3)]
    late = figures(*arrivals, policy="pause-resume", warmup_seconds=whole.window_seconds - 0.5)
    assert whole.pauses > 0
    assert late.pauses == 0
    assert late.engine_busy_share <= 1.0


def test_warm_up_is_left_out() -> None:
    """A turn that ended before does not count, nor do its seconds."""
    found = figures(arrival(talk((1000, 10, 2.0), (90, 5, 0.0))), warmup_seconds=3.0)
    assert (found.turns, found.programs_ended) == (1, 1)
    assert found.window_seconds == pytest.approx(0.242)


def test_history_that_was_evicted_is_recomputed() -> None:
    """Two programs of 9,000 alternate on 16,000 tokens without admission: a part of each history
    goes, and is computed again."""
    turns = ((9000, 10, 20.0), (10, 10, 0.0))
    found = figures(arrival(talk(*turns)), arrival(talk(*turns), at=10.0, session=1))
    assert found.recomputed_tokens > 4000
    assert found.evicted_blocks > 250


def test_holds_and_fairness() -> None:
    """The one that waits makes less progress."""
    turns = ((9000, 10, 1.0), (10, 10, 1.0))
    found = figures(arrival(talk(*turns)), arrival(talk(*turns), at=0.5, session=1), policy="pause-resume")
    assert found.holds == 1
    assert found.hold_seconds.most == found.longest_hold_p95_seconds > 10.0
    assert found.idle_kv_share < 0.6
    assert found.jain_of_progress < 1.0


def test_groups_are_done_with_their_last_program() -> None:
    """The later of two."""
    short, long = Program(talk((16, 100, 0.0)), group="g"), Program(talk((16, 200, 0.0)), group="g")
    found = figures(arrival(short), arrival(long, session=1))
    assert found.group_seconds.most == found.makespan_seconds == pytest.approx(2.032, abs=0.02)


def test_nothing_happened() -> None:
    """Zeros, not errors."""
    found = figures()
    assert (found.turns, found.hit_rate, found.makespan_seconds, found.jain_of_progress) == (0, 0.0, None, 1.0)
    assert found.turn_seconds == Quantiles()


@pytest.mark.parametrize(
    ("values", "index"), [([], 1.0), ([0.0, 0.0], 1.0), ([3.0, 3.0, 3.0], 1.0), ([1.0, 0.0, 0.0, 0.0], 0.25)]
)
def test_jain_index(values: list[float], index: float) -> None:
    """1 where all are equal, 1/n where one has all."""
    assert jain_index(values) == pytest.approx(index)


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 2), (0.51, 3), (0.9, 4), (1.0, 4)])
def test_quantile_is_by_nearest_rank(share: float, value: int) -> None:
    """Of four."""
    assert quantile([1, 2, 3, 4], share) == value


def test_confidence_of_a_mean() -> None:
    """Three samples, t = 4.303; one has none."""
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.half_width) == (2.0, pytest.approx(4.303 / 3**0.5))
    assert estimate([5.0]).half_width is None
    assert str(estimate([5.0])) == "5.000"
    with pytest.raises(ValueError, match="no samples"):
        estimate([])


def test_ratio_is_taken_seed_by_seed() -> None:
    """What seeds have in common cancels."""
    found = paired_ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0])
    assert found is not None
    assert (found.mean, found.half_width) == (2.0, pytest.approx(0.0))
    assert paired_ratio([1.0], [0.0]) is None


def test_spread_is_that_of_means_while_somebody_waits_all_the_time() -> None:
    """Spans of 600 s: in the first one somebody waits for half of it only, and in the second the samples differ."""
    balance = Balance()
    for at in range(0, 300, 5):
        balance.sample(at, 5.0, [9_000, 0])
    for at in range(600, 1_200, 5):
        balance.sample(at, 5.0, [4_000, 1_000] if at < 900 else [2_000, 1_000])
    assert balance.spreads(0.0) == [2_000.0]
    assert balance.spreads(601.0) == []
