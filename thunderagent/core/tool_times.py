"""How long tools take, kept in a few bytes: a histogram that says when a conversation will come back."""

from __future__ import annotations

from math import inf, log2

from attrs import define, field

__all__ = ["ToolTimes", "bucket_of"]

_FIRST_EDGE_SECONDS = 0.1
"""Bucket 0 reaches from 0 to here; each further one is half an octave, a factor of 1.41, wide."""

_BUCKETS = 36
"""The last one ends at 18,536 s, about 5 hours, and takes all that is longer too."""

_LARGEST_COUNT = 255
"""What a byte holds."""


def _position(seconds: float) -> float:
    """Bucket, and the share of its width below ``seconds``: linear in bucket 0, logarithmic in the others."""
    if not seconds >= 0.0:
        raise ValueError(f"a tool cannot take {seconds} seconds")
    if seconds < _FIRST_EDGE_SECONDS:
        return seconds / _FIRST_EDGE_SECONDS
    return min(float(_BUCKETS), 1.0 + 2.0 * log2(seconds / _FIRST_EDGE_SECONDS))


def bucket_of(seconds: float) -> int:
    """Where a tool that took so long is counted.

    Raises:
        ValueError: ``seconds`` is negative or not finite.
    """
    position = _position(seconds)
    if seconds == inf:
        raise ValueError(f"a tool cannot have taken {seconds} seconds")
    return min(int(position), _BUCKETS - 1)


def _seconds(position: float) -> float:
    """The inverse of ``_position``."""
    if position < 1.0:
        return position * _FIRST_EDGE_SECONDS
    return float(_FIRST_EDGE_SECONDS * 2.0 ** ((position - 1.0) / 2.0))


@define(eq=False)
class ToolTimes:
    """The distribution of the seconds between the end of a turn and the next one of its conversation.

    Tool times are heavy-tailed: the longer a tool has run, the longer it will still run. So what is asked is
    always conditional on how long it has run already. Samples of one bucket count as spread over it evenly, by
    the logarithm. All is O(buckets), in about 150 bytes however many samples there were, and none before the first.
    """

    _counts: bytearray | None = field(default=None, init=False)

    @property
    def count(self) -> int:
        """Samples as they still weigh in: fewer than were learned, once the counts have been halved."""
        return sum(self._counts) if self._counts else 0

    def learn(self, seconds: float) -> None:
        """Count one tool. Amortised O(1).

        Where a count would overflow, all are halved first, so that what is recent weighs more.

        Raises:
            ValueError: ``seconds`` is negative or not finite.
        """
        self.count_in(bucket_of(seconds))

    def count_in(self, bucket: int) -> None:
        """Count one tool of this ``bucket_of`` its seconds: for who tells several of the same tool."""
        counts = self._counts
        if counts is None:
            counts = self._counts = bytearray(_BUCKETS)
        elif counts[bucket] == _LARGEST_COUNT:
            _halve(counts)
        counts[bucket] += 1

    def quantile_seconds(self, share: float) -> float | None:
        """What that share (0 to 1) of the tools took no longer than; None while empty.

        Raises:
            ValueError: ``share`` is not between 0 and 1.
        """
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"a share is between 0 and 1, not {share}")
        counts = self._counts
        return None if counts is None else _seconds_at(counts, share * sum(counts))

    def chance_of_return(self, idle_seconds: float, within_seconds: float) -> float | None:
        """The chance that a tool which has run for ``idle_seconds`` ends within the next ``within_seconds``.

        None while empty. 0.0 where it has run longer than all that was seen: nothing speaks for an end then.

        Raises:
            ValueError: one of them is negative.
        """
        if not within_seconds >= 0.0:
            raise ValueError(f"nothing can end within {within_seconds} seconds")
        since, until = _position(idle_seconds), _position(idle_seconds + within_seconds)
        if self._counts is None:
            return None
        ended = _count_below(self._counts, since)
        running = sum(self._counts) - ended
        return (_count_below(self._counts, until) - ended) / running if running > 0.0 else 0.0

    def remaining_seconds(self, idle_seconds: float) -> float | None:
        """The median of what is left of a tool that has run for ``idle_seconds``; None while empty.

        Where it has run longer than all that was seen, it is taken to run as long again (the Lindy rule).

        Raises:
            ValueError: ``idle_seconds`` is negative.
        """
        position = _position(idle_seconds)
        if self._counts is None:
            return None
        ended = _count_below(self._counts, position)
        running = sum(self._counts) - ended
        if running <= 0.0:
            return idle_seconds
        # Rounding can put the median just before the time itself, at the end of the last bucket.
        return max(0.0, _seconds_at(self._counts, ended + running / 2.0) - idle_seconds)


def _count_below(counts: bytearray, position: float) -> float:
    """Samples below a position."""
    index = int(position)
    if index >= _BUCKETS:
        return float(sum(counts))
    return sum(counts[:index]) + counts[index] * (position - index)


def _seconds_at(counts: bytearray, rank: float) -> float:
    """The time below which ``rank`` samples lie; ``rank`` is not above their sum, which is not 0."""
    below = 0
    for index, count in enumerate(counts):
        if count == 0:
            continue
        if below + count >= rank:
            return _seconds(index + (rank - below) / count)
        below += count
    raise AssertionError(f"rank {rank} is above the {below} samples")


def _halve(counts: bytearray) -> None:
    """Halve all; an odd sample goes on to the next shorter bucket, or a thin tail of single ones would vanish."""
    odd = 0
    for index in reversed(range(_BUCKETS)):
        counts[index], odd = divmod(counts[index] + odd, 2)
