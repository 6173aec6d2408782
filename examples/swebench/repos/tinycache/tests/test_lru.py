import unittest

from tinycache import LRUCache


class LRUCacheTest(unittest.TestCase):
    def test_keeps_at_most_maxsize(self):
        cache = LRUCache(maxsize=2)
        for number in range(5):
            cache[number] = number
        self.assertEqual(list(cache), [3, 4])

    def test_writing_again_replaces(self):
        cache = LRUCache(maxsize=2)
        cache["a"] = 1
        cache["a"] = 2
        self.assertEqual(cache["a"], 2)
        self.assertEqual(len(cache), 1)

    def test_bad_size_is_refused(self):
        with self.assertRaises(ValueError):
            LRUCache(maxsize=0)

    def test_counters(self):
        cache = LRUCache(maxsize=2)
        cache["a"] = 1
        cache.get("a")
        cache.get("b")
        self.assertEqual((cache.stats.hits, cache.stats.misses), (1, 1))
        self.assertEqual(cache.stats.hit_ratio, 0.5)

    def test_peek_counts_nothing(self):
        cache = LRUCache(maxsize=2)
        cache["a"] = 1
        self.assertEqual(cache.peek("a"), 1)
        self.assertEqual(cache.stats.lookups, 0)

    def test_resize_evicts_the_oldest(self):
        cache = LRUCache(maxsize=3)
        for number in range(3):
            cache[number] = number
        cache.resize(1)
        self.assertEqual(list(cache), [2])

    def test_delete(self):
        cache = LRUCache(maxsize=2)
        cache["a"] = 1
        del cache["a"]
        self.assertNotIn("a", cache)

    def test_eviction_callback(self):
        gone = []
        cache = LRUCache(maxsize=1, on_evict=lambda key, value: gone.append(key))
        cache["a"] = 1
        cache["b"] = 2
        self.assertEqual(gone, ["a"])
