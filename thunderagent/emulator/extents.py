"""The KV cache in stretches of blocks: the rules of ``KvCache``, at a cost that does not grow with the blocks.

For simulations, whose prompts are made of named segments (a prefix that many share, a program's own conversation),
each growing at its end only. Of a segment the cache always holds a beginning, since ends are given back, and so
evicted, first. A prompt of 100,000 tokens then costs as much as one of 100.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, overload

import attrs

from thunderagent.emulator.cache import CacheCounters

__all__ = ["ExtentCache", "Path"]


class Path(Sequence[Hashable]):
    """Content of a request: segments behind one another, each with the number of its blocks that belong to it.

    As a sequence it has a name for each block, ``(segment, index)``, so that a ``KvCache`` can take it too. A segment
    stands on the same segments wherever it occurs.
    """

    __slots__ = ("blocks", "parts")

    def __init__(self, parts: tuple[tuple[Hashable, int], ...]) -> None:
        self.parts = tuple([part for part in parts if part[1] > 0])
        self.blocks = 0
        for _, blocks in self.parts:
            self.blocks += blocks

    def __len__(self) -> int:
        return self.blocks

    @overload
    def __getitem__(self, index: int) -> Hashable: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Hashable]: ...

    def __getitem__(self, index: int | slice) -> Hashable | Sequence[Hashable]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self.blocks))]
        if index < 0:
            index += self.blocks
        for segment, blocks in self.parts:
            if 0 <= index < blocks:
                return (segment, index)
            index -= blocks
        raise IndexError("no such block")


@attrs.define(eq=False)
class _Segment:
    """What is cached of a segment: ``resident`` blocks from its start, of which requests hold the first ``held``."""

    name: Hashable
    resident: int = 0
    held: int = 0
    holders: dict[Holding, int] = attrs.field(factory=dict)
    """Blocks that each holding refers to, or has copies of."""
    copies: dict[Holding, list[tuple[int, int]]] = attrs.field(factory=dict)
    """Stretches (start, stop) that a holding computed while another one did; its own blocks, beside those counted."""
    free: list[_Stretch] = attrs.field(factory=list)
    """What nobody holds, its end first; the end came free first, too."""


@attrs.define(eq=False)
class _Stretch:
    """Blocks ``start`` to ``stop`` of a segment, which came free together."""

    segment: _Segment
    start: int
    stop: int


@attrs.define(eq=False)
class Match:
    """A prefix found: so many blocks of these segments, of which ``free_blocks`` are held by nobody."""

    parts: tuple[tuple[_Segment, int], ...]
    blocks: int
    free_blocks: int

    def __len__(self) -> int:
        return self.blocks


@attrs.define(eq=False)
class Holding:
    """What one request refers to."""

    path: Path
    blocks: int
    """All of them."""
    segments: list[_Segment]
    """Those of the path of which it holds something, in order."""
    filled: int
    """Blocks from the path's start that it found or computed."""
    nameless: int
    """Of ``blocks``, those that nobody else can find: not full yet, or computed by another one at the same time."""

    def __len__(self) -> int:
        return self.blocks


class ExtentCache:
    """A pool of ``num_gpu_blocks`` blocks with a prefix cache of ``Path`` contents; see ``Cache`` for the calls.

    Equal to ``KvCache`` block by block (a test holds them against one another), but for contents that two requests
    compute side by side: ``KvCache`` keeps the second copy findable when it comes free, here it is taken next.
    """

    def __init__(self, num_gpu_blocks: int, block_size: int = 16, *, prefix_caching: bool = True) -> None:
        """Raises ValueError for a pool without a usable block or a block without a token."""
        if num_gpu_blocks < 2 or block_size < 1:
            raise ValueError(f"a KV cache needs 2 blocks of 1 token, got {num_gpu_blocks} of {block_size}")
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.counters = CacheCounters()
        self.freed_blocks = 0
        self._usable = num_gpu_blocks - 1
        self._segments: dict[Hashable, _Segment] = {}
        self._empty = self._usable
        """Free blocks without content that can be found: they are taken first."""
        self.free_blocks = self._usable
        self._queue: OrderedDict[_Stretch, None] = OrderedDict()
        """Free blocks with content, the next to be taken in front."""

    @property
    def usable_tokens(self) -> int:
        return self._usable * self.block_size

    @property
    def usage_ratio(self) -> float:
        return 1.0 - self.free_blocks / self._usable

    def resident_blocks(self, segment: Hashable) -> int:
        """Blocks of a segment that are cached, from its start. O(1)."""
        found = self._segments.get(segment)
        return 0 if found is None else found.resident

    def match(self, hashes: Sequence[Hashable], tokens: int) -> Match:
        """O(segments)."""
        parts: list[tuple[_Segment, int]] = []
        found = free = 0
        left = (tokens - 1) // self.block_size if self.prefix_caching else 0
        for name, blocks in _path(hashes).parts:
            segment = self._segments.get(name)
            count = 0 if segment is None else min(blocks, segment.resident, left)
            if segment is not None and count:
                parts.append((segment, count))
                found += count
                left -= count
                if count > segment.held:
                    free += count - segment.held
            if count < blocks:
                break
        return Match(tuple(parts), found, free)

    def holds(self, content: Any) -> bool:
        if content is None:
            return False
        segment, index = content
        return self.resident_blocks(segment) > int(index)

    def lacks(self, matched: Match, new_blocks: int) -> int:
        lacking = new_blocks - self.free_blocks
        return lacking if lacking > 0 else max(0, lacking + matched.free_blocks)

    def hold(self, hashes: Sequence[Hashable], matched: Match, new_blocks: int) -> Holding | None:
        if self.lacks(matched, new_blocks):
            return None
        holding = Holding(_path(hashes), matched.blocks, [], matched.blocks, 0)
        for segment, count in matched.parts:
            segment.holders[holding] = count
            holding.segments.append(segment)
            self._take_back(segment, count)
        self._take(holding, new_blocks)
        return holding

    def extend(self, holding: Holding, new_blocks: int) -> bool:
        if new_blocks > self.free_blocks:
            return False
        self._take(holding, new_blocks)
        return True

    def hand_over(self, giver: Holding, taker: Holding, blocks: int) -> None:
        giver.blocks -= blocks
        giver.nameless -= blocks
        taker.blocks += blocks
        taker.nameless += blocks

    def names(self, hashes: Sequence[Hashable], start: int) -> list[Hashable]:
        """Segments that reach beyond ``start``."""
        names, stop = [], 0
        for name, blocks in _path(hashes).parts:
            stop += blocks
            if stop > start:
                names.append(name)
        return names

    def fill(self, holding: Holding, full_blocks: int) -> None:
        """O(segments)."""
        path = holding.path
        full_blocks = min(full_blocks, path.blocks)
        if full_blocks <= holding.filled or not self.prefix_caching:
            return
        start = 0
        for name, blocks in path.parts:
            end = start + blocks
            if end > holding.filled:
                stop = min(end, full_blocks)
                self._fill_segment(holding, name, holding.filled - start, stop - start)
                holding.filled = stop
            if end >= full_blocks:
                return
            start = end

    def _fill_segment(self, holding: Holding, name: Hashable, start: int, stop: int) -> None:
        """It has computed blocks ``start`` to ``stop`` of the segment, and holds those before them."""
        segment = self._segments.get(name)
        if segment is None:
            segment = self._segments[name] = _Segment(name)
        if holding not in segment.holders:
            holding.segments.append(segment)
        segment.holders[holding] = stop
        resident = segment.resident
        if resident > start:
            known = min(stop, resident)
            self._take_back(segment, known)
            segment.copies.setdefault(holding, []).append((start, known))
            self._give_copies_up(segment)
        if stop > segment.resident:
            holding.nameless -= stop - max(start, segment.resident)
            segment.resident = segment.held = stop

    def _give_copies_up(self, segment: _Segment) -> None:
        """Of what nobody else holds any more, the blocks that can be found stand for the copies, which come free."""
        for holding, copies in list(segment.copies.items()):
            # What another holder refers to itself: all, or what comes before its first copy.
            others = (
                min((start for start, _ in segment.copies.get(other, ())), default=stop)
                for other, stop in segment.holders.items()
                if other is not holding
            )
            reach = max(others, default=0)
            kept = [(start, min(stop, reach)) for start, stop in copies if start < reach]
            spare = sum(stop - start for start, stop in copies) - sum(stop - start for start, stop in kept)
            holding.nameless -= spare
            self._release_empty(spare)
            if kept:
                segment.copies[holding] = kept
            else:
                del segment.copies[holding]

    def drop(self, holding: Holding) -> None:
        """O(segments x their holders)."""
        self._release_empty(holding.nameless)
        for segment in reversed(holding.segments):
            del segment.holders[holding]
            if segment.copies:
                segment.copies.pop(holding, None)
                self._give_copies_up(segment)
            if segment.held not in segment.holders.values():
                self._release(segment, max(segment.holders.values(), default=0))
        holding.segments = []
        holding.blocks = holding.nameless = 0

    def reset(self) -> bool:
        if self.free_blocks != self._usable:
            return False
        self._segments.clear()
        self._queue.clear()
        self._empty = self._usable
        return True

    # Blocks

    def _take(self, holding: Holding, count: int) -> None:
        """Give it ``count`` free blocks."""
        holding.blocks += count
        holding.nameless += count
        self.free_blocks -= count
        if count <= self._empty:
            self._empty -= count
            return
        count -= self._empty
        self._empty = 0
        self.counters.evictions += count
        while count:
            stretch = next(iter(self._queue))
            segment, blocks = stretch.segment, stretch.stop - stretch.start
            if count < blocks:
                stretch.stop -= count
                segment.resident -= count
                return
            count -= blocks
            segment.resident -= blocks
            del self._queue[stretch]
            segment.free.pop(0)
            if not segment.resident and not segment.holders:
                del self._segments[segment.name]

    def _take_back(self, segment: _Segment, held: int) -> None:
        """Blocks of the segment up to ``held`` that are free are held again."""
        if held <= segment.held:
            return
        self.free_blocks -= held - segment.held
        segment.held = held
        while segment.free and segment.free[-1].start < held:
            stretch = segment.free[-1]
            if stretch.stop > held:
                stretch.start = held
                return
            del self._queue[stretch]
            segment.free.pop()

    def _release(self, segment: _Segment, held: int) -> None:
        """Blocks of the segment behind ``held`` are held no more."""
        stretch = _Stretch(segment, held, segment.held)
        segment.free.append(stretch)
        self._queue[stretch] = None
        self.free_blocks += segment.held - held
        self.freed_blocks += segment.held - held
        segment.held = held

    def _release_empty(self, count: int) -> None:
        self.free_blocks += count
        self._empty += count
        self.freed_blocks += count

    def check_holdings(self, holdings: Sequence[Holding]) -> None:
        """Recount everything against what requests hold; AssertionError says what differs. O(segments)."""
        nameless = sum(holding.nameless for holding in holdings)
        held = sum(segment.held for segment in self._segments.values())
        cached = sum(segment.resident - segment.held for segment in self._segments.values())
        assert self.free_blocks == self._empty + cached, "the free blocks differ from the empty and the cached ones"
        assert self._usable == self.free_blocks + nameless + held, "blocks got lost"
        for segment in self._segments.values():
            assert segment.held == max(segment.holders.values(), default=0), "a segment is held by nobody"
            bounds = [(stretch.stop, stretch.start) for stretch in segment.free]
            edges = [segment.resident, *(start for _, start in bounds)]
            assert [stop for stop, _ in bounds] == edges[:-1], "stretches of a segment have holes"
            assert edges[-1] == segment.held, "stretches of a segment do not end where it is held"
        assert set(self._queue) == set(self._stretches()), "the queue differs from the stretches of the segments"

    def _stretches(self) -> Iterator[_Stretch]:
        for segment in self._segments.values():
            yield from segment.free


def _path(hashes: Sequence[Hashable]) -> Path:
    if isinstance(hashes, Path):
        return hashes
    if hashes:
        raise TypeError("this cache takes contents as paths of segments")
    return _NO_PATH


_NO_PATH = Path(())
