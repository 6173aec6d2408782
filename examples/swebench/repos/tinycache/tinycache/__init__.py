"""Small caches for one process."""

from .keys import make_key
from .lru import LRUCache
from .memoize import memoize
from .stats import Stats
from .tiered import TieredCache
from .ttl import TTLCache

__all__ = ["LRUCache", "Stats", "TTLCache", "TieredCache", "make_key", "memoize"]
