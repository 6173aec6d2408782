"""Bookings of one resource, without overlaps."""

from .interval import Interval
from .intervalset import IntervalSet


class SlotTaken(Exception):
    """The wanted slot overlaps a booking."""

    def __init__(self, wanted, taken):
        super().__init__(f"{wanted!r} overlaps {taken!r}")
        self.wanted = wanted
        self.taken = taken


class Schedule:
    """Named bookings; two of them never overlap."""

    def __init__(self, opening=None, bookings=None):
        self.opening = opening
        self._bookings = dict(bookings or {})

    def __len__(self):
        return len(self._bookings)

    def __iter__(self):
        return iter(sorted(self._bookings.items(), key=lambda item: item[1]))

    def book(self, name, start, end):
        """Book ``[start, end)``; raises SlotTaken, or ValueError outside the opening hours."""
        wanted = Interval(start, end)
        if self.opening is not None and not (
            self.opening.start <= wanted.start and wanted.end <= self.opening.end
        ):
            raise ValueError(f"{wanted!r} is outside the opening hours {self.opening!r}")
        for taken in self._bookings.values():
            if taken.overlaps(wanted):
                raise SlotTaken(wanted, taken)
        self._bookings[name] = wanted
        return wanted

    def cancel(self, name):
        """Forget a booking; False when there was none of that name."""
        return self._bookings.pop(name, None) is not None

    def free(self, within=None):
        """The free intervals of the opening hours (or of ``within``)."""
        within = within or self.opening
        if within is None:
            raise ValueError("a schedule without opening hours needs `within`")
        return IntervalSet(self._bookings.values()).gaps(within)

    def first_free(self, length, within=None):
        """The earliest free interval of at least ``length``, cut to it; None when nothing fits."""
        for gap in self.free(within):
            if gap.length >= length:
                return Interval(gap.start, gap.start + length)
        return None
