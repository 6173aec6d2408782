"""``benchmarks.agreement``: step times half way between two measurements."""

from __future__ import annotations

import pytest
from attrs import astuple, evolve

from benchmarks.agreement import between
from thunderagent.emulator.timing import CPU_TINY


def test_a_run_has_the_pace_between_what_was_measured_before_and_after_it() -> None:
    """Of each coefficient; all else is the first one's."""
    slower = evolve(CPU_TINY, name="slower", timing=evolve(CPU_TINY.timing, step_seconds=0.03, kv_token_seconds=0.0))
    found = between(CPU_TINY, slower)
    assert evolve(found, timing=CPU_TINY.timing) == CPU_TINY
    means = [(one + other) / 2 for one, other in zip(astuple(CPU_TINY.timing), astuple(slower.timing), strict=True)]
    assert astuple(found.timing) == pytest.approx(means)
    assert found.timing.step_seconds > CPU_TINY.timing.step_seconds
