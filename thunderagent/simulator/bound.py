"""How much of an engine's time turns need at least, whoever schedules them.

In each step the contexts that decode fit the KV cache together: what they hold for themselves, over the cache's
size, sums to 1 at most. So each token of an answer takes at least that share of what a step costs by itself
(weights, launch overhead) and its own part; each prompt token that nobody could have cached takes its prefill.
Turns whose needs sum to more than the time that the engines had cannot have been served: a schedule's distance to
the bound is what is missing to 1.
"""

from __future__ import annotations

from attrs import frozen

from thunderagent.emulator.timing import Preset, attention_pairs

__all__ = ["EngineNeed"]


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
        new = max(1, prompt_tokens - known_tokens)
        prefill = timing.prefill_token_seconds * new + timing.prefill_pair_seconds * attention_pairs(
            new, prompt_tokens - new
        )
        tokens = output_tokens - 1  # the first comes with the prompt
        context = prompt_tokens + tokens / 2
        own = tokens * (timing.decode_sequence_seconds + timing.kv_token_seconds * context)
        shared = tokens * timing.step_seconds
        by_cache = shared * min(1.0, (context - shared_tokens) / self.kv_tokens)
        return prefill + own + by_cache, prefill + own + shared / self.preset.max_num_seqs
