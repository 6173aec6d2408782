"""What a run of mini-swe-agent through the router came to, and its table.

The figures have three sources:

- **engines**: the backends' ``/metrics`` under vLLM's names, as differences over the run: prompt tokens
  (``vllm:prompt_tokens_by_source_total``: ``local_compute`` are computed, ``local_cache_hit`` found in the prefix
  cache) and with them the hit rate = cached / (cached + computed);
- **router**: holds, pauses, resumes, moves, turns per backend, programs left;
- **trajectories**: exit status, turns, and each turn's ``usage`` as the client got it: the largest context and the
  recomputed tokens.

*Recomputed* are prompt tokens that the same program had in its previous prompt, so that they were in a KV cache once,
and that were not found there again: previous prompt minus cached tokens of this turn, summed over turns, where
that is at least a block of 16 tokens (less is the rest of a block, which no cache keeps). New tokens and the first
prompt never count. Where backends report no cached tokens per turn (vLLM without ``--enable-prompt-tokens-details``)
there is no such figure, and the table says so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from prometheus_client.parser import text_string_to_metric_families

from examples.processes import get

_BLOCK_TOKENS = 16
SAME_RATIO = 0.02
"""Two figures that differ by at most this share of the larger one count as the same."""

Samples = list[tuple[str, dict[str, str], float]]


@attrs.frozen
class EngineCounts:
    """Prompt tokens of one or more backends over a run; None: a backend does not report them."""

    computed_tokens: float | None = 0
    cached_tokens: float | None = 0

    def minus(self, earlier: EngineCounts) -> EngineCounts:
        """The counts since ``earlier``."""
        return EngineCounts(
            _difference(self.computed_tokens, earlier.computed_tokens),
            _difference(self.cached_tokens, earlier.cached_tokens),
        )


@attrs.frozen
class RouterCounts:
    """What the router counted since its start; ``shares`` are turns by backend."""

    holds: int
    pauses: int
    resumes: int
    moves: int
    shares: dict[str, int]
    programs_left: int
    kv_tokens: int | None = None
    """Of the backend with the least; None where one does not say."""


@attrs.frozen
class Trajectories:
    """What the saved trajectories say. ``recomputed_tokens`` None: no cached tokens were reported."""

    exit_statuses: dict[str, int]
    turns: int
    largest_tokens: int
    largest_sum_tokens: int
    recomputed_tokens: int | None


@attrs.frozen
class Report:
    """One run. ``resolved`` None: patches were not tried. ``kv_tokens``: of one backend; None: not known."""

    policy: str
    instances: int
    empty_patches: int
    resolved: int | None
    trajectories: Trajectories
    engines: EngineCounts
    router: RouterCounts
    wall_seconds: float
    backends: int
    kv_tokens: int | None = None

    @property
    def prompt_tokens(self) -> float | None:
        """Prompt tokens that the backends worked on, from cache or computed."""
        computed, cached = self.engines.computed_tokens, self.engines.cached_tokens
        return None if computed is None or cached is None else computed + cached

    @property
    def hit_ratio(self) -> float | None:
        """Cached per prompt token; None without figures."""
        total = self.prompt_tokens
        return None if not total or self.engines.cached_tokens is None else self.engines.cached_tokens / total

    @property
    def demand_ratio(self) -> float | None:
        """Sum of the programs' largest contexts over the KV of all backends; the demand where all run at once."""
        if not self.kv_tokens:
            return None
        return self.trajectories.largest_sum_tokens / (self.kv_tokens * self.backends)


def read_samples(text: str) -> Samples:
    """The samples of a Prometheus page: (name, labels, value)."""
    return [
        (sample.name, dict(sample.labels), float(sample.value))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def total(samples: Samples, name: str, **labels: str) -> float | None:
    """Sum of the samples of that name whose labels include these; None where there is none."""
    values = [
        value
        for sample, sample_labels, value in samples
        if sample == name and labels.items() <= sample_labels.items()
    ]
    return sum(values) if values else None


def engine_counts(urls: Iterable[str]) -> EngineCounts:
    """Counters of the backends now, summed; a backend without readable metrics makes them None."""
    computed: float | None = 0.0
    cached: float | None = 0.0
    source = "vllm:prompt_tokens_by_source_total"
    for url in urls:
        try:
            samples = read_samples(get(f"{url}/metrics"))
        except (OSError, ValueError):
            samples = []
        computed = _sum(computed, total(samples, source, source="local_compute"))
        cached = _sum(cached, total(samples, source, source="local_cache_hit"))
    return EngineCounts(computed, cached)


def router_counts(url: str) -> RouterCounts:
    """The router's counters now.

    Raises:
        OSError: it does not answer.
        ValueError: its answer has another form.
    """
    samples = read_samples(get(f"{url}/metrics"))
    programs = json.loads(get(f"{url}/programs"))
    shares = {
        labels.get("backend", ""): int(value)
        for name, labels, value in samples
        if name == "thunderagent_backend_turns_total"
    }
    counts = {name: int(total(samples, f"thunderagent_{name}_total") or 0) for name in _ROUTER_COUNTERS}
    available = sum(1 for name, _, _ in samples if name == "thunderagent_backend_available")
    capacities = [int(value) for name, _, value in samples if name == "thunderagent_capacity_tokens"]
    kv_tokens = min(capacities) if capacities and len(capacities) == available else None
    return RouterCounts(**counts, shares=shares, programs_left=len(programs), kv_tokens=kv_tokens)


_ROUTER_COUNTERS = ("holds", "pauses", "resumes", "moves")


def read_trajectories(directory: Path) -> Trajectories:
    """Read ``<instance>/<instance>.traj.json`` below mini-swe-agent's output; unreadable ones are skipped."""
    statuses: Counter[str] = Counter()
    turns = largest = largest_sum = 0
    recomputed: int | None = None
    for path in sorted(directory.glob("*/*.traj.json")):
        try:
            trajectory = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        statuses[str(trajectory.get("info", {}).get("exit_status"))] += 1
        usages = list(_usages(trajectory))
        turns += len(usages)
        contexts = [usage["prompt_tokens"] + usage["completion_tokens"] for usage in usages]
        largest = max([largest, *contexts])
        largest_sum += max(contexts, default=0)
        again = recomputed_tokens(usages)
        if again is not None:
            recomputed = (recomputed or 0) + again
    return Trajectories(dict(statuses), turns, largest, largest_sum, recomputed)


def recomputed_tokens(usages: Sequence[Mapping[str, Any]]) -> int | None:
    """Tokens of one program that were computed again, from its turns' usage in order.

    Each usage has ``prompt_tokens`` and ``prompt_tokens_details.cached_tokens``; None where the latter lacks.
    """
    again, previous = 0, 0
    for usage in usages:
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        if cached is None:
            return None
        lost = previous - cached
        if lost >= _BLOCK_TOKENS:
            again += lost
        previous = usage["prompt_tokens"]
    return again if usages else None


def _usages(trajectory: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    for message in trajectory.get("messages", ()):
        usage = ((message.get("extra") or {}).get("response") or {}).get("usage") or {}
        if usage.get("prompt_tokens") is not None and usage.get("completion_tokens") is not None:
            yield usage


def render(reports: Sequence[Report]) -> str:
    """The table: one row per figure, one column per report."""
    rows = [["", *(report.policy for report in reports)]]
    for label, show in _ROWS:
        rows.append([label, *(show(report) for report in reports)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [_line(row, widths) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def compare(reports: Sequence[Report]) -> list[str]:
    """A sentence for hit rate and one for recomputed tokens: who differs from the last report, and by how much."""
    figures = (
        ("hit rate", [report.hit_ratio for report in reports], "{:.3f}"),
        ("recomputed tokens", [report.trajectories.recomputed_tokens for report in reports], "{:,.0f}"),
    )
    return [_compare_one(name, [r.policy for r in reports], values, form) for name, values, form in figures]


def _compare_one(name: str, policies: Sequence[str], values: Sequence[float | None], form: str) -> str:
    known = [(policy, value) for policy, value in zip(policies, values, strict=True) if value is not None]
    if len(known) < len(policies):
        return f"{name}: not reported by every run, so not compared"
    subject, reference = known[-1]
    parts = []
    for policy, value in known[:-1]:
        if same(value, reference):
            parts.append(f"no different from {policy} ({form.format(value)}, within {SAME_RATIO:.0%})")
        else:
            word = "above" if reference > value else "below"
            parts.append(f"{word} {policy} ({form.format(value)})")
    return f"{name}: {subject} ({form.format(reference)}) is {', '.join(parts)}"


def same(first: float, second: float) -> bool:
    """True where the two differ by at most ``SAME_RATIO`` of the larger one."""
    return abs(first - second) <= SAME_RATIO * max(abs(first), abs(second))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
    return "  ".join(cells)


def _count(value: float | None) -> str:
    return "not reported" if value is None else f"{value:,.0f}"


def _ratio(value: float | None) -> str:
    return "not reported" if value is None else f"{value:.1%}"


def _statuses(report: Report) -> str:
    counts = sorted(report.trajectories.exit_statuses.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {status}" for status, count in counts) or "none"


def _shares(report: Report) -> str:
    turns = sum(report.router.shares.values())
    return (
        " / ".join(f"{share / turns:.0%}" for _, share in sorted(report.router.shares.items())) if turns else "none"
    )


def _largest_share(report: Report) -> str:
    return f"{report.trajectories.largest_tokens / report.kv_tokens:.0%}" if report.kv_tokens else "unknown"


_ROWS = (
    ("instances", lambda report: str(report.instances)),
    ("exit status", _statuses),
    ("empty patches", lambda report: str(report.empty_patches)),
    ("patches that pass the tests", lambda report: "not tried" if report.resolved is None else str(report.resolved)),
    ("turns", lambda report: _count(report.trajectories.turns)),
    ("prompt tokens", lambda report: _count(report.prompt_tokens)),
    ("  cached", lambda report: _count(report.engines.cached_tokens)),
    ("  computed", lambda report: _count(report.engines.computed_tokens)),
    ("  recomputed", lambda report: _count(report.trajectories.recomputed_tokens)),
    ("hit rate", lambda report: _ratio(report.hit_ratio)),
    ("holds", lambda report: _count(report.router.holds)),
    ("pauses", lambda report: _count(report.router.pauses)),
    ("moves to another backend", lambda report: _count(report.router.moves)),
    ("turns per backend", _shares),
    ("largest program, tokens", lambda report: _count(report.trajectories.largest_tokens)),
    ("  of one backend's KV", _largest_share),
    (
        "all contexts / all KV",
        lambda report: "unknown" if report.demand_ratio is None else f"{report.demand_ratio:.2f}",
    ),
    ("programs left behind", lambda report: str(report.router.programs_left)),
    ("wall time", lambda report: f"{report.wall_seconds:.0f} s"),
)


def _difference(later: float | None, earlier: float | None) -> float | None:
    return None if later is None or earlier is None else later - earlier


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second
