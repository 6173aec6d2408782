"""What the engine asks of a KV cache, whichever way that keeps its books."""

from __future__ import annotations

from collections.abc import Hashable, Sequence, Sized
from typing import Any, Protocol

import attrs

__all__ = ["Cache", "CacheCounters", "blocks_for"]


def blocks_for(tokens: int, block_size: int) -> int:
    """Blocks that hold ``tokens`` tokens, the last one possibly in part."""
    return -(-tokens // block_size)


@attrs.define(eq=False)
class CacheCounters:
    """What happened since the start; never reset.

    ``queries_tokens`` and ``hits_tokens`` count the tokens looked up and found at a request's first scheduling (the
    figures behind ``vllm:prefix_cache_queries`` and ``_hits``); lookups after a preemption are counted apart, as in
    vLLM. ``evictions`` counts cached blocks that lost their content to another request.
    """

    queries_tokens: int = 0
    hits_tokens: int = 0
    preempted_queries_tokens: int = 0
    preempted_hits_tokens: int = 0
    evictions: int = 0

    def count_lookup(self, tokens: int, hit_tokens: int, *, preempted: bool) -> None:
        """Count one lookup of ``tokens`` tokens that found ``hit_tokens``."""
        if preempted:
            self.preempted_queries_tokens += tokens
            self.preempted_hits_tokens += hit_tokens
        else:
            self.queries_tokens += tokens
            self.hits_tokens += hit_tokens


class Cache(Protocol):
    """Blocks for the running requests, and what is left of former ones, to be found again.

    A holding is what one request refers to: a prefix that was found and the blocks after it. Its length is the number
    of its blocks; what else it is, and what ``match`` returns, is the cache's own.
    """

    block_size: int
    prefix_caching: bool
    counters: CacheCounters
    freed_blocks: int
    """How often a block came free; never reset."""

    @property
    def usable_tokens(self) -> int:
        """Tokens that requests can hold."""

    @property
    def free_blocks(self) -> int:
        """Blocks that no request refers to, cached content or not."""

    @property
    def usage_ratio(self) -> float:
        """Share of usable blocks that running requests refer to, 0 to 1."""

    def match(self, hashes: Sequence[Hashable], tokens: int) -> Sized:
        """The longest cached prefix, in blocks, of a sequence of ``tokens`` tokens; changes nothing."""

    def holds(self, content: Hashable) -> bool:
        """Whether a block with this content can be found."""

    def lacks(self, matched: Any, new_blocks: int) -> int:
        """Free blocks that ``hold`` lacks at least; 0: it succeeds."""

    def hold(self, hashes: Sequence[Hashable], matched: Any, new_blocks: int) -> Any:
        """A holding of what was matched and ``new_blocks`` more; None (nothing changed) where that does not fit."""

    def extend(self, holding: Any, new_blocks: int) -> bool:
        """Take more blocks; False (nothing changed) where there are too few."""

    def hand_over(self, giver: Any, taker: Any, blocks: int) -> None:
        """So many of the giver's last blocks become the taker's; nobody can find their content yet."""

    def names(self, hashes: Sequence[Hashable], start: int) -> Sequence[Hashable]:
        """What the blocks from ``start`` on are looked up under: their hashes, or what stands for several."""

    def fill(self, holding: Any, full_blocks: int) -> None:
        """The first ``full_blocks`` of the holding are computed: they can be found by their hashes."""

    def drop(self, holding: Any) -> None:
        """The request is over: give its blocks back, the last one first."""

    def reset(self) -> bool:
        """Forget all cached content; False (nothing done) while a request holds blocks."""

    def check_holdings(self, holdings: Sequence[Any]) -> None:
        """Recount everything against what requests hold; AssertionError says what differs."""
