"""The engine that leaps against the one that makes a token at a time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from thunderagent.emulator.cache import Cache
from thunderagent.emulator.engine import Engine, EngineRequest, EngineSettings, SchedulingPolicy, TokenOutput
from thunderagent.emulator.extents import ExtentCache, Path
from thunderagent.emulator.kv_cache import KvCache
from thunderagent.emulator.leaping import LeapingEngine
from thunderagent.emulator.timing import TimingModel

TIMING = TimingModel(1.0, 0.01, 0.0, 0.1, 0.001)
BLOCK = 4


def make(blocks: int = 257, cache: Cache | None = None, **options: Any) -> LeapingEngine:
    """An engine with blocks of 4 tokens and so many usable ones less one."""
    return LeapingEngine(EngineSettings(blocks, BLOCK, **{"max_num_seqs": 4, **options}), TIMING, cache)


def request(name: str, prompt: int, output: int, **options: Any) -> EngineRequest:
    """A request whose content is its own."""
    return EngineRequest(name, prompt, output, Path(((name, (prompt + output) // BLOCK),)), **options)


def timeline(engine: Engine, arrivals: list[tuple[float, EngineRequest]]) -> dict[str, Any]:
    """When each request began to answer and ended, and what it found, for requests that come at their times; a step
    that is under way is shortened for them."""
    now, pending = 0.0, list(arrivals)
    first: dict[str, Any] = {}
    ends: dict[str, Any] = {}
    while pending or not engine.idle:
        began_at, duration = now, engine.begin_step(now)
        engine.check()
        if duration is None:
            now = max(now, pending[0][0])
        while pending and pending[0][0] <= (now if duration is None else began_at + duration):
            arrived_at, one = pending.pop(0)
            engine.add(one, arrived_at)
            if duration is not None and isinstance(engine, LeapingEngine):
                duration = engine.shorten_step(arrived_at - began_at)
        if duration is not None:
            now = began_at + duration
            for output in engine.end_step(now).outputs:
                first.setdefault(output.request_id, round(now, 6))
                if output.finish_reason:
                    ends[output.request_id] = (first[output.request_id], round(now, 6), output.cached_tokens)
        engine.check()
    return ends


def test_leap_ends_where_the_batch_changes() -> None:
    """Three answers side by side take a step for the prompts and one to each end."""
    engine = make()
    for index, name in enumerate("abc"):
        engine.add(request(name, 20 + index, 30 * (index + 1)))
    now, told = 0.0, []
    while (duration := engine.begin_step(now)) is not None:
        now += duration
        told.append([(output.request_id, output.tokens) for output in engine.end_step(now).outputs])
        engine.check()
    assert told == [[("a", 1), ("b", 1), ("c", 1)], [("a", 29)], [("b", 59)], [("c", 89)]]


def test_leap_keeps_within_the_time_given() -> None:
    """A step ends before the driver's next event, and tells of a request that is asked about."""
    engine = make()
    engine.add(request("a", 8, 100))
    engine.step()
    duration = engine.begin_step(max_seconds=5.6)
    assert duration == pytest.approx(5 * (1.1 + 0.001 * 11))
    assert engine.end_step(asked=("a", "b")).outputs == [TokenOutput("a", 5, 0, None)]
    assert engine.begin_step(max_seconds=0.0) is not None
    assert engine.end_step().outputs == []


def test_leap_is_shortened_to_a_token() -> None:
    """For what comes in between; the token that is under way then is finished."""
    engine = make()
    engine.add(request("a", 8, 100))
    engine.step()
    engine.begin_step()
    first, second = 1.1 + 0.009, 1.1 + 0.010
    assert engine.shorten_step(first + 0.1) == pytest.approx(first + second)
    engine.end_step()
    engine.check()
    engine.begin_step(max_seconds=0.0)
    assert engine.end_step(asked=["a"]).outputs == [TokenOutput("a", 3, 0, None)]


def test_what_a_running_request_writes_is_found() -> None:
    """By one that comes while it decodes, up to the last full block."""
    for cache in (KvCache(257, BLOCK), ExtentCache(257, BLOCK)):
        engine = make(cache=cache)
        engine.add(EngineRequest("a", 8, 40, Path((("x", 12),))))
        for _ in range(15):
            engine.begin_step(max_seconds=0.0)
            engine.end_step()
        engine.add(EngineRequest("b", 40, 1, Path((("x", 10),))))
        engine.begin_step()
        engine.check()
        (told,) = engine.end_step().outputs
        assert (told.request_id, told.cached_tokens) == ("b", 20)


def test_abort_amid_a_leap_lets_the_others_go_on() -> None:
    """Its blocks are free at once, its tokens are not told."""
    engine = make()
    engine.add(request("a", 8, 10))
    engine.add(request("b", 8, 20))
    engine.step()
    engine.begin_step()
    assert engine.abort("a")
    engine.check()
    assert engine.end_step().outputs == []
    engine.check()
    while engine.step() is not None:
        engine.check()
    assert (engine.cache.usage_ratio, engine.running) == (0.0, 0)


def test_batch_smaller_than_its_sequences_is_refused() -> None:
    """As vLLM does."""
    with pytest.raises(ValueError, match="at least max_num_seqs"):
        make(max_num_batched_tokens=3)


def test_shortening_without_a_step_is_an_error() -> None:
    """A driver's mistake is not passed over."""
    with pytest.raises(RuntimeError, match="without begin_step"):
        make().shorten_step(1.0)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.integers(0, 4), st.integers(1, 60), st.integers(1, 60)), max_size=14
    ).map(sorted),
    st.integers(32, 80),
    st.sampled_from([4, 16, 200]),
    st.sampled_from(SchedulingPolicy),
    st.booleans(),
)
@example([(0, 0, 5, 1), (178, 0, 5, 11), (189, 0, 1, 1)], 32, 4, SchedulingPolicy.FCFS, False)
def test_leaps_change_nothing(
    turns: list[tuple[int, int, int, int]], blocks: int, budget: int, policy: SchedulingPolicy, reserve: bool
) -> None:
    """Every request has its first token and its end at the same time with the same hits as with one token per step,
    preemptions and evictions included, on either cache.

    Contents are their own but for a prompt's first block: of two copies of a block, which one goes first may differ.
    """
    # Nothing comes at a step's very end: what is first there would be a matter of rounding. Steps take whole
    # milliseconds, also those of an engine that was idle until one came; so each comes some fraction of one later.
    arrivals = []
    for number, (at, priority, prompt, output) in enumerate(turns):
        shared = int(prompt > BLOCK)
        path = Path((("all", shared), (number, (prompt + output) // BLOCK - shared)))
        arrivals.append((at + 0.0123 + 0.00001 * number, EngineRequest(str(number), prompt, output, path, priority)))
    setting = EngineSettings(blocks, BLOCK, 4, budget, policy, reserve_full_prompt=reserve)
    engines = [
        Engine(setting, TIMING, ExtentCache(blocks, BLOCK)),
        LeapingEngine(setting, TIMING, ExtentCache(blocks, BLOCK)),
        LeapingEngine(setting, TIMING, KvCache(blocks, BLOCK)),
    ]
    single, leaping, by_blocks = (timeline(engine, arrivals) for engine in engines)
    assert single == leaping
    assert len(single) == len(turns)
    assert engines[0].counters.preemptions == engines[1].counters.preemptions
    assert engines[0].counters.generation_tokens == engines[1].counters.generation_tokens
    assert repr(engines[0].cache.counters) == repr(engines[1].cache.counters)
    if len(turns) < 2:
        assert by_blocks == leaping


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 3), st.integers(1, 60), st.integers(1, 30)),
        st.tuples(st.just("step"), st.integers(1, 8), st.integers(0, 9), st.booleans()),
        st.tuples(st.just("abort"), st.integers(0, 20), st.booleans(), st.none()),
    ),
    max_size=30,
)


def test_last_that_decodes_is_aborted_amid_a_step_beside_a_prompt() -> None:
    """The step counts as made: the prompt's request decodes from there, with the blocks and tokens that it needs."""
    engine = make(max_num_batched_tokens=16, reserve_full_prompt=False)
    engine.add(EngineRequest("a", 1, 5))
    engine.add(EngineRequest("b", 17, 2))
    engine.step()
    engine.begin_step()
    engine.abort("a")
    outputs = engine.end_step().outputs
    engine.check()
    while not engine.idle:
        engine.begin_step()
        outputs += engine.end_step().outputs
        engine.check()
    assert [(output.request_id, output.tokens) for output in outputs] == [("b", 1), ("b", 1)]


@settings(max_examples=150, deadline=None)
@given(ACTIONS, st.sampled_from(SchedulingPolicy), st.booleans(), st.booleans())
def test_any_history_balances_and_ends(
    actions: list[Any], policy: SchedulingPolicy, reserve: bool, in_blocks: bool
) -> None:
    """Whatever arrives and leaves, amid steps and between, the books balance and every request left gets its tokens,
    though several write the same contents."""
    cache = KvCache(31, BLOCK) if in_blocks else ExtentCache(31, BLOCK)
    engine = make(31, cache, max_num_batched_tokens=16, scheduling_policy=policy, reserve_full_prompt=reserve)
    wanted: dict[str, int] = {}
    given: dict[str, int] = {}

    def collect(outputs: list[TokenOutput]) -> None:
        for output in outputs:
            given[output.request_id] = given.get(output.request_id, 0) + output.tokens
        engine.check()

    def abort(number: int) -> None:
        if engine.abort(f"{number}"):
            wanted.pop(f"{number}")
        engine.check()

    for number, (action, first, second, third) in enumerate(actions):
        if action == "add":
            name = f"{number}"
            engine.add(EngineRequest(name, second, third, Path((("all", 2), (first, 38))), first))
            wanted[name] = third
        elif action == "abort":
            is_amid = second and engine.begin_step() is not None
            abort(first)
            if is_amid:
                collect(engine.end_step().outputs)
        else:
            for _ in range(first):
                if engine.begin_step(max_seconds=float(second)) is None:
                    break
                engine.check()
                collect(engine.end_step(asked=list(wanted) if third else ()).outputs)
    while engine.begin_step() is not None:
        collect(engine.end_step().outputs)
    assert {name: given.get(name, 0) for name in wanted} == wanted
    assert engine.cache.usage_ratio == 0.0
