"""The paged KV cache of vLLM V1, without the tensors: blocks, prefix hashes, reference counts, LRU reuse."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import attrs

from thunderagent.emulator.cache import CacheCounters

__all__ = ["Holding", "KvCache"]

NULL_BLOCK = 0
"""The block that vLLM keeps for itself; it is never handed out."""


@attrs.define(eq=False)
class Holding:
    """The blocks that one request refers to, in the order of its tokens; ``hashes`` name their content."""

    hashes: Sequence[Hashable]
    blocks: list[int]
    registered_blocks: int

    def __len__(self) -> int:
        return len(self.blocks)


class KvCache:
    """A pool of ``num_gpu_blocks`` blocks of ``block_size`` tokens with a prefix cache.

    A block is free (reference count 0, in the free queue) or used. A free block keeps its content, and so can be
    found by its hash, until it is taken from the head of the queue for other content. The caller names the content:
    a block hash stands for the block *and everything before it*, so equal hashes mean an equal prefix.

    The rules are those of vLLM V1 (``vllm/v1/core/block_pool.py``, ``kv_cache_manager.py``): only full blocks are
    cached, the last prompt token is always computed, blocks are given back in reverse order (so that the end of a
    sequence is evicted before its beginning), blocks without content to be found are taken before any other, one
    block is reserved. ``tests/vllm/test_emulator_differential.py`` holds it against vLLM's own.
    """

    def __init__(self, num_gpu_blocks: int, block_size: int = 16, *, prefix_caching: bool = True) -> None:
        """Raises ValueError for a pool without a usable block or a block without a token."""
        if num_gpu_blocks < 2 or block_size < 1:
            raise ValueError(f"a KV cache needs 2 blocks of 1 token, got {num_gpu_blocks} of {block_size}")
        self.num_gpu_blocks = num_gpu_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.counters = CacheCounters()
        self.freed_blocks = 0
        """How often a block came free; never reset."""
        self._references = [0] * num_gpu_blocks
        self._hash_of: list[Hashable | None] = [None] * num_gpu_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_gpu_blocks))
        self._cached: dict[Hashable, int] = {}
        # Blocks that hold the same content as one in _cached: two requests computed it side by side.
        self._twins: dict[Hashable, dict[int, None]] = {}

    @property
    def usable_tokens(self) -> int:
        """Tokens that requests can hold: all blocks but the reserved one."""
        return (self.num_gpu_blocks - 1) * self.block_size

    @property
    def free_blocks(self) -> int:
        """Blocks that no request refers to, cached content or not."""
        return len(self._free)

    @property
    def cached_blocks(self) -> int:
        """Blocks that can be found by their hash."""
        return len(self._cached) + sum(len(twins) for twins in self._twins.values())

    @property
    def usage_ratio(self) -> float:
        """Share of usable blocks that running requests refer to (``vllm:kv_cache_usage_perc``), 0 to 1."""
        return 1.0 - len(self._free) / (self.num_gpu_blocks - 1)

    def free_contents(self) -> list[Hashable | None]:
        """What the free blocks hold, the one that is taken next in front; None: content nobody can find. O(free)."""
        return [self._hash_of[block] for block in self._free]

    def match(self, hashes: Sequence[Hashable], tokens: int) -> list[int]:
        """Blocks of the longest cached prefix of a sequence of ``tokens`` tokens; changes nothing.

        At most ``(tokens - 1) // block_size`` blocks: the last token is computed even where all is cached, since the
        engine needs its output. O(blocks found).
        """
        if not self.prefix_caching:
            return []
        found: list[int] = []
        lookup = self._cached.get
        for index in range(min((tokens - 1) // self.block_size, len(hashes))):
            block = lookup(hashes[index])
            if block is None:
                break
            found.append(block)
        return found

    def holds(self, content: Hashable) -> bool:
        """Whether a block with this content can be found. O(1)."""
        return content in self._cached

    def lacks(self, matched: Sequence[int], new_blocks: int) -> int:
        """Free blocks that ``allocate`` with these arguments lacks at least; 0: it succeeds. O(matched)."""
        lacking = new_blocks - len(self._free)
        if lacking > 0:
            return lacking
        references = self._references
        return max(0, lacking + sum(1 for block in matched if references[block] == 0))

    def allocate(self, matched: Sequence[int], new_blocks: int) -> list[int] | None:
        """Refer to the ``matched`` blocks and take ``new_blocks`` from the head of the free queue.

        Returns the new blocks, or None (nothing changed) where the free queue is too short.
        """
        if self.lacks(matched, new_blocks):
            return None
        references = self._references
        for block in matched:
            if references[block] == 0:
                del self._free[block]
            references[block] += 1
        return [self._take() for _ in range(new_blocks)]

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        self._references[block] = 1
        if self._hash_of[block] is not None:
            self._forget(block)
            self.counters.evictions += 1
        return block

    def _forget(self, block: int) -> None:
        content = self._hash_of[block]
        self._hash_of[block] = None
        twins = self._twins.get(content)
        if twins is None:
            del self._cached[content]
            return
        if self._cached[content] == block:
            # The oldest of those left, as vLLM finds it: which one is found decides which one stays.
            self._cached[content] = next(iter(twins))
            del twins[self._cached[content]]
        else:
            del twins[block]
        if not twins:
            del self._twins[content]

    def register(self, blocks: Sequence[int], hashes: Sequence[Hashable], start: int, stop: int) -> None:
        """Name the content of ``blocks[start:stop]`` by ``hashes[start:stop]``: they are full and can be found.

        Hashes past the end of ``hashes`` are unknown content: those blocks stay unnamed. Called once per block and
        owner, by the request that fills it.
        """
        if not self.prefix_caching:
            return
        for index in range(start, min(stop, len(hashes))):
            block, content = blocks[index], hashes[index]
            self._hash_of[block] = content
            if self._cached.setdefault(content, block) != block:
                self._twins.setdefault(content, {})[block] = None

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference to each block, the last block first.

        A block whose content nobody can find goes to the head of the queue: to take it costs no cached prefix.
        """
        references, free, names = self._references, self._free, self._hash_of
        for block in reversed(blocks):
            references[block] -= 1
            if references[block] == 0:
                self.freed_blocks += 1
                free[block] = None
                if names[block] is None:
                    free.move_to_end(block, last=False)

    # What the engine calls: the same, for one request as a whole

    def hold(self, hashes: Sequence[Hashable], matched: Sequence[int], new_blocks: int) -> Holding | None:
        """``allocate`` for a request whose content ``hashes`` name; None (nothing changed) where it does not fit."""
        fresh = self.allocate(matched, new_blocks)
        return None if fresh is None else Holding(hashes, [*matched, *fresh], len(matched))

    def extend(self, holding: Holding, new_blocks: int) -> bool:
        """Take more blocks; False (nothing changed) where the free queue is too short."""
        fresh = self.allocate((), new_blocks)
        if fresh is None:
            return False
        holding.blocks += fresh
        return True

    def hand_over(self, giver: Holding, taker: Holding, blocks: int) -> None:
        """The giver's last blocks become the taker's."""
        if blocks:
            taker.blocks += giver.blocks[-blocks:]
            del giver.blocks[-blocks:]

    def names(self, hashes: Sequence[Hashable], start: int) -> Sequence[Hashable]:
        """The hashes from ``start`` on."""
        return hashes[start:]

    def fill(self, holding: Holding, full_blocks: int) -> None:
        """The first ``full_blocks`` of them are computed: they can be found by their hashes."""
        if full_blocks > holding.registered_blocks:
            self.register(holding.blocks, holding.hashes, holding.registered_blocks, full_blocks)
            holding.registered_blocks = full_blocks

    def drop(self, holding: Holding) -> None:
        """Give all of them back."""
        self.release(holding.blocks)
        holding.blocks = []

    def reset(self) -> bool:
        """Forget all cached content; False (nothing done) while a request holds blocks, as vLLM answers."""
        if len(self._free) != self.num_gpu_blocks - 1:
            return False
        self._cached.clear()
        self._twins.clear()
        self._hash_of = [None] * self.num_gpu_blocks
        return True

    def check_holdings(self, holdings: Sequence[Holding]) -> None:
        """``check`` for the blocks of all requests."""
        self.check([holding.blocks for holding in holdings])

    def check(self, held: Sequence[Sequence[int]]) -> None:
        """Recount everything against the block lists that requests hold; AssertionError says what differs.

        O(blocks); for tests and for a debugging switch.
        """
        expected = [0] * self.num_gpu_blocks
        for blocks in held:
            for block in blocks:
                expected[block] += 1
        assert expected[NULL_BLOCK] == 0, "the reserved block was handed out"
        assert self._references == expected, "reference counts differ from the blocks that requests hold"
        idle = {block for block in range(1, self.num_gpu_blocks) if expected[block] == 0}
        assert set(self._free) == idle, "the free queue differs from the blocks nobody holds"
        named: dict[Hashable, set[int]] = {}
        for block, content in enumerate(self._hash_of):
            if content is not None:
                named.setdefault(content, set()).add(block)
        found = {content: {block, *self._twins.get(content, ())} for content, block in self._cached.items()}
        assert found == named, "the hash index differs from the names of the blocks"
        assert all(self._twins.values()), "an empty set of twins is kept"
        assert self._twins.keys() <= self._cached.keys(), "twins of a block that is not cached"
