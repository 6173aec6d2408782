"""Prometheus metrics: names, bounded labels, and gauges that are read when scraped."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from thunderagent.core import commands, events
from thunderagent.core.commands import HoldReason, PauseReason, Refuse, RefuseCode
from thunderagent.core.ids import BackendId, BranchId, ProgramId, TurnId
from thunderagent.core.program import Standing, Status
from thunderagent.core.scheduler import Scheduler
from thunderagent.core.settings import SchedulerSettings
from thunderagent.core.usage import Outcome, Usage
from thunderagent.registry import make_policy
from thunderagent.telemetry.metrics import Metrics

BACKEND, PROGRAM, TURN = BackendId("http://b:1"), ProgramId("secret-program-id"), TurnId(1)
BOUNDED_LABELS = {
    "outcome": {outcome.value for outcome in Outcome} | {"refused"},
    "code": {code.value for code in RefuseCode},
    "reason": {reason.value for reason in PauseReason},
    "status": {status.value for status in Status},
    "standing": {standing.value for standing in Standing} | {"guest", "shared"},
}
"""Every label but ``backend`` and the histograms' ``le``, and all values that it may take."""

NOTICES: dict[type, tuple[object, str]] = {
    commands.TurnHeld: (commands.TurnHeld(TURN, PROGRAM, HoldReason.POLICY, None), "thunderagent_holds_total"),
    commands.ProgramAdmitted: (
        commands.ProgramAdmitted(PROGRAM, BACKEND, 1.0, False),
        "thunderagent_admissions_total",
    ),
    commands.ProgramPaused: (
        commands.ProgramPaused(PROGRAM, BACKEND, PauseReason.POLICY),
        'thunderagent_pauses_total{reason="policy"}',
    ),
    commands.ProgramMoved: (commands.ProgramMoved(PROGRAM, BACKEND, BACKEND), "thunderagent_moves_total"),
    commands.ProgramForced: (commands.ProgramForced(PROGRAM, BACKEND), "thunderagent_forced_admissions_total"),
    commands.ProgramExpired: (commands.ProgramExpired(PROGRAM, 1.0), "thunderagent_expiries_total"),
    commands.DecisionRejected: (commands.DecisionRejected("d", "r"), "thunderagent_decisions_rejected_total"),
    commands.PolicyFailed: (commands.PolicyFailed("admit", "e"), "thunderagent_policy_failures_total"),
}


@pytest.fixture
def scheduler() -> Scheduler:
    """One backend, nothing asked of it."""
    made = Scheduler(make_policy("affinity", {}), SchedulerSettings())
    made.handle(events.BackendAdded(BACKEND, ("m",), 1000), 0.0)
    return made


@pytest.fixture
def metrics(scheduler: Scheduler) -> Metrics:
    """Of that scheduler's cluster."""
    return Metrics(scheduler.cluster, scheduler.settings)


def _samples(metrics: Metrics) -> dict[str, float]:
    return {
        _name(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def _name(name: str, labels: dict[str, str]) -> str:
    inner = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{inner}}}" if inner else name


def _fill(metrics: Metrics) -> None:
    """Every counter and label that there is."""
    for notice, _ in NOTICES.values():
        metrics.count_notice(notice)  # type: ignore[arg-type]
    for code in RefuseCode:
        metrics.count_refusal(Refuse(TURN, code, "why"))
    for outcome in Outcome:
        metrics.count_turn(
            BACKEND, outcome, Usage(10, 2, 5), held_seconds=1.0, first_byte_seconds=2.0, total_seconds=3.0
        )
    metrics.forward_failures.labels(BACKEND).inc()
    metrics.count_notice(commands.PrefixLost(PROGRAM, BACKEND, 900, 100))


@pytest.mark.parametrize("kind", NOTICES)
def test_notice_counts_once_under_its_name(kind: type, metrics: Metrics) -> None:
    """One counter moves by one, no other moves."""
    before = _samples(metrics)
    notice, name = NOTICES[kind]
    metrics.count_notice(notice)  # type: ignore[arg-type]
    after = _samples(metrics)
    assert {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)} == {
        name: 1
    }


def test_lost_prefix_counts_with_its_tokens(metrics: Metrics) -> None:
    """Of 900 tokens 100 were there: 800 were prefilled anew."""
    metrics.count_notice(commands.PrefixLost(PROGRAM, BACKEND, 900, 100))
    found = _samples(metrics)
    names = ("thunderagent_prefix_lost_total", "thunderagent_prefix_lost_tokens_total")
    assert [found[f'{name}{{backend="{BACKEND}"}}'] for name in names] == [1, 800]


def test_resumed_admission_counts_as_both(metrics: Metrics) -> None:
    """A resume is an admission too."""
    metrics.count_notice(commands.ProgramAdmitted(PROGRAM, BACKEND, 1.0, True))
    found = _samples(metrics)
    assert (found["thunderagent_admissions_total"], found["thunderagent_resumes_total"]) == (1, 1)


def test_finished_turn_is_counted_with_its_tokens_and_times(metrics: Metrics) -> None:
    """Outcome, backend, tokens, and three times."""
    metrics.count_turn(
        BACKEND, Outcome.COMPLETED, Usage(10, 2, 4), held_seconds=1.0, first_byte_seconds=2.0, total_seconds=3.0
    )
    found = _samples(metrics)
    tokens = {
        name: found[f'thunderagent_{name}_total{{backend="http://b:1"}}']
        for name in ("backend_turns", "prompt_tokens", "cached_tokens", "completion_tokens")
    }
    assert tokens == {"backend_turns": 1, "prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 2}
    times = {name: found[f"thunderagent_{name}_seconds_sum"] for name in ("hold", "first_byte", "turn")}
    assert times == {"hold": 1, "first_byte": 2, "turn": 3}
    assert found['thunderagent_turns_total{outcome="completed"}'] == 1


def test_turn_without_usage_or_first_byte_invents_neither(metrics: Metrics) -> None:
    """What is not known is not counted as zero."""
    metrics.count_turn(
        BACKEND, Outcome.CLIENT_GONE, None, held_seconds=0.0, first_byte_seconds=None, total_seconds=1.0
    )
    found = _samples(metrics)
    assert found["thunderagent_first_byte_seconds_count"] == 0
    assert 'thunderagent_prompt_tokens_total{backend="http://b:1"}' not in found


def test_labels_are_few_and_take_only_values_of_their_enums(metrics: Metrics) -> None:
    """However many programs and turns there are, the number of series is fixed by enums and backends."""
    _fill(metrics)
    seen: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        assert re.fullmatch("thunderagent_[a-z_]+", family.name)
        for sample in family.samples:
            for label, value in sample.labels.items():
                seen.setdefault(label, set()).add(value)
    assert seen.pop("backend") == {BACKEND}
    assert len(seen.pop("le")) <= 30
    assert {(label, value) for label in seen for value in seen[label] - BOUNDED_LABELS[label]} == set()


def test_no_series_names_a_program(metrics: Metrics, scheduler: Scheduler) -> None:
    """Ids are unbounded and the clients' own."""
    scheduler.handle(events.TurnArrived(TURN, PROGRAM, BranchId("main"), "m", 400, ()), 1.0)
    _fill(metrics)
    assert PROGRAM not in metrics.render().decode()


def test_removed_backend_leaves_no_series(metrics: Metrics, scheduler: Scheduler) -> None:
    """Backends come and go; what is gone is dropped, and dropping twice is no trouble."""
    _fill(metrics)
    scheduler.handle(events.BackendRemoved(BACKEND), 1.0)
    metrics.forget_backend(BACKEND)
    metrics.forget_backend(BACKEND)
    assert BACKEND not in metrics.render().decode()


def test_gauges_follow_the_cluster_at_each_scrape(metrics: Metrics, scheduler: Scheduler) -> None:
    """Nothing is pushed: the same registry shows the next state."""

    def gauges() -> dict[str, float]:
        found = _samples(metrics)
        named = {name: found[f'thunderagent_programs{{status="{name}"}}'] for name in ("new", "admitted", "paused")}
        return {
            **named,
            "forwarded": found['thunderagent_turns_forwarded{backend="http://b:1"}'],
            "capacity": found['thunderagent_capacity_tokens{backend="http://b:1"}'],
            "available": found['thunderagent_backend_available{backend="http://b:1"}'],
            "held": found["thunderagent_turns_held"],
        }

    empty = {"new": 0, "admitted": 0, "paused": 0, "forwarded": 0, "capacity": 1000, "available": 1, "held": 0}
    assert gauges() == empty
    scheduler.handle(events.TurnArrived(TURN, PROGRAM, BranchId("main"), "m", 400, ()), 1.0)
    assert gauges() == {**empty, "admitted": 1, "forwarded": 1}
    scheduler.handle(events.TurnFinished(TURN, Outcome.COMPLETED, Usage(10, 2, 0), 0), 2.0)
    assert gauges() == {**empty, "admitted": 1}
    scheduler.handle(events.BackendFailed(BACKEND, "gone"), 3.0)
    assert gauges()["available"] == 0


def test_two_daemons_in_one_process_do_not_share_metrics(scheduler: Scheduler) -> None:
    """Each has a registry of its own."""
    one, other = (Metrics(scheduler.cluster, scheduler.settings) for _ in range(2))
    one.moves.inc()
    assert (_samples(one)["thunderagent_moves_total"], _samples(other)["thunderagent_moves_total"]) == (1, 0)
