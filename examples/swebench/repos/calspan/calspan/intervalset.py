"""A set of points kept as sorted intervals that do not touch each other."""

from bisect import bisect_right

from .interval import Interval


class IntervalSet:
    """Sorted, merged intervals. Adding keeps the invariant; lookups are O(log n)."""

    def __init__(self, intervals=()):
        self._items = []
        for interval in sorted(intervals):
            self._append(interval)

    def _append(self, interval):
        """Add an interval that starts no earlier than the last one."""
        if interval.empty:
            return
        if self._items and self._items[-1].touches(interval):
            self._items[-1] = self._items[-1].union(interval)
        else:
            self._items.append(interval)

    def __iter__(self):
        return iter(self._items)

    def __len__(self):
        return len(self._items)

    def __bool__(self):
        return bool(self._items)

    def __eq__(self, other):
        if not isinstance(other, IntervalSet):
            return NotImplemented
        return self._items == other._items

    def __repr__(self):
        return f"IntervalSet({self._items!r})"

    def __contains__(self, point):
        index = bisect_right([item.start for item in self._items], point) - 1
        return index >= 0 and point in self._items[index]

    def add(self, interval):
        """Return a new set with the interval in it."""
        return IntervalSet([*self._items, interval])

    def union(self, other):
        """Points in either set."""
        return IntervalSet([*self._items, *other])

    def intersection(self, other):
        """Points in both sets, in one pass over the two."""
        result = []
        mine, theirs = list(self._items), list(other)
        i = j = 0
        while i < len(mine) and j < len(theirs):
            shared = mine[i].intersection(theirs[j])
            if shared is not None:
                result.append(shared)
            if mine[i].end < theirs[j].end:
                i += 1
            else:
                j += 1
        return IntervalSet(result)

    def minus(self, other):
        """Points in this set that are not in the other."""
        left = list(self._items)
        for hole in other:
            left = [part for item in left for part in item.minus(hole)]
        return IntervalSet(left)

    def gaps(self, within):
        """The parts of ``within`` that this set leaves free."""
        return IntervalSet([within]).minus(self)

    def total(self):
        """Summed length of the intervals; None for an empty set (its unit is unknown)."""
        lengths = [item.length for item in self._items]
        if not lengths:
            return None
        total = lengths[0]
        for length in lengths[1:]:
            total = total + length
        return total
