"""What is learned from turns as they come and go: how long tools take, and what stayed in a backend's cache."""

from __future__ import annotations

from thunderagent.core.backend import Backend
from thunderagent.core.cluster import Cluster
from thunderagent.core.commands import PrefixLost
from thunderagent.core.program import Branch
from thunderagent.core.tool_times import ToolTimes, bucket_of
from thunderagent.core.turn import Turn
from thunderagent.core.usage import Prefills, Usage

__all__ = [
    "LOST_RATIO",
    "learn_absence",
    "learn_cache",
    "learn_counted_prefills",
    "learn_prefill",
    "learn_tool_time",
]

_LEAST_TOKENS = 1_024
"""Prompts of which less was computed say little about the rate."""

_FORGETTING = 0.98
"""What a former rate still counts when another prompt, or those between two looks, were computed."""

LOST_RATIO = 0.5
"""A prefix of which less than this share came back from the cache counts as lost."""


def learn_tool_time(branch: Branch, cluster: Cluster) -> None:
    """A turn of the branch arrived: the time since its last one ended was its tools'."""
    program = branch.program
    if branch.ended_at is None or program is None:
        return
    seconds = cluster.now - branch.ended_at
    cluster.return_times.learn(seconds, branch.counted_seconds, is_return=True)
    branch.ended_at, branch.counted_seconds = None, 0.0
    if program.tool_times is None:
        program.tool_times = ToolTimes()
    bucket = bucket_of(seconds)
    cluster.tool_times.count_in(bucket)
    program.tool_times.count_in(bucket)


def learn_absence(branch: Branch, cluster: Cluster) -> None:
    """The branch is given up, or forgotten: it has not come back so far."""
    if branch.ended_at is None or branch.program is None:
        return
    seconds = cluster.now - branch.ended_at
    cluster.return_times.learn(seconds, branch.counted_seconds, is_return=False)
    branch.counted_seconds = seconds


def learn_prefill(backend: Backend, computed_tokens: int, seconds: float) -> None:
    """A prompt of which so many tokens were not cached gave its first token after ``seconds``.

    What else the engine did then makes it look slower than it is, so the most counts, and is forgotten slowly.
    """
    if computed_tokens >= _LEAST_TOKENS and seconds > 0.0:
        backend.prefill_rate = _most(backend.prefill_rate, computed_tokens / seconds)


def learn_counted_prefills(backend: Backend, prefills: Prefills) -> None:
    """The same of what the engine itself counted between two looks, for clients that do not stream.

    It is the mean of all prompts that it tells of, so these must be large enough together.
    """
    if prefills.computed_tokens >= _LEAST_TOKENS * prefills.requests and prefills.seconds > 0.0:
        rate = prefills.computed_tokens / prefills.seconds
        backend.counted_prefill_rate = _most(backend.counted_prefill_rate, rate)


def _most(former_rate: float, rate: float) -> float:
    """The most of late."""
    return max(rate, _FORGETTING * former_rate)


def learn_cache(turn: Turn, backend: Backend, usage: Usage | None) -> PrefixLost | None:
    """A turn ended: what it found in the backend's cache, and wrote to it.

    Returns a notice where most of what its conversation had left there was gone. A backend that does not tell
    cached tokens is taken to have found what was expected, and teaches nothing.
    """
    expected_tokens = turn.expected_tokens
    cached_tokens = None if usage is None else usage.cached_tokens
    prompt_tokens = turn.prompt_tokens if usage is None else usage.prompt_tokens
    output_tokens = turn.output_tokens if usage is None else usage.completion_tokens
    found_tokens = expected_tokens if cached_tokens is None else cached_tokens
    lost = None
    if cached_tokens is not None and expected_tokens > 0:
        expected_tokens = min(expected_tokens, prompt_tokens)
        ratio = min(1.0, max(0, cached_tokens) / expected_tokens)
        backend.residency.learn(turn.age_tokens, ratio)
        if ratio < LOST_RATIO:
            lost = PrefixLost(turn.program_id, backend.id, expected_tokens, cached_tokens)
    backend.residency.wrote(max(0, prompt_tokens - found_tokens) + output_tokens)
    return lost
