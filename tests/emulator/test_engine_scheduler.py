"""The engine's scheduler: batching, caching, preemption and aborts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from thunderagent.emulator.engine import (
    Engine,
    EngineRequest,
    EngineSettings,
    FinishReason,
    SchedulingPolicy,
    StepResult,
    TokenOutput,
)
from thunderagent.emulator.timing import TimingModel

TIMING = TimingModel(1.0, 0.01, 0.0, 0.1, 0.0)
"""1 s per step, 10 ms per prefilled token, 100 ms per decoding sequence."""


def make(kv_tokens: int = 1024, **options: Any) -> Engine:
    """An engine with blocks of 4 tokens."""
    return Engine(EngineSettings(num_gpu_blocks=kv_tokens // 4 + 1, block_size=4, **options), TIMING)


def request(name: str, prompt: int, output: int = 1, **options: Any) -> EngineRequest:
    """A request whose content is its own, unless told otherwise."""
    options.setdefault("block_hashes", [(name, index) for index in range((prompt + output) // 4)])
    return EngineRequest(name, prompt, output, **options)


def run(engine: Engine) -> list[StepResult]:
    """Step until idle, with the recount after every step."""
    results = []
    while (result := engine.step()) is not None:
        engine.check()
        results.append(result)
    return results


def finish_order(results: list[StepResult]) -> list[str]:
    """Ids in the order in which they ended."""
    return [output.request_id for result in results for output in result.outputs if output.finish_reason]


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine whose books must balance at the end."""
    engine = make()
    yield engine
    engine.check()


def test_request_runs_to_its_end(engine: Engine) -> None:
    """A prefill step that gives the first token, then a token per step."""
    engine.add(request("a", 10, 3, finish_reason=FinishReason.STOP))
    results = run(engine)
    assert [result.duration_seconds for result in results] == pytest.approx([1.1, 1.1, 1.1])
    assert [result.outputs for result in results] == [
        [TokenOutput("a", 1, 0, None)],
        [TokenOutput("a", 1, 0, None)],
        [TokenOutput("a", 1, 0, FinishReason.STOP)],
    ]
    assert engine.idle
    assert engine.counters.success["stop"] == 1


def test_idle_engine_has_no_step(engine: Engine) -> None:
    """Nothing to do is None, not an empty step."""
    assert engine.step() is None


def test_second_turn_finds_prompt_and_reply(engine: Engine) -> None:
    """The next turn hits the blocks of the prompt and of the generated tokens, but for the last one generated."""
    chain = [("p", index) for index in range(100)]
    engine.add(request("one", 40, 9, block_hashes=chain))
    run(engine)
    engine.add(request("two", 60, 1, block_hashes=chain))
    assert run(engine)[0].outputs == [TokenOutput("two", 1, 48, FinishReason.LENGTH)]
    counters = engine.counters
    assert (counters.prompt_tokens_computed, counters.prompt_tokens_cached) == (52, 48)
    assert (engine.cache.counters.queries_tokens, engine.cache.counters.hits_tokens) == (100, 48)


def test_whole_prompt_cached_computes_one_block_at_most(engine: Engine) -> None:
    """The cap on the hit leaves the last token, hence its block, to compute."""
    for name in ("one", "two"):
        engine.add(request(name, 40, 1, block_hashes=[("p", index) for index in range(10)]))
        results = run(engine)
    assert results[0].outputs[0].cached_tokens == 36


def test_disabled_prefix_caching_computes_all() -> None:
    """The switch turns hits off."""
    engine = make(prefix_caching=False)
    for name in ("one", "two"):
        engine.add(request(name, 40, 1, block_hashes=[("p", index) for index in range(10)]))
        run(engine)
    assert (engine.counters.prompt_tokens_computed, engine.counters.prompt_tokens_cached) == (80, 0)
    assert engine.cache.counters.queries_tokens == 0


@pytest.mark.parametrize(
    ("programs", "kv_tokens", "hits"),
    [("a", 100, 5 * 68), ("ab", 144, 4 * 68), ("ab", 100, 4 * 28), ("abc", 100, 0), ("ab", 72, 0)],
)
def test_alternating_programs_hit_what_the_others_leave(programs: str, kv_tokens: int, hits: int) -> None:
    """Programs that fit together hit every time, those that exceed the cache push each other out, head last."""
    engine = make(kv_tokens=kv_tokens)
    for turn in range(6):
        name = programs[turn % len(programs)]
        engine.add(request(f"{name}{turn}", 70, 2, block_hashes=[(name, index) for index in range(20)]))
        run(engine)
    assert engine.cache.counters.hits_tokens == hits


def test_oldest_program_is_evicted_first() -> None:
    """The prefix used last stays; the one used first goes."""
    engine = make(kv_tokens=100)
    for name in ("a", "b", "c"):
        engine.add(request(name, 40, 1))
        run(engine)
    cached = {name: len(engine.cache.match([(name, index) for index in range(10)], 41)) for name in "abc"}
    assert cached == {"a": 5, "b": 10, "c": 10}


def test_long_prompt_is_prefilled_in_chunks() -> None:
    """Each step takes at most the token budget; only the last chunk gives a token."""
    engine = make(max_num_batched_tokens=64)
    engine.add(request("a", 150, 1))
    results = run(engine)
    assert [result.duration_seconds for result in results] == pytest.approx([1.64, 1.64, 1.22])
    assert [len(result.outputs) for result in results] == [0, 0, 1]


def test_decoding_goes_on_beside_a_prefill() -> None:
    """Running sequences take their token first, the prefill gets the rest of the budget."""
    engine = make(max_num_batched_tokens=64)
    engine.add(request("a", 10, 5))
    engine.step()
    engine.add(request("b", 100, 1))
    result = engine.step()
    assert result is not None
    assert result.duration_seconds == pytest.approx(1 + 0.1 + 0.63)
    assert [output.request_id for output in result.outputs] == ["a"]
    run(engine)


def test_batch_is_limited_by_max_num_seqs() -> None:
    """More requests than sequences allowed wait."""
    engine = make(max_num_seqs=2)
    for name in "abc":
        engine.add(request(name, 8, 2))
    engine.step()
    assert (engine.running, engine.waiting) == (2, 1)
    assert finish_order(run(engine)) == ["a", "b", "c"]


def test_prompt_that_does_not_fit_whole_waits() -> None:
    """A request starts only when its whole prompt fits, and takes the place as soon as it does."""
    engine = make(kv_tokens=100, max_num_batched_tokens=16)
    engine.add(request("a", 60, 2))
    engine.add(request("b", 60, 2))
    for _ in range(3):
        engine.step()
    assert (engine.running, engine.waiting) == (1, 1)
    assert finish_order(run(engine)) == ["a", "b"]
    assert engine.counters.preemptions == 0


def test_prompt_fits_once_more_of_it_is_cached() -> None:
    """A request that waits for a block starts when another fills a block that both begin with, none coming free."""
    engine = make(kv_tokens=36)
    chain = [("p", index) for index in range(9)]
    engine.add(request("a", 30, 6, block_hashes=chain))
    engine.add(request("b", 33, 2, block_hashes=chain))
    states = []
    for _ in range(3):
        engine.step()
        states.append((engine.running, engine.cache.free_blocks))
    assert states == [(1, 1), (1, 1), (2, 0)]
    assert finish_order(run(engine)) == ["a", "b"]


def test_first_chunk_suffices_without_the_reserve() -> None:
    """Without the reserve a request starts when its first chunk fits."""
    engine = make(kv_tokens=100, max_num_batched_tokens=40, reserve_full_prompt=False)
    engine.add(request("a", 60, 2))
    engine.add(request("b", 60, 2))
    engine.step()
    engine.step()
    assert engine.running == 2
    assert finish_order(run(engine)) == ["a", "b"]


def test_last_arrived_is_preempted_and_recomputed() -> None:
    """When blocks run out the youngest gives its own up, runs again later and keeps its tokens."""
    engine = make(kv_tokens=64)
    engine.add(request("a", 28, 20))
    engine.add(request("b", 28, 20))
    results = run(engine)
    assert finish_order(results) == ["a", "b"]
    assert engine.counters.preemptions == 1
    tokens = [output.request_id for result in results for output in result.outputs]
    assert (tokens.count("a"), tokens.count("b")) == (20, 20)
    assert engine.counters.prompt_tokens_computed == 56
    assert engine.cache.counters.preempted_queries_tokens > 28


def test_priority_orders_the_queue() -> None:
    """Under the priority policy a lower value goes first; equal values go by arrival."""
    engine = make(max_num_seqs=1, scheduling_policy=SchedulingPolicy.PRIORITY)
    for name, priority in (("low", 5), ("first", 0), ("second", 0)):
        engine.add(request(name, 8, priority=priority))
    assert finish_order(run(engine)) == ["first", "second", "low"]


def test_priority_is_ignored_under_fcfs() -> None:
    """Under the default policy arrival alone counts."""
    engine = make(max_num_seqs=1)
    for name, priority in (("low", 5), ("high", 0)):
        engine.add(request(name, 8, priority=priority))
    assert finish_order(run(engine)) == ["low", "high"]


def test_least_urgent_is_preempted_under_priority() -> None:
    """The victim is the least urgent, also where it came first and was already in the batch."""
    engine = make(kv_tokens=64, scheduling_policy=SchedulingPolicy.PRIORITY)
    engine.add(request("low", 28, 20, priority=5))
    engine.add(request("high", 28, 20, priority=0))
    assert finish_order(run(engine)) == ["high", "low"]
    assert engine.counters.preemptions == 1


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_abort_frees_all_at_once(engine: Engine, steps: int) -> None:
    """Waiting, prefilling or decoding: an aborted request leaves nothing behind."""
    engine.add(request("a", 100, 50))
    for _ in range(steps):
        engine.step()
    assert engine.abort("a")
    assert (engine.idle, engine.running, engine.waiting, engine.cache.usage_ratio) == (True, 0, 0, 0.0)
    assert not engine.abort("a")


def test_abort_amid_a_step_drops_its_token(engine: Engine) -> None:
    """A request aborted while its batch runs gives no token; the others do."""
    engine.add(request("a", 8, 5))
    engine.add(request("b", 8, 5))
    engine.begin_step()
    engine.abort("a")
    engine.check()
    assert [output.request_id for output in engine.end_step().outputs] == ["b"]
    run(engine)


def test_request_added_amid_a_step_joins_the_next(engine: Engine) -> None:
    """Arrivals do not change the batch under way."""
    engine.add(request("a", 8, 2))
    engine.begin_step()
    engine.add(request("b", 8, 1))
    assert [output.request_id for output in engine.end_step().outputs] == ["a"]
    result = engine.step()
    assert result is not None
    assert [output.request_id for output in result.outputs] == ["a", "b"]


def test_steps_out_of_order_are_errors(engine: Engine) -> None:
    """A driver that mixes up begin and end is told."""
    with pytest.raises(RuntimeError, match="without begin_step"):
        engine.end_step()
    engine.add(request("a", 8))
    engine.begin_step()
    with pytest.raises(RuntimeError, match="before end_step"):
        engine.begin_step()
    engine.end_step()


def test_impossible_requests_are_refused(engine: Engine) -> None:
    """A sequence larger than the cache and an id in use are errors of the caller."""
    with pytest.raises(ValueError, match="needs 1025 tokens, the KV cache holds 1024"):
        engine.add(request("a", 1000, 25))
    engine.add(request("a", 8))
    with pytest.raises(ValueError, match="already in the engine"):
        engine.add(request("a", 8))
    with pytest.raises(ValueError, match="needs a prompt token"):
        request("b", 0)
    run(engine)


def test_latencies_are_counted_on_the_driver_clock(engine: Engine) -> None:
    """Time to first token, between tokens and in all come from the times the driver gives."""
    engine.add(request("a", 10, 2), now=100.0)
    engine.begin_step(101.0)
    engine.end_step(103.0)
    engine.begin_step(103.0)
    engine.end_step(104.5)
    counters = engine.counters
    assert (counters.first_token_seconds.sum, counters.between_tokens_seconds.sum) == (3.0, 1.5)
    assert (counters.queue_seconds.sum, counters.prefill_seconds.sum) == (1.0, 2.0)
    assert counters.request_seconds.sum == 4.5


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 3), st.integers(1, 60), st.integers(1, 30)),
        st.tuples(st.just("step"), st.integers(1, 8), st.just(0), st.just(0)),
        st.tuples(st.just("abort"), st.integers(0, 20), st.just(0), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=80, deadline=None)
@example(
    [("add", 2, 1, 21), ("step", 1, 0, 0), ("add", 0, 24, 19), ("add", 1, 39, 16)], SchedulingPolicy.PRIORITY, False
)
@given(ACTIONS, st.sampled_from(SchedulingPolicy), st.booleans())
def test_any_history_balances_and_ends(actions: list[Any], policy: SchedulingPolicy, reserve: bool) -> None:
    """Whatever arrives and leaves, the books balance and every request left gets exactly its tokens."""
    engine = make(
        kv_tokens=120,
        max_num_batched_tokens=16,
        max_num_seqs=4,
        scheduling_policy=policy,
        reserve_full_prompt=reserve,
    )
    wanted: dict[str, int] = {}
    given: dict[str, int] = {}

    def collect(results: list[StepResult]) -> None:
        for result in results:
            for output in result.outputs:
                given[output.request_id] = given.get(output.request_id, 0) + output.tokens

    for number, (action, first, prompt, output) in enumerate(actions):
        if action == "add":
            name = f"{number}"
            chain = [(first, index) for index in range(40)]
            engine.add(request(name, prompt, output, block_hashes=chain, priority=first))
            wanted[name] = output
        elif action == "abort":
            if engine.abort(f"{first}"):
                wanted.pop(f"{first}")
        else:
            collect([result for _ in range(first) if (result := engine.step()) is not None])
        engine.check()
    collect(run(engine))
    assert {name: given.get(name, 0) for name in wanted} == wanted
    assert engine.cache.usage_ratio == 0.0
