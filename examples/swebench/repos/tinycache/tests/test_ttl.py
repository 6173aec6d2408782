import unittest

from tinycache import TTLCache


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class TTLCacheTest(unittest.TestCase):
    def setUp(self):
        self.clock = Clock()
        self.cache = TTLCache(ttl=10, clock=self.clock)

    def test_lives_within_its_time(self):
        self.cache["a"] = 1
        self.clock.now += 5
        self.assertEqual(self.cache["a"], 1)

    def test_expires_after_its_time(self):
        self.cache["a"] = 1
        self.clock.now += 11
        with self.assertRaises(KeyError):
            self.cache["a"]

    def test_remaining(self):
        self.cache["a"] = 1
        self.clock.now += 4
        self.assertEqual(self.cache.remaining("a"), 6)
        self.assertIsNone(self.cache.remaining("b"))

    def test_own_lifetime(self):
        self.cache.set("a", 1, ttl=2)
        self.clock.now += 3
        self.assertNotIn("a", self.cache)

    def test_purge(self):
        self.cache["a"] = 1
        self.clock.now += 11
        self.assertEqual(self.cache.purge(), 1)
        self.assertEqual(self.cache.stats.expiries, 1)

    def test_bad_ttl_is_refused(self):
        with self.assertRaises(ValueError):
            TTLCache(ttl=0)
