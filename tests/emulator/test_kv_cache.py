"""The KV cache against vLLM's rules and against a naive model."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from thunderagent.emulator.cache import blocks_for
from thunderagent.emulator.kv_cache import KvCache


def fill(cache: KvCache, hashes: list[object], tokens: int) -> list[int]:
    """Blocks of a request of ``tokens`` tokens whose content ``hashes`` name."""
    matched = cache.match(hashes, tokens)
    fresh = cache.allocate(matched, blocks_for(tokens, cache.block_size) - len(matched))
    assert fresh is not None
    blocks = matched + fresh
    cache.register(blocks, hashes, len(matched), tokens // cache.block_size)
    return blocks


@pytest.mark.parametrize(
    ("tokens", "blocks"), [(1, 1), (15, 1), (16, 1), (17, 2), (160, 10)], ids=lambda value: str(value)
)
def test_tokens_take_whole_blocks(tokens: int, blocks: int) -> None:
    """A block in part is a block taken."""
    assert blocks_for(tokens, 16) == blocks


def test_one_block_is_reserved() -> None:
    """Usable capacity is all blocks but one, as in vLLM."""
    cache = KvCache(257, 32)
    assert (cache.usable_tokens, cache.free_blocks, cache.usage_ratio) == (8192, 256, 0.0)


@pytest.mark.parametrize(("blocks", "block_size"), [(1, 16), (2, 0)])
def test_unusable_pool_is_refused(blocks: int, block_size: int) -> None:
    """A pool that can't hold a token is an error."""
    with pytest.raises(ValueError, match="a KV cache needs"):
        KvCache(blocks, block_size)


@pytest.mark.parametrize(
    ("tokens", "found"), [(1, 0), (4, 0), (5, 1), (8, 1), (9, 2), (12, 2), (13, 3), (100, 3)], ids=str
)
def test_hit_stops_before_the_last_token(tokens: int, found: int) -> None:
    """At least the last prompt token is computed, even where all its blocks are cached."""
    cache = KvCache(20, 4)
    cache.release(fill(cache, ["a", "b", "c"], 12))
    assert len(cache.match(["a", "b", "c"], tokens)) == found


def test_only_full_blocks_are_cached() -> None:
    """The block in part at the end of a sequence can't be found."""
    cache = KvCache(20, 4)
    cache.release(fill(cache, ["a", "b"], 7))
    assert (cache.cached_blocks, len(cache.match(["a", "b"], 9))) == (1, 1)


def test_released_blocks_are_found_until_evicted() -> None:
    """Free blocks keep their content; new content takes the oldest first, the tail of a sequence before its head."""
    cache = KvCache(5, 4)
    cache.release(fill(cache, ["a", "b", "c", "d"], 16))
    other = fill(cache, ["x", "y"], 8)
    assert len(cache.match(["a", "b", "c", "d"], 17)) == 2
    assert cache.counters.evictions == 2
    cache.check([other])


def test_shared_prefix_is_held_once() -> None:
    """Two requests with one prefix refer to the same blocks."""
    cache = KvCache(10, 4)
    first = fill(cache, ["a", "b", "1"], 12)
    second = fill(cache, ["a", "b", "2"], 12)
    assert first[:2] == second[:2]
    assert cache.free_blocks == 5
    cache.check([first, second])


def test_idle_hits_count_as_blocks_to_take() -> None:
    """A cached block that nobody holds is in the free queue: a hit takes it from there."""
    cache = KvCache(4, 4)
    cache.release(fill(cache, ["a", "b"], 8))
    matched = cache.match(["a", "b"], 12)
    assert cache.allocate(matched, 2) is None
    assert cache.allocate(matched, 1) is not None


def test_twin_blocks_outlive_the_first() -> None:
    """Content computed twice side by side is found as long as one copy is left."""
    cache = KvCache(4, 4)
    copies = [cache.allocate((), 1), cache.allocate((), 1)]
    for copy in copies:
        assert copy is not None
        cache.register(copy, ["a"], 0, 1)
    assert cache.cached_blocks == 2
    for copy in copies:
        cache.release(copy or ())
    taken = cache.allocate((), 2)
    assert taken is not None
    assert (cache.cached_blocks, len(cache.match(["a"], 5))) == (1, 1)
    cache.check([taken])


def test_blocks_nobody_can_find_are_taken_first() -> None:
    """A freed block in part, and the blocks of unknown content, cost no cached prefix when they are taken."""
    cache = KvCache(9, 4)
    cache.release(fill(cache, ["a", "b"], 8))
    cache.release(fill(cache, ["c"], 7))
    cache.release(fill(cache, [], 8))
    assert cache.free_contents() == [None] * 5 + ["b", "a", "c"]
    fill(cache, ["x"], 20)
    assert cache.counters.evictions == 0


def test_oldest_twin_is_found() -> None:
    """Of content computed several times the copy cached first is found, then the one cached next."""
    cache = KvCache(5, 4)
    copies = [cache.allocate((), 1) or [] for _ in range(4)]
    for copy in copies:
        cache.register(copy, ["a"], 0, 1)
    assert cache.match(["a"], 5) == copies[0]
    cache.release(copies[0])
    taken = cache.allocate((), 1)
    assert cache.match(["a"], 5) == copies[1]
    cache.check([*copies[1:], taken or []])


def test_disabled_prefix_caching_finds_nothing() -> None:
    """Without prefix caching no block is named."""
    cache = KvCache(10, 4, prefix_caching=False)
    cache.release(fill(cache, ["a", "b"], 8))
    assert (cache.match(["a", "b"], 9), cache.cached_blocks) == ([], 0)


def test_reset_waits_for_idle_blocks() -> None:
    """Cached prefixes can be forgotten only while nobody holds blocks."""
    cache = KvCache(10, 4)
    blocks = fill(cache, ["a", "b"], 8)
    assert not cache.reset()
    cache.release(blocks)
    assert cache.reset()
    assert cache.match(["a", "b"], 9) == []
    cache.check([])


def test_check_sees_a_lost_reference() -> None:
    """The recount finds blocks that were not given back."""
    cache = KvCache(10, 4)
    fill(cache, ["a"], 4)
    with pytest.raises(AssertionError, match="reference counts differ"):
        cache.check([])


class CacheAgainstLists(RuleBasedStateMachine):
    """The cache beside a model that keeps plain lists and searches them."""

    BLOCKS = 8

    def __init__(self) -> None:
        super().__init__()
        self.cache = KvCache(self.BLOCKS + 1, 1)
        self.held: list[tuple[list[int], list[object]]] = []
        self.free_order = list(range(1, self.BLOCKS + 1))
        self.content: dict[int, object] = {}

    @rule(program=st.integers(0, 2), tokens=st.integers(1, 6))
    def admit(self, program: int, tokens: int) -> None:
        """A request whose hashes depend on its program and the position alone."""
        hashes: list[object] = [(program, index) for index in range(tokens)]
        matched = self.cache.match(hashes, tokens)
        assert [self.content[block] for block in matched] == hashes[: len(matched)]
        names = set(self.content.values())
        expected = next((index for index, name in enumerate(hashes[: tokens - 1]) if name not in names), tokens - 1)
        assert len(matched) == expected
        idle = [block for block in matched if block in self.free_order]
        fresh = self.cache.allocate(matched, tokens - len(matched))
        room = len(self.free_order) - len(idle)
        assert (fresh is None) == (room < tokens - len(matched))
        if fresh is None:
            return
        self.free_order = [block for block in self.free_order if block not in idle]
        assert fresh == self.free_order[: len(fresh)]
        self.free_order = self.free_order[len(fresh) :]
        for block in fresh:
            self.content.pop(block, None)
        blocks = matched + fresh
        self.cache.register(blocks, hashes, len(matched), tokens)
        self.content.update(zip(blocks, hashes, strict=True))
        self.held.append((blocks, hashes))

    @rule(index=st.integers(0, 100))
    def release(self, index: int) -> None:
        """One of the requests ends."""
        if not self.held:
            return
        blocks, _ = self.held.pop(index % len(self.held))
        self.cache.release(blocks)
        still = {block for others, _ in self.held for block in others}
        self.free_order += [block for block in reversed(blocks) if block not in still]

    @invariant()
    def agrees(self) -> None:
        """Both hold the same free blocks and the same content."""
        self.cache.check([blocks for blocks, _ in self.held])
        assert self.cache.free_blocks == len(self.free_order)
        assert self.cache.cached_blocks == len(self.content)


TestCacheAgainstLists = CacheAgainstLists.TestCase
TestCacheAgainstLists.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
