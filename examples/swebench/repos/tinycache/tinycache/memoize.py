"""Remember what a function returned."""

import functools

from .keys import make_key
from .lru import LRUCache

_MISSING = object()


def memoize(maxsize=128, cache=None, typed=False, key=None):
    """Decorate a function so that equal calls are answered from a cache.

    Each decorated function has its own LRU cache unless one is passed in. Exceptions are not
    remembered. The wrapper has ``cache``, ``cache_clear()`` and ``stats``.
    """

    def decorate(function):
        store = LRUCache(maxsize) if cache is None else cache
        build_key = key or (lambda *args, **kwargs: make_key(args, kwargs, typed=typed))

        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            call_key = build_key(*args, **kwargs)
            value = store.get(call_key, _MISSING)
            if value is not _MISSING:
                return value
            value = function(*args, **kwargs)
            store[call_key] = value
            return value

        wrapper.cache = store
        wrapper.cache_clear = store.clear
        wrapper.stats = store.stats
        return wrapper

    return decorate
