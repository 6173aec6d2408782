"""A mapping whose entries expire."""

import time
from collections.abc import MutableMapping

from .stats import Stats


class TTLCache(MutableMapping):
    """Entries live for ``ttl`` seconds after they were written.

    ``clock`` is a function that gives the current time in seconds; tests pass their own.
    """

    def __init__(self, ttl, clock=time.monotonic):
        if ttl <= 0:
            raise ValueError(f"ttl has to be positive, not {ttl}")
        self.ttl = ttl
        self.stats = Stats()
        self._clock = clock
        self._entries = {}

    def _expired(self, deadline):
        return self._clock() >= deadline

    def __getitem__(self, key):
        try:
            value, deadline = self._entries[key]
        except KeyError:
            self.stats.misses += 1
            raise
        if self._expired(deadline):
            del self._entries[key]
            self.stats.expiries += 1
            self.stats.misses += 1
            raise KeyError(key)
        self.stats.hits += 1
        return value

    def __setitem__(self, key, value):
        self.set(key, value)

    def set(self, key, value, ttl=None):
        """Store with its own lifetime; None takes the cache's."""
        lifetime = self.ttl if ttl is None else ttl
        self._entries[key] = (value, self._clock() + lifetime)

    def __delitem__(self, key):
        del self._entries[key]

    def __contains__(self, key):
        entry = self._entries.get(key)
        return entry is not None and not self._expired(entry[1])

    def __iter__(self):
        return iter([key for key, (_, deadline) in self._entries.items() if not self._expired(deadline)])

    def __len__(self):
        """Number of live entries."""
        return sum(1 for _ in self)

    def remaining(self, key):
        """Seconds until the entry expires; None when there is no live entry."""
        entry = self._entries.get(key)
        if entry is None or self._expired(entry[1]):
            return None
        return entry[1] - self._clock()

    def purge(self):
        """Drop the expired entries and return how many there were."""
        dead = [key for key, (_, deadline) in self._entries.items() if self._expired(deadline)]
        for key in dead:
            del self._entries[key]
        self.stats.expiries += len(dead)
        return len(dead)
