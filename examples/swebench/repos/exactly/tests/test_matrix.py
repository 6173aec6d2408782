import unittest

from exactly import Matrix, Rational, SingularMatrix


class MatrixTest(unittest.TestCase):
    def test_product(self):
        self.assertEqual(Matrix([[1, 2], [3, 4]]) @ Matrix([[1], [1]]), Matrix([[3], [7]]))

    def test_shapes_have_to_fit(self):
        with self.assertRaises(ValueError):
            Matrix([[1, 2]]) @ Matrix([[1, 2]])

    def test_determinant(self):
        self.assertEqual(Matrix([[1, 2], [3, 4]]).determinant(), -2)

    def test_solve(self):
        self.assertEqual(Matrix([[2, 1], [1, 3]]).solve(Matrix([[3], [5]])), Matrix([[Rational(4, 5)], [Rational(7, 5)]]))

    def test_singular(self):
        with self.assertRaises(SingularMatrix):
            Matrix([[1, 2], [2, 4]]).inverse()

    def test_transpose(self):
        self.assertEqual(Matrix([[1, 2, 3]]).transpose().shape, (3, 1))

    def test_ragged(self):
        with self.assertRaises(ValueError):
            Matrix([[1, 2], [3]])
