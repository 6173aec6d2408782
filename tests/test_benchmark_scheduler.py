"""The check of ``benchmarks.scheduler --smoke`` passes what it should, and fails what it should."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.scheduler import smoke
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
