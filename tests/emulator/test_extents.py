"""The KV cache in stretches against the one in blocks: the same engine on both, step by step."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pytest
from attrs import define
from hypothesis import given, settings
from hypothesis import strategies as st

from thunderagent.emulator.engine import Engine, EngineRequest, EngineSettings, SchedulingPolicy
from thunderagent.emulator.extents import ExtentCache, Path
from thunderagent.emulator.kv_cache import KvCache
from thunderagent.emulator.timing import TimingModel

TIMING = TimingModel(1.0, 0.01, 0.0, 0.1, 0.0)
BLOCK = 4


def engines(num_gpu_blocks: int, **options: Any) -> tuple[Engine, Engine]:
    """Two of the same size, one with each cache."""
    setting = EngineSettings(num_gpu_blocks=num_gpu_blocks, block_size=BLOCK, **options)
    return Engine(setting, TIMING, KvCache(num_gpu_blocks, BLOCK)), Engine(
        setting, TIMING, ExtentCache(num_gpu_blocks, BLOCK)
    )


def state(engine: Engine) -> tuple[Any, ...]:
    """What must be the same in both."""
    scheduled = [] if engine._step is None else [(one.request.id, one.scheduled_tokens) for one in engine._step.batch]
    return (
        scheduled,
        [(one.request.id, len(one.holding)) for one in engine._running],
        [one.request.id for one in engine._waiting],
        engine.cache.free_blocks,
        engine.cache.counters,
    )


def both_step(pair: tuple[Engine, Engine]) -> bool:
    """One step of both; whether there was one."""
    durations = [engine.begin_step() for engine in pair]
    assert durations[0] == durations[1]
    assert repr(state(pair[0])) == repr(state(pair[1]))
    assert not pair[0].cache._twins, "the load computes a block that is cached"
    if durations[0] is None:
        return False
    outputs = [engine.end_step() for engine in pair]
    assert outputs[0] == outputs[1]
    for engine in pair:
        engine.check()
    return True


@st.composite
def loads(draw: st.DrawFn) -> tuple[dict[str, Any], list[list[tuple[int, int, int, int, int, bool]]]]:
    """Options of the engine, and per step the turns that come: (program, appended tokens, output tokens, priority,
    named output tokens, abort)."""
    options = {
        "num_gpu_blocks": draw(st.integers(24, 60)),
        "max_num_seqs": draw(st.integers(1, 5)),
        "max_num_batched_tokens": draw(st.sampled_from([64, 200])),
        "scheduling_policy": draw(st.sampled_from(SchedulingPolicy)),
        "reserve_full_prompt": draw(st.booleans()),
    }
    turn = st.tuples(
        st.integers(0, 5),
        st.integers(1, 24),
        st.integers(1, 12),
        st.integers(0, 2),
        st.integers(0, 12),
        st.booleans(),
    )
    return options, draw(st.lists(st.lists(turn, max_size=2), min_size=1, max_size=40))


@define(eq=False)
class Conversation:
    """What its turns are made of. Each name stands for the same content wherever it occurs: a block never gets
    another one, or one in another place."""

    number: int
    history_tokens: int = 0
    stretches: tuple[tuple[Hashable, int], ...] = ()
    """Blocks that the history begins with, before the last stretch."""
    lives: int = 0
    """Of last stretches."""

    def path(self, prompt_tokens: int, named_tokens: int) -> Path:
        """Of a turn, with so much of its answer named."""
        if not self.history_tokens:
            self.stretches = (("system", min(prompt_tokens - 1, 8 + 10 * (self.number % 2)) // BLOCK),)
        return Path((*self.stretches, self._last((prompt_tokens + named_tokens) // BLOCK)))

    def leave_behind(self) -> None:
        """What was computed beyond the history belongs to it no more: what follows is other content."""
        self.stretches = (*self.stretches, self._last(self.history_tokens // BLOCK)) if self.history_tokens else ()
        self.lives += 1

    def _last(self, blocks: int) -> tuple[Hashable, int]:
        return (self.number, self.lives), blocks - sum(size for _, size in self.stretches)


@settings(max_examples=150, deadline=None)
@given(loads())
def test_same_steps_as_block_by_block(load: tuple[dict[str, Any], list[Any]]) -> None:
    """Hits, evictions, preemptions and order, for conversations with a shared beginning and an end of their own; some
    lose part of their history. Nothing is computed while it is cached: the beginning fits a chunk and is not a
    prompt's all, whose last token would be computed again."""
    options, steps = load
    pair = engines(**options)
    conversations = [Conversation(number) for number in range(6)]
    count = 0
    for turns in steps:
        for program, appended, output, priority, named, is_aborted in turns:
            if any(program == int(one.request.id.split("-")[0]) for one in pair[0]._by_id.values()):
                continue  # one turn of a conversation at a time
            conversation = conversations[program]
            if conversation.history_tokens + appended + output > 20 * BLOCK:
                conversation.history_tokens = 0
                conversation.leave_behind()
            prompt = conversation.history_tokens + appended
            path = conversation.path(prompt, min(named, output))
            count += 1
            for engine in pair:
                engine.add(EngineRequest(f"{program}-{count}", prompt, output, path, priority))
            if is_aborted:
                both_step(pair)
                assert len({engine.abort(f"{program}-{count}") for engine in pair}) == 1
                conversation.leave_behind()
            else:
                conversation.history_tokens = prompt + min(named, output)
        both_step(pair)
    while both_step(pair):
        pass
    assert pair[0].cache.reset() is pair[1].cache.reset() is True
    assert pair[1].cache.free_blocks == options["num_gpu_blocks"] - 1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=30),
    st.integers(4, 40),
)
def test_contents_computed_side_by_side(requests: list[tuple[int, int, int]], budget: int) -> None:
    """Whatever is computed twice at a time, no block is lost, all requests end, and nearly as much is found."""
    pair = engines(40, max_num_batched_tokens=budget, max_num_seqs=4)
    for number, (segment, prompt, output) in enumerate(requests):
        path = Path(((segment, (prompt + output) // BLOCK),))
        for engine in pair:
            engine.add(EngineRequest(str(number), prompt, output, path))
    for engine in pair:
        while engine.step() is not None:
            engine.check()
    found = [engine.cache.counters.hits_tokens for engine in pair]
    assert pair[1].cache.free_blocks == 39
    assert abs(found[0] - found[1]) <= 0.2 * max(found) + 20


def test_a_long_prompt_costs_as_much_as_a_short_one() -> None:
    """Nothing in it goes over blocks: a conversation of a thousand turns of up to 16 million tokens."""
    cache = ExtentCache(1_000_001)
    for turn in range(1, 1001):
        path = Path((("system", 100), ("program", turn * 1000)))
        matched = cache.match(path, 16 * (100 + turn * 1000) + 1)
        assert len(matched) == (100 + (turn - 1) * 1000 if turn > 1 else 0) or turn > 999
        holding = cache.hold(path, matched, 100 + turn * 1000 - len(matched))
        if holding is None:
            break
        cache.fill(holding, 100 + turn * 1000)
        cache.drop(holding)
    assert cache.resident_blocks("program") == 999_000


def test_path_names_its_blocks() -> None:
    """Block by block, for a cache that wants names."""
    path = Path((("a", 2), ("b", 0), ("c", 1)))
    assert list(path) == [("a", 0), ("a", 1), ("c", 0)]
    assert (path[-1], path[1:], len(path)) == (("c", 0), [("a", 1), ("c", 0)], 3)
    with pytest.raises(IndexError):
        path[3]


def test_other_contents_are_refused() -> None:
    """A list of hashes is not a path: an error, never a miss."""
    with pytest.raises(TypeError, match="paths of segments"):
        ExtentCache(10).match(["a"], 100)
