"""The report: figures from metrics pages and trajectories, the table, the comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from examples_stubs import BackendStub

from examples.swebench.report import (
    EngineCounts,
    Report,
    RouterCounts,
    Trajectories,
    compare,
    engine_counts,
    read_trajectories,
    recomputed_tokens,
    render,
    router_counts,
    same,
)

_ENGINE = """\
# TYPE vllm:prompt_tokens_by_source_total counter
vllm:prompt_tokens_by_source_total{engine="0",source="local_compute"} 300.0
vllm:prompt_tokens_by_source_total{engine="0",source="local_cache_hit"} 700.0
"""
_ROUTER = """\
# TYPE thunderagent_holds_total counter
thunderagent_holds_total 5.0
# TYPE thunderagent_backend_turns_total counter
thunderagent_backend_turns_total{backend="http://a"} 6.0
thunderagent_backend_turns_total{backend="http://b"} 4.0
"""


def _usage(prompt: int, cached: int | None) -> dict[str, Any]:
    details = None if cached is None else {"cached_tokens": cached}
    return {"prompt_tokens": prompt, "completion_tokens": 10, "prompt_tokens_details": details}


def _report(policy: str, cached: float, recomputed: int | None) -> Report:
    return Report(
        policy=policy,
        instances=2,
        empty_patches=0,
        resolved=2,
        trajectories=Trajectories({"Submitted": 2}, 20, 1000, 1800, recomputed),
        engines=EngineCounts(computed_tokens=10_000 - cached, cached_tokens=cached),
        router=RouterCounts(3, 2, 2, 1, {"http://a": 15, "http://b": 5}, 0),
        wall_seconds=12.4,
        backends=2,
        kv_tokens=4000,
    )


@pytest.mark.parametrize(
    ("usages", "expected"),
    [
        ([_usage(100, 0), _usage(200, 96), _usage(300, 208)], 0),  # the rest of a block does not count
        ([_usage(100, 0), _usage(200, 0), _usage(300, 64)], 100 + 136),
        ([_usage(100, 64)], 0),
        ([_usage(100, None)], None),
        ([], None),
    ],
)
def test_recomputed_tokens_when_cache_is_lost_count_the_previous_prompt(
    usages: list[dict[str, Any]], expected: int | None
) -> None:
    """What the previous prompt had and this turn did not find cached was computed again."""
    assert recomputed_tokens(usages) == expected


def test_engine_counts_when_two_backends_report_are_summed() -> None:
    """Sums over backends; one that does not report makes the sum unknown."""
    with BackendStub({"/metrics": _ENGINE}) as one, BackendStub({}) as silent:
        both = engine_counts([one.url, one.url])
        unknown = engine_counts([one.url, silent.url])

    assert both == EngineCounts(600.0, 1400.0)
    assert both.minus(EngineCounts(100.0, 400.0)) == EngineCounts(500.0, 1000.0)
    assert unknown == EngineCounts(None, None)


def test_router_counts_when_some_counters_lack_are_zero() -> None:
    """Counters that never moved are not on the page."""
    with BackendStub({"/metrics": _ROUTER, "/programs": '{"p": {}}'}) as router:
        counts = router_counts(router.url)

    assert counts == RouterCounts(
        holds=5, pauses=0, resumes=0, moves=0, shares={"http://a": 6, "http://b": 4}, programs_left=1
    )


def test_trajectories_when_read_give_statuses_turns_and_contexts(tmp_path: Path) -> None:
    """Usage is what the client got with each reply; files that can't be read are left out."""
    for name, status, usages in (("a", "Submitted", [_usage(100, 0), _usage(200, 96)]), ("b", "Stopped", [])):
        messages = [{"role": "user"}, *({"extra": {"response": {"usage": usage}}} for usage in usages)]
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.traj.json").write_text(
            json.dumps({"info": {"exit_status": status}, "messages": messages})
        )
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "c.traj.json").write_text("{")

    assert read_trajectories(tmp_path) == Trajectories({"Stopped": 1, "Submitted": 1}, 2, 210, 210, 0)


def test_table_when_rendered_has_one_column_per_report() -> None:
    """Figures that are missing are named as such."""
    known = _report("affinity", 2000, 500)
    unknown = attrs.evolve(
        known, policy="pause-resume", resolved=None, engines=EngineCounts(None, None), kv_tokens=None
    )

    assert render([known, unknown]) == "\n".join(
        [
            "                                affinity  pause-resume",
            "------------------------------------------------------",
            "instances                              2             2",
            "exit status                  2 Submitted   2 Submitted",
            "empty patches                          0             0",
            "patches that pass the tests            2     not tried",
            "turns                                 20            20",
            "prompt tokens                     10,000  not reported",
            "  cached                           2,000  not reported",
            "  computed                         8,000  not reported",
            "  recomputed                         500           500",
            "hit rate                           20.0%  not reported",
            "holds                                  3             3",
            "pauses                                 2             2",
            "moves to another backend               1             1",
            "turns per backend              75% / 25%     75% / 25%",
            "largest program, tokens            1,000         1,000",
            "  of one backend's KV                25%       unknown",
            "all contexts / all KV               0.23       unknown",
            "programs left behind                   0             0",
            "wall time                           12 s          12 s",
        ]
    )


def test_comparison_when_figures_are_close_says_no_different() -> None:
    """Two percent is the limit below which two figures count as the same."""
    lines = compare([_report("round-robin", 2000, 900), _report("affinity", 7900, 410), _report("mine", 8000, 400)])

    assert lines == [
        "hit rate: mine (0.800) is above round-robin (0.200), no different from affinity (0.790, within 2%)",
        "recomputed tokens: mine (400) is below round-robin (900), below affinity (410)",
    ]


def test_comparison_when_a_run_reports_nothing_is_left_out() -> None:
    """A figure that one run lacks is not compared."""
    lines = compare([_report("affinity", 2000, None), _report("mine", 2000, 5)])

    assert lines == [
        "hit rate: mine (0.200) is no different from affinity (0.200, within 2%)",
        "recomputed tokens: not reported by every run, so not compared",
    ]


def test_same_when_both_are_zero_is_true() -> None:
    """Nothing equals nothing."""
    assert same(0, 0)
    assert not same(0, 1)
