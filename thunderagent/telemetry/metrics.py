"""Prometheus metrics: counters fed by the gateway and the server, gauges read from the cluster when scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from thunderagent.core import commands
from thunderagent.core.cluster import Cluster
from thunderagent.core.commands import Notice, Refuse
from thunderagent.core.ids import BackendId
from thunderagent.core.outlook import outlook
from thunderagent.core.program import Standing, Status
from thunderagent.core.settings import SchedulerSettings
from thunderagent.core.usage import Outcome, Usage

__all__ = ["Metrics"]

_SCHEDULING_SECONDS = (0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1)
_TOOL_QUANTILES = (0.5, 0.9, 0.99)
_SECONDS = (0.005, 0.02, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)


class Metrics:
    """All metrics of a daemon, in a registry of its own. No label holds a program id."""

    def __init__(self, cluster: Cluster, settings: SchedulerSettings) -> None:
        self.registry = registry = CollectorRegistry()
        self.turns = Counter("thunderagent_turns", "Turns by how they ended.", ["outcome"], registry=registry)
        self.refusals = Counter("thunderagent_refusals", "Turns refused, by code.", ["code"], registry=registry)
        self.holds = Counter("thunderagent_holds", "Turns that had to wait for a place.", registry=registry)
        self.pauses = Counter("thunderagent_pauses", "Programs that lost their place.", ["reason"], registry=registry)
        self.resumes = Counter("thunderagent_resumes", "Paused programs admitted again.", registry=registry)
        self.admissions = Counter("thunderagent_admissions", "Programs admitted.", registry=registry)
        self.moves = Counter("thunderagent_moves", "Programs whose backend changed.", registry=registry)
        self.forced = Counter(
            "thunderagent_forced_admissions", "Programs let in at the hold limit, over capacity.", registry=registry
        )
        self.expiries = Counter("thunderagent_expiries", "Idle programs forgotten.", registry=registry)
        self.releases = Counter("thunderagent_releases", "Programs released by their clients.", registry=registry)
        self.decisions_rejected = Counter(
            "thunderagent_decisions_rejected", "Illegal decisions of the policy.", registry=registry
        )
        self.policy_failures = Counter(
            "thunderagent_policy_failures", "Exceptions raised by the policy.", registry=registry
        )
        self.hold_seconds = Histogram(
            "thunderagent_hold_seconds", "Wait for a place, of turns forwarded.", buckets=_SECONDS, registry=registry
        )
        self.first_byte_seconds = Histogram(
            "thunderagent_first_byte_seconds",
            "Arrival to the first byte of the answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.turn_seconds = Histogram(
            "thunderagent_turn_seconds", "Arrival to the end of the answer.", buckets=_SECONDS, registry=registry
        )
        self.scheduling_seconds = Histogram(
            "thunderagent_scheduling_seconds",
            "What the scheduler takes for an event, during which every other request waits.",
            buckets=_SCHEDULING_SECONDS,
            registry=registry,
        )
        self._per_backend: list[Counter] = []
        self.backend_turns = self._of_backend("thunderagent_backend_turns", "Turns forwarded.")
        self.prompt_tokens = self._of_backend("thunderagent_prompt_tokens", "Prompt tokens reported.")
        self.cached_tokens = self._of_backend("thunderagent_cached_tokens", "Prompt tokens found in the cache.")
        self.completion_tokens = self._of_backend("thunderagent_completion_tokens", "Completion tokens reported.")
        self.forward_failures = self._of_backend(
            "thunderagent_forward_failures", "Turns that a backend gave no answer to."
        )
        self.prefix_lost = self._of_backend(
            "thunderagent_prefix_lost", "Turns that found most of their conversation's prefix evicted."
        )
        self.prefix_lost_tokens = self._of_backend(
            "thunderagent_prefix_lost_tokens", "Prompt tokens that were prefilled anew for that."
        )
        self._collector = _ClusterCollector(cluster, settings)
        registry.register(self._collector)

    def _of_backend(self, name: str, text: str) -> Counter:
        counter = Counter(name, text, ["backend"], registry=self.registry)
        self._per_backend.append(counter)
        return counter

    def show_kv_events(
        self, cached_tokens: Callable[[BackendId], int | None], gaps: Callable[[BackendId], int]
    ) -> None:
        """Add what the followers of KV events know of each backend."""
        self._collector.cached_tokens, self._collector.gaps = cached_tokens, gaps

    def render(self) -> bytes:
        """The page for ``GET /metrics``."""
        return generate_latest(self.registry)

    def count_notice(self, notice: Notice) -> None:
        """Count what the scheduler told."""
        if isinstance(notice, commands.TurnHeld):
            self.holds.inc()
        elif isinstance(notice, commands.ProgramAdmitted):
            self.admissions.inc()
            if notice.resumed:
                self.resumes.inc()
        elif isinstance(notice, commands.ProgramPaused):
            self.pauses.labels(notice.reason.value).inc()
        elif isinstance(notice, commands.ProgramMoved):
            self.moves.inc()
        elif isinstance(notice, commands.ProgramForced):
            self.forced.inc()
        elif isinstance(notice, commands.ProgramExpired):
            self.expiries.inc()
        elif isinstance(notice, commands.PrefixLost):
            self.prefix_lost.labels(notice.backend).inc()
            self.prefix_lost_tokens.labels(notice.backend).inc(notice.expected_tokens - notice.cached_tokens)
        elif isinstance(notice, commands.DecisionRejected):
            self.decisions_rejected.inc()
        elif isinstance(notice, commands.PolicyFailed):
            self.policy_failures.inc()

    def count_refusal(self, refuse: Refuse) -> None:
        """Count a turn that the scheduler turned away."""
        self.refusals.labels(refuse.code.value).inc()

    def count_turn(
        self,
        backend: BackendId,
        outcome: Outcome,
        usage: Usage | None,
        *,
        held_seconds: float,
        first_byte_seconds: float | None,
        total_seconds: float,
    ) -> None:
        """Count a forwarded turn that ended."""
        self.turns.labels(outcome.value).inc()
        self.hold_seconds.observe(held_seconds)
        self.turn_seconds.observe(total_seconds)
        if first_byte_seconds is not None:
            self.first_byte_seconds.observe(first_byte_seconds)
        self.backend_turns.labels(backend).inc()
        if usage is not None:
            self.prompt_tokens.labels(backend).inc(usage.prompt_tokens)
            self.completion_tokens.labels(backend).inc(usage.completion_tokens)
            self.cached_tokens.labels(backend).inc(usage.cached_tokens or 0)

    def forget_backend(self, backend: BackendId) -> None:
        """Drop the series of a backend that was removed."""
        for counter in self._per_backend:
            with suppress(KeyError):
                counter.remove(backend)


class _ClusterCollector(Collector):
    """Gauges read from the running totals at the time of a scrape; O(backends), the outlook O(who waits)."""

    def __init__(self, cluster: Cluster, settings: SchedulerSettings) -> None:
        self._cluster, self._settings = cluster, settings
        self.cached_tokens: Callable[[BackendId], int | None] | None = None
        self.gaps: Callable[[BackendId], int] | None = None

    def collect(self) -> Iterable[Metric]:
        cluster = self._cluster
        programs = GaugeMetricFamily("thunderagent_programs", "Programs known, by status.", labels=["status"])
        standings = {
            standing: sum(backend.count(standing) for backend in cluster.backend_by_id.values())
            for standing in Standing
        }
        paused = len(cluster.paused_by_id)
        placed = sum(standings.values())
        programs.add_metric([Status.ADMITTED.value], placed - standings[Standing.YIELDING])
        programs.add_metric([Status.YIELDING.value], standings[Standing.YIELDING])
        programs.add_metric([Status.PAUSED.value], paused)
        programs.add_metric([Status.NEW.value], cluster.program_count - placed - paused)
        yield programs
        held = GaugeMetricFamily("thunderagent_turns_held", "Turns that wait in the router.")
        held.add_metric([], cluster.queue.turn_count)
        yield held
        tools = GaugeMetricFamily(
            "thunderagent_tool_seconds", "Between the turns of a conversation, by quantile.", labels=["quantile"]
        )
        for share in _TOOL_QUANTILES:
            seconds = cluster.tool_times.quantile_seconds(share)
            if seconds is not None:
                tools.add_metric([str(share)], seconds)
        yield tools
        yield from self._outlook()
        forwarded = GaugeMetricFamily("thunderagent_turns_forwarded", "Turns that run.", labels=["backend"])
        healthy = GaugeMetricFamily("thunderagent_backend_available", "Whether it takes turns.", labels=["backend"])
        capacity = GaugeMetricFamily("thunderagent_capacity_tokens", "Usable KV tokens.", labels=["backend"])
        tokens = GaugeMetricFamily(
            "thunderagent_accounted_tokens",
            "KV tokens accounted, by what holds them.",
            labels=["backend", "standing"],
        )
        for backend in cluster.backend_by_id.values():
            forwarded.add_metric([backend.id], backend.turn_count)
            healthy.add_metric([backend.id], float(backend.is_available))
            if backend.capacity_tokens is not None:
                capacity.add_metric([backend.id], backend.capacity_tokens)
            for standing in Standing:
                tokens.add_metric([backend.id, standing.value], backend.group(standing).tokens)
            tokens.add_metric([backend.id, "guest"], backend.guest_tokens)
            tokens.add_metric([backend.id, "shared"], backend.shared_tokens)
        yield from (forwarded, healthy, capacity, tokens)
        if self.cached_tokens is not None and self.gaps is not None:
            cached = GaugeMetricFamily(
                "thunderagent_engine_cached_tokens", "In the prefix cache.", labels=["backend"]
            )
            gaps = GaugeMetricFamily("thunderagent_kv_event_gaps", "Events missed for good.", labels=["backend"])
            for name in cluster.backend_by_id:
                known = self.cached_tokens(name)
                if known is not None:
                    cached.add_metric([name], known)
                    gaps.add_metric([name], self.gaps(name))
            yield from (cached, gaps)

    def _outlook(self) -> Iterable[Metric]:
        """Rounded as ``/health`` has it; without a sample where it is not known."""
        found = outlook(self._cluster, self._settings)
        for name, text, value in (
            ("thunderagent_pressure", "Tokens needed by who has a place or waits, over capacity.", found.pressure),
            (
                "thunderagent_expected_hold_seconds",
                "Wait for a place to be expected where a tenth of the engines goes into changing places.",
                found.hold_seconds,
            ),
            (
                "thunderagent_hold_limit_rotation_ratio",
                "Share of the engines that keeping the hold limit takes.",
                found.rotation_ratio,
            ),
        ):
            gauge = GaugeMetricFamily(name, text)
            if value is not None:
                gauge.add_metric([], round(value, 3))
            yield gauge
