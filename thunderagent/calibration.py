"""Measures how long a live vLLM server takes for prompts and for tokens, and fits the simulator's timing to that.

Prompts are of random token ids, so that nothing of them is cached. Nobody else may use the server meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise

import aiohttp
from attrs import field, frozen

from thunderagent.emulator.timing import TimingModel, attention_pairs

__all__ = ["CalibrationError", "Sample", "Sizes", "fit", "measure", "predicted_seconds"]

_TOKEN_IDS = range(100, 1000)
"""Ordinary tokens in every vocabulary."""


class CalibrationError(Exception):
    """The server does not answer as it should, or its figures make no sense."""


@frozen
class Sample:
    """Work that was timed: steps of the engine and what was in them, all together."""

    seconds: float
    steps: int
    prefill_tokens: int = 0
    prefill_pairs: int = 0
    decode_sequences: int = 0
    kv_tokens: int = 0

    @property
    def work(self) -> tuple[int, int, int, int, int]:
        """In the order of ``TimingModel``'s fields."""
        return (self.steps, self.prefill_tokens, self.prefill_pairs, self.decode_sequences, self.kv_tokens)


@frozen
class Sizes:
    """What is asked for. ``prompts``: tokens of prompts sent one by one; ``batches``: (requests that decode together,
    tokens of the prompt of each).
    """

    prompts: tuple[int, ...]
    batches: tuple[tuple[int, int], ...]
    output_tokens: int = 64
    repetitions: int = 3
    chunk_tokens: int = 2048
    """The server's ``--max-num-batched-tokens``."""

    @classmethod
    def of(cls, max_model_len: int, kv_tokens: int, chunk_tokens: int) -> Sizes:
        """Sizes that fit the server. Raises CalibrationError for one on which nothing can be told apart."""
        most = min(max_model_len, kv_tokens) - 64
        prompts = tuple(size for size in (256, 1024, 4096, 16_384, 65_536) if size < most)
        batches = tuple(
            (count, context)
            for context in (64, 1024, 8192, 32_768)
            for count in (1, 4, 8, 16)
            if context + 64 < most and count * (context + 128) <= kv_tokens
        )
        if len(prompts) < 2 or len(batches) < 3:
            raise CalibrationError(f"contexts of {most + 64} tokens at most are too short to measure")
        return cls(prompts, batches, chunk_tokens=chunk_tokens)


@frozen
class _Server:
    url: str
    model: str
    session: aiohttp.ClientSession
    chance: random.Random = field(factory=random.Random)

    async def token_times(self, prompt_tokens: int, output_tokens: int) -> list[float]:
        """Seconds from sending a request to each chunk of its answer. Raises CalibrationError."""
        body = {
            "model": self.model,
            "prompt": self.chance.choices(_TOKEN_IDS, k=prompt_tokens),
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
        began_at = time.monotonic()
        times: list[float] = []
        async with self.session.post(f"{self.url}/v1/completions", json=body) as answer:
            if answer.status != 200:
                raise CalibrationError(f"{self.url}/v1/completions: status {answer.status}: {await answer.text()}")
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    if "error" in json.loads(line[6:]):
                        raise CalibrationError(f"{self.url}: {line[6:].decode()}")
                    times.append(time.monotonic() - began_at)
        if not times:
            raise CalibrationError(f"{self.url} answered without a token")
        return times


async def measure(url: str, model: str, sizes: Sizes, api_key: str | None = None) -> list[Sample]:
    """Time prompts alone and answers in batches.

    Raises:
        CalibrationError: the server answers with an error.
        aiohttp.ClientError, asyncio.TimeoutError: it cannot be asked.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        server = _Server(url, model, session)
        await server.token_times(16, 8)  # what is slow once only
        samples = [await _prompt_sample(server, tokens, sizes) for tokens in sizes.prompts]
        return samples + [await _decode_sample(server, count, context, sizes) for count, context in sizes.batches]


async def _prompt_sample(server: _Server, tokens: int, sizes: Sizes) -> Sample:
    """A prompt alone, the median of some."""
    seconds = [(await server.token_times(tokens, 1))[0] for _ in range(sizes.repetitions)]
    chunks = list(_chunks(tokens, sizes.chunk_tokens))
    pairs = sum(attention_pairs(size, start) for start, size in chunks)
    return Sample(statistics.median(seconds), len(chunks), tokens, pairs)


async def _decode_sample(server: _Server, count: int, context: int, sizes: Sizes) -> Sample:
    """The median time between tokens while ``count`` answers come, counted from when all of them do."""
    answers = [server.token_times(context, sizes.output_tokens) for _ in range(count)]
    times = await asyncio.gather(*answers)
    all_began = max(each[0] for each in times)
    first_ended = min(each[-1] for each in times)
    gaps = [
        later - earlier
        for each in times
        for earlier, later in pairwise(each)
        if earlier >= all_began and later <= first_ended
    ]
    if not gaps:
        raise CalibrationError(f"{count} answers of {sizes.output_tokens} tokens never ran together")
    mean_context = context + sizes.output_tokens // 2
    return Sample(statistics.median(gaps), 1, decode_sequences=count, kv_tokens=count * mean_context)


def _chunks(tokens: int, chunk_tokens: int) -> Iterator[tuple[int, int]]:
    """(start, size) of each."""
    for start in range(0, tokens, chunk_tokens):
        yield start, min(chunk_tokens, tokens - start)


def fit(samples: Sequence[Sample]) -> TimingModel:
    """The timing that predicts the samples best: least squares of relative errors, no part below 0.

    Raises:
        CalibrationError: the samples do not tell prompts' and tokens' cost.
    """
    names = (
        "step_seconds",
        "prefill_token_seconds",
        "prefill_pair_seconds",
        "decode_sequence_seconds",
        "kv_token_seconds",
    )
    kept = list(range(len(names)))
    while True:
        rows = [[sample.work[place] / sample.seconds for place in kept] for sample in samples]
        found = _least_squares(rows)
        lowest = min(range(len(kept)), key=lambda place: found[place] * max(row[place] for row in rows))
        if found[lowest] >= 0:
            break
        del kept[lowest]
    parts = dict.fromkeys(names, 0.0) | {names[place]: value for place, value in zip(kept, found, strict=True)}
    if parts["step_seconds"] <= 0 or parts["prefill_token_seconds"] <= 0:
        raise CalibrationError("the times measured do not grow with the work: was the server used by others?")
    return TimingModel(**parts)


def _least_squares(rows: Sequence[Sequence[float]]) -> list[float]:
    """x for which each row's product with x is nearest to 1 (normal equations by elimination, columns scaled)."""
    size = len(rows[0])
    scales = [max(abs(row[place]) for row in rows) or 1.0 for place in range(size)]
    scaled = [[value / scale for value, scale in zip(row, scales, strict=True)] for row in rows]
    matrix = [
        [sum(row[left] * row[right] for row in scaled) for right in range(size)] + [sum(row[left] for row in scaled)]
        for left in range(size)
    ]
    for place in range(size):
        pivot = max(range(place, size), key=lambda row: abs(matrix[row][place]))
        matrix[place], matrix[pivot] = matrix[pivot], matrix[place]
        if abs(matrix[place][place]) < 1e-12:
            raise CalibrationError("too few sizes were measured to tell the parts of a step apart")
        for row in range(size):
            if row != place:
                factor = matrix[row][place] / matrix[place][place]
                matrix[row] = [
                    value - factor * above for value, above in zip(matrix[row], matrix[place], strict=True)
                ]
    return [matrix[place][size] / matrix[place][place] / scales[place] for place in range(size)]


def predicted_seconds(timing: TimingModel, sample: Sample) -> float:
    """What the timing says of a sample."""
    _, *work = sample.work
    return timing.step_seconds * (sample.steps - 1) + timing.duration_seconds(*work)
