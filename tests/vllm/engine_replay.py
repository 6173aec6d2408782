"""Runs request sequences through vLLM's own scheduler and KV cache manager, without a model.

    .venv-vllm/bin/python tests/vllm/engine_replay.py <sequences.json >steps.json

Reads and writes a JSON list with an entry per sequence. ``engine_differential.py`` says what is in one; it runs this
file as a child process, since vLLM lives in an environment of its own and takes ten seconds to import.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# What vLLM logs must not mix with the answer, also where it comes from a library that writes to the descriptor.
ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import torch  # noqa: E402
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig  # noqa: E402
from vllm.sampling_params import SamplingParams  # noqa: E402
from vllm.utils.hashing import sha256  # noqa: E402
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash  # noqa: E402
from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # noqa: E402
from vllm.v1.core.sched.output import SchedulerOutput  # noqa: E402
from vllm.v1.core.sched.scheduler import Scheduler  # noqa: E402
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec  # noqa: E402
from vllm.v1.outputs import ModelRunnerOutput  # noqa: E402
from vllm.v1.request import Request, RequestStatus  # noqa: E402
from vllm.v1.structured_output import StructuredOutputManager  # noqa: E402

MODEL = Path(sys.prefix) / "tiny-model"
MAX_MODEL_LEN = 8192


class _Recorded:
    """What a scheduler does and tells nobody, written down by overriding the method that does it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.preempted: list[str] = []
        self.admitted: list[list[Any]] = []
        self.evictions = 0
        cache = self.kv_cache_manager
        record, evict = cache.record_prefix_cache_stats, cache.block_pool._maybe_evict_cached_block

        def recorded(request: Request, hits: int) -> None:
            self.admitted.append([request.request_id, hits])
            record(request, hits)

        def counted(block: Any) -> bool:
            evicted = evict(block)
            self.evictions += evicted
            return evicted

        cache.record_prefix_cache_stats = recorded
        cache.block_pool._maybe_evict_cached_block = counted

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self.preempted.append(request.request_id)
        super()._preempt_request(request, *args, **kwargs)


class RecordedScheduler(_Recorded, Scheduler):
    """vLLM's scheduler, as its CPU build runs it."""


class RecordedAsyncScheduler(_Recorded, AsyncScheduler):
    """The scheduler that plans a step before the last one's tokens are known, vLLM's default on GPUs."""


def make_scheduler(sequence: dict[str, Any]) -> Any:
    """A scheduler with one group of full-attention layers, as vLLM's own tests make it."""
    config = VllmConfig(
        model_config=ModelConfig(
            model=str(MODEL), tokenizer=str(MODEL), dtype="bfloat16", max_model_len=MAX_MODEL_LEN, seed=0
        ),
        scheduler_config=SchedulerConfig(
            max_num_seqs=sequence["max_num_seqs"],
            max_num_batched_tokens=sequence["max_num_batched_tokens"],
            max_model_len=MAX_MODEL_LEN,
            is_encoder_decoder=False,
            enable_chunked_prefill=True,
            policy=sequence["policy"],
            scheduler_reserve_full_isl=sequence["reserve_full_prompt"],
        ),
        cache_config=CacheConfig(block_size=sequence["block_size"], enable_prefix_caching=sequence["prefix_caching"]),
    )
    config.cache_config.num_gpu_blocks = sequence["num_gpu_blocks"]
    config.scheduler_config.async_scheduling = sequence["run_ahead"]
    spec = FullAttentionSpec(block_size=sequence["block_size"], num_kv_heads=1, head_size=1, dtype=torch.float32)
    return (RecordedAsyncScheduler if sequence["run_ahead"] else RecordedScheduler)(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=sequence["num_gpu_blocks"],
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=sequence["block_size"],
        log_stats=True,
    )


class Replay:
    """One sequence on one scheduler."""

    def __init__(self, sequence: dict[str, Any], hasher: Any) -> None:
        self.sequence = sequence
        self.scheduler = make_scheduler(sequence)
        self.hasher = hasher
        self.wanted = {request["id"]: request for request in sequence["requests"]}
        self.requests: dict[str, Request] = {}
        self.names: dict[bytes, int] = {}
        self.counters = dict.fromkeys(
            ("queries_tokens", "hits_tokens", "preempted_queries_tokens", "preempted_hits_tokens"), 0
        )

    def run(self) -> dict[str, Any]:
        """All steps and the counters at the end."""
        steps = []
        ahead: list[tuple[SchedulerOutput, set[str]]] = []
        scheduler = self.scheduler
        last = max(request["step"] for request in self.sequence["requests"])
        number = 0
        while number <= last or scheduler.requests:
            self._before(number)
            scheduler.preempted, scheduler.admitted = [], []
            plan = self._plan()
            aborts = [one["id"] for one in self.sequence["aborts"] if one["step"] == number and one["amid"]]
            ahead.append(
                (plan, {key for key in plan.num_scheduled_tokens if not self.requests[key].is_prefill_chunk})
            )
            self._abort(aborts)
            finished: list[str] = []
            if not self.sequence["run_ahead"] or len(ahead) > 1 or not plan.num_scheduled_tokens:
                finished = self._update(*ahead.pop(0))
            steps.append(
                {
                    "scheduled": list(map(list, plan.num_scheduled_tokens.items())),
                    "admitted": scheduler.admitted,
                    "preempted": scheduler.preempted,
                    "finished": finished,
                    "running": [request.request_id for request in scheduler.running],
                    "waiting": [request.request_id for request in scheduler.waiting],
                    "free": self._free_blocks(),
                }
            )
            number += 1
        return {"steps": steps, "counters": {**self.counters, "evictions": scheduler.evictions}}

    def _before(self, number: int) -> None:
        if number in self.sequence["resets"]:
            self.scheduler.reset_prefix_cache()
        for order, wanted in enumerate(self.sequence["requests"]):
            if wanted["step"] == number:
                self._add(wanted, order)
        self._abort([one["id"] for one in self.sequence["aborts"] if one["step"] == number and not one["amid"]])

    def _add(self, wanted: dict[str, Any], order: int) -> None:
        request = Request(
            request_id=wanted["id"],
            prompt_token_ids=wanted["prompt"],
            sampling_params=SamplingParams(max_tokens=len(wanted["output"]), ignore_eos=True),
            pooling_params=None,
            arrival_time=float(order),
            priority=wanted["priority"],
            block_hasher=self.hasher,
        )
        self.requests[request.request_id] = request
        self.scheduler.add_request(request)

    def _abort(self, ids: list[str]) -> None:
        for request_id in ids:
            self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)

    def _plan(self) -> SchedulerOutput:
        """The next batch. One that is empty because all of it was preempted is followed by another at once."""
        scheduler = self.scheduler
        for _ in range(len(scheduler.requests) + 1):
            preempted = len(scheduler.preempted)
            plan = scheduler.schedule()
            found = scheduler.kv_cache_manager.make_prefix_cache_stats()
            self.counters["queries_tokens"] += found.queries
            self.counters["hits_tokens"] += found.hits
            self.counters["preempted_queries_tokens"] += found.preempted_queries
            self.counters["preempted_hits_tokens"] += found.preempted_hits
            if plan.num_scheduled_tokens or len(scheduler.preempted) == preempted:
                break
        return plan

    def _update(self, plan: SchedulerOutput, sampling: set[str]) -> list[str]:
        """Hand the scheduler a token for each of the ``sampling`` requests; ids of the requests that ended."""
        ids = list(plan.num_scheduled_tokens)
        sampled = []
        for request_id in ids:
            output = self.wanted[request_id]["output"]
            given = self.requests[request_id].num_output_tokens
            sampled.append(output[given : given + 1] if request_id in sampling else [])
        results = self.scheduler.update_from_output(
            plan, ModelRunnerOutput(ids, {request_id: place for place, request_id in enumerate(ids)}, sampled)
        )
        return [
            output.request_id
            for result in results.values()
            for output in result.outputs
            if output.finish_reason is not None
        ]

    def _free_blocks(self) -> list[int | None]:
        """Names of the free blocks' contents in the order in which they will be taken; None: nothing cached."""
        for request_id, request in self.requests.items():
            for block_hash, name in zip(request.block_hashes, self.wanted[request_id]["names"], strict=False):
                assert self.names.setdefault(bytes(block_hash), name) == name, "names of contents do not fit"
        self.requests = {key: request for key, request in self.requests.items() if not request.is_finished()}
        pool = self.scheduler.kv_cache_manager.block_pool
        # vLLM appends the number of the cache group to the hash, in 4 bytes.
        return [
            None if block.block_hash is None else self.names[bytes(block.block_hash)[:-4]]
            for block in pool.free_block_queue.get_all_free_blocks()
        ]


def main() -> None:
    init_none_hash(sha256)
    hashers: dict[int, Any] = {}
    results = []
    for sequence in json.load(sys.stdin):
        size = sequence["block_size"]
        hasher = hashers.setdefault(size, get_request_block_hasher(size, sha256))
        results.append(Replay(sequence, hasher).run())
    json.dump(results, ANSWER)
    ANSWER.flush()


if __name__ == "__main__":
    main()
