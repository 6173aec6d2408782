import unittest

from calspan import Interval, IntervalSet


class IntervalTest(unittest.TestCase):
    def test_contains_start_but_not_end(self):
        self.assertIn(1, Interval(1, 5))
        self.assertNotIn(5, Interval(1, 5))

    def test_reversed_is_refused(self):
        with self.assertRaises(ValueError):
            Interval(5, 1)

    def test_overlap_of_clearly_separate_and_nested(self):
        self.assertFalse(Interval(1, 2).overlaps(Interval(7, 9)))
        self.assertTrue(Interval(1, 9).overlaps(Interval(3, 4)))

    def test_intersection(self):
        self.assertEqual(Interval(1, 6).intersection(Interval(4, 9)), Interval(4, 6))

    def test_union_of_overlapping(self):
        self.assertEqual(Interval(1, 6).union(Interval(4, 9)), Interval(1, 9))

    def test_union_of_distant_is_refused(self):
        with self.assertRaises(ValueError):
            Interval(1, 2).union(Interval(5, 6))

    def test_minus_cuts_the_middle(self):
        self.assertEqual(Interval(0, 9).minus(Interval(3, 5)), [Interval(0, 3), Interval(5, 9)])

    def test_hash_and_equality(self):
        self.assertEqual(len({Interval(1, 2), Interval(1, 2), Interval(1, 3)}), 2)


class IntervalSetTest(unittest.TestCase):
    def test_overlapping_are_merged(self):
        self.assertEqual(list(IntervalSet([Interval(4, 9), Interval(1, 6)])), [Interval(1, 9)])

    def test_separate_are_kept_in_order(self):
        spans = IntervalSet([Interval(10, 12), Interval(1, 3)])
        self.assertEqual(list(spans), [Interval(1, 3), Interval(10, 12)])

    def test_membership(self):
        spans = IntervalSet([Interval(1, 3), Interval(10, 12)])
        self.assertIn(2, spans)
        self.assertNotIn(5, spans)

    def test_minus(self):
        spans = IntervalSet([Interval(0, 10)]).minus(IntervalSet([Interval(2, 4)]))
        self.assertEqual(list(spans), [Interval(0, 2), Interval(4, 10)])

    def test_total(self):
        self.assertEqual(IntervalSet([Interval(0, 2), Interval(5, 9)]).total(), 6)
        self.assertIsNone(IntervalSet().total())
