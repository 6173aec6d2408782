"""Polynomials with exact coefficients."""

from .rational import Rational


class Polynomial:
    """Coefficients from the constant term upwards; trailing zeros are dropped."""

    def __init__(self, *coefficients):
        values = [value if isinstance(value, Rational) else Rational(value) for value in coefficients]
        while values and not values[-1]:
            values.pop()
        self.coefficients = tuple(values)

    @property
    def degree(self):
        """Of the highest term; -1 for the zero polynomial."""
        return len(self.coefficients) - 1

    def __repr__(self):
        return f"Polynomial({', '.join(str(value) for value in self.coefficients)})"

    def __eq__(self, other):
        if not isinstance(other, Polynomial):
            return NotImplemented
        return self.coefficients == other.coefficients

    def __hash__(self):
        return hash(self.coefficients)

    def __call__(self, x):
        """The value at ``x``, by Horner's rule."""
        result = Rational(0)
        for coefficient in reversed(self.coefficients):
            result = result * x + coefficient
        return result

    def __add__(self, other):
        length = max(len(self.coefficients), len(other.coefficients))
        mine = self.coefficients + (Rational(0),) * (length - len(self.coefficients))
        theirs = other.coefficients + (Rational(0),) * (length - len(other.coefficients))
        return Polynomial(*(a + b for a, b in zip(mine, theirs)))

    def __neg__(self):
        return Polynomial(*(-value for value in self.coefficients))

    def __sub__(self, other):
        return self + -other

    def __mul__(self, other):
        if not self.coefficients or not other.coefficients:
            return Polynomial()
        product = [Rational(0)] * (self.degree + other.degree + 1)
        for i, a in enumerate(self.coefficients):
            for j, b in enumerate(other.coefficients):
                product[i + j] += a * b
        return Polynomial(*product)

    def divmod(self, divisor):
        """(quotient, remainder) with a remainder of a smaller degree than the divisor."""
        if not divisor.coefficients:
            raise ZeroDivisionError("division by the zero polynomial")
        remainder = list(self.coefficients)
        quotient = [Rational(0)] * max(len(remainder) - divisor.degree, 0)
        for shift in range(len(remainder) - divisor.degree - 1, -1, -1):
            factor = remainder[shift + divisor.degree] / divisor.coefficients[-1]
            quotient[shift] = factor
            for index, coefficient in enumerate(divisor.coefficients):
                remainder[shift + index] -= factor * coefficient
        return Polynomial(*quotient), Polynomial(*remainder)

    def derivative(self):
        return Polynomial(*(power * value for power, value in enumerate(self.coefficients) if power))
