import unittest

from exactly import ExpressionError, Rational, evaluate


class ExpressionTest(unittest.TestCase):
    def test_precedence(self):
        self.assertEqual(evaluate("1 + 2 * 3"), 7)
        self.assertEqual(evaluate("(1 + 2) * 3"), 9)

    def test_exact(self):
        self.assertEqual(evaluate("1/2 + 1/3"), Rational(5, 6))

    def test_names(self):
        self.assertEqual(evaluate("2 * x", x=21), 42)

    def test_power(self):
        self.assertEqual(evaluate("2 ^ 3 * 2"), 16)

    def test_errors(self):
        for text in ("", "1 +", "(1", "1 )", "x", "2 $ 3"):
            with self.subTest(text=text), self.assertRaises(ExpressionError):
                evaluate(text)
