"""An engine for simulations: it leaps from one change of the batch to the next."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable

import attrs

from thunderagent.emulator.cache import Cache, blocks_for
from thunderagent.emulator.decoding import Decoders
from thunderagent.emulator.engine import Engine
from thunderagent.emulator.engine_types import EngineSettings, StepResult, TokenOutput
from thunderagent.emulator.sequence import LiveSequence, Step
from thunderagent.emulator.timing import TimingModel

__all__ = ["LeapingEngine"]


@attrs.define(eq=False)
class _Leap:
    """Several tokens of sequences that all decode."""

    first_seconds: float
    """Until the first token of each."""
    growth_seconds: float
    """By which each further token takes longer than the one before."""
    tokens: int = 1
    duration_seconds: float = 0.0
    """Until the last of them."""

    def end_with(self, tokens: int) -> None:
        """Make it so long."""
        self.tokens, self.duration_seconds = tokens, self.seconds_of(tokens)

    def seconds_of(self, tokens: int) -> float:
        """Until so many tokens of each."""
        return self.first_seconds * tokens + self.growth_seconds * tokens * (tokens - 1) / 2

    def tokens_after(self, seconds: float) -> int:
        """The first token, 1 at least, that is due so late or later; ``seconds`` is finite."""
        growth = self.growth_seconds
        straight = self.first_seconds - growth / 2
        # The root of seconds_of(tokens) = seconds in the form that holds without growth too; then to the exact one.
        tokens = max(
            1, int(2 * seconds / (straight + math.sqrt(straight * straight + 2 * growth * max(0.0, seconds))))
        )
        while self.seconds_of(tokens) < seconds:
            tokens += 1
        while tokens > 1 and self.seconds_of(tokens - 1) >= seconds:
            tokens -= 1
        return tokens


class LeapingEngine(Engine):
    """The same schedule as ``Engine``'s, at a cost per request and not per token; tests hold one against the other.

    Sequences that only decode are ``Decoders``; the others are few, since one prompt is computed at a time. Where
    blocks run short, so that something is preempted, a step is made as ``Engine`` makes it. Put out are first tokens,
    ends, and what was asked for; times between tokens are counted as means between two of these.
    """

    def __init__(self, settings: EngineSettings, timing: TimingModel, cache: Cache | None = None) -> None:
        """Raises ValueError for a batch that may not take a token of each sequence, which vLLM refuses as well."""
        if settings.max_num_batched_tokens < settings.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({settings.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({settings.max_num_seqs})"
            )
        super().__init__(settings, timing, cache)
        self._decoders = Decoders(self.cache)
        self._leap: _Leap | None = None

    @property
    def running(self) -> int:
        return len(self._running) + self._decoders.count

    def begin_step(self, now: float = 0.0, max_seconds: float = math.inf) -> float | None:
        """Schedule the next batch; its duration in seconds, or None where there is nothing to do.

        A batch that only decodes runs for several tokens, as long as no request ends, no block is missing and the
        step stays within ``max_seconds``; call ``shorten_step`` where a request comes. Raises RuntimeError while a
        step is under way.
        """
        decoders = self._decoders
        if not decoders.count or self._step is not None:
            return super().begin_step(now)
        is_doubtful = self._running or not decoders.surely_fit(1, self.cache.free_blocks)
        if is_doubtful and self._lacks_blocks():
            self._running[:0] = decoders.dissolve()
            return super().begin_step(now)
        decoders.take(1)
        batch: list[LiveSequence] = []
        if len(self._by_id) > decoders.count:  # others run or wait
            batch = self._schedule(now, self.settings.max_num_batched_tokens - decoders.count)
        count, kv_tokens = decoders.count, decoders.length_tokens
        if batch:
            duration_seconds = self._duration_seconds(batch, count, kv_tokens)
        else:
            duration_seconds = self.timing.duration_seconds(0, 0, count, kv_tokens)
        if not self._running:
            self._leap = leap = self._longest_leap(duration_seconds, max_seconds)
            duration_seconds = leap.duration_seconds
        self._step = Step(batch, duration_seconds)
        return duration_seconds

    def shorten_step(self, seconds: float) -> float:
        """End a step of several tokens with the first that is due ``seconds`` or more after its begin, for a request
        that comes in between; the step's duration now. Raises RuntimeError where no step is under way.
        """
        step, leap = self._step, self._leap
        if step is None:
            raise RuntimeError("shorten_step was called without begin_step")
        if leap is not None and leap.tokens > 1 and seconds < step.duration_seconds:
            leap.end_with(leap.tokens_after(seconds))
            step.duration_seconds = leap.duration_seconds
        return step.duration_seconds

    def end_step(self, now: float = 0.0, asked: Iterable[str] = ()) -> StepResult:
        """First tokens, ends, and of the requests in ``asked`` those that made tokens, as the batch has them.

        Raises RuntimeError where no step is under way.
        """
        step, leap, decoders = self._end(), self._leap, self._decoders
        self._leap = None
        tokens = 1 if leap is None else leap.tokens
        generated_tokens = scheduled_tokens = tokens * decoders.count
        outputs: list[TokenOutput] = []
        if generated_tokens:
            if tokens > 1:
                decoders.take(tokens - 1)
            told = decoders.advance()
            if asked:
                told = sorted({*told, *self._decoding(asked)}, key=_rank)
            outputs = [self._tell(sequence, now) for sequence in told]
        else:
            decoders.advance()  # all that decoded may have been aborted amid the step
        if step.batch:
            told_tokens = len(outputs)
            scheduled_tokens += self._advance(step.batch, outputs, now)
            generated_tokens += len(outputs) - told_tokens
        self.counters.step_finished(scheduled_tokens, generated_tokens)
        if self._running:
            self._sort_out()
        return StepResult(step.duration_seconds, outputs)

    def check(self) -> None:
        sequences = [*self._decoders, *self._running]
        self._check(sequences, [*(sequence.holding for sequence in sequences), self._decoders.pool])
        self._decoders.check()

    def _longest_leap(self, first_seconds: float, max_seconds: float) -> _Leap:
        decoders, free_blocks = self._decoders, self.cache.free_blocks
        leap = _Leap(first_seconds, self.timing.kv_token_seconds * decoders.count)
        leap.end_with(decoders.tokens_to_next_end)
        if leap.duration_seconds > max_seconds:
            leap.end_with(leap.tokens_after(max_seconds))
            if leap.duration_seconds > max_seconds and leap.tokens > 1:
                leap.end_with(leap.tokens - 1)
        if not decoders.surely_fit(leap.tokens, free_blocks) and decoders.blocks_for(leap.tokens - 1) > free_blocks:
            leap.end_with(
                bisect_left(range(leap.tokens), True, key=lambda more: decoders.blocks_for(more) > free_blocks)
            )
        return leap

    def _lacks_blocks(self) -> bool:
        """Whether those that run cannot all go on."""
        decoders, free_blocks = self._decoders, self.cache.free_blocks
        size, budget = self.cache.block_size, self.settings.max_num_batched_tokens
        needed = decoders.blocks_for(1)
        for one in self._running:
            count = min(one.length_tokens - one.computed_tokens, budget)
            needed += blocks_for(one.computed_tokens + count, size) - len(one.holding)
        return needed > free_blocks

    def _sort_out(self) -> None:
        """Those that only decode from now on join the others that do."""
        running, self._running = self._running, []
        for sequence in running:
            if sequence.decodes:
                self._decoders.join(sequence)
            else:
                self._running.append(sequence)

    def _decoding(self, asked: Iterable[str]) -> list[LiveSequence]:
        """Those of them that decode, brought up to date."""
        found = []
        for name in asked:
            sequence = self._by_id.get(name)
            if sequence is not None and sequence in self._decoders:
                self._decoders.update(sequence)
                found.append(sequence)
        return found

    def _start(self, sequence: LiveSequence, budget: int) -> int:
        self._decoders.publish(sequence.request.block_hashes)
        return super()._start(sequence, budget)

    def _withdraw(self, sequence: LiveSequence) -> None:
        if sequence in self._decoders:
            self._decoders.leave(sequence)
            self._free(sequence)
        else:
            super()._withdraw(sequence)


def _rank(sequence: LiveSequence) -> int:
    return sequence.rank
