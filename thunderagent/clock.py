"""Clocks: the scheduler is given readings of one, so that the same code runs live, scaled and in simulation."""

from __future__ import annotations

import time
from typing import Protocol

from attrs import define

__all__ = ["Clock", "MonotonicClock", "ScaledClock", "VirtualClock"]


class Clock(Protocol):
    """Seconds that never go back, from an arbitrary start."""

    def now(self) -> float:
        """The reading, in seconds."""

    def wall_seconds(self, seconds: float) -> float:
        """How long ``seconds`` of this clock last on the wall."""


@define(eq=False)
class MonotonicClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    def wall_seconds(self, seconds: float) -> float:
        return seconds


class ScaledClock:
    """Runs ``speed`` times as fast as the machine's clock: for demos and tests of long limits."""

    def __init__(self, speed: float) -> None:
        if not speed > 0:
            raise ValueError(f"clock speed must be above 0, got {speed}")
        self._speed = speed
        self._start = time.monotonic()

    def now(self) -> float:
        return (time.monotonic() - self._start) * self._speed

    def wall_seconds(self, seconds: float) -> float:
        return seconds / self._speed


@define(eq=False)
class VirtualClock:
    """Stands still until it is told to move."""

    reading: float = 0.0

    def now(self) -> float:
        return self.reading

    def advance(self, seconds: float) -> None:
        """Move forward."""
        if seconds < 0:
            raise ValueError("a clock does not go back")
        self.reading += seconds

    def wall_seconds(self, seconds: float) -> float:
        return seconds
