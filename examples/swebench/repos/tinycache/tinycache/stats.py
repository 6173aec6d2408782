"""Counters that every cache carries."""


class Stats:
    """Hits, misses, evictions and expiries since the last reset."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self.expiries = 0

    @property
    def lookups(self):
        return self.hits + self.misses

    @property
    def hit_ratio(self):
        """Hits per lookup, from 0.0 to 1.0; 0.0 before the first lookup."""
        if not self.lookups:
            return 0.0
        return self.hits / self.lookups

    def merge(self, other):
        """A new Stats with the sums of both."""
        merged = Stats()
        merged.hits = self.hits + other.hits
        merged.misses = self.misses + other.misses
        merged.evictions = self.evictions + other.evictions
        merged.expiries = self.expiries + other.expiries
        return merged

    def __repr__(self):
        return (
            f"Stats(hits={self.hits}, misses={self.misses}, "
            f"evictions={self.evictions}, expiries={self.expiries})"
        )
