"""How much of an engine's time turns need at least, whoever schedules them.

In each step the contexts that decode fit the KV cache together: what they hold for themselves, over the cache's
size, sums to 1 at most. So each token of an answer takes at least that share of what a step costs by itself
(weights, launch overhead) and its own part; each prompt token that nobody could have cached takes its prefill.
Turns whose needs sum to more than the time that the engines had cannot have been served: a schedule's distance to
the bound is what is missing to 1.
"""

from __future__ import annotations

import math

from attrs import frozen

from thunderagent.emulator.timing import Preset, TimingModel

__all__ = ["EngineNeed", "alone_seconds"]


@frozen
class EngineNeed:
    """Of turns on engines of a preset with ``kv_tokens`` each."""

    preset: Preset
    kv_tokens: int

    def seconds(
        self, prompt_tokens: int, known_tokens: int, output_tokens: int, shared_tokens: int = 0
    ) -> tuple[float, float]:
        """At least needed by a turn: with steps shared by all that the cache holds, and by ``max_num_seqs``.

        ``shared_tokens`` of the prompt may be held once for many.

        The sum over turns of either is a bound; which one is larger depends on their sizes.
        """
        timing = self.preset.timing
        prefill = _prefill_seconds(timing, prompt_tokens, max(1, prompt_tokens - known_tokens))
        tokens = output_tokens - 1  # the first comes with the prompt
        context = prompt_tokens + tokens / 2
        own = tokens * (timing.decode_sequence_seconds + timing.kv_token_seconds * context)
        shared = tokens * timing.step_seconds
        by_cache = shared * min(1.0, (context - shared_tokens) / self.kv_tokens)
        return prefill + own + by_cache, prefill + own + shared / self.preset.max_num_seqs

    def token_seconds(self, context_tokens: int) -> float:
        """A token's own part where it is decoded. One per preemption is not: it comes with the prompt, computed
        again."""
        timing = self.preset.timing
        return timing.decode_sequence_seconds + timing.kv_token_seconds * context_tokens


def alone_seconds(preset: Preset, prompt_tokens: int, known_tokens: int, output_tokens: int) -> float:
    """From a turn's arrival to its end at least, on an engine that does nothing else, has ``known_tokens`` of the
    prompt cached and preempts nothing."""
    timing = preset.timing
    new = max(1, prompt_tokens - known_tokens)
    steps = math.ceil(new / preset.max_num_batched_tokens)
    prefill = steps * timing.step_seconds + _prefill_seconds(timing, prompt_tokens, new)
    return prefill + (output_tokens - 1) * timing.decode_seconds(1, prompt_tokens)


def _prefill_seconds(timing: TimingModel, prompt_tokens: int, new_tokens: int) -> float:
    """Of the last ``new_tokens`` of a prompt, steps left out, however they are cut into chunks: a chunk of c tokens
    attends to c * c // 2 pairs of its own, which is least where each token is a chunk by itself."""
    pairs = new_tokens * (prompt_tokens - new_tokens) + new_tokens * (new_tokens - 1) // 2
    return timing.prefill_token_seconds * new_tokens + timing.prefill_pair_seconds * pairs
