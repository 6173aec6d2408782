"""The values that go into and come out of an emulated engine."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from enum import Enum
from typing import NamedTuple

import attrs

__all__ = ["EngineRequest", "EngineSettings", "FinishReason", "SchedulingPolicy", "StepResult", "TokenOutput"]


class FinishReason(str, Enum):
    """Why a request ended, under vLLM's names."""

    STOP = "stop"
    LENGTH = "length"


class SchedulingPolicy(str, Enum):
    """Order of waiting requests: by arrival, or by the request's ``priority`` (lower first) and then arrival."""

    FCFS = "fcfs"
    PRIORITY = "priority"


@attrs.frozen
class EngineSettings:
    """Limits of the engine, under the names of vLLM's flags.

    ``reserve_full_prompt``: a waiting request starts only when its whole sequence fits the free blocks, not just its
    first chunk (vLLM's ``scheduler_reserve_full_isl``, on by default there as here).
    """

    num_gpu_blocks: int
    block_size: int = 16
    max_num_seqs: int = 128
    max_num_batched_tokens: int = 4096
    scheduling_policy: SchedulingPolicy = SchedulingPolicy.FCFS
    prefix_caching: bool = True
    reserve_full_prompt: bool = True


@attrs.frozen
class EngineRequest:
    """What the engine must know of a request.

    ``block_hashes[i]`` names the content of the first ``i + 1`` blocks of prompt and output together (any hashable;
    a ``range`` does for synthetic programs). Blocks past its end are computed and not cached. ``output_tokens`` is
    how many tokens the request generates before it ends with ``finish_reason``.
    """

    id: str
    prompt_tokens: int
    output_tokens: int
    block_hashes: Sequence[Hashable] = ()
    priority: int = 0
    finish_reason: FinishReason = FinishReason.LENGTH

    def __attrs_post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise ValueError(f"request {self.id} needs a prompt token and an output token")


class TokenOutput(NamedTuple):
    """Tokens that a step generated for one request (a named tuple: one is made per token)."""

    request_id: str
    tokens: int
    """Tokens generated since the last output: 1, more only with a ``LeapingEngine``."""
    cached_tokens: int
    """Prompt tokens found in the prefix cache when the request was first scheduled."""
    finish_reason: FinishReason | None


class StepResult(NamedTuple):
    """What a finished step gave."""

    duration_seconds: float
    outputs: list[TokenOutput]
