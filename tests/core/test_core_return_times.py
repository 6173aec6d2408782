"""How long idle conversations are worth their room, by when others came back and whether they did."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thunderagent.core.events import BackendObserved
from thunderagent.core.ids import BackendId
from thunderagent.core.return_times import ReturnTimes
from thunderagent.core.usage import Prefills
from thunderagent.policy import BackendView, ClusterView, Policy, TurnView
from thunderagent.testing.scheduler_driver import SchedulerDriver

REFILL = 30.0


def times(*, back: list[float], gone: list[float] | None = None) -> ReturnTimes:
    """Spells that ended with a turn, and spells that lasted so long without one."""
    found = ReturnTimes()
    for seconds in back:
        found.learn(seconds, 0.0, is_return=True)
    for seconds in gone or ():
        found.learn(seconds, 0.0, is_return=False)
    return found


def test_little_known_is_kept_for_the_time_to_refill() -> None:
    """Fifteen spells say nothing yet: that costs twice the best at most."""
    assert times(back=[]).keep_seconds(REFILL) == REFILL
    assert times(back=[1.0] * 15).keep_seconds(REFILL) == REFILL


def test_those_who_come_back_soon_are_kept_until_they_do() -> None:
    """All are back after 3 s: kept until the end of that bucket, and not for the sake of nobody after it."""
    assert 3.0 <= times(back=[1.0, 3.0] * 20).keep_seconds(REFILL) <= 6.0


def test_those_who_take_longer_than_a_refill_are_not_kept() -> None:
    """All come back after 400 s, where keeping them costs 13 prefills."""
    assert times(back=[400.0] * 40).keep_seconds(REFILL) == 0.0


def test_a_larger_cache_keeps_longer() -> None:
    """Half take 100 s: not worth a refill of 10 s, well worth one of 1,000 s."""
    mixed = times(back=[1.0, 100.0] * 20)
    assert mixed.keep_seconds(10.0) < 10.0
    assert mixed.keep_seconds(1000.0) >= 100.0


def test_those_who_never_come_back_shorten_what_is_kept() -> None:
    """One in ten takes 20 s; beside as many who are gone for ever that is not worth the wait any more."""
    back = [1.0] * 36 + [20.0] * 4
    alone = times(back=back).keep_seconds(REFILL)
    beside = times(back=back, gone=[600.0] * 40).keep_seconds(REFILL)
    assert alone >= 20.0
    assert 1.0 <= beside < 10.0


def test_spell_that_is_told_in_parts_counts_once() -> None:
    """Given up after 5 s, back after 50 s: as one that was told at its end."""
    parts, whole = times(back=[1.0] * 20), times(back=[1.0] * 20)
    for _ in range(20):
        parts.learn(5.0, 0.0, is_return=False)
        parts.learn(50.0, 5.0, is_return=True)
        whole.learn(50.0, 0.0, is_return=True)
    assert (parts._lasted, parts._returned) == (whole._lasted, whole._returned)


def test_what_is_recent_weighs_more() -> None:
    """After thousands of short tools, some hundred long ones change what is kept."""
    found = times(back=[1.0] * 5_000)
    before = found.keep_seconds(1000.0)
    for _ in range(600):
        found.learn(100.0, 0.0, is_return=True)
    assert before < 5.0
    assert found.keep_seconds(1000.0) >= 100.0


@given(
    st.lists(st.floats(0.0, 1e6), max_size=60),
    st.lists(st.floats(0.0, 1e6), max_size=60),
    st.floats(1e-3, 1e6),
)
def test_no_edge_would_have_cost_less(back: list[float], gone: list[float], refill_seconds: float) -> None:
    """What is kept is a time, and no bucket had more ends than spells."""
    found = times(back=back, gone=gone)
    assert 0.0 <= found.keep_seconds(refill_seconds) < float("inf")
    assert all(ended <= lasted for ended, lasted in zip(found._returned, found._lasted, strict=True))


@pytest.mark.parametrize(("seconds", "counted"), [(-1.0, 0.0), (1.0, 2.0), (1.0, -1.0)])
def test_spells_that_cannot_be_are_refused(seconds: float, counted: float) -> None:
    with pytest.raises(ValueError, match="cannot have been counted"):
        ReturnTimes().learn(seconds, counted, is_return=True)


# In the scheduler


class Keeps(Policy):
    """Everything runs on the first backend; idle conversations count for 10 s."""

    name = "keeps"

    def admit(self, turn: TurnView, cluster: ClusterView) -> BackendView | None:  # type: ignore[override]
        return turn.eligible_backends[0].id  # type: ignore[return-value]

    def keep_seconds(self, backend: BackendView, cluster: ClusterView) -> float:
        return 10.0


def test_conversation_that_rests_for_longer_does_not_count_beside_others() -> None:
    """It counts again when it comes back."""
    driver = SchedulerDriver(Keeps())
    driver.add("A", 10_000)
    driver.finish(driver.arrive("p", 1_000), 1_000, 0)
    driver.finish(driver.arrive("p", 500, branch="sub"), 500, 0)
    driver.finish(driver.arrive("p", 1_000, after=9.0), 1_000, 0)
    assert driver.accounted() == {"A": 1_500}
    main = driver.arrive("p", 1_000, after=2.0)
    assert driver.accounted() == {"A": 1_000}
    driver.finish(driver.arrive("p", 600, branch="sub"), 600, 0)
    assert driver.accounted() == {"A": 1_600}
    driver.finish(main, 1_000, 0)
    driver.close()


def test_many_conversations_that_ended_do_not_hide_others() -> None:
    """Thirty sub-agents one after the other: none that rests for over 10 s counts."""
    driver = SchedulerDriver(Keeps())
    driver.add("A", 100_000)
    for number in range(30):
        driver.finish(driver.arrive("p", 500, branch=f"sub {number}", after=1.0), 500, 0)
    driver.finish(driver.arrive("p", 1_000, after=60.0), 1_000, 0)
    assert driver.accounted() == {"A": 1_000}
    driver.close()


def test_refill_is_known_once_a_streamed_prompt_was_computed() -> None:
    """10,000 tokens at 2,000 tokens/s; short prompts and answers without a first token say nothing."""
    driver = SchedulerDriver(Keeps())
    driver.add("A", 10_000)
    backend = driver.backend("A")
    driver.finish(driver.arrive("p", 1_000), 1_000, 0, cached=0, first_token_seconds=0.1)
    driver.finish(driver.arrive("q", 4_000), 4_000, 0, cached=0)
    assert backend.refill_seconds is None
    driver.finish(driver.arrive("r", 4_000), 4_000, 0, cached=0, first_token_seconds=2.0)
    assert backend.refill_seconds == pytest.approx(5.0)
    driver.finish(driver.arrive("s", 2_000), 2_000, 0, cached=0, first_token_seconds=10.0)
    assert backend.refill_seconds == pytest.approx(5.0 / 0.98)
    driver.close()


def observe(driver: SchedulerDriver, requests: int, computed_tokens: int, seconds: float) -> float | None:
    """What is known of the refill once the backend has counted this between two looks."""
    name = BackendId("A")
    driver.send(BackendObserved(name, prefills=Prefills(requests, computed_tokens, seconds)))
    return driver.backend("A").refill_seconds


def test_refill_is_learned_from_counters_where_no_turn_streams() -> None:
    """The most of late, as of streamed prompts; requests that had little to compute say nothing, nor do 0 seconds."""
    driver = SchedulerDriver(Keeps())
    driver.add("A", 10_000)
    assert observe(driver, 4, 4 * 1_023, 1.0) is None
    assert observe(driver, 1, 4_000, 0.0) is None
    assert observe(driver, 4, 8_000, 4.0) == pytest.approx(5.0)
    assert observe(driver, 1, 2_000, 10.0) == pytest.approx(5.0 / 0.98)
    assert observe(driver, 2, 8_000, 1.0) == pytest.approx(1.25)
    driver.close()


def test_streamed_prompt_goes_before_the_counters() -> None:
    """Whatever they said before it and say after it."""
    driver = SchedulerDriver(Keeps())
    driver.add("A", 10_000)
    assert observe(driver, 1, 8_000, 1.0) == pytest.approx(1.25)
    driver.finish(driver.arrive("p", 4_000), 4_000, 0, cached=0, first_token_seconds=2.0)
    assert driver.backend("A").refill_seconds == pytest.approx(5.0)
    assert observe(driver, 1, 8_000, 1.0) == pytest.approx(5.0)
    driver.close()


@pytest.mark.parametrize(
    ("before", "after", "between"),
    [
        ((2, 3_000, 1.5), (3, 5_000, 2.0), Prefills(1, 2_000, 0.5)),
        ((2, 3_000, 1.5), (2, 3_000, 1.5), None),
        ((2, 3_000, 1.5), (1, 5_000, 2.0), None),
        ((2, 3_000, 1.5), (3, 2_000, 2.0), None),
        ((2, 3_000, 1.5), (3, 5_000, 1.0), None),
    ],
    ids=["more", "nothing", "fewer requests", "fewer tokens", "less time"],
)
def test_counts_between_two_looks(
    before: tuple[int, int, float], after: tuple[int, int, float], between: Prefills | None
) -> None:
    """What fell is another process's."""
    assert Prefills(*after).since(Prefills(*before)) == between
