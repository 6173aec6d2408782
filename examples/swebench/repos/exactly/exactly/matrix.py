"""Matrices of rational numbers."""

from .rational import Rational


class SingularMatrix(ArithmeticError):
    """The matrix has no inverse."""


class Matrix:
    """Rows of equal length; entries become Rational."""

    def __init__(self, rows):
        self.rows = [[x if isinstance(x, Rational) else Rational(x) for x in row] for row in rows]
        if not self.rows or not self.rows[0]:
            raise ValueError("a matrix needs at least one entry")
        if len({len(row) for row in self.rows}) != 1:
            raise ValueError("rows of different lengths")

    @classmethod
    def zero(cls, height, width):
        return cls([[0] * width for _ in range(height)])

    @classmethod
    def identity(cls, size):
        result = cls.zero(size, size)
        for index in range(size):
            result[index, index] = Rational(1)
        return result

    @property
    def shape(self):
        return len(self.rows), len(self.rows[0])

    def __getitem__(self, position):
        row, column = position
        return self.rows[row][column]

    def __setitem__(self, position, value):
        row, column = position
        self.rows[row][column] = value if isinstance(value, Rational) else Rational(value)

    def __eq__(self, other):
        if not isinstance(other, Matrix):
            return NotImplemented
        return self.rows == other.rows

    def __repr__(self):
        return f"Matrix([{', '.join('[' + ', '.join(map(str, row)) + ']' for row in self.rows)}])"

    def transpose(self):
        return Matrix(zip(*self.rows))

    def __add__(self, other):
        if self.shape != other.shape:
            raise ValueError(f"shapes {self.shape} and {other.shape} do not fit")
        return Matrix([[a + b for a, b in zip(mine, theirs)] for mine, theirs in zip(self.rows, other.rows)])

    def __matmul__(self, other):
        if self.shape[1] != other.shape[0]:
            raise ValueError(f"shapes {self.shape} and {other.shape} do not fit")
        columns = list(zip(*other.rows))
        return Matrix(
            [[sum((a * b for a, b in zip(row, column)), Rational(0)) for column in columns] for row in self.rows]
        )

    def _eliminated(self, right):
        """Gauss and Jordan on copies: (determinant, right side); the determinant is 0 when singular."""
        size, width = self.shape
        if size != width:
            raise ValueError(f"not a square matrix: {self.shape}")
        left = [list(row) for row in self.rows]
        right = [list(row) for row in right.rows]
        determinant = Rational(1)
        for column in range(size):
            pivot = next((row for row in range(column, size) if left[row][column]), None)
            if pivot is None:
                return Rational(0), right
            if pivot != column:
                left[column], left[pivot] = left[pivot], left[column]
                right[column], right[pivot] = right[pivot], right[column]
                determinant = -determinant
            lead = left[column][column]
            determinant *= lead
            left[column] = [x / lead for x in left[column]]
            right[column] = [x / lead for x in right[column]]
            for row in range(size):
                if row != column and left[row][column]:
                    factor = left[row][column]
                    left[row] = [x - factor * y for x, y in zip(left[row], left[column])]
                    right[row] = [x - factor * y for x, y in zip(right[row], right[column])]
        return determinant, right

    def determinant(self):
        return self._eliminated(Matrix.zero(self.shape[0], 1))[0]

    def inverse(self):
        """Raises SingularMatrix when there is none."""
        determinant, rows = self._eliminated(Matrix.identity(self.shape[0]))
        if not determinant:
            raise SingularMatrix("the determinant is 0")
        return Matrix(rows)

    def solve(self, right):
        """The column x with ``self @ x == right``; raises SingularMatrix."""
        determinant, rows = self._eliminated(right)
        if not determinant:
            raise SingularMatrix("the determinant is 0")
        return Matrix(rows)
