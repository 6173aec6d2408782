"""``benchmarks.scheduler`` has the pressure that it tells; its ``--smoke`` passes what it should, and fails what it
should."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.scheduler import capacity_tokens_of, needed_tokens_of, smoke, start, step, warm_up
from policies.affinity import Affinity
from policies.pause_resume import PauseResume
from thunderagent.policy import ClusterView, Decision, Policy, Standing, Trigger

PROGRAMS, EVENTS = (64, 1_024), 300


class Summing(PauseResume):
    """Adds up its programs for every event, as a router without running totals does."""

    def rebalance(self, cluster: ClusterView, trigger: Trigger) -> Iterator[Decision]:
        for backend in cluster.backends:
            for standing in Standing:
                for program in backend.smallest_first(standing):
                    assert program.own_tokens >= 0
        yield from super().rebalance(cluster, trigger)


@pytest.mark.parametrize("policy", [Affinity, PauseResume])
def test_running_totals_pass_the_check(policy: type[Policy], capsys: pytest.CaptureFixture[str]) -> None:
    """Sixteen times the programs, about the same lines."""
    assert smoke(policy, 1.6, PROGRAMS, EVENTS, backends=4)
    assert capsys.readouterr().out.endswith("ok\n")


def test_sum_over_all_programs_fails_the_check(capsys: pytest.CaptureFixture[str]) -> None:
    """It grows with the programs and not with their logarithm."""
    assert not smoke(Summing, 1.6, PROGRAMS, EVENTS, backends=4)
    assert capsys.readouterr().out.endswith("TOO MUCH\n")


@pytest.mark.parametrize(("programs", "pressure"), [(200, 1.6), (800, 1.2)])
def test_pressure_is_what_was_asked_for(programs: int, pressure: float) -> None:
    """However few programs there are: what all need over what the caches hold, and programs wait."""
    scheduler, load = start(PauseResume(), programs, pressure)
    warm_up(scheduler, load)
    for _ in range(1_000):
        step(scheduler, load)
    assert needed_tokens_of(scheduler) / capacity_tokens_of(scheduler) == pytest.approx(pressure, rel=0.1)
    assert scheduler.cluster.waiting_count > 0.05 * programs
