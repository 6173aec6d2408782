"""The clocks: readings never go back, a scaled one keeps its ratio, a virtual one stands still."""

from __future__ import annotations

import time

import pytest

from thunderagent.clock import Clock, MonotonicClock, ScaledClock, VirtualClock


def test_monotonic_clock_reads_the_machine_s_and_one_second_is_one_second() -> None:
    """Its readings lie between two of the machine's."""
    clock = MonotonicClock()
    before, reading, after = time.monotonic(), clock.now(), time.monotonic()
    assert before <= reading <= after
    assert clock.wall_seconds(2.5) == 2.5


@pytest.mark.parametrize("speed", [0.5, 1.0, 60.0])
def test_scaled_clock_runs_by_its_factor(speed: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds of the wall are ten times the factor on the clock, and waits are that much shorter."""
    wall = VirtualClock(1000.0)
    monkeypatch.setattr("thunderagent.clock.time.monotonic", wall.now)
    clock: Clock = ScaledClock(speed)
    assert clock.now() == 0
    wall.advance(10)
    assert clock.now() == pytest.approx(10 * speed)
    assert clock.wall_seconds(clock.now()) == pytest.approx(10)


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
def test_scaled_clock_of_no_speed_is_refused(speed: float) -> None:
    """A clock that stands or runs backwards would never end a hold."""
    with pytest.raises(ValueError, match=f"clock speed must be above 0, got {speed}"):
        ScaledClock(speed)


def test_virtual_clock_moves_only_when_told_and_only_forward() -> None:
    """Tests and the simulator move it."""
    clock = VirtualClock()
    assert (clock.now(), clock.now()) == (0.0, 0.0)
    clock.advance(1.5)
    clock.advance(0)
    assert (clock.now(), clock.wall_seconds(3)) == (1.5, 3)
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-0.1)
    assert clock.now() == 1.5
