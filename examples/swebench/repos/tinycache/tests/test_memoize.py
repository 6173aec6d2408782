import unittest

from tinycache import LRUCache, TieredCache, make_key, memoize


class MemoizeTest(unittest.TestCase):
    def test_second_call_comes_from_the_cache(self):
        calls = []

        @memoize()
        def double(number):
            calls.append(number)
            return number * 2

        self.assertEqual([double(2), double(2), double(3)], [4, 4, 6])
        self.assertEqual(calls, [2, 3])

    def test_exceptions_are_not_remembered(self):
        calls = []

        @memoize()
        def fail():
            calls.append(1)
            raise RuntimeError("no")

        for _ in range(2):
            with self.assertRaises(RuntimeError):
                fail()
        self.assertEqual(len(calls), 2)

    def test_keyword_order_does_not_matter(self):
        self.assertEqual(make_key((), {"a": 1, "b": 2}), make_key((), {"b": 2, "a": 1}))

    def test_unhashable_arguments(self):
        self.assertEqual(make_key(([1, 2],), {}), make_key(([1, 2],), {}))
        hash(make_key(([1, {"a": [2]}],), {}))

    def test_typed(self):
        self.assertNotEqual(make_key((1,), {}, typed=True), make_key((1.0,), {}, typed=True))


class TieredCacheTest(unittest.TestCase):
    def test_found_in_the_back_moves_to_the_front(self):
        tiers = TieredCache(LRUCache(2), {"a": 1})
        self.assertEqual(tiers.get("a"), 1)
        self.assertIn("a", tiers.front)

    def test_missing(self):
        self.assertEqual(TieredCache({}, {}).get("a", 7), 7)

    def test_warm(self):
        tiers = TieredCache({}, {})
        self.assertEqual(tiers.warm([("a", 1), ("b", 2)]), 2)
        self.assertEqual(tiers.back, {"a": 1, "b": 2})
