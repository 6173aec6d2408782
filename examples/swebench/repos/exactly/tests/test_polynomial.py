import unittest

from exactly import Polynomial, Rational


class PolynomialTest(unittest.TestCase):
    def test_value(self):
        self.assertEqual(Polynomial(1, 2, 3)(2), 17)

    def test_sum_and_product(self):
        self.assertEqual(Polynomial(1, 1) + Polynomial(2), Polynomial(3, 1))
        self.assertEqual(Polynomial(1, 1) * Polynomial(-1, 1), Polynomial(-1, 0, 1))

    def test_degree(self):
        self.assertEqual(Polynomial(1, 0, 0).degree, 0)
        self.assertEqual(Polynomial().degree, -1)

    def test_divmod(self):
        quotient, remainder = Polynomial(-1, 0, 1).divmod(Polynomial(1, 1))
        self.assertEqual((quotient, remainder), (Polynomial(-1, 1), Polynomial()))

    def test_derivative(self):
        self.assertEqual(Polynomial(5, 3, Rational(1, 2)).derivative(), Polynomial(3, 1))
