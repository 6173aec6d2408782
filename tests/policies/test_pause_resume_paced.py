"""``pause-resume`` with ``pace_prefills``: who waits is let in when the prompts of those before are computed."""

from __future__ import annotations

import pytest
from pause_resume_cases import SYSTEM_PROMPT, A, B, act, driver_of, paused, resize

from policies.pause_resume import PauseResume
from thunderagent.core.events import BackendFailed, BackendObserved, BackendRecovered, Prefix, TurnProgressed
from thunderagent.core.settings import SchedulerSettings
from thunderagent.core.usage import Prefills
from thunderagent.policy import OnHoldLimit, OptionError, PrefixKey
from thunderagent.testing import SchedulerDriver
from thunderagent.testing.scheduler_driver import BYTES_PER_TOKEN

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
    """Each when the prompt before it is probably computed: after 3.5 s here, with no tick or event to wait for."""
    driver, waiting = three_wait()
    running: list[float] = []
    began_at = driver.now
    for _ in range(12):
        running.append(sum(turn in driver.running for turn in waiting))
        driver.advance(1.0)
    assert running[:4] == [1, 1, 1, 1]
    assert (running.index(2), running.index(3)) == (4, 7)
    assert driver.now == pytest.approx(began_at + 12.0)
    driver.close()


def test_who_waits_for_a_prompt_is_woken_for_it() -> None:
    """The scheduler's deadline is when it is computed, and is over then."""
    driver, waiting = three_wait(tick_seconds="1000")
    began_at = driver.now
    for number, turn in enumerate(waiting):
        assert turn in driver.running
        woken_at = driver.scheduler.next_deadline()
        assert woken_at is not None
        if number < 2:
            assert woken_at == pytest.approx(began_at + 3.5 * (number + 1), abs=0.01)
            driver.advance(woken_at - driver.now)
    assert woken_at > driver.now + 100.0
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
    driver.arrive("two", 5_000, after=1.0)
    assert left_seconds(driver) == pytest.approx(5.0)
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
    assert left._prompts.keys() == {A, B}
    driver.advance(6.5)
    assert left._prompts.keys() == {B}
    driver.send(BackendFailed(B, "it does not answer"))
    driver.advance(1.5)
    assert not left._prompts
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


def test_turn_that_is_over_keeps_nobody_waiting() -> None:
    """However long its prompt was thought to take: a cold engine's first answer came late, and that is all that is
    known of it when many come at once."""
    driver = driver_of(200_000, pace_prefills="true")
    cold = driver.arrive("cold", 1_100)
    driver.finish(cold, 1_100, 1, cached=0, first_token_seconds=20.0, after=20.0)
    turns = [driver.arrive(f"early {number}", 45_000) for number in range(4)]
    waits = driver.arrive("late", 45_000)
    assert left_seconds(driver) > 600.0
    for number, turn in enumerate(turns):
        driver.finish(turn, after=5.0)
        driver.release(f"early {number}")
    driver.advance(1.0)
    assert waits in driver.running
    driver.close()


def test_failed_and_abandoned_turns_leave_no_backlog() -> None:
    """Nor do they where they were sent first."""
    driver = paced(200_000, 200_000)
    turn = driver.arrive("retried", 80_000)
    first = driver.where[turn]
    driver.fail(turn, after=0.1)
    second = driver.where[turn]
    assert first != second
    assert (left_seconds(driver, first), left_seconds(driver, second)) == (0.0, pytest.approx(80.0))
    driver.abandon(turn, after=0.1)
    assert left_seconds(driver, second) == 0.0
    driver.close()


def test_backend_that_comes_back_has_no_backlog() -> None:
    """Whether it failed, or another one came under its name."""
    driver = paced(200_000)
    driver.arrive("lost", 150_000)
    driver.send(BackendFailed(A, "it does not answer"))
    driver.send(BackendRecovered(A), 1.0)
    assert left_seconds(driver) == 0.0
    driver.close()


def test_first_token_says_that_the_prompt_is_computed() -> None:
    """And those before it: who waits is let in at once, though 100 s were thought to be left."""
    driver = paced(200_000)
    runs = driver.arrive("runs", 190_000)
    driver.advance(200.0)
    turns = [driver.arrive(name, 60_000) for name in ("early", "late")]
    driver.finish(runs)
    driver.release("runs")
    assert turns[0] in driver.running
    driver.send(TurnProgressed(turns[0], 1), after=5.0)
    assert turns[1] in driver.running
    assert left_seconds(driver) == pytest.approx(60.0)
    driver.close()


def test_answer_of_the_last_says_that_all_are_computed() -> None:
    """A whole answer as well, of which nothing is told before its end."""
    driver = paced(200_000)
    driver.arrive("long", 100_000)
    short = driver.arrive("short", 20_000)
    driver.finish(short, 20_000, 50, after=30.0)
    assert left_seconds(driver) == 0.0
    driver.close()


def test_answer_of_an_earlier_one_leaves_those_behind_it() -> None:
    """The next one's prompt is begun then."""
    driver = paced(200_000)
    long = driver.arrive("long", 100_000)
    driver.arrive("short", 20_000)
    driver.send(TurnProgressed(long, 1), after=5.0)
    assert left_seconds(driver) == pytest.approx(20.0)
    driver.advance(5.0)
    assert left_seconds(driver) == pytest.approx(15.0)
    driver.close()


def test_answer_of_another_backend_says_nothing_of_this_one() -> None:
    """The turn was sent here first, behind a long prompt."""
    driver = paced(200_000, 200_000)
    long, on_b = driver.arrive("long", 150_000), driver.arrive("on b", 151_000)
    short = driver.arrive("short", 20_000)
    assert [driver.where[turn] for turn in (long, on_b, short)] == [A, B, A]
    driver.fail(short, after=1.0)
    assert driver.where[short] == B
    driver.send(TurnProgressed(short, 1), after=1.0)
    assert (left_seconds(driver), left_seconds(driver, "B")) == (pytest.approx(148.0), 0.0)
    driver.close()


def test_all_held_turns_of_a_program_are_counted() -> None:
    """They are let in together."""
    driver = paced(1_000_000)
    runs = driver.arrive("runs", 990_000)
    driver.advance(1_000.0)
    sub_agents = [driver.arrive("many", 10_000, branch=f"sub-agent {number}") for number in range(5)]
    driver.finish(runs)
    driver.release("runs")
    assert all(turn in driver.running for turn in sub_agents)
    assert left_seconds(driver) == pytest.approx(50.0)
    driver.close()


def test_newcomers_do_not_wait_where_nobody_waits_for_a_prompt() -> None:
    """Though somebody does for another backend's."""
    driver = SchedulerDriver(PauseResume.from_options({"growth_reserve": "0", "pace_prefills": "true"}))
    driver.add("A", 200_000, ["m"])
    driver.add("B", 1_000_000, ["n"])
    for backend in (A, B):
        driver.send(BackendObserved(backend, prefills=Prefills(1, 10 * RATE, 10.0)))
    runs = driver.arrive("runs", 190_000, model="m")
    driver.advance(200.0)
    waiting = [driver.arrive(name, 60_000, model="m") for name in ("one", "two")]
    driver.finish(runs)
    driver.release("runs")
    assert (waiting[0] in driver.running, waiting[1] in driver.held) == (True, True)
    newcomers = [driver.arrive(name, 50_000, model="n") for name in ("three", "four")]
    assert all(turn in driver.running for turn in newcomers)
    driver.close()


def test_prompt_that_is_computed_is_not_waited_for_again() -> None:
    """Though another turn of its program runs then, or its next one."""
    driver = paced(20_000)
    first = driver.arrive("one", 10_000)
    sub_agent = driver.arrive("one", 100, branch="sub")
    driver.finish(first, after=0.5)
    assert left_seconds(driver) == 0.0
    driver.finish(sub_agent)
    driver.arrive("one", 10_100, after=0.1)
    assert left_seconds(driver) == 0.0
    driver.close()


def test_prompts_before_one_that_was_given_up_are_waited_for() -> None:
    """It was never answered, so it says nothing of them."""
    driver = paced(200_000)
    driver.arrive("long", 100_000)
    given_up = driver.arrive("short", 20_000)
    assert left_seconds(driver) == pytest.approx(120.0)
    driver.abandon(given_up, after=1.0)
    assert left_seconds(driver) == pytest.approx(99.0)
    driver.arrive("next", 10_000)
    assert left_seconds(driver) == pytest.approx(109.0)
    driver.close()


def test_cache_of_another_size_takes_no_longer_to_compute() -> None:
    """What is left is tokens, and the rate is one of tokens."""
    driver = paced(20_000)
    driver.arrive("one", 10_000)
    resize(driver, 40_000)
    assert left_seconds(driver) == pytest.approx(10.0)
    driver.close()


@pytest.mark.parametrize("limit", [OnHoldLimit.HEAD, OnHoldLimit.FORCE])
def test_who_is_let_in_at_the_hold_limit_is_waited_for(limit: OnHoldLimit) -> None:
    """The scheduler did that, and the prompt is to be computed all the same."""
    driver = driver_of(
        40_000, settings=SchedulerSettings(max_hold_seconds=20.0, on_hold_limit=limit), pace_prefills="true"
    )
    driver.send(BackendObserved(A, prefills=Prefills(1, 10 * RATE, 10.0)))
    runs = driver.arrive("runs", 35_000)
    driver.advance(40.0)
    first = driver.arrive("first", 30_000)
    driver.advance(20.5)
    driver.finish(runs)
    driver.release("runs")
    assert first in driver.running
    assert left_seconds(driver) == pytest.approx(30.0, abs=0.6)
    second = driver.arrive("second", 2_000, after=1.0)
    third = driver.arrive(None, 2_000)
    assert (second in driver.running, third in driver.running) == (True, True)
    driver.close()


@pytest.mark.parametrize("react", ["true", "false"])
@pytest.mark.parametrize("is_one_off", [False, True], ids=["another model", "one-off turns"])
def test_newcomers_starve_nobody_who_waits_in_another_line(is_one_off: bool, react: str) -> None:
    """They come as fast as their prompts are computed: each would find no line of its own, and be waited for."""
    driver = paced(1_000_000, react=react)
    runs = driver.arrive("runs", 900_000, model="m")
    driver.advance(1_000.0)
    waits = driver.arrive(None if is_one_off else "waits", 210_000, model="m")
    driver.arrive("first", 3_000, model="m" if is_one_off else "n")
    driver.finish(runs)
    driver.release("runs")
    assert waits in driver.held
    for number in range(30):
        if waits in driver.held:
            driver.arrive(f"newcomer {number}", 1_100, model="m" if is_one_off else "n")
        driver.advance(1.0)
    assert waits in driver.running
    driver.close()


def test_chats_keep_no_program_waiting() -> None:
    """They come each second, with a beginning that is cached: nobody can tell how little there is to compute."""
    driver = paced(100_000, guest_ratio="0.2")
    runs = driver.arrive("runs", 90_000)
    driver.advance(100.0)
    waits, chats = driver.arrive("waits", 50_000), []
    for _ in range(20):
        chats.append(driver.arrive(None, 1_100, prefixes=[SYSTEM_PROMPT], after=1.0))
        if len(chats) > 2:
            driver.finish(chats.pop(0))
    driver.finish(runs)
    driver.release("runs")
    assert waits in driver.running
    driver.close()


def test_shared_beginning_is_computed_once() -> None:
    """Best of 8: a task of 30,000 tokens, and 500 of each one's own."""
    task = Prefix(PrefixKey("task"), 30_000 * BYTES_PER_TOKEN)
    driver = paced(60_000)
    runs = driver.arrive("runs", 55_000)
    driver.advance(60.0)
    group = [driver.arrive(f"rollout {number}", 30_500, prefixes=[task]) for number in range(8)]
    driver.release("runs")
    driver.finish(runs)
    driver.advance(30.5 + 8 * 1.0 + 1.0)
    assert all(turn in driver.running for turn in group)
    driver.close()


def test_newcomer_goes_where_the_head_of_the_line_does_not() -> None:
    """At once: that one waits for a prompt elsewhere."""
    driver = paced(40_000, 6_000)
    on_a, on_b = driver.arrive("a", 20_000), driver.arrive("b", 5_500)
    driver.arrive("c", 19_000)
    driver.advance(10.0)
    head = driver.arrive("head", 15_000)
    driver.finish(on_a)
    driver.release("a")
    assert head in driver.held
    driver.finish(on_b)
    driver.release("b")
    newcomer = driver.arrive("newcomer", 3_000, after=0.1)
    assert (driver.where.get(newcomer), head in driver.held) == (B, True)
    driver.close()


def test_nobody_is_paused_for_who_would_wait_for_a_prompt() -> None:
    """The idle program keeps its place until that is computed."""
    driver = paced(20_000, idle_lease_seconds="5")
    act(driver, ("idle", 9_000))
    driver.advance(15.0)
    driver.arrive("large", 8_000)
    waits = driver.arrive("waits", 9_000, after=1.0)
    driver.advance(1.5)
    assert (paused(driver), waits in driver.held) == ([], True)
    driver.advance(7.0)
    assert (paused(driver), waits in driver.running) == (["idle"], True)
    driver.close()


def test_who_waits_for_a_prompt_stops_no_rotation_elsewhere() -> None:
    """B's program had its quantum, and somebody could use B: the first in line, as there is no prompt to compute."""
    driver = paced(40_000, 25_000, quantum_turns="1")
    on_a, on_b = driver.arrive("a", 20_000), driver.arrive("b", 20_000)
    driver.arrive("long", 15_000)
    first, second = driver.arrive("first", 10_000), driver.arrive("second", 18_000)
    driver.release("a")
    driver.finish(on_a)
    assert (first in driver.held, second in driver.held) == (True, True)
    driver.advance(3.0)
    driver.finish(on_b)
    assert (paused(driver), driver.where.get(first)) == (["b"], B)
    driver.close()


def test_large_one_off_turns_wait_for_prompts_of_programs() -> None:
    """As programs do. How long their own take is not known: they end without a word of it."""
    driver = paced(40_000)
    runs, large = driver.arrive("runs", 20_000), driver.arrive("large", 19_000)
    turn = driver.arrive(None, 12_000)
    driver.finish(runs, after=1.0)
    driver.release("runs")
    assert turn in driver.held
    driver.advance(38.5)
    assert turn in driver.running
    driver.finish(large)
    driver.close()


def test_published_order_refuses_it() -> None:
    """It lets in by score, on ticks."""
    with pytest.raises(OptionError, match="option pace_prefills=true does nothing with resume_order=published"):
        PauseResume.from_options({"preset": "paper", "pace_prefills": "true"})
