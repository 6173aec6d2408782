"""A mapping that forgets what was used least recently."""

from collections import OrderedDict
from collections.abc import MutableMapping

from .stats import Stats

_MISSING = object()


class LRUCache(MutableMapping):
    """At most ``maxsize`` entries; reading or writing an entry makes it the most recent.

    ``on_evict(key, value)`` is called for each entry that is pushed out, after it has gone.
    """

    def __init__(self, maxsize, on_evict=None):
        if maxsize < 1:
            raise ValueError(f"maxsize has to be at least 1, not {maxsize}")
        self.maxsize = maxsize
        self.stats = Stats()
        self._on_evict = on_evict
        self._entries = OrderedDict()

    def __len__(self):
        return len(self._entries)

    def __iter__(self):
        """Keys from the least to the most recently used."""
        return iter(list(self._entries))

    def __contains__(self, key):
        """Membership neither counts as a use nor as a lookup."""
        return key in self._entries

    def __getitem__(self, key):
        value = self._entries.get(key, _MISSING)
        if value is _MISSING:
            self.stats.misses += 1
            raise KeyError(key)
        self.stats.hits += 1
        self._entries.move_to_end(key)
        return value

    def get(self, key, default=None):
        try:
            return self[key]
        except KeyError:
            return default

    def peek(self, key, default=None):
        """The value without counting a lookup or a use."""
        return self._entries.get(key, default)

    def __setitem__(self, key, value):
        self._entries[key] = value
        self._entries.move_to_end(key)
        self._shrink(self.maxsize)

    def __delitem__(self, key):
        del self._entries[key]

    def resize(self, maxsize):
        """Change the limit; entries beyond it are evicted, oldest first."""
        if maxsize < 1:
            raise ValueError(f"maxsize has to be at least 1, not {maxsize}")
        self.maxsize = maxsize
        self._shrink(maxsize)

    def _shrink(self, limit):
        while len(self._entries) > limit:
            key, value = self._entries.popitem(last=False)
            self.stats.evictions += 1
            if self._on_evict is not None:
                self._on_evict(key, value)
