"""The scheduler of an emulated vLLM engine: continuous batching over the KV cache, without I/O or a clock.

A driver calls ``begin_step`` (which batch runs next, for how long), lets that time pass and calls ``end_step`` (which
tokens came out). Requests may be added and aborted in between, as on a real engine. The HTTP server sleeps between
the two; a simulator moves its virtual clock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable
from typing import Any

import attrs

from thunderagent.emulator.cache import Cache, blocks_for
from thunderagent.emulator.counters import EngineCounters
from thunderagent.emulator.engine_types import (
    EngineRequest,
    EngineSettings,
    FinishReason,
    SchedulingPolicy,
    StepResult,
    TokenOutput,
)
from thunderagent.emulator.kv_cache import KvCache
from thunderagent.emulator.timing import TimingModel, attention_pairs
from thunderagent.emulator.waiting import WaitingQueue

__all__ = [
    "Engine",
    "EngineRequest",
    "EngineSettings",
    "FinishReason",
    "SchedulingPolicy",
    "StepResult",
    "TokenOutput",
]


@attrs.frozen
class _Refusal:
    """When it is of use to look again at a waiting sequence that did not fit.

    It lacks as many blocks as others hold beyond the prefix that it shares with them. That number falls only where a
    block comes free or where the first block that it did not find is cached.
    """

    freed_blocks: int
    """``KvCache.freed_blocks`` that must be reached."""
    missing: Hashable | None
    """Name of the first block not found; None: all were."""


@attrs.define(eq=False)
class _Sequence:
    """A request inside the engine, waiting or running."""

    request: EngineRequest
    arrived_at: float
    order: int
    length_tokens: int
    computed_tokens: int = 0
    generated_tokens: int = 0
    scheduled_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    room_tokens: int = 0
    """Up to so many tokens it needs no block and fills none."""
    holding: Any = None
    """Its blocks in the cache; None while it waits."""
    refusal: _Refusal | None = None
    """Why it did not fit when it was last looked at; None: look again."""
    started_at: float | None = None
    last_token_at: float | None = None

    @property
    def running(self) -> bool:
        return self.holding is not None


def _room_tokens(tokens: int, block_size: int) -> int:
    """All but the last token of the block in part after ``tokens``; itself where there is none."""
    in_part = tokens % block_size
    return tokens + block_size - 1 - in_part if in_part else tokens


@attrs.define(eq=False)
class _Step:
    """The batch between ``begin_step`` and ``end_step``."""

    batch: list[_Sequence]
    first_seconds: float
    """Until the first token of each sequence."""
    growth_seconds: float = 0.0
    """By which each further token takes longer than the one before."""
    stride: int = 1
    """Tokens of each sequence; more than one where it only decodes and was stretched."""
    duration_seconds: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.duration_seconds = self.first_seconds

    def seconds_of(self, tokens: int) -> float:
        """Until so many tokens of each sequence."""
        return self.first_seconds * tokens + self.growth_seconds * tokens * (tokens - 1) / 2

    def run_for(self, tokens: int) -> None:
        """Let it last for so many tokens."""
        self.stride, self.duration_seconds = tokens, self.seconds_of(tokens)


class Engine:
    """One emulated engine: requests in, steps out.

    Invariant for the caller: a request's prompt and output together must fit the KV cache (``Engine.add`` refuses
    others), so the first waiting request always fits once nothing runs and no state deadlocks.
    """

    def __init__(self, settings: EngineSettings, timing: TimingModel, cache: Cache | None = None) -> None:
        """``cache`` None: a ``KvCache`` of the settings' size."""
        self.settings = settings
        self.timing = timing
        self.cache: Cache = cache or KvCache(
            settings.num_gpu_blocks, settings.block_size, prefix_caching=settings.prefix_caching
        )
        self.counters = EngineCounters()
        self._by_id: dict[str, _Sequence] = {}
        self._running: list[_Sequence] = []
        self._waiting: WaitingQueue[_Sequence] = WaitingQueue()
        self._arrivals = 0
        self._step: _Step | None = None
        self._by_priority = settings.scheduling_policy is SchedulingPolicy.PRIORITY

    # -- requests

    @property
    def running(self) -> int:
        """Requests that hold blocks."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait for their first or, after a preemption, their next scheduling."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._by_id

    def add(self, request: EngineRequest, now: float = 0.0) -> None:
        """Queue a request that arrived at ``now`` (seconds on the driver's clock).

        Raises ValueError for an id in use, or a sequence that can never fit the KV cache.
        """
        if request.id in self._by_id:
            raise ValueError(f"request {request.id} is already in the engine")
        length = request.prompt_tokens + request.output_tokens
        if length > self.cache.usable_tokens:
            raise ValueError(
                f"request {request.id} needs {length} tokens, the KV cache holds {self.cache.usable_tokens}"
            )
        self._arrivals += 1
        sequence = _Sequence(request, now, self._arrivals, request.prompt_tokens)
        self._by_id[request.id] = sequence
        self._waiting.push(sequence, self._rank(sequence))

    def abort(self, request_id: str) -> bool:
        """Drop a request and free its blocks at once, also amid a step; False where it is not (or no longer) here.

        Not counted as a finished request: vLLM does not count a client's disconnect either.
        """
        sequence = self._by_id.pop(request_id, None)
        if sequence is None:
            return False
        if sequence.running:
            self._running.remove(sequence)
            self._free(sequence)
        else:
            self._waiting.remove(self._rank(sequence))
        return True

    def reset_prefix_cache(self) -> bool:
        """Forget cached prefixes; False while a request runs."""
        return self.cache.reset()

    def _rank(self, sequence: _Sequence) -> tuple[float, ...]:
        """Position in the waiting queue; a preempted request comes before those that never ran."""
        if self._by_priority:
            return (sequence.request.priority, sequence.arrived_at, sequence.order)
        return (0 if sequence.preemptions else 1, sequence.order)

    # -- steps

    def begin_step(self, now: float = 0.0, max_seconds: float = 0.0) -> float | None:
        """Schedule the next batch; its duration in seconds, or None where there is nothing to do.

        With ``max_seconds`` above 0, a batch that only decodes is run for several tokens at once, as long as no
        request ends, no block is missing and the step stays within ``max_seconds``. A simulator passes infinity, and
        calls ``shorten_step`` where a request comes. Raises RuntimeError while a step is under way.
        """
        if self._step is not None:
            raise RuntimeError("begin_step was called before end_step")
        if not self._by_id:
            return None
        batch, is_changed = self._schedule(now)
        for _ in self._by_id:
            if batch:
                break
            # Each running request preempted one that was scheduled before it, and then itself: vLLM runs an empty
            # step and schedules again.
            batch, is_changed = self._schedule(now)
        if not batch:
            raise RuntimeError(f"{self.waiting} requests wait and none can run: the KV cache accounting is broken")
        self._step = self._measure(batch)
        if max_seconds > 0 and not is_changed:
            self._stretch(self._step, max_seconds)
        return self._step.duration_seconds

    def end_step(self, now: float = 0.0) -> StepResult:
        """The outputs of the batch begun last; requests that ended have left the engine and freed their blocks.

        Raises RuntimeError where no step is under way.
        """
        step = self._step
        if step is None:
            raise RuntimeError("end_step was called without begin_step")
        self._step = None
        if step.stride > 1:
            for sequence in step.batch:
                if sequence.holding is not None:
                    sequence.scheduled_tokens = step.stride
                    self._grow(sequence, step.stride)
        outputs: list[TokenOutput] = []
        scheduled_tokens = 0
        for sequence in step.batch:
            count = sequence.scheduled_tokens
            sequence.scheduled_tokens = 0
            if sequence.holding is None:
                continue
            scheduled_tokens += count
            sequence.computed_tokens += count
            if sequence.computed_tokens >= sequence.length_tokens:
                outputs.append(self._generate(sequence, step.stride, now))
        self.counters.step_finished(scheduled_tokens, sum(output.tokens for output in outputs))
        return StepResult(step.duration_seconds, outputs)

    def step(self, now: float = 0.0) -> StepResult | None:
        """``begin_step`` and ``end_step`` at once, for drivers that need nothing in between; None when idle."""
        duration = self.begin_step(now)
        return None if duration is None else self.end_step(now + duration)

    def _schedule(self, now: float) -> tuple[list[_Sequence], bool]:
        """Running requests first, then waiting ones while budget, sequences and blocks last.

        Also whether any began or lost its place: then the next step may do so, too.
        """
        budget = self.settings.max_num_batched_tokens
        batch: list[_Sequence] = []
        preempted = False
        index = 0
        while index < len(self._running) and budget > 0:
            sequence = self._running[index]
            count = min(sequence.length_tokens - sequence.computed_tokens, budget)
            while not self._grow(sequence, count):
                preempted = True
                victim = self._preempt()
                if victim.scheduled_tokens:
                    budget += victim.scheduled_tokens
                    victim.scheduled_tokens = 0
                    batch.remove(victim)
                    index -= 1
                if victim is sequence:
                    break
            if sequence.holding is None:
                break
            sequence.scheduled_tokens = count
            batch.append(sequence)
            budget -= count
            index += 1
        if preempted:
            return batch, True
        running = len(batch)
        self._admit(batch, budget, now)
        return batch, len(batch) > running

    def _admit(self, batch: list[_Sequence], budget: int, now: float) -> None:
        """Start waiting requests in order; the first that does not fit ends the round."""
        while self._waiting and budget > 0 and len(self._running) < self.settings.max_num_seqs:
            sequence = self._waiting.first()
            count = self._start(sequence, budget)
            if count == 0:
                return
            self._waiting.pop()
            self._running.append(sequence)
            if sequence.started_at is None:
                sequence.started_at = now
            sequence.scheduled_tokens = count
            batch.append(sequence)
            budget -= count

    def _start(self, sequence: _Sequence, budget: int) -> int:
        """Give a waiting sequence its cached prefix and the blocks of its first chunk; the chunk, or 0: no room."""
        cache, length = self.cache, sequence.length_tokens
        refusal = sequence.refusal
        if refusal and cache.freed_blocks < refusal.freed_blocks and not cache.holds(refusal.missing):
            return 0
        size = cache.block_size
        matched = cache.match(sequence.request.block_hashes, length)
        hit = len(matched) * size
        count = min(length - hit, budget)
        must_fit = length if self.settings.reserve_full_prompt else hit + count
        lacking = cache.lacks(matched, blocks_for(must_fit, size) - len(matched))
        if lacking:
            # Without the reserve the chunk that must fit depends on the budget, which may be smaller next time.
            if self.settings.reserve_full_prompt:
                sequence.refusal = self._refusal(sequence, len(matched), lacking)
            return 0
        holding = cache.hold(sequence.request.block_hashes, matched, blocks_for(hit + count, size) - len(matched))
        assert holding is not None, "a smaller allocation than the one just checked failed"
        sequence.holding, sequence.refusal = holding, None
        if cache.prefix_caching:
            cache.counters.count_lookup(length, hit, preempted=sequence.preemptions > 0)
        if sequence.preemptions == 0:
            sequence.cached_tokens = hit
        sequence.computed_tokens = hit
        cache.fill(holding, (hit + count) // size)
        sequence.room_tokens = _room_tokens(hit + count, size)
        return count

    def _refusal(self, sequence: _Sequence, matched: int, lacking: int) -> _Refusal:
        names = sequence.request.block_hashes
        findable = min(len(names), (sequence.length_tokens - 1) // self.cache.block_size)
        return _Refusal(self.cache.freed_blocks + lacking, names[matched] if matched < findable else None)

    def _grow(self, sequence: _Sequence, count: int) -> bool:
        """Blocks for ``count`` more tokens; False where the pool has none left."""
        computed = sequence.computed_tokens + count
        if computed <= sequence.room_tokens:
            return True
        cache, holding = self.cache, sequence.holding
        size = cache.block_size
        missing = blocks_for(computed, size) - len(holding)
        if missing > 0 and not cache.extend(holding, missing):
            return False
        cache.fill(holding, computed // size)
        sequence.room_tokens = _room_tokens(computed, size)
        return True

    def _preempt(self) -> _Sequence:
        """Take the blocks of the request that came last (by priority: of the least urgent) and queue it again."""
        if self._by_priority:
            victim = max(self._running, key=self._rank)
            self._running.remove(victim)
        else:
            victim = self._running.pop()
        self._free(victim)
        victim.preemptions += 1
        self.counters.preemptions += 1
        self._waiting.push(victim, self._rank(victim))
        return victim

    def _free(self, sequence: _Sequence) -> None:
        self.cache.drop(sequence.holding)
        sequence.holding = None
        sequence.computed_tokens = 0

    def _measure(self, batch: list[_Sequence]) -> _Step:
        prefill_tokens = pairs = sequences = kv_tokens = 0
        for sequence in batch:
            count = sequence.scheduled_tokens
            if count == 1 and sequence.generated_tokens:
                sequences += 1
                kv_tokens += sequence.length_tokens
            else:
                prefill_tokens += count
                pairs += attention_pairs(count, sequence.computed_tokens)
        return _Step(batch, self.timing.duration_seconds(prefill_tokens, pairs, sequences, kv_tokens))

    def _stretch(self, step: _Step, max_seconds: float) -> None:
        """Run a step that only decodes for as many tokens as change nothing else."""
        batch, free_blocks = step.batch, self.cache.free_blocks
        if any(one.scheduled_tokens != 1 or not one.generated_tokens for one in batch) or len(batch) < self.running:
            return
        size = self.cache.block_size

        def fits(stride: int) -> bool:
            if step.seconds_of(stride) > max_seconds:
                return False
            if len(batch) * (stride // size + 1) <= free_blocks:
                return True
            missing = sum(max(0, blocks_for(one.computed_tokens + stride, size) - len(one.holding)) for one in batch)
            return missing <= free_blocks

        step.growth_seconds = self.timing.kv_token_seconds * len(batch)
        stride = min(one.request.output_tokens - one.generated_tokens for one in batch)
        if not fits(stride):
            stride = bisect_left(range(2, stride), True, key=lambda tokens: not fits(tokens)) + 1
        step.run_for(stride)

    def shorten_step(self, seconds: float) -> float:
        """End a stretched step with the first token that is due ``seconds`` or more after its begin, for a request
        that comes in between; the step's duration now. Raises RuntimeError where no step is under way.
        """
        step = self._step
        if step is None:
            raise RuntimeError("shorten_step was called without begin_step")
        if step.stride > 1 and seconds < step.duration_seconds:
            step.run_for(
                bisect_left(range(1, step.stride), True, key=lambda tokens: step.seconds_of(tokens) >= seconds) + 1
            )
        return step.duration_seconds

    def _generate(self, sequence: _Sequence, tokens: int, now: float) -> TokenOutput:
        request = sequence.request
        counters = self.counters
        if sequence.last_token_at is None:
            counters.first_token(request.prompt_tokens, sequence.cached_tokens, now - sequence.arrived_at)
        else:
            counters.next_tokens(tokens, now - sequence.last_token_at)
        sequence.last_token_at = now
        sequence.generated_tokens += tokens
        sequence.length_tokens += tokens
        reason = None
        if sequence.generated_tokens >= request.output_tokens:
            reason = request.finish_reason
            del self._by_id[request.id]
            self._running.remove(sequence)
            self._free(sequence)
            queued = (sequence.started_at or 0.0) - sequence.arrived_at
            counters.finished(
                reason.value, request.prompt_tokens, request.output_tokens, queued, now - sequence.arrived_at
            )
        return TokenOutput(request.id, tokens, sequence.cached_tokens, reason)

    def check(self) -> None:
        """Recount blocks and membership; AssertionError says what differs. O(blocks + requests)."""
        self.cache.check_holdings([sequence.holding for sequence in self._running])
        running = {sequence.request.id for sequence in self._running}
        waiting = {sequence.request.id for sequence in self._waiting}
        assert not running & waiting, "a request both runs and waits"
        assert running | waiting == self._by_id.keys(), "requests differ from those that run or wait"
        for sequence in self._running:
            assert sequence.running
            held = len(sequence.holding) * self.cache.block_size
            assert sequence.computed_tokens <= held, "a request computed more tokens than its blocks hold"
        for sequence in self._waiting:
            assert sequence.holding is None, "a waiting request holds blocks"
