import unittest
from math import floor

from exactly import Rational


class RationalTest(unittest.TestCase):
    def test_lowest_terms(self):
        self.assertEqual(str(Rational(6, 8)), "3/4")

    def test_arithmetic(self):
        half, third = Rational(1, 2), Rational(1, 3)
        self.assertEqual(half + third, Rational(5, 6))
        self.assertEqual(half - third, Rational(1, 6))
        self.assertEqual(half * third, Rational(1, 6))
        self.assertEqual(half / third, Rational(3, 2))

    def test_with_integers(self):
        self.assertEqual(1 - Rational(1, 4), Rational(3, 4))
        self.assertEqual(1 / Rational(1, 4), 4)

    def test_order(self):
        self.assertLess(Rational(1, 3), Rational(1, 2))

    def test_zero_denominator(self):
        with self.assertRaises(ZeroDivisionError):
            Rational(1, 0)

    def test_power(self):
        self.assertEqual(Rational(2, 3) ** 3, Rational(8, 27))

    def test_parse(self):
        self.assertEqual(Rational.parse("0.25"), Rational(1, 4))
        self.assertEqual(Rational.parse("3/6"), Rational(1, 2))

    def test_floor_and_round(self):
        self.assertEqual(floor(Rational(7, 2)), 3)
        self.assertEqual([round(Rational(n, 3)) for n in (1, 2, 4)], [0, 1, 1])

    def test_immutable(self):
        with self.assertRaises(AttributeError):
            Rational(1).numerator = 2
