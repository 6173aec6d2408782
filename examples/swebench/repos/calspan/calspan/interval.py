"""A half-open interval: the start belongs to it, the end does not."""

from functools import total_ordering


@total_ordering
class Interval:
    """``[start, end)`` over anything that can be compared (int, date, datetime)."""

    __slots__ = ("start", "end")

    def __init__(self, start, end):
        if end < start:
            raise ValueError(f"interval ends before it starts: {start!r} > {end!r}")
        self.start = start
        self.end = end

    def __repr__(self):
        return f"Interval({self.start!r}, {self.end!r})"

    def __eq__(self, other):
        if not isinstance(other, Interval):
            return NotImplemented
        return (self.start, self.end) == (other.start, other.end)

    def __lt__(self, other):
        if not isinstance(other, Interval):
            return NotImplemented
        return (self.start, self.end) < (other.start, other.end)

    def __hash__(self):
        return hash((self.start, self.end))

    def __contains__(self, point):
        return self.start <= point < self.end

    @property
    def empty(self):
        """True when the interval holds no point at all."""
        return self.start == self.end

    @property
    def length(self):
        """Distance from start to end, in whatever unit subtraction gives."""
        return self.end - self.start

    def overlaps(self, other):
        """True when the two intervals share at least one point."""
        if self.empty or other.empty:
            return False
        return self.start < other.end and other.start < self.end

    def touches(self, other):
        """True when the two intervals overlap or one begins where the other ends."""
        return self.start <= other.end and other.start <= self.end

    def intersection(self, other):
        """The shared part, or None when there is none."""
        if not self.overlaps(other):
            return None
        return Interval(max(self.start, other.start), min(self.end, other.end))

    def union(self, other):
        """The interval covering both; they have to touch."""
        if not self.touches(other):
            raise ValueError(f"{self!r} and {other!r} do not touch")
        return Interval(min(self.start, other.start), max(self.end, other.end))

    def minus(self, other):
        """What is left of this interval without the other: zero, one or two intervals."""
        if not self.overlaps(other):
            return [] if self.empty else [self]
        parts = []
        if self.start < other.start:
            parts.append(Interval(self.start, other.start))
        if other.end < self.end:
            parts.append(Interval(other.end, self.end))
        return parts
