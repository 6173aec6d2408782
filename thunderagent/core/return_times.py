"""When idle conversations come back, if they do: how long what they left is worth its room in the cache."""

from __future__ import annotations

from math import log2

from attrs import define, field

__all__ = ["ReturnTimes"]

_FIRST_EDGE_SECONDS = 0.25
"""Bucket 0 reaches from 0 to here; each further one is half an octave, a factor of 1.41, wide."""

_BUCKETS = 32
"""The last one begins at 8,192 s."""

_EDGES = (0.0, *(_FIRST_EDGE_SECONDS * 2.0 ** (index / 2.0) for index in range(_BUCKETS)))

_LEAST_SPELLS = 16.0
"""With fewer than so many nothing is known yet."""

_MOST_SPELLS = 512.0
"""Past it all counts are halved, so that what is recent weighs more."""

_COUNTED_ANEW = 16
"""Spells after which what was worked out is worked out again."""


def _bucket(seconds: float) -> int:
    if seconds < _FIRST_EDGE_SECONDS:
        return 0
    return min(_BUCKETS - 1, 1 + int(2.0 * log2(seconds / _FIRST_EDGE_SECONDS)))


@define(eq=False)
class ReturnTimes:
    """Survival of idle spells: how many lasted into each bucket of time, and how many ended there with a turn.

    A spell without an end counts in the buckets that it has lasted through, so conversations that never come back
    (a sub-agent that is done, a client that does not release) are seen for what they are. Keeping tokens idle for as
    long as it takes to fill the whole cache costs as much as prefilling them again: both take the cache's room or the
    engine's time, from others. So they are worth keeping until the time at which the expected cost of both,
    the wait so far and the prefill for who comes back later, is least.
    """

    _lasted: list[float] = field(factory=lambda: [0.0] * _BUCKETS, init=False)
    _returned: list[float] = field(factory=lambda: [0.0] * _BUCKETS, init=False)
    _news: int = field(default=0, init=False)
    _kept: dict[int, float] = field(factory=dict, init=False)
    """What was worked out, by the bucket of the time to refill."""

    def learn(self, seconds: float, counted_seconds: float, *, is_return: bool) -> None:
        """A spell has lasted for so long, of which ``counted_seconds`` were told before (0: nothing was). O(buckets).

        Raises:
            ValueError: the spell is shorter than nothing, or than what was counted.
        """
        if not 0.0 <= counted_seconds <= seconds:
            raise ValueError(f"a spell of {seconds} s cannot have been counted for {counted_seconds} s")
        last = _bucket(seconds)
        first = _bucket(counted_seconds) + 1 if counted_seconds > 0.0 else 0
        lasted = self._lasted
        for index in range(first, last + 1):
            lasted[index] += 1.0
        if is_return:
            self._returned[last] += 1.0
        if self._lasted[0] > _MOST_SPELLS:
            self._lasted = [count / 2.0 for count in self._lasted]
            self._returned = [count / 2.0 for count in self._returned]
        self._news += 1
        if self._news >= _COUNTED_ANEW:
            self._news = 0
            self._kept.clear()

    def keep_seconds(self, refill_seconds: float) -> float:
        """How long an idle conversation's tokens are worth keeping where the whole cache takes ``refill_seconds``
        (above 0) to fill. O(1), and O(buckets) now and then.

        While little is known, as long as that: what is then lost is at most what knowing all would have cost.
        """
        if self._lasted[0] < _LEAST_SPELLS:
            return refill_seconds
        place = _bucket(refill_seconds)
        if place not in self._kept:
            self._kept[place] = self._cheapest(refill_seconds)
        return self._kept[place]

    def _cheapest(self, refill_seconds: float) -> float:
        """The edge at which the cost of giving up is least, in prefills of the conversation."""
        alive, waited = 1.0, 0.0
        edges: list[tuple[float, float, float]] = [(0.0, alive, waited)]
        for index in range(_BUCKETS - 1):
            lasted = self._lasted[index]
            if lasted < 1.0:
                break
            left = alive * (1.0 - min(1.0, self._returned[index] / lasted))
            waited += (alive + left) / 2.0 * (_EDGES[index + 1] - _EDGES[index])
            alive = left
            edges.append((_EDGES[index + 1], alive, waited))
        # Who never comes back costs no prefill, but that is the same at each edge.
        seconds, _, _ = min(edges, key=lambda edge: edge[2] / refill_seconds + edge[1])
        return seconds
