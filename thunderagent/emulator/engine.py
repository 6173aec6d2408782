"""The scheduler of an emulated vLLM engine: continuous batching over the KV cache, without I/O or a clock.

A driver calls ``begin_step`` (which batch runs next, for how long), lets that time pass and calls ``end_step`` (which
tokens came out). Requests may be added and aborted in between, as on a real engine. The HTTP server sleeps between
the two; a simulator moves its virtual clock, and uses ``leaping.LeapingEngine``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

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
from thunderagent.emulator.sequence import LiveSequence, Refusal, Step, room_tokens
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
        self._by_id: dict[str, LiveSequence] = {}
        self._running: list[LiveSequence] = []
        self._waiting: WaitingQueue[LiveSequence] = WaitingQueue()
        self._arrivals = 0
        self._step: Step | None = None
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
        sequence = LiveSequence(request, now, self._arrivals, request.prompt_tokens)
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
            self._withdraw(sequence)
        else:
            self._waiting.remove(self._rank(sequence))
        return True

    def reset_prefix_cache(self) -> bool:
        """Forget cached prefixes; False while a request runs."""
        return self.cache.reset()

    def _rank(self, sequence: LiveSequence) -> tuple[float, ...]:
        """Position in the waiting queue; a preempted request comes before those that never ran."""
        if self._by_priority:
            return (sequence.request.priority, sequence.arrived_at, sequence.order)
        return (0 if sequence.preemptions else 1, sequence.order)

    # -- steps

    def begin_step(self, now: float = 0.0) -> float | None:
        """Schedule the next batch; its duration in seconds, or None where there is nothing to do.

        Raises RuntimeError while a step is under way.
        """
        if self._step is not None:
            raise RuntimeError("begin_step was called before end_step")
        if not self._by_id:
            return None
        budget = self.settings.max_num_batched_tokens
        batch = self._schedule(now, budget)
        for _ in self._by_id:
            if batch:
                break
            # Each running request preempted one that was scheduled before it, and then itself: vLLM runs an empty
            # step and schedules again.
            batch = self._schedule(now, budget)
        if not batch:
            raise RuntimeError(f"{self.waiting} requests wait and none can run: the KV cache accounting is broken")
        self._step = Step(batch, self._duration_seconds(batch))
        return self._step.duration_seconds

    def end_step(self, now: float = 0.0) -> StepResult:
        """The outputs of the batch begun last; requests that ended have left the engine and freed their blocks.

        Raises RuntimeError where no step is under way.
        """
        step = self._end()
        outputs: list[TokenOutput] = []
        scheduled_tokens = self._advance(step.batch, outputs, now)
        self.counters.step_finished(scheduled_tokens, len(outputs))
        return StepResult(step.duration_seconds, outputs)

    def step(self, now: float = 0.0) -> StepResult | None:
        """``begin_step`` and ``end_step`` at once, for drivers that need nothing in between; None when idle."""
        duration = self.begin_step(now)
        return None if duration is None else self.end_step(now + duration)

    def _end(self) -> Step:
        step, self._step = self._step, None
        if step is None:
            raise RuntimeError("end_step was called without begin_step")
        return step

    def _advance(self, batch: list[LiveSequence], outputs: list[TokenOutput], now: float) -> int:
        """The batch has computed what was scheduled, so many tokens in all."""
        scheduled_tokens = 0
        for sequence in batch:
            count = sequence.scheduled_tokens
            sequence.scheduled_tokens = 0
            if sequence.holding is None:
                continue
            scheduled_tokens += count
            sequence.computed_tokens += count
            if sequence.computed_tokens >= sequence.length_tokens:
                sequence.generated_tokens += 1
                sequence.length_tokens += 1
                outputs.append(self._tell(sequence, now))
        return scheduled_tokens

    def _schedule(self, now: float, budget: int) -> list[LiveSequence]:
        """Running requests first, then waiting ones while budget, sequences and blocks last."""
        batch: list[LiveSequence] = []
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
        if not preempted:
            self._admit(batch, budget, now)
        return batch

    def _admit(self, batch: list[LiveSequence], budget: int, now: float) -> None:
        """Start waiting requests in order; the first that does not fit ends the round."""
        waiting, max_num_seqs = self._waiting, self.settings.max_num_seqs
        while waiting and budget > 0 and self.running < max_num_seqs:
            sequence = waiting.first()
            count = self._start(sequence, budget)
            if count == 0:
                return
            waiting.pop()
            self._running.append(sequence)
            if sequence.started_at is None:
                sequence.started_at = now
            sequence.scheduled_tokens = count
            batch.append(sequence)
            budget -= count

    def _start(self, sequence: LiveSequence, budget: int) -> int:
        """Give a waiting sequence its cached prefix and the blocks of its first chunk; the chunk, or 0: no room."""
        cache, length, names = self.cache, sequence.length_tokens, sequence.request.block_hashes
        refusal = sequence.refusal
        if refusal and cache.freed_blocks < refusal.freed_blocks and not cache.holds(refusal.missing):
            return 0
        size = cache.block_size
        matched = cache.match(names, length)
        found = len(matched)
        hit = found * size
        count = min(length - hit, budget)
        computed = hit + count
        must_fit = length if self.settings.reserve_full_prompt else computed
        lacking = cache.lacks(matched, blocks_for(must_fit, size) - found)
        if lacking:
            # Without the reserve the chunk that must fit depends on the budget, which may be smaller next time.
            if self.settings.reserve_full_prompt:
                sequence.refusal = self._refusal(sequence, found, lacking)
            return 0
        holding = cache.hold(names, matched, blocks_for(computed, size) - found)
        assert holding is not None, "a smaller allocation than the one just checked failed"
        sequence.holding, sequence.refusal = holding, None
        if cache.prefix_caching:
            cache.counters.count_lookup(length, hit, preempted=sequence.preemptions > 0)
        if sequence.preemptions == 0:
            sequence.cached_tokens = hit
        sequence.computed_tokens = hit
        cache.fill(holding, computed // size)
        sequence.room_tokens = room_tokens(computed, size)
        return count

    def _refusal(self, sequence: LiveSequence, matched: int, lacking: int) -> Refusal:
        names = sequence.request.block_hashes
        findable = min(len(names), (sequence.length_tokens - 1) // self.cache.block_size)
        return Refusal(self.cache.freed_blocks + lacking, names[matched] if matched < findable else None)

    def _grow(self, sequence: LiveSequence, count: int) -> bool:
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
        sequence.room_tokens = room_tokens(computed, size)
        return True

    def _preempt(self) -> LiveSequence:
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

    def _withdraw(self, sequence: LiveSequence) -> None:
        """It runs no more."""
        self._running.remove(sequence)
        self._free(sequence)

    def _free(self, sequence: LiveSequence) -> None:
        self.cache.drop(sequence.holding)
        sequence.holding = None
        sequence.computed_tokens = 0

    def _duration_seconds(self, batch: Iterable[LiveSequence], sequences: int = 0, kv_tokens: int = 0) -> float:
        """Of a step with this batch, beside so many ``sequences`` that decode over ``kv_tokens``."""
        prefill_tokens = pairs = 0
        for sequence in batch:
            count = sequence.scheduled_tokens
            if count == 1 and sequence.generated_tokens:
                sequences += 1
                kv_tokens += sequence.length_tokens
            else:
                prefill_tokens += count
                pairs += attention_pairs(count, sequence.computed_tokens)
        return self.timing.duration_seconds(prefill_tokens, pairs, sequences, kv_tokens)

    def _tell(self, sequence: LiveSequence, now: float) -> TokenOutput:
        """Put out what it generated since the last time; where that was all, it leaves."""
        request, counters = sequence.request, self.counters
        tokens = sequence.generated_tokens - sequence.told_tokens
        if sequence.told_at is None:
            sequence.first_told_at = now
            counters.first_token(request.prompt_tokens, sequence.cached_tokens, now - sequence.arrived_at)
        else:
            counters.next_tokens(tokens, now - sequence.told_at)
        sequence.told_at, sequence.told_tokens = now, sequence.generated_tokens
        reason = None
        if sequence.generated_tokens >= request.output_tokens:
            reason = request.finish_reason
            del self._by_id[request.id]
            self._withdraw(sequence)
            assert sequence.started_at is not None
            assert sequence.first_told_at is not None
            counters.finished(
                reason.value,
                request.prompt_tokens,
                sequence.cached_tokens,
                request.output_tokens,
                sequence.started_at - sequence.arrived_at,
                sequence.first_told_at - sequence.started_at,
                now - sequence.arrived_at,
            )
        return TokenOutput(request.id, tokens, sequence.cached_tokens, reason)

    def check(self) -> None:
        """Recount blocks and membership; AssertionError says what differs. O(blocks + requests)."""
        self._check(self._running, [sequence.holding for sequence in self._running])

    def _check(self, sequences: Sequence[LiveSequence], holdings: Sequence[Any]) -> None:
        """``sequences`` run, ``holdings`` are all there are."""
        self.cache.check_holdings(holdings)
        running = {sequence.request.id for sequence in sequences}
        waiting = {sequence.request.id for sequence in self._waiting}
        assert not running & waiting, "a request both runs and waits"
        assert running | waiting == self._by_id.keys(), "requests differ from those that run or wait"
        assert all(sequence.running for sequence in sequences), "a running request holds nothing"
        for sequence in self._running:
            held = len(sequence.holding) * self.cache.block_size
            assert sequence.computed_tokens <= held, "a request computed more tokens than its blocks hold"
        for sequence in self._waiting:
            assert sequence.holding is None, "a waiting request holds blocks"
