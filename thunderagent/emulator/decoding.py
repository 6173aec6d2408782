"""The sequences of an engine that only decode, as a group whose steps cost the same however many they are."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Any

from thunderagent.emulator.cache import Cache, blocks_for
from thunderagent.emulator.sequence import LiveSequence, room_tokens

__all__ = ["Decoders"]


class Decoders:
    """Running sequences that get one token per step each, brought up to date only where somebody asks.

    A count of such steps and what a sequence was when it joined say what it is now; who ends next is the first of a
    heap. How many blocks a step takes follows from how many members stand at which place of a block. These blocks are
    taken when they are due, so that the cache evicts as ever, but into one holding, from which a member gets its own
    when it leaves or when a request comes that might find what it wrote.
    """

    def __init__(self, cache: Cache) -> None:
        self.count = 0
        """Members."""
        self.tokens = 0
        """Made of each member, counted from the beginning of time."""
        self._taken_tokens = 0
        """For which blocks were taken: ``tokens``, more amid a step."""
        self._cache = cache
        self._pool = cache.hold((), cache.match((), 1), 0)
        """The holding of blocks that members have not got yet."""
        self._members: dict[LiveSequence, Sequence[Hashable]] = {}
        """In the order in which they joined, with the names of what they write."""
        self._length_tokens = 0
        """Sum of the members' lengths, each less ``tokens``."""
        self._members_at = [0] * cache.block_size
        """How many members would have come so far in a block when ``tokens`` was 0."""
        self._ends: list[tuple[int, int, LiveSequence]] = []
        """Heap of (``tokens`` at its end, rank, member); those that left have stale entries."""
        self._writers: dict[Hashable, list[LiveSequence]] = {}
        self._joined = 0

    def __iter__(self) -> Iterator[LiveSequence]:
        return iter(self._members)

    def __contains__(self, sequence: LiveSequence) -> bool:
        return sequence in self._members

    @property
    def length_tokens(self) -> int:
        """All members' tokens together. O(1)."""
        return self._length_tokens + self.count * self.tokens

    @property
    def tokens_to_next_end(self) -> int:
        """That each member makes until the first of them ends; there must be a member."""
        ends = self._ends
        while not self._is_current(ends[0]):
            heappop(ends)
        return ends[0][0] - self.tokens

    def blocks_for(self, tokens: int) -> int:
        """Blocks that so many tokens of each member need, beyond those taken. O(block size)."""
        members_at = self._members_at
        size = len(members_at)
        rounds, rest = divmod(tokens, size)
        blocks = rounds * self.count
        if rest:
            # A token needs a block of those members that have come to a block's end.
            stop = -self._taken_tokens % size + 1
            start = stop - rest
            blocks += sum(members_at[max(0, start) : stop])
            if start < 0:
                blocks += sum(members_at[start:])
        return blocks

    def surely_fit(self, tokens: int, free_blocks: int) -> bool:
        """Whether each member could even begin a block with the next token; False says nothing. O(1)."""
        return self.count * (tokens // self._cache.block_size + 1) <= free_blocks

    def join(self, sequence: LiveSequence) -> None:
        """It decodes from now on, and has all blocks that it needs so far. O(log members)."""
        request, cache = sequence.request, self._cache
        self.count += 1
        self._joined += 1
        sequence.rank = self._joined
        sequence.counted_tokens = self.tokens
        self._length_tokens += sequence.length_tokens - self.tokens
        self._members_at[(sequence.computed_tokens - self.tokens) % cache.block_size] += 1
        ends_at = self.tokens + request.output_tokens - sequence.generated_tokens
        heappush(self._ends, (ends_at, sequence.rank, sequence))
        names = cache.names(request.block_hashes, sequence.computed_tokens // cache.block_size)
        writers = self._writers
        for name in names:
            if name in writers:
                writers[name].append(sequence)
            else:
                writers[name] = [sequence]
        self._members[sequence] = names

    def take(self, tokens: int) -> None:
        """Take the blocks for so many tokens of each member; there must be as many."""
        members_at = self._members_at
        blocks = members_at[-self._taken_tokens % len(members_at)] if tokens == 1 else self.blocks_for(tokens)
        if blocks and not self._cache.extend(self._pool, blocks):
            raise RuntimeError(f"{blocks} blocks are not there: the KV cache accounting is broken")
        self._taken_tokens += tokens

    def advance(self) -> list[LiveSequence]:
        """The tokens are made for which blocks were taken; members that are at their end, which should leave, in the
        order in which they joined."""
        self.tokens = tokens = self._taken_tokens
        ends = self._ends
        ended: list[LiveSequence] = []
        while ends and ends[0][0] <= tokens:
            end = heappop(ends)
            if self._is_current(end):
                self.update(end[2])
                ended.append(end[2])
        if len(ended) > 1:
            ended.sort(key=lambda sequence: sequence.rank)
        return ended

    def update(self, sequence: LiveSequence) -> None:
        """Bring a member's counts up to date."""
        made = self.tokens - sequence.counted_tokens
        sequence.counted_tokens = self.tokens
        sequence.computed_tokens += made
        sequence.generated_tokens += made
        sequence.length_tokens += made

    def publish(self, hashes: Sequence[Hashable]) -> None:
        """Let a request with these contents find what members have written. O(its names)."""
        if not self._writers:
            return
        writers = self._writers
        for name in self._cache.names(hashes, 0):
            if name in writers:
                for sequence in writers[name]:
                    self._settle(sequence)

    def leave(self, sequence: LiveSequence) -> None:
        """It is no member any more, and has its blocks. O(1)."""
        cache = self._cache
        self._settle(sequence)
        self.update(sequence)
        self.count -= 1
        self._length_tokens -= sequence.length_tokens - self.tokens
        self._members_at[(sequence.computed_tokens - self.tokens) % cache.block_size] -= 1
        for name in self._members.pop(sequence):
            writers = self._writers[name]
            if len(writers) == 1:
                del self._writers[name]
            else:
                writers.remove(sequence)

    def dissolve(self) -> list[LiveSequence]:
        """All leave, in the order in which they joined."""
        left = list(self._members)
        for sequence in left:
            self.leave(sequence)
        return left

    def check(self) -> None:
        """Recount the sums; AssertionError says what differs. O(members)."""
        size, tokens, taken = self._cache.block_size, self.tokens, self._taken_tokens
        assert self.count == len(self._members), "the members are more, or fewer"
        members_at, length_tokens, blocks = [0] * size, 0, 0
        current = {end[2]: end[0] for end in self._ends if self._is_current(end)}
        for one in self._members:
            members_at[(one.computed_tokens - one.counted_tokens) % size] += 1
            length_tokens += one.length_tokens + tokens - one.counted_tokens
            blocks += blocks_for(self._planned_tokens(one), size) - len(one.holding)
            left = one.request.output_tokens - one.generated_tokens
            assert current.pop(one) == one.counted_tokens + left, "a member ends at another time"
        assert not current, "one that left is to end"
        assert members_at == self._members_at, "members stand at other places of their blocks"
        assert length_tokens == self.length_tokens, "the members' lengths have another sum"
        assert blocks == len(self._pool), f"members need {blocks} blocks, {len(self._pool)} were taken up to {taken}"
        named = [name for names in self._members.values() for name in names]
        assert len(named) == sum(map(len, self._writers.values())), "members write other contents"

    @property
    def pool(self) -> Any:
        """The holding of blocks that were taken for members and not handed out, for recounts."""
        return self._pool

    def _is_current(self, end: tuple[int, int, LiveSequence]) -> bool:
        return end[2] in self._members and end[2].rank == end[1]

    def _planned_tokens(self, sequence: LiveSequence) -> int:
        return sequence.computed_tokens + self._taken_tokens - sequence.counted_tokens

    def _settle(self, sequence: LiveSequence) -> None:
        """Hand out a member's blocks and name what is in them."""
        size, holding = self._cache.block_size, sequence.holding
        planned = self._planned_tokens(sequence)
        self._cache.hand_over(self._pool, holding, blocks_for(planned, size) - len(holding))
        self._cache.fill(holding, planned // size)
        sequence.room_tokens = room_tokens(planned, size)
