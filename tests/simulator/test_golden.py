"""Shapes that public measurements of agents under pressure show, from the built-in presets and workloads.

Figures of the published scheduler are those of an independent emulator; see docs/simulation.md, which has the misses.
"""

from __future__ import annotations

from functools import lru_cache

import pytest

from thunderagent.simulator.figures import Figures
from thunderagent.simulator.scenario import Scenario, parse_arm, run

PAPER = "pause-resume:preset=paper"


@lru_cache
def figures(
    workload: str, arm: str, sessions: int, replicas: int = 1, seed: int = 0, horizon_seconds: float = 2400.0
) -> Figures:
    """To the horizon, after 10 minutes of warm-up."""
    scenario = Scenario(
        workload,
        sessions=sessions,
        replicas=replicas,
        seed=seed,
        horizon_seconds=horizon_seconds,
        warmup_seconds=600.0,
    )
    return run(scenario, parse_arm(arm))


@pytest.mark.parametrize("workload", ["swe-agent", "coding-long"])
def test_without_pressure_admission_costs_nothing(workload: str) -> None:
    """Half the cache is enough for all: every policy gives the same within 1 %."""
    sessions = 5 if workload == "swe-agent" else 11
    base = figures(workload, "affinity", sessions)
    for arm in ("pause-resume", PAPER):
        found = figures(workload, arm, sessions)
        assert found.turns_per_minute == pytest.approx(base.turns_per_minute, rel=0.01)
        assert found.turn_seconds.p99 == pytest.approx(base.turn_seconds.p99, rel=0.05)
        assert found.holds == 0


@pytest.mark.parametrize(("sessions", "least", "most"), [(8, 0.93, 1.0), (12, 0.93, 1.0), (48, 0.0, 0.25)])
def test_hit_rate_without_admission_is_a_cliff(sessions: int, least: float, most: float) -> None:
    """About 0.95 at 8 to 12 sessions of long contexts per replica, near 0 at 48."""
    assert least <= figures("coding-long", "affinity", sessions).hit_rate <= most


@pytest.mark.parametrize(
    ("workload", "sessions", "ratio", "hit_rate"),
    [("swe-agent", 16, 2.8, 0.95), ("swe-agent", 24, 2.9, 0.95), ("coding-long", 40, 2.75, 0.83)],
)
def test_published_scheduler_gains_what_it_was_seen_to_gain(
    workload: str, sessions: int, ratio: float, hit_rate: float
) -> None:
    """One replica: turns to those of no admission within a quarter, for one seed, and hit rate within 0.08."""
    found, base = figures(workload, PAPER, sessions), figures(workload, "affinity", sessions)
    assert found.turns_per_minute / base.turns_per_minute == pytest.approx(ratio, rel=0.25)
    assert found.hit_rate == pytest.approx(hit_rate, abs=0.08)


def test_decay_of_the_published_scheduler_costs_throughput() -> None:
    """It lets in more than the cache holds."""
    decaying = figures("swe-agent", f"{PAPER},resume_decay=true", 16)
    assert decaying.turns_per_minute < 0.8 * figures("swe-agent", PAPER, 16).turns_per_minute
    assert decaying.turns_per_minute > 1.3 * figures("swe-agent", "affinity", 16).turns_per_minute


ON_FOUR = (
    "affinity",
    f"{PAPER},resume_decay=true,resume_order=smallest,resume_on=roomiest",
    f"{PAPER},resume_decay=true,resume_order=smallest,resume_on=origin",
    f"{PAPER},resume_decay=true,resume_order=smallest,resume_on=origin,half_life_seconds=10,react=true,tick_seconds=1",
)
"""No admission, the decaying scheduler on any replica, on that of the prefix only, and this with a slow decay that
reacts at once."""


def test_order_of_schedulers_on_four_replicas() -> None:
    """Of 32 long contexts per replica: 1154 < 1370 < 1693 < 1945 tokens/s were measured."""
    rates = [figures("coding-long", arm, 128, 4, 1, 1500.0).output_tokens_per_second for arm in ON_FOUR]
    assert rates == sorted(rates)
    assert rates[1] > 1.15 * rates[0]
    assert rates[3] > 1.1 * rates[2]


def test_schedulers_on_four_replicas_are_equal_below_16_sessions_each() -> None:
    """Within 2 %."""
    rates = [figures("coding-long", arm, 60, 4, 0, 1800.0).output_tokens_per_second for arm in ON_FOUR]
    assert rates == pytest.approx([rates[0]] * 4, rel=0.02)


@pytest.mark.parametrize("seed", [0, 1])
def test_published_scheduler_without_decay_collapses_where_nobody_releases(seed: int) -> None:
    """Programs that are done bar all others, though there is room for all: it makes some half of the turns of
    no admission, and a decay is the cure."""

    def rate(arm: str, release_ratio: float = 0.0) -> float:
        scenario = Scenario(
            "swe-agent",
            sessions=6,
            release_ratio=release_ratio,
            horizon_seconds=7200.0,
            warmup_seconds=3600.0,
            seed=seed,
        )
        return run(scenario, parse_arm(arm)).turns_per_minute

    base = rate("affinity")
    assert rate(PAPER) < 0.6 * base
    assert rate(f"{PAPER},resume_decay=true") > 0.85 * base
    assert rate(PAPER, release_ratio=1.0) > 0.98 * base
    assert rate("pause-resume") > 0.95 * base


def test_default_preset_does_as_well_where_nobody_releases() -> None:
    """Under pressure: programs that are done give way; under the published scheduler they take half of the turns."""

    def rate(arm: str, release_ratio: float) -> float:
        scenario = Scenario("swe-agent", release_ratio=release_ratio, horizon_seconds=3600.0, warmup_seconds=1800.0)
        return run(scenario, parse_arm(arm)).turns_per_minute

    assert rate("pause-resume", 0.0) > 0.9 * rate("pause-resume", 1.0)
    assert rate(PAPER, 0.0) < 0.6 * rate(PAPER, 1.0)


def test_sub_agents_that_are_done_bar_nobody() -> None:
    """They end without a word: what they left counts until it is not worth its room any more, and no longer."""
    base, ours = (figures("sub-agents", arm, 16, 1, 0, 1500.0) for arm in ("affinity", "pause-resume"))
    counted = figures("sub-agents", "pause-resume:idle_lease_seconds=30", 16, 1, 0, 1500.0)
    assert ours.turns_per_minute > 0.95 * base.turns_per_minute
    assert ours.turns_per_minute > 1.8 * counted.turns_per_minute


def test_published_scheduler_starves_some() -> None:
    """At 24 sessions its longest holds last many minutes, and programs get ahead very unequally."""
    found = figures("swe-agent", PAPER, 24)
    assert found.hold_seconds.most > 600.0
    assert found.jain_of_progress < 0.9


def test_default_preset_is_no_worse_and_fairer() -> None:
    """In throughput; nobody waits as long as under the published one."""
    for workload, sessions in (("swe-agent", 16), ("swe-agent", 24), ("coding-long", 40)):
        ours, paper = figures(workload, "pause-resume", sessions), figures(workload, PAPER, sessions)
        assert ours.turns_per_minute >= 0.98 * paper.turns_per_minute
        assert ours.longest_hold_p95_seconds <= 1.1 * paper.longest_hold_p95_seconds
