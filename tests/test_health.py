"""The rules by which a backend counts as failed: the daemon's and the simulator's."""

from __future__ import annotations

import pytest

from thunderagent.health import Health


def yes() -> bool:
    """Others can take over."""
    return True


def ejected(health: Health, now: float) -> None:
    """Five turns in a row fail."""
    assert [health.turn_failed(now, yes) for _ in range(5)] == [False] * 4 + [True]


def test_three_failed_looks_in_a_row_make_it_failed() -> None:
    """A good one between begins anew; a good one after makes it well."""
    health = Health()
    assert [health.look(is_well, 0.0) for is_well in (False, False, True, False, False)] == [False] * 5
    assert (health.is_failing, health.is_failed) == (True, False)
    assert health.look(False, 0.0)
    assert not health.look(False, 0.0)
    assert health.is_failed
    assert health.look(True, 0.0)
    assert (health.is_failing, health.is_failed) == (False, False)


def test_slow_look_says_nothing() -> None:
    """Neither that it fails nor that it is well again."""
    health = Health(most_failures=1)
    assert not health.look(None, 0.0)
    assert not health.is_failing
    assert health.look(False, 0.0)
    assert not health.look(None, 0.0)
    assert health.is_failed


def test_connections_that_fail_between_two_looks_count_once() -> None:
    """With looks that fail they add up, whatever those say."""
    health = Health()
    assert [health.connection_failed() for _ in range(10)] == [False] * 10
    assert health.failures == 1
    health.look(None, 0.0)
    assert not health.connection_failed()
    assert health.look(False, 0.0)


def test_answer_between_failures_begins_anew() -> None:
    """But none makes a failed backend well: it may have begun before."""
    health = Health(most_failures=2)
    health.look(False, 0.0)
    health.answer_began()
    assert health.failures == 0
    health.look(False, 0.0)
    assert health.look(False, 0.0)
    health.answer_began()
    assert (health.failures, health.is_failed) == (2, True)


def test_five_failed_turns_in_a_row_take_it_out_for_a_time() -> None:
    """However well it looks; the time doubles up to two minutes, until a turn completes."""
    health, now = Health(), 100.0
    for seconds in (10.0, 20.0, 40.0, 80.0, 120.0, 120.0):
        ejected(health, now)
        assert not health.look(True, now + seconds - 0.1)
        assert not health.turn_failed(now + seconds - 0.1, yes)
        assert health.look(True, now + seconds)
        now += seconds
    health.turn_completed()
    ejected(health, now)
    assert health.look(True, now + 10.0)


def test_turn_that_completes_begins_the_count_anew() -> None:
    """Four, one that is well, four: it stays."""
    health = Health()
    for _ in range(2):
        assert not any(health.turn_failed(0.0, yes) for _ in range(4))
        health.turn_completed()


def test_backend_that_nothing_can_stand_in_for_is_not_taken_out() -> None:
    """That is asked from the fifth failed turn on; with the first one for which others can it goes."""
    health, asked = Health(), []

    def can_spare() -> bool:
        asked.append(health.failed_turns)
        return len(asked) == 3

    assert [health.turn_failed(0.0, can_spare) for _ in range(7)] == [False] * 6 + [True]
    assert asked == [5, 6, 7]


@pytest.mark.parametrize("now", [0.0, 5.0])
def test_failed_looks_of_an_ejected_backend_do_not_prolong_it(now: float) -> None:
    """Its time is over when it is over, if it looks well then."""
    health = Health()
    ejected(health, now)
    assert not any(health.look(False, now + at) for at in range(1, 5))
    assert not health.look(True, now + 9.0)
    assert health.look(True, now + 10.0)
