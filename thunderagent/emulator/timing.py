"""How long an engine step takes, and presets calibrated to published figures."""

from __future__ import annotations

import attrs

__all__ = ["DEFAULT_PRESET", "PRESETS", "Preset", "TimingModel"]


@attrs.frozen
class TimingModel:
    """A step's duration as a sum of the work in its batch.

    ``step_seconds`` is paid by every step (weights read, launch overhead); each token prefilled costs
    ``prefill_token_seconds`` plus ``prefill_pair_seconds`` for every earlier token it attends to; each decoding
    sequence costs ``decode_sequence_seconds``; each KV token that decoding reads costs ``kv_token_seconds``.
    """

    step_seconds: float
    prefill_token_seconds: float
    prefill_pair_seconds: float
    decode_sequence_seconds: float
    kv_token_seconds: float

    def duration_seconds(
        self, prefill_tokens: int, prefill_pairs: int, decode_sequences: int, kv_tokens: int
    ) -> float:
        """Seconds of one step.

        ``prefill_pairs`` counts (token, earlier token) pairs of the prefilled chunks, see ``attention_pairs``;
        ``kv_tokens`` is the total context of the decoding sequences.
        """
        return (
            self.step_seconds
            + self.prefill_token_seconds * prefill_tokens
            + self.prefill_pair_seconds * prefill_pairs
            + self.decode_sequence_seconds * decode_sequences
            + self.kv_token_seconds * kv_tokens
        )

    def prompt_seconds(self, tokens: int, chunk_tokens: int, cached_tokens: int = 0) -> float:
        """Seconds to prefill a prompt alone on the engine, in chunks of ``chunk_tokens``."""
        total, start = 0.0, cached_tokens
        while start < tokens:
            size = min(chunk_tokens, tokens - start)
            total += self.duration_seconds(size, attention_pairs(size, start), 0, 0)
            start += size
        return total

    def decode_seconds(self, sequences: int, context_tokens: int) -> float:
        """Seconds between two tokens of ``sequences`` sequences that hold ``context_tokens`` each."""
        return self.duration_seconds(0, 0, sequences, sequences * context_tokens)


def attention_pairs(tokens: int, context_tokens: int) -> int:
    """Pairs that a chunk of ``tokens`` attends to after ``context_tokens`` tokens: all of these and half its own."""
    return tokens * context_tokens + tokens * tokens // 2


@attrs.frozen
class Preset:
    """A named machine and model: its timing, its KV cache and the scheduler limits that vLLM would use on it.

    ``title`` says that the timings are simulated and what they are calibrated to; every output that shows timings
    shows the title.
    """

    name: str
    title: str
    timing: TimingModel
    kv_tokens: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int


H100_QWEN3_CODER_30B = Preset(
    name="h100-qwen3-coder-30b",
    title="simulated, calibrated to published figures of 2xH100 Qwen3-Coder-30B-A3B-FP8",
    timing=TimingModel(
        step_seconds=2.714e-3,
        prefill_token_seconds=30.0e-6,
        prefill_pair_seconds=0.504e-9,
        decode_sequence_seconds=0.0,
        kv_token_seconds=21.43e-9,
    ),
    kv_tokens=2_237_040,
    max_model_len=262_144,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
)
"""vLLM 0.28 with tensor parallelism 2, as replications of program-level scheduling report it: a KV cache of 2,237,040
tokens; about 22,000 prefill tokens/s at 60k contexts; 10, 22 and 31 ms between tokens with 4, 12 and 16 contexts of
80k. Decoding: least squares through the three points (they deviate by up to 6 %), all of the growth put on the KV
tokens read, since batch and context were not varied apart. Prefill: the rate fixes one number; its split into a
linear and a quadratic part (two thirds to a third at 60k) is an estimate: by operations the quadratic part would be
the larger one, but attention runs nearer to the machine's peak than small FP8 experts do."""

H100_GLM_355B = Preset(
    name="8xh100-glm-355b",
    title="simulated, estimated for a 355B mixture-of-experts model on 8xH100 (prefill set by a published ratio)",
    timing=TimingModel(
        step_seconds=16e-3,
        prefill_token_seconds=120e-6,
        prefill_pair_seconds=2.0e-9,
        decode_sequence_seconds=0.25e-3,
        kv_token_seconds=15e-9,
    ),
    kv_tokens=530_000,
    max_model_len=131_072,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
)
"""The machine and model (GLM-4.6) of the ThunderAgent paper's evaluation (arXiv 2602.13692). KV tokens by arithmetic:
FP8 weights leave about 200 GB, a token takes 92 layers x 2 x 8 heads x 128 x 2 bytes. Prefill is such that contexts
of 16,000 tokens come in at 7,400 tokens/s, which makes 200,000 KV tokens worth 27 s of prefill. No step times are
published: those of decoding are an estimate (21 ms between tokens with ten contexts of 17,000 tokens)."""

CPU_TINY = Preset(
    name="cpu-tiny",
    title="simulated, calibrated to a 2-core CPU build of vLLM 0.32 with a 22M-parameter model",
    timing=TimingModel(
        step_seconds=9.61e-3,
        prefill_token_seconds=328e-6,
        prefill_pair_seconds=0.217e-6,
        decode_sequence_seconds=0.703e-3,
        kv_token_seconds=0.287e-6,
    ),
    kv_tokens=16_384,
    max_model_len=8192,
    max_num_seqs=32,
    max_num_batched_tokens=2048,
)
"""What ``thunderagent calibrate`` wrote on 2026-11-27 of the server that ``benchmarks.vllm`` starts, on two cores of
an AMD EPYC without AVX-512, where vLLM computes in float32: prompts of 1,024 and 4,096 tokens in 0.47 and 3.17 s,
tokens of 1, 8 and 16 answers with 96 tokens of context 10.0, 15.0 and 21.8 ms apart."""

SMALL_GPU = Preset(
    name="small-gpu",
    title="simulated, round figures for an 8B model on one 24 GB GPU (estimated, not calibrated)",
    timing=TimingModel(
        step_seconds=14e-3,
        prefill_token_seconds=110e-6,
        prefill_pair_seconds=0.6e-9,
        decode_sequence_seconds=0.1e-3,
        kv_token_seconds=150e-9,
    ),
    kv_tokens=65_536,
    max_model_len=32_768,
    max_num_seqs=128,
    max_num_batched_tokens=4096,
)
"""No published source: FP8 weights (8 GB) and KV (131 kB per token) read at about 0.9 TB/s, prefill of about 8,500
tokens/s at short contexts. For demos on a laptop, where nobody should read the seconds as a GPU's."""

PRESETS = {preset.name: preset for preset in (SMALL_GPU, CPU_TINY, H100_QWEN3_CODER_30B, H100_GLM_355B)}
"""Presets by name."""

DEFAULT_PRESET = SMALL_GPU
