"""How many tokens a body is taken for: by the branch's own history, else by the ratio of all."""

from __future__ import annotations

import pytest
from core_policies import Scripted

from thunderagent.core.estimate import History, Ratio, is_credible
from thunderagent.core.usage import Outcome, Usage
from thunderagent.testing.scheduler_driver import SchedulerDriver


@pytest.fixture
def driver() -> SchedulerDriver:
    """One backend of 10,000 tokens, everything forwarded."""
    driver = SchedulerDriver(Scripted())
    driver.add("A", 10_000)
    return driver


def prompt_tokens(driver: SchedulerDriver, turn: int) -> int:
    """The estimate of a turn."""
    return driver.cluster.turn_by_id[turn].prompt_tokens


def test_first_turn_is_estimated_by_the_initial_ratio(driver: SchedulerDriver) -> None:
    """Before any sample a token is taken for four bytes."""
    assert prompt_tokens(driver, driver.arrive("p", 100)) == 100


def test_empty_body_counts_one_token(driver: SchedulerDriver) -> None:
    """No turn is free of charge."""
    assert prompt_tokens(driver, driver.arrive("p", 0)) == 1


def test_first_sample_replaces_the_ratio_and_later_ones_move_it() -> None:
    """400 bytes in 200 tokens make 2 bytes a token; then a sample of 4 weighs a fifth."""
    ratio = Ratio()
    ratio.learn(400, 200)
    assert (ratio.bytes_per_token, ratio.tokens(400)) == (2.0, 200)
    ratio.learn(400, 100)
    assert ratio.bytes_per_token == pytest.approx(2.4)
    ratio.learn(0, 100)
    ratio.learn(400, 0)
    assert (ratio.bytes_per_token, ratio.samples) == (pytest.approx(2.4), 2)


def test_other_programs_turn_is_estimated_by_the_learned_ratio(driver: SchedulerDriver) -> None:
    """What one program teaches holds for a new one."""
    driver.finish(driver.arrive("p", 100), 200)
    assert prompt_tokens(driver, driver.arrive("q", 100)) == 200


def test_next_turn_of_a_branch_is_history_plus_new_bytes(driver: SchedulerDriver) -> None:
    """Exact tokens of the former prompt, and the new bytes at this branch's own ratio."""
    driver.finish(driver.arrive("p", 100), 200, 50)
    driver.finish(driver.arrive("q", 100), 100)
    turn = driver.arrive("p", 150)
    assert prompt_tokens(driver, turn) == 200 + 100
    assert driver.program("p").own_tokens == 300


def test_compacted_history_is_estimated_afresh_and_settles_at_its_end(driver: SchedulerDriver) -> None:
    """A shorter body is taken at the branch's ratio; what was kept counts until the engine has spoken."""
    driver.finish(driver.arrive("p", 1000), 500, 100)
    turn = driver.arrive("p", 200)
    assert prompt_tokens(driver, turn) == 100
    assert driver.accounted() == {"A": 600}
    driver.finish(turn, 90, 10)
    assert driver.accounted() == {"A": 100}


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [(0, 0), (0, 40), (-5, 3), (10, -1), (10**9, 0), (9_000, 1_001)],
)
def test_absurd_usage_is_taken_for_none(driver: SchedulerDriver, prompt: int, completion: int) -> None:
    """A prompt of nothing, or more than the whole cache, teaches nothing: the estimate stands in."""
    driver.finish(driver.arrive("p", 100), prompt, completion, output_tokens=7)
    assert driver.accounted() == {"A": 107}
    assert driver.cluster.ledger.ratio.samples == 0
    assert prompt_tokens(driver, driver.arrive("p", 100)) == 100


@pytest.mark.parametrize(
    ("usage", "capacity_tokens", "is_true"),
    [
        (Usage(1, 0, None), None, True),
        (Usage(900, 100, None), 1_000, True),
        (Usage(900, 101, None), 1_000, False),
        (Usage(10**12, 0, None), None, True),
        (Usage(0, 1, None), None, False),
        (Usage(1, -1, None), None, False),
    ],
)
def test_usage_is_credible_within_the_cache(usage: Usage, capacity_tokens: int | None, is_true: bool) -> None:
    """Where the capacity is unknown any positive figure is."""
    assert is_credible(usage, capacity_tokens) is is_true


def test_usage_without_prompt_leaves_the_history() -> None:
    """A usage that says nothing of the prompt does not make the ratio infinite."""
    history = History()
    history.learn(400, Usage(0, 9, None))
    assert history.prompt_tokens_of(400, Ratio()) == 100


@pytest.mark.parametrize(
    ("outcome", "kept_tokens"),
    [
        (Outcome.COMPLETED, 330),
        (Outcome.CLIENT_GONE, 330),
        (Outcome.BACKEND_ERROR, 250),
        (Outcome.BACKEND_REJECTED, 250),
        (Outcome.SHUTDOWN, 250),
    ],
)
def test_turn_without_usage_leaves_what_its_outcome_says(
    driver: SchedulerDriver, outcome: Outcome, kept_tokens: int
) -> None:
    """An answer, whole or broken off, leaves prompt and output; an error leaves the former history."""
    driver.finish(driver.arrive("p", 100), 100, 150)
    turn = driver.arrive("p", 300)
    driver.finish(turn, outcome=outcome, output_tokens=30)
    assert driver.program("p").kept_tokens == kept_tokens
    assert driver.accounted() == {"A": kept_tokens}


def test_client_that_leaves_early_does_not_shrink_the_history(driver: SchedulerDriver) -> None:
    """An abandoned turn shorter than what is kept (a compaction that was not to be) changes nothing."""
    driver.finish(driver.arrive("p", 1000), 1000, 0)
    driver.abandon(driver.arrive("p", 100))
    assert driver.accounted() == {"A": 1000}


def test_body_with_an_image_says_nothing_of_others() -> None:
    """Hundreds of bytes per token would make every text prompt look empty."""
    ratio = Ratio()
    ratio.learn(4_000, 1_000)
    ratio.learn(4_000_000, 1_500)
    assert (ratio.bytes_per_token, ratio.samples) == (4.0, 1)
