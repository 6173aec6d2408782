"""``pause-resume`` with ``pace_prefills``: who waits is let in when the prompts of those before are computed."""

from __future__ import annotations

import pytest
from pause_resume_cases import A, B, act, driver_of, paused, resize

from policies.pause_resume import PauseResume
from thunderagent.core.events import BackendFailed, BackendObserved
from thunderagent.core.usage import Prefills
from thunderagent.policy import OptionError
from thunderagent.testing import SchedulerDriver

RATE = 1_000
"""Prompt tokens per second that each backend says it computes."""


def paced(*capacities: int, **options: str) -> SchedulerDriver:
    """Backends whose prefill rate is known."""
    driver = driver_of(*capacities, **{"pace_prefills": "true", **options})
    for backend in driver.cluster.backends:
        driver.send(BackendObserved(backend.id, prefills=Prefills(1, 10 * RATE, 10.0)))
    return driver


def left_seconds(driver: SchedulerDriver, name: str = "A") -> float:
    """What the policy believes that the backend is still to compute."""
    policy = driver.policy
    assert isinstance(policy, PauseResume)
    return policy._places.backlogs.seconds(driver.backend(name), driver.now)


def three_wait(**options: str) -> tuple[SchedulerDriver, list[int]]:
    """A runs one turn that fills it; three programs of 4,000 tokens wait."""
    driver = paced(12_000, **options)
    runs = driver.arrive("runs", 11_000)
    waiting = [driver.arrive(name, 3_500, after=1.0) for name in ("one", "two", "three")]
    driver.advance(30.0)
    assert all(turn in driver.held for turn in waiting)
    driver.finish(runs)
    driver.release("runs")
    return driver, [int(turn) for turn in waiting]


def test_those_that_wait_are_let_in_one_after_the_other() -> None:
    """Each when the prompt before it is probably computed: 3.5 s here, and a tick later at most."""
    driver, waiting = three_wait()
    running: list[float] = []
    began_at = driver.now
    for _ in range(12):
        running.append(sum(turn in driver.running for turn in waiting))
        driver.advance(1.0)
    assert running[:4] == [1, 1, 1, 1]
    assert (running.index(2), running.index(3)) == (4, 8)
    assert driver.now == pytest.approx(began_at + 12.0)
    driver.close()


def test_without_pacing_all_are_let_in_at_once() -> None:
    """As far as there is room for them."""
    driver, waiting = three_wait(pace_prefills="false")
    assert all(turn in driver.running for turn in waiting)
    driver.close()


def test_nobody_waits_for_prompts_while_the_rate_is_unknown() -> None:
    """Nothing says how long they would take."""
    driver = driver_of(12_000, pace_prefills="true")
    runs = driver.arrive("runs", 11_000)
    waiting = [driver.arrive(name, 3_500) for name in ("one", "two", "three")]
    driver.finish(runs)
    driver.release("runs")
    assert all(turn in driver.running for turn in waiting)
    driver.close()


def test_newcomers_do_not_wait_where_nobody_does() -> None:
    """There is room, and no line: as without admission."""
    driver = paced(12_000)
    turns = [driver.arrive(name, 3_500) for name in ("one", "two", "three")]
    assert all(turn in driver.running for turn in turns)
    driver.close()


def test_what_is_still_cached_takes_no_time() -> None:
    """Who comes back to its prefix is there at once, others take their prompt's time one after the other."""
    driver = paced(12_000)
    act(driver, ("one", 3_500))
    driver.arrive("two", 5_000)
    assert left_seconds(driver) == pytest.approx(8.5)
    driver.advance(20.0)
    resize(driver, 6_000)
    resize(driver, 12_000)
    assert paused(driver) == ["one"]
    driver.arrive("one", 3_500)
    assert left_seconds(driver) == 0.0
    driver.close()


def test_programs_go_where_no_prompt_is_left_to_compute() -> None:
    """Though another backend has more room; what lies there is computed when it is cached no more."""
    driver = paced(20_000, 12_000)
    first, second = driver.arrive("first", 6_000), driver.arrive("second", 6_000)
    assert [driver.where[turn] for turn in (first, second)] == [A, B]
    driver.close()


def test_one_off_turns_go_where_the_least_is_left_to_compute() -> None:
    """They pass those that wait, so this is all that they wait for."""
    driver = paced(20_000, 12_000)
    driver.arrive("large", 8_000)
    chats = [driver.arrive(None, 500) for _ in range(3)]
    assert [driver.where[chat] for chat in chats] == [B, B, B]
    driver.close()


def test_who_waits_for_prompts_bars_others_there_only() -> None:
    """One waits for A's prompt, with room there; the next takes B, which has none to compute."""
    driver = paced(12_000, 6_000)
    on_a, on_b = driver.arrive("a", 11_500), driver.arrive("b", 5_500)
    driver.advance(60.0)
    waiting = [driver.arrive(name, tokens) for name, tokens in (("one", 6_500), ("two", 5_300), ("three", 5_000))]
    driver.finish(on_a)
    driver.release("a")
    assert [turn in driver.running for turn in waiting] == [True, False, False]
    driver.finish(on_b)
    driver.release("b")
    assert [driver.where.get(turn) for turn in waiting] == [A, B, None]
    driver.close()


def test_nothing_is_kept_of_what_is_over() -> None:
    """Prompts that are computed, and backends that are gone."""
    driver = paced(12_000, 12_000)
    turns = driver.arrive("one", 5_000), driver.arrive("two", 9_000)
    policy = driver.policy
    assert isinstance(policy, PauseResume)
    left = policy._places.backlogs
    assert left._left.keys() == {A, B}
    driver.advance(6.5)
    assert left._left.keys() == {B}
    driver.send(BackendFailed(B, "it does not answer"))
    driver.advance(1.5)
    assert not left._left
    for turn in turns:
        driver.finish(turn)
    driver.close()


def test_rate_that_is_learned_better_shortens_waits() -> None:
    """The first prompts came all at once and looked slow: nobody waits by that when it is known better."""
    driver = paced(12_000)
    driver.arrive("large", 10_000)
    assert left_seconds(driver) == pytest.approx(10.0)
    driver.send(BackendObserved(A, prefills=Prefills(1, 100 * RATE, 10.0)))
    assert left_seconds(driver) == pytest.approx(1.0)
    driver.close()


def test_backend_without_turns_has_nothing_to_compute() -> None:
    """Its turn failed, or ended sooner than was thought."""
    driver = paced(12_000)
    turn = driver.arrive("large", 10_000)
    driver.finish(turn, after=1.0)
    assert left_seconds(driver) == 0.0
    driver.close()


def test_published_order_refuses_it() -> None:
    """It lets in by score, on ticks."""
    with pytest.raises(OptionError, match="option pace_prefills=true does nothing with resume_order=published"):
        PauseResume.from_options({"preset": "paper", "pace_prefills": "true"})
